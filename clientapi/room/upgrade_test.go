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
		room := s.Create(alice, nil)
		old := s.space(alice, object{"room_version": "9", "room_alias_name": "all", "power_level_content_override": object{"users": object{alice: "100", carol: "100"}, "ban": "50"}})
		s.OK(alice, "PUT", v3+"/directory/room/"+url.PathEscape("#more:test"), object{"room_id": old})
		s.Set(alice, old, "m.room.canonical_alias", "", object{"alias": "#all:test", "alt_aliases": []string{"#more:test"}})
		s.child(alice, old, room, object{"order": "x"})
		s.Set(alice, old, "m.space.child", "!gone:test", object{})
		s.OK(alice, "POST", at(old, "ban"), object{"user_id": bob, "reason": "rude"})
		for _, version := range []string{"10", "12", "11"} {
			next := s.OK(alice, "POST", at(old, "upgrade"), object{"new_version": version}).Str("replacement_room")
			if got := s.OK(alice, "GET", at(next, "state", "m.room.member", bob), nil); got.Str("membership") != "ban" || got.Str("reason") != "rude" {
				t.Errorf("%s: bob is %s", version, got.Text)
			}
			if got := s.OK(alice, "GET", at(next, "state", "m.space.child", room), nil).Str("order"); got != "x" {
				t.Errorf("%s: the child has the order %q", version, got)
			}
			s.Want(404, "M_NOT_FOUND", alice, "GET", at(next, "state", "m.space.child", "!gone:test"), nil)
			if got := s.OK(alice, "GET", at(next, "state", "m.room.canonical_alias"), nil); got.Str("alias") != "#all:test" || got.Str("alt_aliases", 0) != "#more:test" {
				t.Errorf("%s: the new room is called %s", version, got.Text)
			}
			if got := s.OK(alice, "GET", at(old, "state", "m.room.canonical_alias"), nil); got.Text != "{}" {
				t.Errorf("%s: the old room is still called %s", version, got.Text)
			}
			levels := s.OK(alice, "GET", at(next, "state", "m.room.power_levels"), nil)
			if levels.Value("users", carol) != 100.0 || levels.Value("ban") != 50.0 {
				t.Errorf("%s: levels %s", version, levels.Text)
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
			room := s.Create(alice, object{"preset": "public_chat", "visibility": "public", "room_version": versions[0], "name": "Pub", "room_alias_name": "pub",
				"creation_content": object{"type": "m.space"}, "power_level_content_override": object{"events_default": 3, "users": listed}})
			s.Join(bob, room)
			s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "upgrade"), object{"new_version": versions[1]})
			s.Want(403, "M_FORBIDDEN", carol, "POST", at(room, "upgrade"), object{"new_version": versions[1]})
			s.Want(400, "M_UNSUPPORTED_ROOM_VERSION", alice, "POST", at(room, "upgrade"), object{"new_version": "none"})
			s.Want(400, "M_MISSING_PARAM", alice, "POST", at(room, "upgrade"), object{})
			next := s.OK(alice, "POST", at(room, "upgrade"), object{"new_version": versions[1], "additional_creators": []string{carol}}).Str("replacement_room")

			if got := s.OK(alice, "GET", at(room, "state", "m.room.tombstone"), nil).Str("replacement_room"); got != next {
				t.Errorf("the tombstone names %q", got)
			}
			if got := s.OK(alice, "GET", at(room, "state", "m.room.power_levels"), nil); got.Value("events_default") != 50.0 || got.Value("invite") != 50.0 {
				t.Errorf("the old room stays open: %s", got.Text)
			}
			create := s.OK(alice, "GET", at(next, "state", "m.room.create"), nil)
			if create.Str("predecessor", "room_id") != room || create.Str("type") != "m.space" || create.Str("room_version") != versions[1] ||
				(len(create.List("additional_creators")) == 1) != (versions[1] == "12") {
				t.Errorf("%s", create.Text)
			}
			if got := s.OK(alice, "GET", at(next, "state", "m.room.name"), nil).Str("name"); got != "Pub" {
				t.Errorf("the name is %q", got)
			}
			levels := s.OK(alice, "GET", at(next, "state", "m.room.power_levels"), nil)
			if mine := levels.Value("users", alice); levels.Value("events_default") != 3.0 || (mine == nil) != (versions[1] == "12") {
				t.Errorf("levels %s", levels.Text)
			}
			if hers := levels.Value("users", carol); (hers == nil) != (versions[1] == "12") {
				t.Errorf("she is a creator only of version 12: %s", levels.Text)
			}
			if got := s.OK("", "GET", v3+"/directory/room/"+url.PathEscape("#pub:test"), nil).Str("room_id"); got != next {
				t.Errorf("the alias means %q", got)
			}
			if got := s.OK(bob, "GET", v3+"/publicRooms", nil); len(got.List("chunk")) != 1 || got.Str("chunk", 0, "room_id") != next {
				t.Errorf("published: %s", got.Text)
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
			room := s.Create(alice, object{"preset": "public_chat", "room_version": "10", "topic": "reviewed", "power_level_content_override": object{
				"ban": 120, "users": object{alice: 200, bob: 150, carol: 60},
				"events": object{"m.room.topic": 150, "m.room.history_visibility": 200, "m.room.tombstone": 50}}})
			s.Join(carol, room)
			s.OK(alice, "POST", at(room, "ban"), object{"user_id": bob})
			next := s.OK(carol, "POST", at(room, "upgrade"), object{"new_version": to}).Str("replacement_room")
			if got := s.OK(carol, "GET", at(next, "state", "m.room.topic"), nil).Str("topic"); got != "reviewed" {
				t.Errorf("%s: the topic is %q", to, got)
			}
			if got := s.OK(carol, "GET", at(next, "state", "m.room.member", bob), nil).Str("membership"); got != "ban" {
				t.Errorf("%s: bob is %q", to, got)
			}
			levels := s.OK(carol, "GET", at(next, "state", "m.room.power_levels"), nil)
			if levels.Value("users", alice) != 200.0 || levels.Value("events", "m.room.topic") != 150.0 || levels.Value("ban") != 120.0 || (to == "11" && levels.Value("users", carol) != 60.0) {
				t.Errorf("%s: levels %s", to, levels.Text)
			}
			if to == "11" {
				s.Want(403, "M_FORBIDDEN", carol, "PUT", at(next, "state", "m.room.topic"), object{"topic": "mine"})
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
			room := s.Create(alice, object{"preset": "public_chat", "room_version": version, "power_level_content_override": levels})
			s.Join(bob, room)
			// A tombstone that names no room of which this one is the predecessor is in nobody's way.
			s.Set(alice, room, "m.room.tombstone", "", object{"body": "closed", "replacement_room": "!none:test"})
			before := len(s.OK(alice, "GET", v3+"/joined_rooms", nil).List("joined_rooms")) + len(s.OK(bob, "GET", v3+"/joined_rooms", nil).List("joined_rooms"))
			answers := make(chan answer)
			for i := range 8 {
				go func() {
					answers <- s.Ask([]string{alice, bob}[i%2], "POST", at(room, "upgrade"), object{"new_version": "11"})
				}()
			}
			next := ""
			for range 8 {
				switch a := <-answers; {
				case a.Status == 200 && next == "":
					next = a.Str("replacement_room")
				case a.Status != 400 || a.Str("errcode") != "M_BAD_STATE":
					t.Errorf("%s: %d %s", version, a.Status, a.Text)
				}
			}
			if got := s.OK(alice, "GET", at(room, "state", "m.room.tombstone"), nil).Str("replacement_room"); got != next || next == "" {
				t.Errorf("%s: the tombstone names %q, the answer was %q", version, got, next)
			}
			if after := len(s.OK(alice, "GET", v3+"/joined_rooms", nil).List("joined_rooms")) + len(s.OK(bob, "GET", v3+"/joined_rooms", nil).List("joined_rooms")); after != before+1 {
				t.Errorf("%s: %d rooms were made", version, after-before)
			}
			s.Want(400, "M_BAD_STATE", alice, "POST", at(room, "upgrade"), object{"new_version": "12"})
		}
	})
}
