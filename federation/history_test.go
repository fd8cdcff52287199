package federation_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// below is the lowest place that the room's history has.
func (n *node) lowest(room id.RoomID) (low int64) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err == nil {
			low, _, err = tx.OrdBounds(row.NID)
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return low
}

// spec: s2s#backfilling-and-retrieving-missing-events
func TestHistoryFromBeforeTheJoinIsFetched(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		want := a.numbered(alice, room, "old", 150)
		b.join(bob, room, a)
		if got := b.said(room); len(got) != 0 {
			t.Fatalf("at once there is %q", got)
		}
		for range 10 {
			if len(b.said(room)) == len(want) {
				break
			}
			if _, err := b.rooms.Backfill(t.Context(), room, b.lowest(room)+1<<30, 100); err != nil {
				t.Fatal(err)
			}
		}
		b.hears(room, want)
	})
}

// What was said while none of its users might see it goes to a server without its content.
//
// spec: s2s#backfilling-and-retrieving-missing-events, c2s#room-history-visibility
func TestHiddenHistoryGoesWithoutItsContent(t *testing.T) {
	for history, sees := range map[string]bool{"joined": false, "invited": false, "shared": true, "world_readable": true} {
		t.Run(history, func(t *testing.T) {
			onSQLite(t, func(t *testing.T, a, b *node) {
				alice, bob := a.user("alice"), b.user("bob")
				room := a.room(alice, map[string]any{"m.room.history_visibility": map[string]any{"history_visibility": history}})
				hidden := a.say(alice, room, "secret")
				b.join(bob, room, a)
				open := a.say(alice, room, "open")
				b.hears(room, []string{"open"})
				check := func(what string, pdus []json.RawMessage) {
					t.Helper()
					text := fmt.Sprintf("%s", pdus)
					if strings.Contains(text, "secret") != sees {
						t.Errorf("%s: the content is there: %v, want %v", what, !sees, sees)
					}
				}
				pdus, err := b.peer.Backfill(t.Context(), a.name, room, 10, []id.EventID{open})
				if err != nil || len(pdus) < 5 {
					t.Fatalf("%d events, %v", len(pdus), err)
				}
				check("backfill", pdus)
				if !strings.Contains(string(pdus[0]), "open") {
					t.Errorf("the event itself is %s", pdus[0])
				}
				pdu, err := b.peer.GetEvent(t.Context(), a.name, hidden)
				if err != nil {
					t.Fatal(err)
				}
				check("event", []json.RawMessage{pdu})
				missing, err := b.peer.GetMissingEvents(t.Context(), a.name, room, peer.MissingEvents{Latest: []id.EventID{open}, Limit: 5})
				if err != nil || len(missing) == 0 {
					t.Fatalf("%d events, %v", len(missing), err)
				}
				check("get_missing_events", missing)
			})
		})
	}
}

// Two servers change the same state while they cannot reach each other. Both end with the same state.
//
// spec: rooms/v12#state-resolution
func TestAForkIsResolvedAlikeOnBothServers(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.roomOf("11", alice, nil)
		b.join(bob, room, a)
		empty := ""
		if _, err := a.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.power_levels", StateKey: &empty,
			Content: content(map[string]any{"users": map[string]any{string(alice): 100, string(bob): 50}})}); err != nil {
			t.Fatal(err)
		}
		a.say(alice, room, "connected")
		b.hears(room, []string{"connected"})
		a.deaf.Store(true)
		b.deaf.Store(true)
		name := func(n *node, user id.UserID, value string) {
			t.Helper()
			if _, err := n.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: user, Type: "m.room.name", StateKey: &empty,
				Content: content(map[string]any{"name": value})}); err != nil {
				t.Fatal(err)
			}
		}
		name(a, alice, "a1")
		name(b, bob, "b1")
		time.Sleep(5 * time.Millisecond)
		name(a, alice, "a2")
		name(b, bob, "b2")
		// Alice bans bob, who goes on speaking in his fork.
		if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: bob, Membership: "ban"}); err != nil {
			t.Fatal(err)
		}
		b.say(bob, room, "from the fork")
		a.deaf.Store(false)
		b.deaf.Store(false)
		state := func(n *node) []string {
			var out []string
			if err := n.db.Read(t.Context(), func(tx storage.Tx) error {
				row, _, err := tx.Room(string(room))
				if err != nil {
					return err
				}
				events, err := n.reader.State(tx, row, stateRoot(row))
				for _, ev := range events {
					out = append(out, string(ev.ID()))
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			slices.Sort(out)
			return out
		}
		eventually(t, "bob's server knows of the ban and both have one state", func() bool {
			return b.membership(room, bob) == "ban" && slices.Equal(state(a), state(b))
		})
	})
}

// spec: s2s/getVersion, s2s/getServerKey, s2s/perspectivesKeyQuery, s2s/bulkPerspectivesKeyQuery
func TestKeysAreServedAndNotarised(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		if name, _, err := a.peer.Version(t.Context(), b.name); err != nil || name != "Chancery" {
			t.Errorf("version: %q %v", name, err)
		}
		for _, path := range []string{"/_matrix/key/v2/server", "/_matrix/key/v2/server/ed25519:1"} {
			var keys json.RawMessage
			if err := a.peer.Do(t.Context(), b.name, "GET", path, nil, &keys, peer.Opts{Unsigned: true}); err != nil {
				t.Fatal(err)
			}
			if err := a.ring.VerifyJSON(t.Context(), b.name, keys, time.Now()); err != nil {
				t.Errorf("%s: %v", path, err)
			}
		}
		c := newNode(t, a.authority, sqliteOf(t))
		for _, ask := range []struct {
			method, path string
			body         any
		}{
			{"GET", "/_matrix/key/v2/query/" + c.name, nil},
			{"POST", "/_matrix/key/v2/query", map[string]any{"server_keys": map[string]any{c.name: map[string]any{}, "127.0.0.1:1": map[string]any{}}}},
		} {
			var out struct {
				Keys []json.RawMessage `json:"server_keys"`
			}
			if err := a.peer.Do(t.Context(), b.name, ask.method, ask.path, ask.body, &out, peer.Opts{Unsigned: true}); err != nil || len(out.Keys) != 1 {
				t.Fatalf("%s %s: %d lists, %v", ask.method, ask.path, len(out.Keys), err)
			}
			for _, signer := range []string{b.name, c.name} {
				if err := a.ring.VerifyJSON(t.Context(), signer, out.Keys[0], time.Now()); err != nil {
					t.Errorf("%s: %v", ask.method, err)
				}
			}
		}
		// Of a server that is down there is the copy, also where it should be good for longer; of a stranger nothing.
		c.halt()
		tomorrow := fmt.Sprint(time.Now().Add(24 * time.Hour).UnixMilli())
		for path, want := range map[string]int{c.name: 1, c.name + "?minimum_valid_until_ts=" + tomorrow: 1, "127.0.0.1:1": 0, "no%20name": 0} {
			var out struct {
				Keys []json.RawMessage `json:"server_keys"`
			}
			if err := a.peer.Do(t.Context(), b.name, "GET", "/_matrix/key/v2/query/"+path, nil, &out, peer.Opts{Unsigned: true}); err != nil || out.Keys == nil || len(out.Keys) != want {
				t.Errorf("%s: %d lists, %v", path, len(out.Keys), err)
			}
		}
	})
}

// The state is read outside the room's turn: also right after an event that is still being committed.
//
// spec: s2s/getRoomState, s2s/getRoomStateIds, s2s/getEventAuth, s2s/getEventByTimestamp
func TestStateIsGivenWithItsAuthChain(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, map[string]any{"m.room.topic": map[string]any{"topic": "first"}})
		a.say(alice, room, "early")
		b.join(bob, room, a)
		last := a.say(alice, room, "late")
		state, err := b.peer.GetState(t.Context(), a.name, room, last)
		if err != nil {
			t.Fatal(err)
		}
		names, err := b.peer.GetStateIDs(t.Context(), a.name, room, last)
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%s", state.PDUs)
		for _, want := range []string{"m.room.create", "m.room.topic", string(bob), string(alice)} {
			if !strings.Contains(text, want) {
				t.Errorf("the state has no %s: %s", want, text)
			}
		}
		if len(names.PDUs) != len(state.PDUs) || len(names.AuthChain) != len(state.AuthChain) || len(names.AuthChain) == 0 {
			t.Errorf("%d and %d events are named, %d and %d given", len(names.PDUs), len(names.AuthChain), len(state.PDUs), len(state.AuthChain))
		}
		chain, err := b.peer.GetEventAuth(t.Context(), a.name, room, last)
		if err != nil || !strings.Contains(fmt.Sprintf("%s", chain), "m.room.power_levels") {
			t.Errorf("the auth chain of a message: %s, %v", chain, err)
		}
		// Though in version 12 no event names it.
		for what, list := range map[string]any{"state": state.AuthChain, "message": chain} {
			if n := strings.Count(fmt.Sprintf("%s", list), `"m.room.create"`); n != 1 {
				t.Errorf("the create event stands %d times in the auth chain of the %s", n, what)
			}
		}
		if found, _, err := b.peer.TimestampToEvent(t.Context(), a.name, room, time.Now().UnixMilli()+1000, "b"); err != nil || found != last {
			t.Errorf("the last event is %s, %v, want %s", found, err, last)
		}
		if _, err := b.peer.GetState(t.Context(), a.name, room, "$unknown"); peer.StatusOf(err) != 404 {
			t.Errorf("the state before nothing: %v", err)
		}
	})
}

// What lies below the depth that is asked for takes no place of the events that are told.
//
// spec: s2s/getMissingPreviousEvents
func TestMissingEventsBeginAtADepth(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		at := func(depth int64, prev ...id.EventID) *event.Event {
			return e.says(fmt.Sprint(depth), func(p *event.Proto) { p.PrevEvents, p.Depth = prev, depth })
		}
		low, high := at(20, e.join), at(30, e.join)
		tie := at(40, low.ID(), high.ID())
		if refused := e.sends(low, high, tie); len(refused) > 0 {
			t.Fatal(refused)
		}
		for depth, want := range map[int64][]id.EventID{25: {high.ID()}, 20: {low.ID()}, 31: nil} {
			raw, err := e.peer.GetMissingEvents(t.Context(), e.victim.name, e.room, peer.MissingEvents{Latest: []id.EventID{tie.ID()}, Limit: 1, MinDepth: depth})
			if err != nil {
				t.Fatal(err)
			}
			var got []id.EventID
			for _, text := range raw {
				ev, err := event.Parse(e.version, text)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, ev.ID())
			}
			if !slices.Equal(got, want) {
				t.Errorf("from depth %d come %v, want %v", depth, got, want)
			}
		}
	})
}
