package federation_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"

	"maunium.net/go/mautrix/id"
)

// moves builds a membership event as the sender's server would, which cites others.
func (n *node) moves(room id.RoomID, sender, target id.UserID, membership string, cited ...id.EventID) *event.Event {
	n.t.Helper()
	v, _ := event.Lookup("11")
	key, who := n.keys.Key(), string(target)
	ev, err := event.Build(v, event.Proto{RoomID: room, Sender: sender, Type: "m.room.member", StateKey: &who, Content: content(map[string]any{"membership": membership}),
		PrevEvents: []id.EventID{"$p"}, AuthEvents: append([]id.EventID{"$create"}, cited...), Depth: 9}, n.name, key.ID, key.Private, time.Now())
	if err != nil {
		n.t.Fatal(err)
	}
	return ev
}

// Of a room that a server is not in, the newest invite is seen, it is gone when it is taken back, and who may not take it
// back does not.
//
// spec: s2s#inviting-to-a-room
func TestTheNewestInviteIsSeenAndCanBeTakenBack(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		c := newNode(t, a.authority, sqliteOf(t))
		alice, carol := a.user("alice"), c.user("carol")
		number := 0
		var room id.RoomID
		var bob id.UserID
		begin := func() {
			number++
			room, bob = id.RoomID(fmt.Sprintf("!r%d:%s", number, a.name)), b.user(fmt.Sprint("bob", number))
		}
		invites := func(n *node, sender id.UserID, stripped string, cited ...id.EventID) *event.Event {
			t.Helper()
			ev := n.moves(room, sender, bob, "invite", cited...)
			var state []json.RawMessage
			if stripped != "" {
				state = append(state, json.RawMessage(stripped))
			}
			if _, err := n.peer.Invite(t.Context(), b.name, room, ev.ID(), peer.Invite{RoomVersion: "11", Event: ev.JSON(), State: state}); err != nil {
				t.Fatal(err)
			}
			return ev
		}
		leaves := func(n *node, sender id.UserID, cited ...id.EventID) {
			t.Helper()
			n.sends(b, n.moves(room, sender, bob, "leave", cited...))
		}
		want := func(when string, shown *event.Event) {
			t.Helper()
			got, membership := b.stripped(bob, room), "invite"
			if shown == nil {
				membership = "leave"
			}
			if got.Membership != membership || shown != nil && got.EventID != string(shown.ID()) {
				t.Errorf("%s: %s of %s", when, got.Membership, got.Sender)
			}
		}

		begin()
		first := invites(a, alice, "")
		second := invites(c, carol, "")
		want("a second invite that does not know of the first", second)
		leaves(a, alice, second.ID())
		want("the first inviter takes back what is not hers", second)
		leaves(c, carol, first.ID())
		want("the second inviter takes back what is not hers", second)
		leaves(c, carol, second.ID())
		want("the second is taken back", first)
		leaves(a, alice, first.ID())
		want("the first is taken back too", nil)

		begin()
		first = invites(a, alice, "")
		second = invites(c, carol, "", first.ID())
		leaves(a, alice, first.ID())
		want("a late end of what is over", second)
		leaves(a, alice, second.ID())
		want("the invite that stood on hers is taken back by the first inviter", nil)

		begin()
		first = invites(a, alice, "")
		second = invites(c, carol, "")
		leaves(a, alice, first.ID())
		want("the one beneath is taken back", second)
		leaves(c, carol, second.ID())
		want("and the one above", nil)

		begin()
		third := invites(c, carol, fmt.Sprintf(`{"type":"m.room.name","state_key":"","sender":%q,"content":{"name":"x"}}`, alice))
		leaves(a, alice, third.ID())
		want("who gave the room its name takes an invite back", nil)

		begin()
		for range 8 {
			invites(c, carol, "")
		}
		for range 8 {
			invites(a, alice, "")
		}
		if got := b.stripped(bob, room); len(got.Beneath) != 1 {
			t.Errorf("%d invites lie beneath", len(got.Beneath))
		}
		if err := b.rooms.Leave(t.Context(), bob, room, nil); err != nil {
			t.Fatal(err)
		}
		want("bob refuses", nil)
	})
}

// A knock is ended by a server of the room, also by one of which the knocking server has not heard; and by nobody who has
// not heard of the knock.
//
// spec: s2s#knocking-rooms
func TestAnyServerOfTheRoomRefusesAKnock(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		c := newNode(t, a.authority, sqliteOf(t))
		alice, bob, carol := a.user("alice"), b.user("bob"), c.user("carol")
		room := a.roomOf("11", alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "knock"}})
		if err := b.rooms.Knock(t.Context(), roomserver.Join{User: bob, Room: room, Via: []string{a.name}}); err != nil {
			t.Fatal(err)
		}
		knock := id.EventID(b.stripped(bob, room).EventID)
		c.sends(b, c.moves(room, carol, bob, "leave", "$guessed"))
		if got := b.stripped(bob, room).Membership; got != "knock" {
			t.Errorf("after a refusal out of nothing: %s", got)
		}
		c.sends(b, c.moves(room, carol, bob, "leave", knock))
		if got := b.stripped(bob, room).Membership; got != "leave" {
			t.Errorf("after the refusal: %s", got)
		}
	})
}

// sends brings an event to another server.
func (n *node) sends(to *node, ev *event.Event) {
	n.t.Helper()
	if _, err := n.peer.SendTransaction(n.t.Context(), to.name, string(ev.ID()), peer.Transaction{PDUs: []json.RawMessage{ev.JSON()}},
		peer.Opts{IgnoreBackoff: true}); err != nil {
		n.t.Fatal(err)
	}
}
