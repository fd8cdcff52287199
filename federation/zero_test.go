package federation_test

import (
	"fmt"
	"strings"
	"testing"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// U+0000 may stand in any text of Matrix, and PostgreSQL's TEXT cannot hold it. Wherever another server puts it, nothing
// fails: neither the event nor the transaction that has it, which would come again for ever.
//
// spec: rooms/v12#event-format
func TestZeroCharactersOfServers(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, map[string]any{"m.room.power_levels": map[string]any{"state_default": 0}})
		b.join(bob, room, a)
		const zero = "a\x00b"
		send := func(typ string, key *string, v any) id.EventID {
			t.Helper()
			sent, err := b.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: bob, Type: typ, StateKey: key, Content: content(v)})
			if err != nil {
				t.Fatalf("%s: %v", typ, err)
			}
			return sent.ID
		}
		text, self := zero, string(bob)
		events := []id.EventID{
			send("org.example.state", &text, map[string]any{zero: zero}),
			send("org.example."+zero, &text, map[string]any{}),
			send("m.room.name", new(string), map[string]any{"name": zero}),
			send("m.room.topic", new(string), map[string]any{"topic": zero}),
			send("m.room.canonical_alias", new(string), map[string]any{"alias": "#" + zero + ":" + b.name}),
			send("m.room.member", &self, map[string]any{"membership": "join", "displayname": zero, "avatar_url": zero, "reason": zero}),
			send("org.example."+zero, nil, map[string]any{"m.relates_to": map[string]any{"rel_type": zero, "event_id": "$" + zero, "key": zero}}),
			send("m.reaction", nil, map[string]any{"m.relates_to": map[string]any{"rel_type": "m.annotation", "event_id": "$" + zero, "key": zero}}),
			send("m.room.redaction", nil, map[string]any{"redacts": "$" + zero, "reason": zero}),
			b.say(bob, room, "after all of it"),
		}
		eventually(t, "all of it is in the room", func() bool {
			found := 0
			err := a.db.Read(t.Context(), func(tx storage.Tx) error {
				ids := make([]string, len(events))
				for i, v := range events {
					ids[i] = string(v)
				}
				rows, err := tx.EventsByID(ids)
				for _, ev := range rows {
					if ev.Status == storage.Accepted && ev.Ord != nil {
						found++
					}
				}
				return err
			})
			return err == nil && found == len(events)
		})

		edu := func(typ string, v any) peer.EDU { return peer.EDU{Type: typ, Content: content(v)} }
		var edus []peer.EDU
		for i, user := range []string{string(bob), "@" + zero + ":" + b.name} {
			edus = append(edus,
				edu("m.typing", map[string]any{"room_id": room, "user_id": user, "typing": true}),
				edu("m.typing", map[string]any{"room_id": "!" + zero + ":" + b.name, "user_id": user, "typing": true}),
				edu("m.receipt", map[string]any{string(room): map[string]any{"m.read": map[string]any{user: map[string]any{
					"event_ids": []string{"$" + zero}, "data": map[string]any{"ts": 1, "thread_id": "$" + zero}}}}}),
				edu("m.receipt", map[string]any{string(room): map[string]any{"m.read": map[string]any{user: map[string]any{
					"event_ids": []string{"$" + zero}, "data": map[string]any{"ts": 1}}}}}),
				edu("m.presence", map[string]any{"push": []any{map[string]any{"user_id": user, "presence": "online", "status_msg": zero, "last_active_ago": 1}}}),
				edu("m.direct_to_device", map[string]any{"sender": user, "type": zero, "message_id": fmt.Sprint(zero, i),
					"messages": map[string]any{string(alice): map[string]any{"A": map[string]any{zero: zero}, zero: map[string]any{}, "*": map[string]any{}},
						"@" + zero + ":" + a.name: map[string]any{"A": map[string]any{}}}}),
				edu("m.device_list_update", map[string]any{"user_id": user, "device_id": zero, "stream_id": 5 + i, "prev_id": []int{}, "device_display_name": zero,
					"keys": map[string]any{"user_id": user, "device_id": zero, "algorithms": []string{zero}, "keys": map[string]any{zero: zero}, "signatures": map[string]any{}}}),
				edu("m.signing_key_update", map[string]any{"user_id": user, "master_key": map[string]any{"user_id": user, "usage": []string{"master"},
					"keys": map[string]any{"ed25519:" + zero: zero}}}),
			)
		}
		for i, e := range edus {
			if _, err := b.peer.SendTransaction(t.Context(), a.name, fmt.Sprint("zero", zero, i), peer.Transaction{EDUs: []peer.EDU{e}}, peer.Opts{IgnoreBackoff: true}); err != nil {
				t.Errorf("%s: %v", strings.ReplaceAll(string(e.Content), "\x00", "ZERO"), err)
			}
		}
	})
}
