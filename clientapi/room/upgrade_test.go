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

// What the old room's levels ask of those who set its state does not keep it from the new room.
//
// spec: c2s#room-upgrades 3
func TestARoomIsReplacedWhoseStateTakesMoreThanItsCreatorHas(t *testing.T) {
	eachEngine(t, func(s *server) {
		for _, to := range []string{"11", "12"} {
			room := s.create(alice, object{"preset": "public_chat", "room_version": "10", "topic": "reviewed", "power_level_content_override": object{
				"ban": 120, "users": object{alice: 200, bob: 150, carol: 60},
				"events": object{"m.room.topic": 150, "m.room.history_visibility": 200, "m.room.tombstone": 50}}})
			s.join(carol, room)
			s.ok(alice, "POST", at(room, "ban"), object{"user_id": bob})
			next := s.ok(carol, "POST", at(room, "upgrade"), object{"new_version": to}).text("replacement_room")
			if got := s.ok(carol, "GET", at(next, "state", "m.room.topic"), nil).text("topic"); got != "reviewed" {
				t.Errorf("%s: the topic is %q", to, got)
			}
			if got := s.ok(carol, "GET", at(next, "state", "m.room.member", bob), nil).text("membership"); got != "ban" {
				t.Errorf("%s: bob is %q", to, got)
			}
			levels := s.ok(carol, "GET", at(next, "state", "m.room.power_levels"), nil)
			if levels.at("users", alice) != 200.0 || levels.at("events", "m.room.topic") != 150.0 || levels.at("ban") != 120.0 || (to == "11" && levels.at("users", carol) != 60.0) {
				t.Errorf("%s: levels %s", to, levels.raw)
			}
			if to == "11" {
				s.want(403, "M_FORBIDDEN", carol, "PUT", at(next, "state", "m.room.topic"), object{"topic": "mine"})
			}
		}
	})
}

// However many want to replace a room at the same time, one of them does.
//
// spec: c2s/upgradeRoom
func TestARoomIsReplacedOnce(t *testing.T) {
	eachEngine(t, func(s *server) {
		for _, version := range []string{"10", "12"} {
			levels := object{"users": object{bob: 100}}
			if version == "10" {
				levels = object{"users": object{alice: 100, bob: 100}}
			} else {
				levels["events"] = object{"m.room.tombstone": 100}
			}
			room := s.create(alice, object{"preset": "public_chat", "room_version": version, "power_level_content_override": levels})
			s.join(bob, room)
			// A tombstone that names no room of which this one is the predecessor is in nobody's way.
			s.set(alice, room, "m.room.tombstone", "", object{"body": "closed", "replacement_room": "!none:test"})
			before := len(s.ok(alice, "GET", v3+"/joined_rooms", nil).array("joined_rooms")) + len(s.ok(bob, "GET", v3+"/joined_rooms", nil).array("joined_rooms"))
			answers := make(chan answer)
			for i := range 8 {
				go func() {
					answers <- s.ask([]string{alice, bob}[i%2], "POST", at(room, "upgrade"), object{"new_version": "11"})
				}()
			}
			next := ""
			for range 8 {
				switch a := <-answers; {
				case a.status == 200 && next == "":
					next = a.text("replacement_room")
				case a.status != 400 || a.text("errcode") != "M_BAD_STATE":
					t.Errorf("%s: %d %s", version, a.status, a.raw)
				}
			}
			if got := s.ok(alice, "GET", at(room, "state", "m.room.tombstone"), nil).text("replacement_room"); got != next || next == "" {
				t.Errorf("%s: the tombstone names %q, the answer was %q", version, got, next)
			}
			if after := len(s.ok(alice, "GET", v3+"/joined_rooms", nil).array("joined_rooms")) + len(s.ok(bob, "GET", v3+"/joined_rooms", nil).array("joined_rooms")); after != before+1 {
				t.Errorf("%s: %d rooms were made", version, after-before)
			}
			s.want(400, "M_BAD_STATE", alice, "POST", at(room, "upgrade"), object{"new_version": "12"})
		}
	})
}
