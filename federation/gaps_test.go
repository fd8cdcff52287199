package federation_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// Whom we could not reach has not been asked: as soon as they can be, whoever reads gets what is missing.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func TestHistoryComesAsSoonAsItsServerIsBack(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice := a.user("alice")
		room := a.room(alice, nil)
		want := a.numbered(alice, room, "before", 5)
		b.join(b.user("bob"), room, a)
		a.deaf.Store(true)
		if came, err := b.rooms.Backfill(t.Context(), room, 1<<60, 100); err != nil || came {
			t.Fatalf("from a server that is down something came: %v, %v", came, err)
		}
		a.deaf.Store(false)
		eventually(t, "the back-off has ended", func() bool { return time.Now().After(b.peer.Destination(a.name).RetryAt) })
		if came, err := b.rooms.Backfill(t.Context(), room, 1<<60, 100); err != nil || !came {
			t.Errorf("nothing came: %v", err)
		}
		b.hears(room, want)
	})
}
