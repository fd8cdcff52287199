package durability

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/storage/sql/sqltest"
	"chancery/test/homeserver"
)

// healthy waits until /health says a status.
func healthy(t *testing.T, s *homeserver.Server, want int) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		resp, err := s.HTTP().Get(s.URL + "/health")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("/health says %d, want %d", resp.StatusCode, want)
		}
	}
}

// When PostgreSQL crashes under load and comes back, the server goes on by itself: what it said yes to is there, and what
// clients repeat until it does stands in the room once.
func TestPostgreSQLRestartsUnderLoad(t *testing.T) {
	cluster := sqltest.Server(t)
	s := homeserver.Start(t, homeserver.Options{Database: cluster.Database(t).URL, Process: true})
	owner := s.Register(t, "owner")
	room := owner.CreateRoom(J{"preset": "public_chat"})
	watch := newWatcher(t, owner, room, owner.Sync("").Get("next_batch").Str)
	writers := make([]*homeserver.User, 4)
	for i := range writers {
		writers[i] = s.Register(t, fmt.Sprint("writer", i))
		writers[i].Join(room)
	}
	const each = 60
	var mu sync.Mutex // guards the rest
	var bodies []string
	repeated := 0
	said := make(chan struct{}, len(writers)*each)
	var group sync.WaitGroup
	for w, u := range writers {
		group.Go(func() {
			for n := range each {
				body, first := fmt.Sprintf("writer %d message %d", w, n), ""
				for tries := 0; first == ""; tries++ {
					a, err := u.Try(t.Context(), "PUT", homeserver.Room(room, "send", "m.room.message", body), J{"msgtype": "m.text", "body": body})
					switch {
					case err != nil:
						t.Errorf("the server does not answer: %v", err)
						return
					case a.Status == http.StatusOK:
						first = a.Get("event_id").Str
					case a.Status < 500 || tries > 600:
						t.Errorf("%s: %s", body, a)
						return
					default:
						mu.Lock()
						repeated++
						mu.Unlock()
						time.Sleep(100 * time.Millisecond)
					}
				}
				mu.Lock()
				bodies = append(bodies, body)
				mu.Unlock()
				said <- struct{}{}
			}
		})
	}
	go func() { group.Wait(); close(said) }()
	for n := 0; ; n++ {
		if _, more := <-said; !more {
			break
		}
		if n == 40 || n == 120 {
			cluster.Restart(t)
		}
	}
	healthy(t, s, http.StatusOK)
	if len(bodies) != len(writers)*each {
		t.Errorf("%d messages were sent, want %d", len(bodies), len(writers)*each)
	}
	watch.forgive("sync: 50") // while there was no database
	watch.sawAll(bodies)
	events := eachOnce(t, owner, room, bodies)
	watch.sameOrder(events)
	t.Logf("%d times a message was repeated", repeated)
}

// Two processes never work on one data directory: the second says so and leaves the first alone.
func TestTwoProcessesOnOneDataDirectory(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh(), Process: true})
		alice := s.Register(t, "alice")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // were it to serve after all
		defer cancel()
		out, err := s.Verb(ctx, "serve")
		if err == nil || !strings.HasSuffix(strings.TrimSpace(out), "chancery: another process uses the data directory "+s.Dir) {
			t.Errorf("a second process: %v %s", err, out)
		}
		alice.Send(room, "still here")
		s.Kill()
		s.Start() // nothing of the dead process is in the way
		alice.Send(room, "and again")
	})
}
