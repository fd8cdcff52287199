package homeserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"
)

const terminate = syscall.SIGTERM

var build = sync.OnceValues(buildBinary)

// Binary is chancery as an operator builds it, without C. It is built once a test binary, and stays for the
// next: the go command leaves it alone while nothing has changed.
func Binary(t testing.TB) string {
	t.Helper()
	path, err := build()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func buildBinary() (string, error) {
	goCommand, err := exec.LookPath("go")
	if err != nil {
		return "", fmt.Errorf("the go command is needed to build the server that is killed: %w", err)
	}
	mod, err := exec.Command(goCommand, "env", "GOMOD").Output()
	if err != nil {
		return "", fmt.Errorf("find the module: %w", err)
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("chancery-test-%d-%x", os.Getuid(), sha256.Sum256(mod))[:60])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "chancery")
	cmd := exec.Command(goCommand, "build", "-o", binary, "chancery/cmd/chancery")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the server: %w\n%s", err, out)
	}
	return binary, nil
}

// startProcess runs the binary as an operator does and waits until clients are answered.
func (s *Server) startProcess() error {
	cmd := exec.Command(Binary(s.t), "serve")
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, s.env...)
	cmd.Dir = filepath.Dir(s.Dir)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, s.log
	ended, err := Spawn(cmd)
	if err != nil {
		return err
	}
	s.process, s.ended = cmd.Process, ended
	for deadline := time.Now().Add(startTime); ; time.Sleep(3 * time.Millisecond) {
		select {
		case err := <-ended:
			s.process = nil
			return fmt.Errorf("the server ended: %w", err)
		default:
		}
		if s.answers() {
			return nil
		}
		if time.Now().After(deadline) {
			s.Kill()
			return fmt.Errorf("the server was not ready after %v", startTime)
		}
	}
}

// Verb runs a verb of the operator's on this server, whether it is up or not, and gives what it said.
func (s *Server) Verb(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, Binary(s.t), args...)
	cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir()}, s.env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Spawn starts a command that ends with the test binary, also when that panics or is killed. The channel tells
// how the command ended.
func Spawn(cmd *exec.Cmd) (<-chan error, error) {
	cmd.SysProcAttr = attributes()
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		// Linux ends the server when the thread that started it ends: this one lives as long as the server.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	return ended, <-started
}

func (s *Server) answers() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/_matrix/client/versions", nil)
	if err != nil {
		return false
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Kill ends the process at once, wherever it is.
func (s *Server) Kill() {
	s.t.Helper()
	if s.process == nil {
		s.t.Fatalf("%s is no process that runs", s.Name)
	}
	s.endProcess(syscall.SIGKILL)
	s.client.CloseIdleConnections()
}

// Pid is the process's.
func (s *Server) Pid() int { return s.process.Pid }

func (s *Server) endProcess(signal os.Signal) {
	s.t.Helper()
	process := s.process
	s.process = nil
	if err := process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		s.t.Errorf("end %s: %v", s.Name, err)
	}
	select {
	case err := <-s.ended:
		if err != nil && signal == terminate {
			s.t.Errorf("%s ended: %v", s.Name, err)
		}
	case <-time.After(endTime):
		process.Kill()
		s.t.Fatalf("%s does not stop", s.Name)
	}
}
