package federation_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// invite builds an invite of a user of another server, as the sender's server would.
func (n *node) invite(version string, room id.RoomID, sender, target id.UserID, prev, auths []id.EventID) *event.Event {
	n.t.Helper()
	v, _ := event.Lookup(version)
	key, who := n.keys.Key(), string(target)
	ev, err := event.Build(v, event.Proto{RoomID: room, Sender: sender, Type: "m.room.member", StateKey: &who, Content: content(map[string]any{"membership": "invite"}),
		PrevEvents: prev, AuthEvents: auths, Depth: 9}, n.name, key.ID, key.Private, time.Now())
	if err != nil {
		n.t.Fatal(err)
	}
	return ev
}

// stateOf gives pieces of a room's state as whole events.
func (n *node) stateOf(room id.RoomID, types ...string) (events []json.RawMessage) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		for _, typ := range types {
			ev, err := n.reader.StateEvent(tx, row, stateRoot(row), typ, "")
			if err != nil {
				return err
			}
			events = append(events, ev.JSON())
		}
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
	return events
}

func (n *node) stripped(user id.UserID, room id.RoomID) (v storage.Invite) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) (err error) {
		v, _, err = tx.Invite(string(user), string(room))
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return v
}

// From version 12 on an invite must prove of which room it is.
//
// spec: s2s/sendInviteV2, msc4311
func TestAnInviteProvesItsRoom(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice := a.user("alice")
		room, other := a.roomOf("12", alice, nil), a.roomOf("12", alice, nil)
		old := a.roomOf("11", alice, nil)
		whole := a.stateOf(room, "m.room.create", "m.room.join_rules")
		create, rules := whole[0], whole[1]
		strip := func(raw json.RawMessage) json.RawMessage {
			p := gjson.ParseBytes(raw)
			return json.RawMessage(fmt.Sprintf(`{"type":%s,"sender":%s,"state_key":"","content":%s}`, p.Get("type").Raw, p.Get("sender").Raw, p.Get("content").Raw))
		}
		forged := json.RawMessage(strings.Replace(string(rules), `"public"`, `"invite"`, 1))
		more := json.RawMessage(strings.Replace(string(rules), `"public"`, `"public","more":1`, 1)) // which goes, since the hash does not know it
		for i, c := range []struct {
			name    string
			version string
			room    id.RoomID
			state   []json.RawMessage
			taken   bool
		}{
			{"whole events", "12", room, whole, true},
			{"no create event", "12", room, []json.RawMessage{rules}, false},
			{"nothing", "12", room, nil, false},
			{"stripped events", "12", room, []json.RawMessage{create, strip(rules)}, false},
			{"a stripped create event", "12", room, []json.RawMessage{strip(create), rules}, false},
			{"another room's create event", "12", room, append(a.stateOf(other, "m.room.create"), rules), false},
			{"another room's state", "12", room, append(a.stateOf(other, "m.room.join_rules"), create), false},
			{"a forged event", "12", room, []json.RawMessage{create, forged}, false},
			{"a content that is not the one hashed", "12", room, []json.RawMessage{create, more}, true},
			{"an older version, stripped", "11", old, []json.RawMessage{strip(a.stateOf(old, "m.room.create")[0])}, true},
			{"an older version, nothing", "11", old, nil, true},
		} {
			user := b.user(fmt.Sprint("u", i))
			ev := a.invite(c.version, c.room, alice, user, []id.EventID{"$p"}, []id.EventID{"$a"})
			_, err := a.peer.Invite(t.Context(), b.name, c.room, ev.ID(), peer.Invite{RoomVersion: id.RoomVersion(c.version), Event: ev.JSON(), State: c.state})
			if c.taken && err != nil || !c.taken && !chancery.IsCode(err, chancery.CodeInvalidParam) {
				t.Errorf("%s: %v", c.name, err)
			}
			if got := b.stripped(user, c.room); (got.Membership == "invite") != c.taken {
				t.Errorf("%s: the user has %q", c.name, got.Membership)
			} else if c.taken && c.version == "12" && (gjson.GetBytes(got.Stripped, "0.type").Str != "m.room.create" || gjson.GetBytes(got.Stripped, "0.signatures").Exists()) {
				t.Errorf("%s: the user sees %s", c.name, got.Stripped)
			}
		}
		// What another server has against the form of our invite is nothing that the client can mend.
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/invite/") {
				return false
			}
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprint(w, `{"errcode":"M_MISSING_PARAM","error":"no create event"}`)
			return true
		}
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: b.user("x")}); err == nil || chancery.As(err).Status < 500 {
			t.Errorf("the invite that was not understood: %v", err)
		}
	})
}

// What comes back for a knock is looked at too; what is wrong in it is left out.
//
// spec: msc4311
func TestTheStateForAKnockIsChecked(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "knock"}})
		create := a.stateOf(room, "m.room.create")[0]
		a.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/send_knock/") {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]any{"knock_room_state": []any{create,
				map[string]any{"type": "m.room.name", "state_key": "", "sender": string(alice), "content": map[string]any{"name": "forged"}}}})
			return true
		}
		if err := b.rooms.Knock(t.Context(), roomserver.Join{User: bob, Room: room, Via: []string{a.name}}); err != nil {
			t.Fatal(err)
		}
		if got := b.stripped(bob, room); got.Membership != "knock" || len(gjson.ParseBytes(got.Stripped).Array()) != 1 || gjson.GetBytes(got.Stripped, "0.type").Str != "m.room.create" {
			t.Errorf("%s: %s", got.Membership, got.Stripped)
		}
	})
}

// Who refuses an invite while a part of the room is still to come is out of it, though the server that took the
// refusal does not tell us of it.
//
// spec: msc3902, s2s#leaving-rooms-rejecting-invites
func TestAnInviteIsRefusedWhileTheRoomIsPartial(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		held, release := make(chan struct{}, 100), make(chan struct{})
		goOn := sync.OnceFunc(func() { close(release) })
		defer goOn()
		a.before = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/state") {
				held <- struct{}{}
				select {
				case <-release:
				case <-r.Context().Done():
				}
			}
			return false
		}
		alice, bob, carol := a.user("alice"), b.user("bob"), b.user("carol")
		room := a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "invite"}})
		users := []id.UserID{bob, carol}
		for i := range 60 { // of a room of few all members come with the join
			users = append(users, a.user(fmt.Sprint("u", i)))
		}
		for _, user := range users {
			if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: user}); err != nil {
				t.Fatal(err)
			}
		}
		b.join(bob, room, a)
		select {
		case <-held:
		case <-time.After(time.Minute):
			t.Fatal("the rest of the room is not asked for")
		}
		if err := b.rooms.Leave(t.Context(), carol, room, nil); err != nil {
			t.Fatal(err)
		}
		if got := b.stripped(carol, room).Membership; b.membership(room, carol) != "leave" || got != "" {
			t.Errorf("carol's server has %q of her in the room, and the invite as %q", b.membership(room, carol), got)
		}
		goOn()
		b.whole(room)
		if got := b.stripped(carol, room).Membership; b.membership(room, carol) != "leave" || got != "" {
			t.Errorf("with all of the room carol's server has %q of her in the room, and the invite as %q", b.membership(room, carol), got)
		}
		if got := a.membership(room, carol); got != "leave" {
			t.Errorf("alice's server has carol as %q", got)
		}
	})
}
