package federation_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"chancery"
	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// space makes a room that holds others.
func (n *node) space(creator id.UserID, state map[string]any) id.RoomID {
	n.t.Helper()
	me := string(creator)
	rules := state["m.room.join_rules"]
	if rules == nil {
		rules = map[string]any{"join_rule": "public"}
	}
	room, err := n.rooms.CreateRoom(n.t.Context(), roomserver.Create{Creator: creator, Version: "11",
		Content: content(map[string]any{"room_version": "11", "type": "m.space"}),
		Events: []roomserver.NewEvent{
			{Type: "m.room.member", StateKey: &me, Content: content(map[string]any{"membership": "join"})},
			{Type: "m.room.power_levels", StateKey: new(string), Content: content(map[string]any{"users": map[string]any{me: 100}})},
			{Type: "m.room.join_rules", StateKey: new(string), Content: content(rules)},
		}})
	if err != nil {
		n.t.Fatal(err)
	}
	return room
}

func (n *node) set(user id.UserID, room id.RoomID, typ, key string, v any) {
	n.t.Helper()
	if _, err := n.rooms.Send(n.t.Context(), roomserver.NewEvent{Room: room, Sender: user, Type: typ, StateKey: &key, Content: content(v)}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) child(user id.UserID, space, room id.RoomID, order string, via ...*node) {
	n.t.Helper()
	var servers []string
	for _, v := range via {
		servers = append(servers, v.name)
	}
	n.set(user, space, "m.space.child", string(room), map[string]any{"via": servers, "order": order})
}

// whole waits until a server knows everybody in a room that it has joined.
func (n *node) whole(room id.RoomID) {
	n.t.Helper()
	eventually(n.t, "the room is whole", func() bool {
		partial := true
		err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
			row, ok, err := tx.Room(string(room))
			partial = !ok || row.Partial
			return err
		})
		if err != nil {
			n.t.Fatal(err)
		}
		return !partial
	})
}

// tree lists the rooms that a user sees in a space.
func (n *node) tree(user id.UserID, space id.RoomID) (rooms []id.RoomID) {
	n.t.Helper()
	page, err := n.rooms.Hierarchy(n.t.Context(), user, roomserver.SpaceQuery{Room: space})
	if err != nil {
		n.t.Fatal(err)
	}
	for _, room := range page.Rooms {
		rooms = append(rooms, room.RoomID)
	}
	return rooms
}

// spec: c2s/getSpaceHierarchy, s2s/getSpaceHierarchy
func TestASpaceReachesOverServers(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		var asked atomic.Int64
		b.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/hierarchy/") {
				asked.Add(1)
			}
			return false
		}
		root, ss1 := a.space(alice, nil), a.space(alice, nil)
		r1, r4 := a.room(alice, nil), a.room(alice, nil)
		ss2 := b.space(bob, nil)
		r2, r3 := b.room(bob, nil), b.room(bob, nil)
		shut := b.room(bob, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "invite"}})
		a.child(alice, root, r1, "1", a)
		a.child(alice, root, ss1, "2", a)
		a.child(alice, root, r2, "3", b)
		a.child(alice, ss1, ss2, "1", b)
		a.child(alice, ss1, r3, "2", b)
		b.child(bob, ss2, r4, "1", a)
		b.child(bob, ss2, shut, "2", b)
		want := []id.RoomID{root, r1, ss1, ss2, r4, r3, r2}
		if got := a.tree(alice, root); !slices.Equal(got, want) {
			t.Fatalf("the space holds %v, want %v", got, want)
		}
		before := asked.Load()
		if got := a.tree(alice, root); !slices.Equal(got, want) || asked.Load() != before {
			t.Errorf("the second time %d more questions were asked for %v", asked.Load()-before, got)
		}
		// Who is invited sees the room, though the servers said no before: what they say is for our server.
		space := b.space(bob, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "invite"}})
		b.child(bob, space, r2, "1", b)
		if err := b.rooms.Invite(t.Context(), roomserver.Invite{Room: space, Sender: bob, Target: alice}); err != nil {
			t.Fatal(err)
		}
		if got := a.tree(alice, space); !slices.Equal(got, []id.RoomID{space, r2}) {
			t.Errorf("an invited user sees %v", got)
		}
		if _, err := a.rooms.Hierarchy(t.Context(), a.user("carol"), roomserver.SpaceQuery{Room: space}); !chancery.IsCode(err, chancery.CodeForbidden) {
			t.Errorf("who is not invited gets %v", err)
		}
		if _, err := a.rooms.Summary(t.Context(), a.user("carol"), space, []string{b.name}); !chancery.IsCode(err, chancery.CodeNotFound) {
			t.Errorf("who is not invited gets the summary: %v", err)
		}
		summary, err := a.rooms.Summary(t.Context(), alice, r2, []string{b.name})
		if err != nil || summary.RoomID != r2 || summary.Membership != "leave" || summary.JoinRule != "public" || summary.Version != "12" {
			t.Errorf("summary of a room elsewhere: %+v, %v", summary, err)
		}
	})
}

// spec: s2s#restricted-rooms, s2s/getSpaceHierarchy
func TestARestrictedRoomElsewhereIsShownToThoseInTheSpace(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob, charlie := a.user("alice"), a.user("bob"), b.user("charlie")
		space := a.space(alice, nil)
		room := b.room(charlie, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "restricted",
			"allow": []any{map[string]any{"type": "m.room_membership", "room_id": space}}}})
		a.child(alice, space, room, "1", b)
		// The room's server does not know who is in the space, and nobody remembers its no.
		if got := a.tree(alice, space); !slices.Equal(got, []id.RoomID{space}) {
			t.Errorf("before, who is in the space sees %v", got)
		}
		far, err := b.rooms.SpaceFor(t.Context(), a.name, room, false)
		if !chancery.IsCode(err, chancery.CodeNotFound) {
			t.Fatalf("the room is told of: %+v, %v", far, err)
		}
		b.join(charlie, space, a)
		b.whole(space)
		if got := a.tree(alice, space); !slices.Equal(got, []id.RoomID{space, room}) {
			t.Errorf("who is in the space sees %v", got)
		}
		if got := a.tree(bob, space); !slices.Equal(got, []id.RoomID{space}) {
			t.Errorf("who is not sees %v", got)
		}
	})
}

// spec: s2s/getSpaceHierarchy
func TestAServerIsToldOfWhatItCouldEnter(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		space := a.space(alice, nil)
		open, shut, barred := a.room(alice, nil), a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "invite"}}), a.room(alice, nil)
		a.set(alice, barred, "m.room.server_acl", "", map[string]any{"allow": []string{"*"}, "deny": []string{strings.Split(b.name, ":")[0]}})
		for i, room := range []id.RoomID{shut, open, barred, "!elsewhere:" + id.RoomID(b.name)} {
			a.child(alice, space, room, fmt.Sprint(i), a)
		}
		a.set(alice, space, "m.space.child", string(open), map[string]any{"via": []string{a.name}, "suggested": true})
		far, err := a.rooms.SpaceFor(t.Context(), b.name, space, false)
		if err != nil {
			t.Fatal(err)
		}
		if len(far.Children) != 1 || far.Children[0].RoomID != open || !slices.Equal(far.Inaccessible, []id.RoomID{shut, barred}) || len(far.Room.Children) != 4 {
			t.Errorf("told %+v", far)
		}
		if far, err = a.rooms.SpaceFor(t.Context(), b.name, space, true); err != nil || len(far.Room.Children) != 1 || len(far.Children) != 1 || len(far.Inaccessible) != 0 {
			t.Errorf("suggested: %+v, %v", far, err)
		}
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: shut, Sender: alice, Target: bob}); err != nil {
			t.Fatal(err)
		}
		if far, err = a.rooms.SpaceFor(t.Context(), b.name, space, false); err != nil || len(far.Children) != 2 || !slices.Equal(far.Inaccessible, []id.RoomID{barred}) {
			t.Errorf("after an invite: %+v, %v", far, err)
		}
		for _, room := range []id.RoomID{barred, "!nowhere:" + id.RoomID(a.name)} {
			if _, err := a.rooms.SpaceFor(t.Context(), b.name, room, false); !chancery.IsCode(err, chancery.CodeNotFound) {
				t.Errorf("asked for %s: %v", room, err)
			}
		}
	})
}

// What a server says of rooms that its space does not name, or of another room than was asked for, counts for nothing.
func TestALyingSpaceIsNotBelieved(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice := a.user("alice")
		space, known := a.space(alice, nil), a.room(alice, nil)
		far := id.RoomID("!far:" + b.name)
		a.child(alice, space, far, "1", b)
		answer := map[string]any{}
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/hierarchy/") {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(answer)
			return true
		}
		ask := func(user id.UserID) []id.RoomID { return a.tree(user, space) }
		child := func(room any) map[string]any {
			return map[string]any{"type": "m.space.child", "state_key": room, "sender": "@x:" + b.name, "origin_server_ts": 1, "content": map[string]any{"via": []string{b.name}}}
		}
		room := func(room any, more map[string]any) map[string]any {
			v := map[string]any{"room_id": room, "join_rule": "public", "num_joined_members": -5, "world_readable": "yes", "guest_can_join": 1, "name": 7}
			for k, w := range more {
				v[k] = w
			}
			return v
		}
		var children []any
		for i := range 700 {
			children = append(children, child(fmt.Sprintf("!c%03d:%s", i, b.name)))
		}
		answer["room"] = room(far, map[string]any{"room_type": "m.space", "children_state": append(children, child(space), child(7), "x", nil)})
		answer["children"] = []any{room("!c000:"+b.name, nil), room("!unnamed:"+b.name, nil), room(known, map[string]any{"name": "forged"}), "x", nil, 7}
		answer["inaccessible_children"] = []id.RoomID{known}
		limit := 3
		page, err := a.rooms.Hierarchy(t.Context(), alice, roomserver.SpaceQuery{Room: space, Limit: &limit})
		if err != nil {
			t.Fatal(err)
		}
		if len(page.Rooms) != 3 || page.Rooms[1].RoomID != far || len(page.Rooms[1].Children) != 500 || page.Rooms[1].Joined != 0 || page.Rooms[1].Name != "" || page.Rooms[1].WorldReadable {
			t.Errorf("taken: %+v", page.Rooms)
		}
		if page.Rooms[2].RoomID != id.RoomID("!c000:"+b.name) {
			t.Errorf("then %s", page.Rooms[2].RoomID)
		}
		other := a.space(alice, nil)
		a.child(alice, other, "!asked:"+id.RoomID(b.name), "1", b)
		space = other // the answer tells of another room than this
		if got := ask(alice); !slices.Equal(got, []id.RoomID{other}) {
			t.Errorf("believed: %v", got)
		}
	})
}

// A space can name any server for any number of rooms: one page asks a bounded number of questions, and whoever walks on
// comes to an end.
func TestASpaceDoesNotMakeUsAskWithoutEnd(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice := a.user("alice")
		space, far, last := a.space(alice, nil), id.RoomID("!far:"+b.name), a.room(alice, nil)
		a.child(alice, space, far, "1", b)
		a.set(alice, space, "m.space.child", string(last), map[string]any{"via": []string{a.name}, "order": "2"})
		var children []any
		for i := range 450 {
			children = append(children, map[string]any{"type": "m.space.child", "state_key": fmt.Sprintf("!c%03d:%s", i, b.name), "sender": "@x:" + b.name,
				"origin_server_ts": 1, "content": map[string]any{"via": []string{b.name}}})
		}
		var asked atomic.Int64
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/hierarchy/") {
				return false
			}
			asked.Add(1)
			if !strings.Contains(r.URL.Path, "far") {
				w.WriteHeader(http.StatusNotFound)
				fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"unknown room"}`)
				return true
			}
			w.Header().Set("Content-Type", "application/json")
			_ = json.NewEncoder(w).Encode(map[string]any{"room": map[string]any{"room_id": far, "join_rule": "public", "num_joined_members": 1,
				"world_readable": false, "guest_can_join": false, "room_type": "m.space", "children_state": children}, "children": []any{}})
			return true
		}
		var rooms []id.RoomID
		q := roomserver.SpaceQuery{Room: space}
		for pages := 0; pages < 2 && (pages == 0 || q.From != ""); pages++ {
			asked.Store(0)
			page, err := a.rooms.Hierarchy(t.Context(), alice, q)
			if err != nil {
				t.Fatal(err)
			}
			if n := asked.Load(); n > 300 {
				t.Errorf("a page asked %d questions", n)
			}
			for _, room := range page.Rooms {
				rooms = append(rooms, room.RoomID)
			}
			q.From = page.Next
		}
		if want := []id.RoomID{space, far, last}; q.From != "" || !slices.Equal(rooms, want) {
			t.Errorf("two pages have %v and then %q, want %v and the end", rooms, q.From, want)
		}
	})
}
