package durability

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/test/homeserver"
	"chancery/test/port"

	"github.com/nats-io/nats-server/v2/server"
)

// The log can be lost: what it told is in SQL.
func TestLostLogIsNotMissed(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh(), Process: true})
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(room)
		watch := newWatcher(t, bob, room, bob.Sync("").Get("next_batch").Str)
		var bodies []string
		say := func(when string) {
			for i := range 30 {
				body := fmt.Sprintf("%s %d", when, i)
				alice.Send(room, body)
				bodies = append(bodies, body)
			}
		}
		dir := filepath.Join(s.Dir, "log")
		say("before")
		s.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		s.Start()
		say("after the log was deleted")
		s.Stop()
		truncated := 0
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			truncated++
			return os.Truncate(path, info.Size()/2)
		})
		if err != nil || truncated == 0 {
			t.Fatalf("%d files were truncated: %v", truncated, err)
		}
		s.Start()
		say("after the log was truncated")
		watch.sawAll(bodies)
		watch.sameOrder(history(t, alice, room))
	})
}

// startNATS runs a NATS server as an operator would, with its streams in dir.
func startNATS(t *testing.T, port int, dir string) *server.Server {
	t.Helper()
	n, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: port, JetStream: true, StoreDir: dir, NoSigs: true, NoLog: true})
	if err != nil {
		t.Fatal(err)
	}
	n.Start()
	if !n.ReadyForConnections(time.Minute) {
		t.Fatal("the NATS server is not ready")
	}
	return n
}

func stopNATS(n *server.Server) {
	n.Shutdown()
	n.WaitForShutdown()
}

// outage is how long NATS is away; longer than its client takes to notice, and than anything here polls or retries.
const outage = time.Minute

// While NATS is away the server answers, and nobody misses anything.
func TestServerGoesOnWithoutNATS(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		t.Parallel()
		database := fresh()
		dir := t.TempDir()
		port, err := strconv.Atoi(port.Free(t))
		if err != nil {
			t.Fatal(err)
		}
		n := startNATS(t, port, dir)
		t.Cleanup(func() { stopNATS(n) })
		s := homeserver.Start(t, homeserver.Options{Database: database, Settings: map[string]string{"CHANCERY_NATS_URL": "nats://127.0.0.1:" + strconv.Itoa(port)}})
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(room)
		watch := newWatcher(t, bob, room, bob.Sync("").Get("next_batch").Str)
		var bodies []string
		say := func(body string) {
			alice.Send(room, body)
			bodies = append(bodies, body)
		}
		for i := range 10 {
			say(fmt.Sprint("before ", i))
		}
		stopNATS(n)
		slowest := time.Duration(0)
		for until, i := time.Now().Add(outage), 0; time.Now().Before(until); i++ {
			began := time.Now()
			say(fmt.Sprint("without NATS ", i))
			slowest = max(slowest, time.Since(began))
			time.Sleep(500 * time.Millisecond)
		}
		watch.sawAll(bodies) // not only afterwards
		if slowest > outage/2 {
			t.Errorf("a send took %v while NATS was away", slowest)
		}
		n = startNATS(t, port, dir)
		for i := range 10 {
			say(fmt.Sprint("after ", i))
			time.Sleep(100 * time.Millisecond)
		}
		watch.sawAll(bodies)
		watch.sameOrder(history(t, alice, room))

		// A start without NATS cannot succeed, and says so.
		s.Stop()
		stopNATS(n)
		if err := s.TryStart(); err == nil || !strings.Contains(err.Error(), "NATS") {
			t.Errorf("a start without NATS: %v", err)
		}
		n = startNATS(t, port, dir)
		s.Start()
		say("at last")
		watch.sawAll(bodies)
	})
}
