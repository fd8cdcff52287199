package federation_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// numbered says messages and gives their bodies.
func (n *node) numbered(user id.UserID, room id.RoomID, prefix string, count int) []string {
	n.t.Helper()
	var bodies []string
	for i := range count {
		body := fmt.Sprint(prefix, i)
		n.say(user, room, body)
		bodies = append(bodies, body)
	}
	return bodies
}

func (n *node) hears(room id.RoomID, want []string) {
	n.t.Helper()
	defer func() {
		if got := n.said(room); n.t.Failed() && !slices.Equal(got, want) {
			n.t.Logf("of %d messages there are %d: %.1500q", len(want), len(got), got)
		}
	}()
	eventually(n.t, "all messages arrive once and in order", func() bool { return slices.Equal(n.said(room), want) })
}

func TestAServerThatWasDownGetsEverything(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		want := a.numbered(alice, room, "up", 3)
		b.hears(room, want)
		b.halt()
		want = append(want, a.numbered(alice, room, "down", 320)...)
		b.again()
		want = append(want, a.numbered(alice, room, "again", 3)...)
		b.hears(room, want)
	})
}

// What is owed is stored: the sender may be restarted too, while the receiver is down.
func TestARestartOfTheSenderLosesNothing(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		want := a.numbered(alice, room, "up", 2)
		b.hears(room, want)
		b.deaf.Store(true)
		want = append(want, a.numbered(alice, room, "down", 60)...)
		for range 2 {
			a.halt()
			a.again()
		}
		want = append(want, a.numbered(alice, room, "restarted", 3)...)
		b.deaf.Store(false)
		b.hears(room, want)
		a.owesNothing()
	})
}

// Whoever was away for so long that nobody knows any more what they missed still learns of every room's latest
// event, and asks for the rest; but not of rooms that they are in no more.
func TestAServerThatWasAwayForTooLongHearsOfEveryRoom(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		var rooms []id.RoomID
		for range 3 {
			room := a.room(alice, nil)
			b.join(bob, room, a)
			rooms = append(rooms, room)
		}
		left := rooms[2]
		if err := b.rooms.Leave(t.Context(), bob, left, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "all is known and nothing is owed", func() bool { return a.membership(left, bob) == "leave" && len(a.owed()) == 0 })
		b.deaf.Store(true)
		want := [][]string{a.numbered(alice, rooms[0], "first", 8), a.numbered(alice, rooms[1], "second", 12)}
		a.numbered(alice, left, "secret", 3)
		a.backsOff(b)
		a.fallsBehind()
		a.halt()
		db, err := storage.Open(context.Background(), a.open)
		if err != nil {
			t.Fatal(err)
		}
		for _, days := range []time.Duration{0, 60} { // what was there today goes
			if err := db.Trim(context.Background(), time.Now().Add(days*24*time.Hour)); err != nil {
				t.Fatal(err)
			}
		}
		db.Close()
		a.again()
		b.deaf.Store(false)
		b.hears(rooms[0], want[0])
		b.hears(rooms[1], want[1])
		a.owesNothing()
		if got := b.said(left); len(got) != 0 {
			t.Errorf("in a room that it has left it heard %q", got)
		}
	})
}

// Whoever was put out while their server was down learns of it when the server is back, though the server is in the
// room no more and we were restarted; and of nothing that came after it.
func TestAKickOutlivesAnOutage(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		a.owesNothing()
		b.deaf.Store(true)
		want := a.numbered(alice, room, "before", 2)
		if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: bob, Membership: "leave"}); err != nil {
			t.Fatal(err)
		}
		a.numbered(alice, room, "secret", 2)
		a.fallsBehind()
		a.halt()
		a.again()
		b.deaf.Store(false)
		eventually(t, "bob's server knows that he was put out", func() bool { return b.membership(room, bob) == "leave" })
		a.owesNothing()
		b.hears(room, want)
	})
}

// A peer that speaks to us is up: what it is owed goes out without waiting for the back-off.
func TestBackoffEndsWhenThePeerSpeaks(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		a.halt()
		a.retry = time.Hour
		a.again()
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.deaf.Store(true)
		want := a.numbered(alice, room, "down", 3)
		a.backsOff(b)
		b.deaf.Store(false)
		time.Sleep(50 * time.Millisecond)
		if got := b.said(room); len(got) != 0 {
			t.Fatalf("arrived within the back-off: %q", got)
		}
		b.say(bob, room, "hello")
		eventually(t, "all is there", func() bool { return len(b.said(room)) == 4 })
		_ = want
	})
}

// The back-off is stored, so that a restart does not hammer a server that is down.
func TestBackoffSurvivesARestart(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		a.halt()
		a.retry = time.Hour
		a.again()
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.deaf.Store(true)
		a.say(alice, room, "down")
		a.backsOff(b)
		a.halt()
		a.again()
		eventually(t, "the back-off is back", func() bool { return a.peer.Destination(b.name).Failures == 1 })
		if left := time.Until(a.peer.Destination(b.name).RetryAt); left < 30*time.Minute {
			t.Errorf("it ends in %v", left)
		}
	})
}

// One dead server must not delay another.
func TestADeadServerDelaysNobody(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		c := newNode(t, a.authority, sqliteOf(t))
		c.join(c.user("carol"), room, a)
		eventually(t, "carol is known to bob's server", func() bool { return b.membership(room, c.user("carol")) == "join" })
		c.halt()
		b.hears(room, a.numbered(alice, room, "m", 50))
	})
}

func TestMessagesToDevicesOutliveOutages(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		b.deaf.Store(true)
		for i := range 250 {
			err := a.db.Write(t.Context(), nil, func(tx storage.Tx) error {
				tx.QueueEDU(b.name, storage.EDU{Type: "m.test", Content: content(map[string]any{"n": i})})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		a.halt()
		a.again()
		b.deaf.Store(false)
		eventually(t, "all were delivered and deleted", func() bool { return !a.keeps() })
		if n := b.taken.Load(); n != 3 && n != 4 { // the one under way before the restart may have had less
			t.Errorf("250 of at most 100 at a time went in %d transactions", n)
		}
	})
}

// spec: s2s#transactions
func TestATransactionThatComesAgainGetsTheSameAnswer(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.deaf.Store(true)
		eventID := a.say(alice, room, "once")
		b.deaf.Store(false)
		pdu := a.pdu(eventID)
		for range 3 {
			refused, err := a.peer.SendTransaction(t.Context(), b.name, "same", peer.Transaction{PDUs: rawList(pdu)}, peer.Opts{IgnoreBackoff: true})
			if err != nil || len(refused) > 0 {
				t.Fatalf("%v %v", refused, err)
			}
		}
		time.Sleep(300 * time.Millisecond)
		b.hears(room, []string{"once"})
	})
}
