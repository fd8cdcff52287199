package room_test

import (
	"strings"
	"testing"
)

// spec: c2s/createRoom
func TestRoomBeginsInTheOrderOfTheSpec(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, object{"preset": "public_chat", "visibility": "public", "room_alias_name": "pub", "name": "The Pub",
			"topic": "Hours", "invite": []string{bob}, "is_direct": true, "room_version": "11",
			"creation_content": object{"m.federate": false, "room_version": "1", "creator": bob},
			"initial_state":    []object{{"type": "m.room.guest_access", "content": object{"guest_access": "can_join"}}}})
		page := s.OK(alice, "GET", at(room, "messages")+"?dir=f&limit=100", nil)
		var types []string
		for i := range page.List("chunk") {
			types = append(types, page.Str("chunk", i, "type"))
		}
		want := "m.room.create m.room.member m.room.power_levels m.room.canonical_alias m.room.join_rules m.room.history_visibility m.room.guest_access m.room.name m.room.topic m.room.member"
		if got := strings.Join(types, " "); got != want {
			t.Errorf("events %s", got)
		}
		for _, c := range []struct{ typ, key, name, want string }{
			{"m.room.create", "", "room_version", "11"},
			{"m.room.guest_access", "", "guest_access", "can_join"},
			{"m.room.topic", "", "topic", "Hours"},
			{"m.room.canonical_alias", "", "alias", "#pub:test"},
			{"m.room.member", bob, "membership", "invite"},
		} {
			if got := s.OK(alice, "GET", at(room, "state", c.typ, c.key), nil).Str(c.name); got != c.want {
				t.Errorf("%s %s is %q, want %q", c.typ, c.name, got, c.want)
			}
		}
		if s.OK(alice, "GET", at(room, "state", "m.room.create"), nil).Value("creator") != nil {
			t.Error("a version 11 room names its creator in content")
		}
		if s.OK(alice, "GET", at(room, "state", "m.room.member", bob), nil).Value("is_direct") != true {
			t.Error("the invite does not say that it is direct")
		}
		s.Want(400, "M_ROOM_IN_USE", bob, "POST", v3+"/createRoom", object{"room_alias_name": "pub"})
		if got := s.OK("", "GET", v3+"/directory/room/%23pub:test", nil).Str("room_id"); got != room {
			t.Errorf("the alias means %q", got)
		}
	})
}

// spec: c2s/createRoom
func TestFaultyRoomsAreRefused(t *testing.T) {
	s := onSQLite(t)
	for _, c := range []struct {
		body object
		code string
	}{
		{object{"room_version": "none"}, "M_UNSUPPORTED_ROOM_VERSION"},
		{object{"preset": "odd"}, "M_BAD_JSON"},
		{object{"visibility": "odd"}, "M_BAD_JSON"},
		{object{"invite": []string{"bob"}}, "M_INVALID_PARAM"},
		{object{"room_alias_name": "a:b"}, "M_INVALID_PARAM"},
		{object{"room_alias_name": strings.Repeat("a", 300)}, "M_INVALID_PARAM"},
		{object{"invite_3pid": []object{{"medium": "email", "address": "x@y", "id_server": "z", "id_access_token": "t"}}}, "M_SERVER_NOT_TRUSTED"},
		{object{"initial_state": []object{{"content": object{}}}}, "M_BAD_JSON"},
		{object{"initial_state": []object{{"type": "m.room.create", "content": object{}}}}, "M_INVALID_ROOM_STATE"},
		{object{"room_version": "11", "name": "x", "power_level_content_override": object{"users": object{alice: 0}}}, "M_INVALID_ROOM_STATE"},
		{object{"room_version": "12", "power_level_content_override": object{"users": object{alice: 100}}}, "M_INVALID_ROOM_STATE"},
		{object{"room_version": "12", "creation_content": object{"additional_creators": "bob"}}, "M_INVALID_PARAM"},
		{object{"room_version": "12", "creation_content": object{"additional_creators": []string{"bob"}}}, "M_INVALID_PARAM"},
		{object{"topic": strings.Repeat("x", 70000)}, "M_TOO_LARGE"},
		{object{"name": 5}, "M_BAD_JSON"},
	} {
		a := s.Ask(alice, "POST", v3+"/createRoom", c.body)
		if a.Str("errcode") != c.code {
			t.Errorf("%v: %d %s, want %s", c.body, a.Status, a.Text, c.code)
		}
	}
	if rooms := s.OK(alice, "GET", v3+"/joined_rooms", nil).List("joined_rooms"); len(rooms) != 0 {
		t.Errorf("refused rooms stand: %v", rooms)
	}
	s.Want(403, "M_USER_SUSPENDED", "@suspended:test", "POST", v3+"/createRoom", object{})
}

// spec: c2s/createRoom, rooms/v12#event-format
func TestPowerInNewRooms(t *testing.T) {
	s := onSQLite(t)
	trusted := object{"preset": "trusted_private_chat", "invite": []string{bob}}
	old := s.Create(alice, object{"preset": "trusted_private_chat", "invite": []string{bob}, "room_version": "11"})
	levels := s.OK(alice, "GET", at(old, "state", "m.room.power_levels"), nil)
	if levels.Value("users", alice) != 100.0 || levels.Value("users", bob) != 100.0 || levels.Value("events", "m.room.tombstone") != 100.0 {
		t.Errorf("version 11: %s", levels.Text)
	}
	trusted["creation_content"] = object{"additional_creators": []string{carol, bob}}
	room := s.Create(alice, trusted)
	levels = s.OK(alice, "GET", at(room, "state", "m.room.power_levels"), nil)
	if len(levels.Value("users").(object)) != 0 || levels.Value("events", "m.room.tombstone") != 150.0 {
		t.Errorf("version 12: %s", levels.Text)
	}
	create := s.OK(alice, "GET", at(room, "state", "m.room.create"), nil)
	if got := create.List("additional_creators"); len(got) != 2 || got[0] != carol || got[1] != bob {
		t.Errorf("creators %v", got)
	}
	// Where only numbers count none of them falls behind the one who replaces the room.
	next := s.OK(alice, "POST", at(room, "upgrade"), object{"new_version": "11"}).Str("replacement_room")
	levels = s.OK(alice, "GET", at(next, "state", "m.room.power_levels"), nil)
	for _, user := range []string{alice, bob, carol} {
		if levels.Value("users", user) != 100.0 {
			t.Errorf("%s was a creator: %s", user, levels.Text)
		}
	}
	if !strings.HasPrefix(room, "!") || strings.Contains(room, ":") {
		t.Errorf("the ID of a version 12 room is %s", room)
	}
}
