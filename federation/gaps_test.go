package federation_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// unsent makes a node refuse transactions while the switch is on: what others say does not come by itself.
func (n *node) unsent() *atomic.Bool {
	off := &atomic.Bool{}
	n.before = func(w http.ResponseWriter, r *http.Request) bool {
		if off.Load() && strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/send/") {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}
	return off
}

func (n *node) receives(from *node, events ...id.EventID) {
	n.t.Helper()
	var pdus []json.RawMessage
	for _, v := range events {
		pdus = append(pdus, from.pdu(v))
	}
	for v, err := range n.rooms.Receive(n.t.Context(), from.name, pdus) {
		if err != nil {
			n.t.Fatalf("%s is not taken: %v", v, err)
		}
	}
}

// More is missing than one request brings: the rest is asked for though nobody reads it.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func TestAGapIsFilledThoughNobodyReads(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		off := b.unsent()
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		a.numbered(alice, room, "before", 20)
		b.join(bob, room, a)
		off.Store(true)
		want := a.numbered(alice, room, "missed", 220)
		last := a.say(alice, room, "last")
		b.receives(a, last)
		eventually(t, "the gap is filled", func() bool { return len(b.said(room)) == len(want)+1 })
		b.hears(room, append(want, "last")) // and the past from before the join is left alone
	})
}

// Who sent an event has gone: another server of the room has what it builds on.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu
func TestOtherServersAreAskedForWhatIsMissing(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		c := newNode(t, a.authority, sqltest.SQLite(t))
		off := b.unsent()
		alice := a.user("alice")
		room := a.room(alice, nil)
		b.join(b.user("bob"), room, a)
		c.join(c.user("carol"), room, a)
		eventually(t, "all know of all", func() bool { return b.membership(room, c.user("carol")) == "join" })
		off.Store(true)
		want := a.numbered(alice, room, "missed", 20)
		last := a.say(alice, room, "last")
		c.hears(room, append(want, "last"))
		a.deaf.Store(true)
		b.receives(a, last)
		b.hears(room, append(want, "last"))
	})
}
