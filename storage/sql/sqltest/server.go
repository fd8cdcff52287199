package sqltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"chancery/test/port"

	"github.com/jackc/pgx/v5"
)

// programs finds the folder that holds initdb and postgres.
func programs() string {
	candidates, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	for i, j := 0, len(candidates)-1; i < j; i, j = i+1, j-1 {
		candidates[i], candidates[j] = candidates[j], candidates[i]
	}
	if found, err := exec.LookPath("initdb"); err == nil {
		if real, err := filepath.EvalSymlinks(found); err == nil {
			found = real // postgres looks for its files beside itself
		}
		candidates = append(candidates, filepath.Dir(found))
	}
	for _, dir := range candidates {
		_, a := os.Stat(filepath.Join(dir, "initdb"))
		_, b := os.Stat(filepath.Join(dir, "postgres"))
		if a == nil && b == nil {
			return dir
		}
	}
	return ""
}

// account is who the server runs as: PostgreSQL refuses root.
type account struct {
	uid, gid int
	other    bool
}

func serverAccount() (account, error) {
	if os.Getuid() != 0 {
		return account{uid: os.Getuid(), gid: os.Getgid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		return account{uid, gid, true}, nil
	}
	return account{}, errors.New("there is no user postgres or nobody to run it as")
}

func (a account) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = attributes()
	if a.other {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return cmd
}

// start makes a cluster in a temporary folder and runs it until this process ends.
func start(bin string) (*Cluster, error) {
	who, err := serverAccount()
	if err != nil {
		return nil, err
	}
	sweep()
	// Not t.TempDir: the server outlives the test that asked first.
	dir, err := os.MkdirTemp("", fmt.Sprintf("chancery-postgres-%d-", os.Getpid()))
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.Chown(dir, who.uid, who.gid); err != nil {
		return nil, err
	}
	template, err := template(bin, who)
	if err != nil {
		return nil, err
	}
	data := filepath.Join(dir, "data")
	if out, err := who.command("cp", "-a", template, data).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("copy the empty cluster: %w: %s", err, out)
	}
	port, err := port.Find()
	if err != nil {
		return nil, err
	}
	c := &Cluster{URL: fmt.Sprintf("postgres://chancery@127.0.0.1:%s/postgres?sslmode=disable", port), bin: bin, dir: dir, data: data, who: who, port: port}
	return c, c.serve()
}

// Restart ends the server as a crash does and starts it again. All tests of the binary have the same one.
func (c *Cluster) Restart(t testing.TB) {
	t.Helper()
	err := c.process.Signal(syscall.SIGQUIT)
	if err == nil {
		<-c.ended
		err = c.serve()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (c *Cluster) serve() error {
	cmd := c.who.command(filepath.Join(c.bin, "postgres"), "-D", c.data, "-p", c.port,
		"-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
		"-c", "max_connections=300", "-c", "shared_buffers=32MB", "-c", "max_wal_size=512MB",
		"-c", "autovacuum_naptime=10s", "-c", "logging_collector=off")
	log, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	started := make(chan error, 1)
	ended := make(chan error, 1)
	go func() {
		// The server is told to end when the thread that started it ends: this one lives as
		// long as the process.
		runtime.LockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
		select {}
	}()
	if err := <-started; err != nil {
		return err
	}
	c.process, c.ended = cmd.Process, ended
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("postgres ended: %w: %s", err, text)
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		conn, err := pgx.Connect(ctx, c.URL)
		if err == nil {
			conn.Close(ctx)
			cancel()
			return nil
		}
		cancel()
		if time.Now().After(deadline) {
			return fmt.Errorf("postgres does not answer: %w", err)
		}
	}
}

// template is an empty cluster, made once for a user and version: initdb takes seconds, a copy
// of its files does not.
func template(bin string, who account) (string, error) {
	version, err := exec.Command(filepath.Join(bin, "postgres"), "--version").Output()
	if err != nil {
		return "", err
	}
	words := strings.Fields(string(version))
	root := filepath.Join(os.TempDir(), fmt.Sprintf("chancery-postgres-template-%d-%s", who.uid, words[2]))
	lock, err := os.OpenFile(root+fmt.Sprintf("-%d.lock", os.Getuid()), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", err
	}
	data := filepath.Join(root, "data")
	if _, err := os.Stat(filepath.Join(root, "made")); err == nil {
		return data, nil
	}
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		return "", err
	}
	if err := os.Chown(root, who.uid, who.gid); err != nil {
		return "", err
	}
	out, err := who.command(filepath.Join(bin, "initdb"), "-D", data, "-U", "chancery", "-A", "trust",
		"-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("initdb: %w: %s", err, out)
	}
	return data, os.WriteFile(filepath.Join(root, "made"), version, 0o644)
}

// sweep removes what binaries that have ended left behind: the server ends with its binary,
// its files do not.
func sweep() {
	left, _ := filepath.Glob(filepath.Join(os.TempDir(), "chancery-postgres-[0-9]*-*"))
	for _, dir := range left {
		words := strings.Split(filepath.Base(dir), "-")
		pid, err := strconv.Atoi(words[2])
		if err != nil || syscall.Kill(pid, 0) != syscall.ESRCH {
			continue
		}
		if text, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid")); err == nil {
			first, _, _ := strings.Cut(string(text), "\n")
			if server, err := strconv.Atoi(first); err == nil && syscall.Kill(server, 0) != syscall.ESRCH {
				continue // it is on its way out
			}
		}
		os.RemoveAll(dir) // of another user: stays
	}
}
