package federation_test

import (
	"context"
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

// Who gives up waiting for a join has joined all the same: the other server may have let them in by then.
//
// spec: s2s#joining-rooms
func TestAJoinOutlivesTheRequestForIt(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		ctx, giveUp := context.WithCancel(t.Context())
		a.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/send_join/") {
				giveUp()
			}
			return false
		}
		_ = b.rooms.Join(ctx, roomserver.Join{User: bob, Room: room, Via: []string{a.name}})
		if ctx.Err() == nil {
			t.Fatal("nobody was asked")
		}
		for _, n := range []*node{a, b} {
			eventually(t, "bob is in", func() bool { return n.membership(room, bob) == "join" })
		}
		b.say(bob, room, "here all the same")
		a.hears(room, []string{"here all the same"})
	})
}
