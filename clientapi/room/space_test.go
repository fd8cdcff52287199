package room_test

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver"
	"chancery/test/client"
)

func (s *server) space(who string, more object) string {
	s.T.Helper()
	body := object{"preset": "public_chat", "creation_content": object{"type": "m.space"}}
	for k, v := range more {
		body[k] = v
	}
	return s.Create(who, body)
}

func (s *server) child(who, space, room string, more object) {
	s.T.Helper()
	content := object{"via": []string{"test"}}
	for k, v := range more {
		content[k] = v
	}
	s.Set(who, space, "m.space.child", room, content)
}

func hierarchy(room, query string) string {
	return v1 + "/rooms/" + url.PathEscape(room) + "/hierarchy?" + query
}

// rooms names the rooms of an answer in their order.
func roomsOf(a answer, names map[string]string) string {
	var out []string
	for i := range a.List("rooms") {
		out = append(out, names[a.Str("rooms", i, "room_id")])
	}
	return strings.Join(out, " ")
}

// spec: c2s/getSpaceHierarchy, c2s#ordering-of-children-within-a-space
func TestASpaceIsWalkedDepthFirst(t *testing.T) {
	eachEngine(t, func(s *server) {
		names := map[string]string{}
		named := func(name, room string) string { names[room] = name; return room }
		root := named("root", s.space(alice, object{"name": "Root"}))
		r1 := named("r1", s.Create(alice, nil))
		ss1 := named("ss1", s.space(alice, object{"topic": "under"}))
		r2 := named("r2", s.Create(alice, nil))
		ss2 := named("ss2", s.space(alice, nil))
		r3 := named("r3", s.Create(alice, nil))
		r4 := named("r4", s.Create(bob, object{"preset": "private_chat", "initial_state": []object{{"type": "m.room.history_visibility", "content": object{"history_visibility": "world_readable"}}}}))
		r5 := named("r5", s.Create(bob, nil))
		hidden := named("hidden", s.Create(bob, object{"preset": "private_chat"}))
		s.child(alice, root, r2, object{"suggested": true, "order": "z"})
		s.child(alice, root, r1, object{"suggested": true, "order": "a"})
		s.child(alice, root, hidden, object{"order": "ab"})
		s.child(alice, root, ss1, object{"order": "b"})
		s.child(alice, r2, r5, nil) // not a space: this makes no child
		s.child(alice, ss1, ss2, nil)
		s.child(alice, ss2, r3, nil)
		s.child(alice, ss2, r4, nil)
		s.child(alice, ss2, root, nil) // round and round
		s.Set(alice, ss1, "m.space.child", r5, object{"via": "test"})
		s.Set(alice, ss1, "m.space.child", "!nowhere:test", object{"via": []string{"test"}})

		whole := s.OK(alice, "GET", hierarchy(root, ""), nil)
		if got := roomsOf(whole, names); got != "root r1 ss1 ss2 r3 r4 r2" {
			t.Fatalf("the space holds %s", got)
		}
		if got := whole.Value("next_batch"); got != nil {
			t.Errorf("there is more behind the last: %v", got)
		}
		if got := whole.List("rooms", 0, "children_state"); len(got) != 4 || whole.Str("rooms", 0, "children_state", 0, "state_key") != r1 || whole.Value("rooms", 0, "children_state", 0, "origin_server_ts") == nil {
			t.Errorf("children of the space: %s", whole.Text)
		}
		if whole.Str("rooms", 0, "room_type") != "m.space" || whole.Str("rooms", 0, "name") != "Root" || whole.Str("rooms", 0, "room_version") != "12" || len(whole.List("rooms", 1, "children_state")) != 0 {
			t.Errorf("%s", whole.Text)
		}
		for query, want := range map[string]string{
			"max_depth=0": "root", "max_depth=1": "root r1 ss1 r2", "suggested_only=true": "root r1 r2", "max_depth=2": "root r1 ss1 ss2 r2",
		} {
			if got := roomsOf(s.OK(alice, "GET", hierarchy(root, query), nil), names); got != want {
				t.Errorf("%s: %s, want %s", query, got, want)
			}
		}
		var pages []string
		for from := ""; ; {
			page := s.OK(alice, "GET", hierarchy(root, "limit=3&from="+from), nil)
			pages = append(pages, roomsOf(page, names))
			if from = page.Str("next_batch"); from == "" {
				break
			}
		}
		if got := strings.Join(pages, " | "); got != "root r1 ss1 | ss2 r3 r4 | r2" {
			t.Errorf("pages: %s", got)
		}

		// A page begins behind the last room that was told of, whatever has gone meanwhile.
		from := s.OK(alice, "GET", hierarchy(root, "limit=4"), nil).Str("next_batch")
		s.Set(alice, root, "m.space.child", r1, object{})
		if got := roomsOf(s.OK(alice, "GET", hierarchy(root, "from="+from), nil), names); got != "r3 r4 r2" {
			t.Errorf("after a room has gone: %s", got)
		}
		for _, query := range []string{"from=" + from + "&max_depth=1", "from=" + from + "&suggested_only=true", "from=nonsense", "limit=0", "max_depth=-1", "limit=x"} {
			s.Want(400, "M_INVALID_PARAM", alice, "GET", hierarchy(root, query), nil)
		}
		s.Want(400, "M_INVALID_PARAM", bob, "GET", hierarchy(root, "from="+from), nil)
	})
}

// spec: c2s/getSpaceHierarchy
func TestASpaceShowsEveryoneWhatTheyMayEnter(t *testing.T) {
	eachEngine(t, func(s *server) {
		names := map[string]string{}
		root := s.space(alice, nil)
		names[root] = "root"
		make := func(name string, body object) string {
			room := s.Create(alice, body)
			names[room] = name
			s.child(alice, root, room, object{"order": fmt.Sprint(len(names))})
			return room
		}
		rule := func(version, rule string, allow ...string) object {
			content := object{"join_rule": rule}
			if len(allow) > 0 {
				conditions := []object{}
				for _, room := range allow {
					conditions = append(conditions, object{"type": "m.room_membership", "room_id": room})
				}
				content["allow"] = conditions
			}
			return object{"room_version": version, "preset": "private_chat", "initial_state": []object{{"type": "m.room.join_rules", "content": content}}}
		}
		invited := make("invited", object{"preset": "private_chat"})
		make("private", object{"preset": "private_chat"})
		make("knock", rule("10", "knock"))
		make("old-knock", rule("6", "knock"))
		make("restricted", rule("8", "restricted", root))
		make("old-restricted", rule("7", "restricted", root))
		make("knock-restricted", rule("10", "knock_restricted", root))
		banned := make("banned", nil)
		s.OK(alice, "POST", at(banned, "ban"), object{"user_id": bob})
		s.OK(alice, "POST", at(invited, "invite"), object{"user_id": bob})

		if got := roomsOf(s.OK(bob, "GET", hierarchy(root, ""), nil), names); got != "root invited knock knock-restricted" {
			t.Errorf("from outside: %s", got)
		}
		s.Join(bob, root)
		inside := s.OK(bob, "GET", hierarchy(root, ""), nil)
		if got := roomsOf(inside, names); got != "root invited knock restricted knock-restricted" {
			t.Errorf("from inside: %s", got)
		}
		if got := inside.Str("rooms", 3, "allowed_room_ids", 0); got != root {
			t.Errorf("the restricted room lets in those of %q", got)
		}
		private := s.space(alice, object{"preset": "private_chat"})
		s.Want(403, "M_FORBIDDEN", bob, "GET", hierarchy(private, ""), nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", hierarchy("!nowhere:test", ""), nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", hierarchy("!no\x00where:test", ""), nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", hierarchy(banned, ""), nil)
	})
}

// spec: c2s/getRoomSummary
func TestRoomsAreSummarised(t *testing.T) {
	eachEngine(t, func(s *server) {
		public := s.Create(alice, object{"preset": "public_chat", "name": "Pub", "room_alias_name": "pub", "initial_state": []object{{"type": "m.room.encryption", "content": object{"algorithm": "m.megolm.v1.aes-sha2"}}}})
		private := s.Create(alice, object{"preset": "private_chat"})
		summary := func(room string) string { return v1 + "/room_summary/" + url.PathEscape(room) }
		for _, path := range []string{summary(public), summary("#pub:test"), "/_matrix/client/unstable/im.nheko.summary/summary/" + url.PathEscape(public),
			"/_matrix/client/unstable/im.nheko.summary/rooms/" + url.PathEscape(public) + "/summary"} {
			got := s.OK(bob, "GET", path, nil)
			if got.Str("name") != "Pub" || got.Str("room_id") != public || got.Str("membership") != "leave" || got.Str("encryption") != "m.megolm.v1.aes-sha2" || got.Value("num_joined_members") != 1.0 || got.Value("allowed_room_ids") != nil {
				t.Errorf("%s: %s", path, got.Text)
			}
		}
		if got := s.OK(alice, "GET", summary(private), nil).Str("membership"); got != "join" {
			t.Errorf("alice is %q", got)
		}
		s.Join(bob, public)
		if got := s.OK(bob, "GET", summary(public), nil); got.Value("num_joined_members") != 2.0 || got.Str("membership") != "join" {
			t.Errorf("after a join: %s", got.Text)
		}
		if got := s.OK("", "GET", summary("#pub:test"), nil); got.Str("room_id") != public || got.Value("membership") != nil {
			t.Errorf("without login: %s", got.Text)
		}
		rude := s.OK(alice, "PUT", at(public, "state", "m.room.name")+"/", object{"name": "Rude"}).Str("event_id")
		listed := func(want string) {
			t.Helper()
			for _, got := range []client.Answer{s.OK(bob, "GET", summary(public), nil), s.OK(bob, "GET", v3+"/publicRooms", nil)} {
				if has := strings.Contains(got.Text, "Rude"); has != (want != "") {
					t.Errorf("want the name %q: %s", want, got.Text)
				}
			}
		}
		s.OK(alice, "PUT", v3+"/directory/list/room/"+url.PathEscape(public), object{"visibility": "public"})
		listed("Rude")
		s.OK(alice, "PUT", at(public, "redact", rude, client.Txn()), object{})
		listed("")
		s.Want(404, "M_NOT_FOUND", bob, "GET", summary(private), nil)
		s.Want(404, "M_NOT_FOUND", "", "GET", summary(private), nil)
		s.Want(404, "M_NOT_FOUND", "", "GET", summary("!nowhere:test"), nil)
		s.Want(404, "M_NOT_FOUND", "", "GET", summary("#x:elsewhere"), nil)
		s.Want(400, "M_INVALID_PARAM", bob, "GET", summary("nonsense"), nil)
	})
}

// A space that holds more than we want to walk through ends, and its pages do not grow without bound.
func TestALargeSpaceEnds(t *testing.T) {
	s := onSQLite(t)
	root := s.space(alice, nil)
	for i := range 12 {
		s.child(alice, root, s.Create(alice, nil), object{"order": fmt.Sprintf("%02d", i)})
	}
	limit := 5
	var seen []id.RoomID
	q := roomserver.SpaceQuery{Room: id.RoomID(root), Limit: &limit}
	for pages := 0; ; pages++ {
		page, err := s.Rooms.Hierarchy(t.Context(), alice, q)
		if err != nil {
			t.Fatal(err)
		}
		for _, room := range page.Rooms {
			if slices.Contains(seen, room.RoomID) {
				t.Errorf("%s is told of twice", room.RoomID)
			}
			seen = append(seen, room.RoomID)
		}
		if q.From = page.Next; q.From == "" {
			if pages != 2 || len(seen) != 13 {
				t.Errorf("%d rooms on %d pages", len(seen), pages+1)
			}
			return
		}
	}
}
