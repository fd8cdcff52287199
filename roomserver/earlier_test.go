package roomserver_test

import (
	"context"
	"encoding/json"
	"sync"
	"testing"

	"chancery/roomserver"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// What was built on an event that could not be stored is not lost with it: whoever sent it did nothing wrong.
func TestAFailedCommitFailsNobodyElse(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		theirs := b.message(t, version, room, []id.EventID{join.ID()}, authIDs(t, s, version, room, join.ID()), "theirs")
		begun, failed := make(chan struct{}), make(chan error)
		go func() {
			failed <- s.FailUnder(context.Background(), room, 2, sync.OnceFunc(func() { close(begun) }))
		}()
		<-begun
		var all sync.WaitGroup
		ids := make([]id.EventID, 2)
		for i := range ids { // one request that comes twice
			all.Go(func() {
				sent, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.message", Content: content(map[string]any{"body": "ours", "msgtype": "m.text"}),
					Once: &roomserver.Once{Device: "D", Endpoint: "send", Txn: "t"}})
				if err != nil {
					t.Errorf("what alice sent: %v", err)
				}
				ids[i] = sent.ID
			})
		}
		all.Go(func() {
			for eventID, err := range s.Receive(t.Context(), "b.example", []json.RawMessage{theirs.JSON()}) {
				if err != nil {
					t.Errorf("%s, which another server brought: %v", eventID, err)
				}
			}
		})
		all.Wait()
		if err := <-failed; err == nil {
			t.Error("the commit did not fail")
		}
		if ids[0] != ids[1] {
			t.Errorf("one request made %v", ids)
		}
		for _, v := range []id.EventID{ids[0], theirs.ID()} {
			if got := stored(t, s, room, v); !got.Placed {
				t.Errorf("%s has no place", v)
			}
		}
	})
}
