package room_test

import (
	"net/url"
	"testing"
)

// What stands in the old room for others than its members goes with it.
//
// spec: c2s#room-upgrades
func TestASpaceIsReplacedWithWhatItHolds(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		old := s.space(alice, object{"room_version": "9", "room_alias_name": "all", "power_level_content_override": object{"users": object{alice: "100", carol: "100"}, "ban": "50"}})
		s.ok(alice, "PUT", v3+"/directory/room/"+url.PathEscape("#more:test"), object{"room_id": old})
		s.set(alice, old, "m.room.canonical_alias", "", object{"alias": "#all:test", "alt_aliases": []string{"#more:test"}})
		s.child(alice, old, room, object{"order": "x"})
		s.set(alice, old, "m.space.child", "!gone:test", object{})
		s.ok(alice, "POST", at(old, "ban"), object{"user_id": bob, "reason": "rude"})
		for _, version := range []string{"10", "12", "11"} {
			next := s.ok(alice, "POST", at(old, "upgrade"), object{"new_version": version}).text("replacement_room")
			if got := s.ok(alice, "GET", at(next, "state", "m.room.member", bob), nil); got.text("membership") != "ban" || got.text("reason") != "rude" {
				t.Errorf("%s: bob is %s", version, got.raw)
			}
			if got := s.ok(alice, "GET", at(next, "state", "m.space.child", room), nil).text("order"); got != "x" {
				t.Errorf("%s: the child has the order %q", version, got)
			}
			s.want(404, "M_NOT_FOUND", alice, "GET", at(next, "state", "m.space.child", "!gone:test"), nil)
			if got := s.ok(alice, "GET", at(next, "state", "m.room.canonical_alias"), nil); got.text("alias") != "#all:test" || got.text("alt_aliases", 0) != "#more:test" {
				t.Errorf("%s: the new room is called %s", version, got.raw)
			}
			if got := s.ok(alice, "GET", at(old, "state", "m.room.canonical_alias"), nil); got.raw != "{}" {
				t.Errorf("%s: the old room is still called %s", version, got.raw)
			}
			levels := s.ok(alice, "GET", at(next, "state", "m.room.power_levels"), nil)
			if levels.at("users", carol) != 100.0 || levels.at("ban") != 50.0 {
				t.Errorf("%s: levels %s", version, levels.raw)
			}
			old = next
		}
	})
}

// spec: c2s#room-upgrades
func TestRoomsAreReplaced(t *testing.T) {
	for _, versions := range [][2]string{{"10", "11"}, {"11", "12"}, {"12", "12"}, {"12", "11"}} {
		t.Run(versions[0]+" to "+versions[1], func(t *testing.T) {
			s := onSQLite(t)
			listed := object{carol: 50}
			if versions[0] != "12" {
				listed[alice] = 100
			}
			room := s.create(alice, object{"preset": "public_chat", "visibility": "public", "room_version": versions[0], "name": "Pub", "room_alias_name": "pub",
				"creation_content": object{"type": "m.space"}, "power_level_content_override": object{"events_default": 3, "users": listed}})
			s.join(bob, room)
			s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "upgrade"), object{"new_version": versions[1]})
			s.want(403, "M_FORBIDDEN", carol, "POST", at(room, "upgrade"), object{"new_version": versions[1]})
			s.want(400, "M_UNSUPPORTED_ROOM_VERSION", alice, "POST", at(room, "upgrade"), object{"new_version": "none"})
			s.want(400, "M_MISSING_PARAM", alice, "POST", at(room, "upgrade"), object{})
			next := s.ok(alice, "POST", at(room, "upgrade"), object{"new_version": versions[1], "additional_creators": []string{carol}}).text("replacement_room")

			if got := s.ok(alice, "GET", at(room, "state", "m.room.tombstone"), nil).text("replacement_room"); got != next {
				t.Errorf("the tombstone names %q", got)
			}
			if got := s.ok(alice, "GET", at(room, "state", "m.room.power_levels"), nil); got.at("events_default") != 50.0 || got.at("invite") != 50.0 {
				t.Errorf("the old room stays open: %s", got.raw)
			}
			create := s.ok(alice, "GET", at(next, "state", "m.room.create"), nil)
			if create.text("predecessor", "room_id") != room || create.text("type") != "m.space" || create.text("room_version") != versions[1] ||
				(len(create.array("additional_creators")) == 1) != (versions[1] == "12") {
				t.Errorf("%s", create.raw)
			}
			if got := s.ok(alice, "GET", at(next, "state", "m.room.name"), nil).text("name"); got != "Pub" {
				t.Errorf("the name is %q", got)
			}
			levels := s.ok(alice, "GET", at(next, "state", "m.room.power_levels"), nil)
			if mine := levels.at("users", alice); levels.at("events_default") != 3.0 || (mine == nil) != (versions[1] == "12") {
				t.Errorf("levels %s", levels.raw)
			}
			if hers := levels.at("users", carol); (hers == nil) != (versions[1] == "12") {
				t.Errorf("she is a creator only of version 12: %s", levels.raw)
			}
			if got := s.ok("", "GET", v3+"/directory/room/"+url.PathEscape("#pub:test"), nil).text("room_id"); got != next {
				t.Errorf("the alias means %q", got)
			}
			if got := s.ok(bob, "GET", v3+"/publicRooms", nil); len(got.array("chunk")) != 1 || got.text("chunk", 0, "room_id") != next {
				t.Errorf("published: %s", got.raw)
			}
		})
	}
}
