package federation_test

import (
	"encoding/json"
	"slices"
	"testing"

	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// present gives the room's current state as IDs in order.
func (n *node) present(room id.RoomID) (ids []string) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		events, err := n.reader.State(tx, row, stateRoot(row))
		for _, ev := range events {
			ids = append(ids, string(ev.ID()))
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	slices.Sort(ids)
	return ids
}

// sets sends a piece of state with an empty state key.
func (n *node) sets(user id.UserID, room id.RoomID, typ string, v any) id.EventID {
	n.t.Helper()
	empty := ""
	sent, err := n.rooms.Send(n.t.Context(), roomserver.NewEvent{Room: room, Sender: user, Type: typ, StateKey: &empty, Content: content(v)})
	if err != nil {
		n.t.Fatalf("%s sets %s: %v", user, typ, err)
	}
	return sent.ID
}

// knows says whether an event is there, and how it stands.
func (n *node) knows(eventID id.EventID) (row storage.Event, ok bool) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) (err error) {
		row, ok, err = tx.Event(string(eventID))
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return row, ok
}

// Every room version works between two servers: a room is made, joined through the other server and by an
// invite, people speak, something is redacted, powers change hands, somebody is put out.
//
// spec: rooms/v1, rooms/v2, rooms/v3, rooms/v4, rooms/v5, rooms/v6, rooms/v7, rooms/v8, rooms/v9, rooms/v10, rooms/v11, rooms/v12
func TestEveryRoomVersionWorksBetweenServers(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		for _, v := range event.Versions() {
			t.Run(v.Name, func(t *testing.T) { aLifeOfARoom(t, a, b, v) })
		}
	})
}

// hold makes nodes keep transactions waiting until they are released.
func hold(nodes ...*node) (release func()) {
	gate := make(chan struct{})
	for _, n := range nodes {
		n.gate.Store(&gate)
	}
	return func() {
		for _, n := range nodes {
			n.gate.Store(nil)
		}
		close(gate)
	}
}

func aLifeOfARoom(t *testing.T, a, b *node, v *event.Version) {
	alice, bob, dave := a.user("alice"), b.user("bob"), b.user("dave"+v.Name)
	room := a.roomOf(v.Name, alice, nil)
	b.join(bob, room, a)
	a.say(alice, room, "hello")
	b.hears(room, []string{"hello"})
	answer := b.say(bob, room, "rude")
	a.hears(room, []string{"hello", "rude"})

	// An invite in a room that only the invited may join. It comes before what it stands on.
	release := hold(b)
	a.sets(alice, room, "m.room.join_rules", map[string]any{"join_rule": "invite"})
	if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: dave}); err != nil {
		t.Fatalf("invite: %v", err)
	}
	release()
	eventually(t, "the invite is there", func() bool { return b.membership(room, dave) == "invite" })
	if err := b.rooms.Join(t.Context(), roomserver.Join{User: dave, Room: room, Via: []string{a.name}}); err != nil {
		t.Fatalf("dave joins: %v", err)
	}
	eventually(t, "dave is in", func() bool { return a.membership(room, dave) == "join" })

	if _, err := a.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.redaction", Redacts: answer,
		Content: content(map[string]any{"reason": "rude"})}); err != nil {
		t.Fatalf("redact: %v", err)
	}
	for _, n := range []*node{a, b} {
		eventually(t, "it is redacted", func() bool {
			row, _ := n.knows(answer)
			return row.RedactedBy != "" && !gjson.GetBytes(row.JSON, "content.body").Exists()
		})
	}

	levels := map[string]any{"users": map[string]any{string(alice): 100, string(bob): 50}}
	if v.PrivilegedCreators {
		levels = map[string]any{"users": map[string]any{string(bob): 50}}
	}
	a.sets(alice, room, "m.room.power_levels", levels)
	eventually(t, "bob may set the topic", func() bool {
		empty := ""
		_, err := b.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: bob, Type: "m.room.topic", StateKey: &empty,
			Content: content(map[string]any{"topic": "bob's"})})
		return err == nil
	})
	if err := b.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: bob, Target: dave, Membership: "leave"}); err != nil {
		t.Fatalf("kick: %v", err)
	}
	eventually(t, "dave is out", func() bool { return a.membership(room, dave) == "leave" })
	eventually(t, "both have one state", func() bool { return slices.Equal(a.present(room), b.present(room)) })

	// A fork: alice bans bob while he speaks and sets a name.
	release = hold(a, b)
	if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: bob, Membership: "ban"}); err != nil {
		t.Fatalf("ban: %v", err)
	}
	b.sets(bob, room, "m.room.name", map[string]any{"name": "from the fork"})
	late := b.say(bob, room, "from the fork")
	release()
	eventually(t, "bob is banned on both servers", func() bool { return b.membership(room, bob) == "ban" })
	if v.StateResolution != event.StateV1 { // that of version 1 keeps what was set in the fork, where it did not fail softly
		eventually(t, "both have one state", func() bool { return slices.Equal(a.present(room), b.present(room)) })
	}
	eventually(t, "what he said late fails softly", func() bool {
		row, ok := a.knows(late)
		return ok && row.Status == storage.SoftFailed
	})
	if _, err := b.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: bob, Type: "m.room.message",
		Content: content(map[string]any{"body": "still"})}); err == nil {
		t.Error("bob speaks on after the ban")
	}

	// In versions 1 and 2 an event names others with their hashes.
	if v.EventFormat == event.FormatReferences {
		for _, list := range []string{"prev_events", "auth_events"} {
			for _, ref := range gjson.GetBytes(b.pdu(late), list).Array() {
				checkReference(t, b, v, ref)
			}
		}
	}
}

// spec: rooms/v1#event-format
func checkReference(t *testing.T, n *node, v *event.Version, ref gjson.Result) {
	t.Helper()
	eventID := id.EventID(ref.Get("0").Str)
	row, ok := n.knows(eventID)
	if !ok {
		return
	}
	ev, err := event.ParseStored(v, eventID, json.RawMessage(row.JSON))
	if err != nil {
		t.Fatal(err)
	}
	if got := ref.Get("1.sha256").Str; got != ev.ReferenceHash() {
		t.Errorf("%s is named with the hash %q, want %q", eventID, got, ev.ReferenceHash())
	}
}
