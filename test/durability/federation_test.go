package durability

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"
)

// toDevice collects the messages of one type to a device, over as many syncs as it takes.
func toDevice(t *testing.T, u *homeserver.User, since, kind string, want int) (bodies []string) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); len(bodies) < want && time.Now().Before(deadline); {
		a, err := u.Try(t.Context(), "GET", homeserver.SyncPath(since, 1000), nil)
		if err != nil || a.Status != http.StatusOK {
			t.Fatalf("sync: %s %v", a, err)
		}
		for _, ev := range a.Get("to_device.events").Array() {
			if ev.Get("type").Str == kind {
				bodies = append(bodies, ev.Get("content.body").Str)
			}
		}
		since = a.Get("next_batch").Str
	}
	return bodies
}

// What one server owes another goes out once, in order, whichever of them is killed before.
func TestWhatIsOwedSurvivesBothServers(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		alice, bob := a.Register(t, "alice"), b.Register(t, "bob")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(room, a.Name)
		since := bob.Sync("").Get("next_batch").Str
		second := b.Login(t, "bob") // what the watcher is told, its device is not told again
		secondSince := second.Sync("").Get("next_batch").Str
		watch := newWatcher(t, bob, room, since)
		var bodies, messages []string
		say := func(n int, when string) {
			for i := range n {
				body := fmt.Sprintf("%s %d", when, i)
				alice.Send(room, body)
				bodies = append(bodies, body)
				if i%5 == 0 {
					alice.OK("PUT", "/_matrix/client/v3/sendToDevice/org.example.test/"+homeserver.Txn(),
						J{"messages": J{bob.ID: J{second.Device: J{"body": body}}}})
					messages = append(messages, body)
				}
			}
		}
		say(20, "both are up")
		b.Kill()
		say(20, "the other is down")
		a.Kill()
		a.Start()
		say(20, "the other is still down")
		a.Kill()
		b.Start()
		a.Start()
		say(20, "both are up again")
		watch.sawAll(bodies)
		watch.sameOrder(history(t, bob, room))
		got := toDevice(t, second, secondSince, "org.example.test", len(messages))
		if strings.Join(got, "\n") != strings.Join(messages, "\n") {
			t.Errorf("to-device messages: got %d\n%s\nwant %d\n%s", len(got), strings.Join(got, "\n"), len(messages), strings.Join(messages, "\n"))
		}

		// A join over federation is whole or not at all, and can be repeated.
		var rooms []string
		for range 12 {
			rooms = append(rooms, alice.CreateRoom(J{"preset": "public_chat"}))
		}
		var mu sync.Mutex
		joined := map[string]bool{}
		some := make(chan struct{}, len(rooms))
		ctx, cancel := context.WithCancel(t.Context())
		var group sync.WaitGroup
		group.Go(func() {
			for _, r := range rooms {
				answer, err := bob.Try(ctx, "POST", homeserver.Room(r, "join")+"?via="+a.Name+"&server_name="+a.Name, nil)
				if err == nil && answer.Status != http.StatusOK {
					t.Errorf("join: %s", answer)
				}
				mu.Lock()
				joined[r] = err == nil
				mu.Unlock()
				some <- struct{}{}
			}
		})
		for range 1 + rand.IntN(4) {
			<-some
		}
		time.Sleep(time.Duration(rand.IntN(40)) * time.Millisecond)
		b.Kill()
		cancel()
		group.Wait()
		b.Start()
		list := bob.OK("GET", "/_matrix/client/v3/joined_rooms", nil).Text
		for _, r := range rooms {
			if joined[r] && !strings.Contains(list, r) {
				t.Errorf("the join to %s was acknowledged and is lost", r)
			}
			bob.Join(r, a.Name)
			bob.Send(r, "here")
		}
		t.Logf("%d of %d joins were acknowledged before the kill", count(joined), len(rooms))
		for _, r := range rooms {
			w := newWatcher(t, alice, r, "")
			w.sawAll([]string{"here"})
			w.stop()
		}
	})
}
