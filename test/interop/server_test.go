//go:build goolm

package interop

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/test/homeserver"
	"chancery/test/port"
)

// server is one of the two servers of a story: ours, or somebody else's.
type server struct {
	*homeserver.Server
	software string
	whole    string            // what it logs, with the room, when it has the members that a join left out
	lacks    map[string]string // stories it cannot be part of, and abilities it has not, and why
	// fresh makes the command that starts it; nil for ours.
	fresh   func() *exec.Cmd
	log     *os.File
	process *os.Process
	ended   <-chan error
}

// can says whether a server has an ability that a story looks at beside others, and tells if not.
func (s *server) can(t *testing.T, ability string) bool {
	t.Helper()
	why, lacks := s.lacks[ability]
	if lacks {
		t.Logf("%s has no %s: %s", s.software, ability, why)
	}
	return !lacks
}

// redacts says whether a server can redact events of a room of this version.
func (s *server) redacts(t *testing.T, version string) bool {
	t.Helper()
	return version != "11" && version != "12" || s.can(t, "redactions since version 11")
}

// down ends the server: ours as if the power was cut, others politely.
func (s *server) down(t testing.TB) {
	t.Helper()
	if s.fresh == nil {
		s.Kill()
		return
	}
	process := s.process
	if process == nil {
		return
	}
	s.process = nil
	s.HTTP().CloseIdleConnections()
	if err := process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("end %s: %v", s.software, err)
	}
	select {
	case <-s.ended:
	case <-time.After(30 * time.Second):
		process.Kill()
		<-s.ended
	}
}

// up starts the server, again after down, and waits until clients are answered.
func (s *server) up(t testing.TB) {
	t.Helper()
	if s.fresh == nil {
		s.Start()
		return
	}
	cmd := s.fresh()
	cmd.Stdout, cmd.Stderr = s.log, s.log
	ended, err := homeserver.Spawn(cmd)
	if err != nil {
		t.Fatalf("start %s: %v", s.software, err)
	}
	s.process, s.ended = cmd.Process, ended
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		select {
		case err := <-ended:
			s.process = nil
			t.Fatalf("%s ended: %v\n%s", s.software, err, s.tail())
		default:
		}
		if resp, err := s.HTTP().Get(s.URL + "/_matrix/client/versions"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s did not become ready\n%s", s.software, s.tail())
		}
	}
}

// tail is the end of the log of a server that is not ours.
func (s *server) tail() string {
	text := s.logged()
	return text[max(0, len(text)-8000):]
}

// logged is all that a server has logged.
func (s *server) logged() string {
	if s.fresh == nil {
		return s.Log()
	}
	text, err := os.ReadFile(s.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// becomesWhole waits until a server says that it has the members which were left out of its join.
func (s *server) becomesWhole(t *testing.T, id string) {
	t.Helper()
	eventually(t, s.software+" joined "+id+" without its members and fetched them", func() bool {
		for line := range strings.Lines(s.logged()) {
			if strings.Contains(line, s.whole) && strings.Contains(line, id) {
				return true
			}
		}
		return false
	})
}

var people atomic.Int64

// user makes an account that no other story has.
func (s *server) user(t testing.TB, name string) *homeserver.User {
	t.Helper()
	return s.Register(t, fmt.Sprintf("%s%d", name, people.Add(1)))
}

func ours(t testing.TB, ca *homeserver.CA, database string) *server {
	t.Helper()
	return &server{software: "chancery", whole: "nothing of a room is missing any more", Server: homeserver.Start(t, homeserver.Options{CA: ca, Database: database, Process: true,
		Settings: map[string]string{"CHANCERY_PRESENCE_FEDERATE": "true", "CHANCERY_DIRECTORY_PUBLIC": "true"}})}
}

// foreign starts a server that is not ours, which ends with the test. configure writes its files to a folder
// and gives the command that starts it there.
func foreign(t testing.TB, software string, configure func(dir, federation, client string) func() *exec.Cmd) *server {
	t.Helper()
	federation, client := port.Free(t), port.Free(t)
	dir := t.TempDir()
	s := &server{software: software, Server: homeserver.Other(t, "127.0.0.1:"+federation, "http://127.0.0.1:"+client)}
	s.fresh = configure(dir, federation, client)
	var err error
	if s.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.down(t)
		keep(t, s.software+".log", s.log.Name())
		s.log.Close()
	})
	s.up(t)
	return s
}

// keep copies a log to the folder that INTEROP_LOGS names, for whoever looks for the cause of a failure.
func keep(t testing.TB, name, file string) {
	dir := os.Getenv("INTEROP_LOGS")
	if dir == "" {
		return
	}
	text, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, filepath.Base(filepath.Dir(t.Name()))+"-"+filepath.Base(t.Name())+"-"+name), text, 0o600)
	}
	if err != nil {
		t.Errorf("keep the log: %v", err)
	}
}

func write(t testing.TB, file, text string) string {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
