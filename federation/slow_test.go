package federation_test

import (
	"net/http"
	"strings"
	"testing"

	"chancery/roomserver"
)

// A server that says nothing to a join does not hold it up: the next one is asked, and the first one's answer still
// counts if it comes.
//
// spec: s2s#joining-rooms
func TestASlowServerDoesNotHoldAJoin(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		c := newNode(t, a.authority, sqliteOf(t))
		asked := make(chan struct{}, 1)
		c.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/make_join/") {
				return false
			}
			asked <- struct{}{}
			<-r.Context().Done()
			return true
		}
		if err := b.rooms.Join(t.Context(), roomserver.Join{User: bob, Room: room, Via: []string{c.name, a.name}}); err != nil {
			t.Fatal(err)
		}
		<-asked
		if d := b.peer.Destination(c.name); d.Failures > 0 {
			t.Error("the join waited until the slow server was given up, or a question that nobody waits for any more is taken for a failure of the server that it was asked")
		}
	})
}
