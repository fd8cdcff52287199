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

// storm is what clients do while the server is killed, and what they were told of it.
type storm struct {
	t    *testing.T
	mu   sync.Mutex        // guards the rest
	sent map[string]string // transaction ID, which is the body too, to event ID; empty: no answer came

	joined   map[string]bool // rooms: true when it was acknowledged
	uploaded map[string]bool // one-time keys
	claimed  map[string]int
	bad      []string
}

// refused notes an answer that is no success and no broken connection.
func (s *storm) refused(what string, a homeserver.Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bad = append(s.bad, what+": "+a.String())
}

// message sends one, whatever comes of it, and says whether it was acknowledged.
func (s *storm) message(ctx context.Context, u *homeserver.User, room, txn string) bool {
	s.mu.Lock()
	if _, ok := s.sent[txn]; !ok {
		s.sent[txn] = ""
	}
	s.mu.Unlock()
	a, err := u.Try(ctx, "PUT", homeserver.Room(room, "send", "m.room.message", txn), J{"msgtype": "m.text", "body": txn})
	if err != nil {
		return false
	}
	if a.Status != http.StatusOK {
		s.refused("send", a)
		return false
	}
	id := a.Get("event_id").Str
	s.mu.Lock()
	defer s.mu.Unlock()
	if before := s.sent[txn]; before != "" && before != id {
		s.bad = append(s.bad, fmt.Sprintf("the transaction %s made %s and %s", txn, before, id))
	}
	s.sent[txn] = id
	return true
}

// A server that is killed at any moment loses nothing that it said yes to.
func TestKilledInAStorm(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh(), Process: true})
		owner := s.Register(t, "owner")
		room := owner.CreateRoom(J{"preset": "public_chat"})
		var rooms []string
		for range 25 {
			rooms = append(rooms, owner.CreateRoom(J{"preset": "public_chat"}))
		}
		writers := make([]*homeserver.User, 4)
		for i := range writers {
			writers[i] = s.Register(t, fmt.Sprint("writer", i))
			writers[i].Join(room)
		}
		joiner, keeper, claimer := s.Register(t, "joiner"), s.Register(t, "keeper"), s.Register(t, "claimer")
		keeper.OK("POST", "/_matrix/client/v3/keys/upload", keys(keeper, "first"))
		start := owner.Sync("").Get("next_batch").Str
		watch := newWatcher(t, owner, room, start)

		st := &storm{t: t, sent: map[string]string{}, joined: map[string]bool{}, uploaded: map[string]bool{"signed_curve25519:first": true}, claimed: map[string]int{}}
		const kills = 4
		for round := range kills {
			ctx, cancel := context.WithCancel(context.Background())
			var group sync.WaitGroup
			for i, u := range writers {
				group.Go(func() {
					for n := 0; n < 60 && ctx.Err() == nil; n++ {
						st.message(ctx, u, room, fmt.Sprintf("writer %d round %d message %d", i, round, n))
						time.Sleep(time.Duration(rand.IntN(12)) * time.Millisecond)
					}
				})
			}
			group.Go(func() {
				for _, r := range rooms[round*6 : round*6+6] {
					a, err := joiner.Try(ctx, "POST", homeserver.Room(r, "join"), J{})
					if err == nil && a.Status != http.StatusOK {
						st.refused("join", a)
					}
					st.mu.Lock()
					st.joined[r] = err == nil
					st.mu.Unlock()
					time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
				}
			})
			group.Go(func() {
				for n := 0; n < 30 && ctx.Err() == nil; n++ {
					name := fmt.Sprintf("r%dn%d", round, n)
					a, err := keeper.Try(ctx, "POST", "/_matrix/client/v3/keys/upload", keys(keeper, name))
					if err == nil && a.Status != http.StatusOK {
						st.refused("upload", a)
					}
					st.mu.Lock()
					st.uploaded["signed_curve25519:"+name] = err == nil
					st.mu.Unlock()
					time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				}
			})
			group.Go(func() {
				for ctx.Err() == nil {
					name, err := claim(ctx, claimer, keeper)
					if err == nil && name != "" {
						st.mu.Lock()
						st.claimed[name]++
						st.mu.Unlock()
					}
					time.Sleep(time.Duration(10+rand.IntN(30)) * time.Millisecond)
				}
			})
			time.Sleep(time.Duration(200+rand.IntN(500)) * time.Millisecond)
			s.Kill()
			cancel()
			group.Wait()
			s.Start()
		}

		// Every acknowledged transaction finds its event; those without an answer are repeated, as a client does.
		var bodies []string
		acknowledged := 0
		for txn, id := range st.sent {
			bodies = append(bodies, txn)
			var writer int
			fmt.Sscanf(txn, "writer %d", &writer)
			if id != "" {
				acknowledged++
				writers[writer].OK("GET", homeserver.Room(room, "event", id), nil)
			}
			if !st.message(t.Context(), writers[writer], room, txn) {
				t.Fatalf("%s could not be repeated", txn)
			}
		}
		t.Logf("%d of %d messages were acknowledged, %d of %d joins, %d keys claimed", acknowledged, len(st.sent), count(st.joined), len(st.joined), len(st.claimed))
		if acknowledged < 20 {
			t.Errorf("only %d messages were acknowledged: this was no storm", acknowledged)
		}
		for _, bad := range st.bad {
			t.Error(bad)
		}

		// The watcher, and one that begins anew with the old token, were told everything once, in the room's order.
		events := eachOnce(t, owner, room, bodies)
		watch.sawAll(bodies)
		watch.sameOrder(events)
		late := &watcher{user: owner, room: room, t: t, token: start, times: map[string]int{}, bodies: map[string]int{}}
		for range 3 {
			late.once(t.Context(), 0)
		}
		late.sawAll(bodies)
		late.sameOrder(events)

		joined := joiner.OK("GET", "/_matrix/client/v3/joined_rooms", nil).Text
		for r, acknowledged := range st.joined {
			if acknowledged && !strings.Contains(joined, r) {
				t.Errorf("the join to %s was acknowledged and is lost", r)
			}
			joiner.Join(r) // whatever became of it, it can be repeated
		}

		// A key is handed out once, and what was stored is still there.
		left := map[string]bool{}
		for {
			name, err := claim(t.Context(), claimer, keeper)
			if err != nil {
				t.Fatal(err)
			}
			if name == "" {
				break
			}
			left[name] = true
			st.claimed[name]++
		}
		for name, n := range st.claimed {
			if n > 1 {
				t.Errorf("the one-time key %s was handed out %d times", name, n)
			}
		}
		lost := 0
		for name, acknowledged := range st.uploaded {
			if acknowledged && st.claimed[name] == 0 {
				lost++ // its claim was stored and the answer did not arrive
			}
		}
		if lost > kills {
			t.Errorf("%d one-time keys are lost; at most one claim a kill can have been on its way", lost)
		}
	})
}

func count(m map[string]bool) (n int) {
	for _, v := range m {
		if v {
			n++
		}
	}
	return n
}
