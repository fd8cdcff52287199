package room_test

import (
	"net/url"
	"strings"
	"testing"
)

// spec: c2s/sendMessage, c2s#transaction-identifiers
func TestMessagesAreSentOnce(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		path := at(room, "send", "m.room.message", "t/ä?")
		first := s.ok(alice, "PUT", path, object{"body": "x", "msgtype": "m.text"}).text("event_id")
		if again := s.ok(alice, "PUT", path, object{"body": "y", "msgtype": "m.text"}).text("event_id"); again != first {
			t.Error("a repeated transaction ID made another event")
		}
		if other := s.ok(alice+"/OTHER", "PUT", path, object{"body": "z", "msgtype": "m.text"}).text("event_id"); other == first {
			t.Error("another device's transaction ID found this one's event")
		}
		if got := s.ok(alice, "GET", at(room, "event", first), nil).text("unsigned", "transaction_id"); got != "t/ä?" {
			t.Errorf("the device is told %q", got)
		}
		if got := s.ok(alice+"/OTHER", "GET", at(room, "event", first), nil).at("unsigned", "transaction_id"); got != nil {
			t.Errorf("another device is told %v", got)
		}
		s.want(403, "M_FORBIDDEN", bob, "PUT", path, object{"body": "x", "msgtype": "m.text"})
		s.want(403, "M_FORBIDDEN", bob, "PUT", at("!nothing:test", "send", "m.room.message", "t"), object{})
		s.want(413, "M_TOO_LARGE", alice, "PUT", at(room, "send", "m.room.message", "big"), object{"body": strings.Repeat("x", 66000)})
		s.want(400, "M_NOT_JSON", alice, "PUT", at(room, "send", "m.room.message", "bad"), "{")
		s.want(400, "M_BAD_JSON", alice, "PUT", at(room, "send", "m.room.message", "bad"), "[]")
		s.want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "send", "m.room.message", strings.Repeat("x", 600)), object{})
		s.want(401, "M_MISSING_TOKEN", "", "PUT", path, object{})
		s.want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "send", "m.room.create", "c"), object{})
		s.want(403, "M_USER_SUSPENDED", "@suspended:test", "PUT", path, object{})
	})
}

// spec: c2s/setRoomStateWithKey, c2s/getRoomStateWithKey
func TestStateIsSetAndRead(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		s.join(bob, room)
		first := s.ok(alice, "PUT", at(room, "state", "m.room.topic"), object{"topic": "one"}).text("event_id")
		if again := s.ok(alice, "PUT", at(room, "state", "m.room.topic")+"/", object{"topic": "one"}).text("event_id"); again != first {
			t.Error("the same state was sent twice")
		}
		second := s.set(alice, room, "m.room.topic", "", object{"topic": "two"})
		for _, path := range []string{at(room, "state", "m.room.topic"), at(room, "state", "m.room.topic") + "/"} {
			if got := s.ok(bob, "GET", path, nil).text("topic"); got != "two" {
				t.Errorf("%s: %q", path, got)
			}
		}
		ev := s.ok(bob, "GET", at(room, "state", "m.room.topic")+"?format=event", nil)
		if ev.text("event_id") != second || ev.text("unsigned", "prev_content", "topic") != "one" || ev.text("unsigned", "replaces_state") != first ||
			ev.text("unsigned", "membership") != "join" {
			t.Errorf("%s", ev.raw)
		}
		s.set(alice, room, "org.example", "a/b \x00", object{"x": 1})
		if got := s.ok(bob, "GET", at(room, "state", "org.example", "a/b \x00"), nil).at("x"); got != 1.0 {
			t.Errorf("an odd state key holds %v", got)
		}
		s.want(404, "M_NOT_FOUND", alice, "GET", at(room, "state", "m.room.nothing"), nil)
		s.want(400, "M_INVALID_PARAM", alice, "GET", at(room, "state", "m.room.topic")+"?format=odd", nil)
		s.want(403, "M_FORBIDDEN", bob, "PUT", at(room, "state", "m.room.topic"), object{"topic": "mine"})
		s.want(403, "M_FORBIDDEN", carol, "GET", at(room, "state", "m.room.topic"), nil)
		s.want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "state", "m.room.create"), object{})
		s.want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "state", "m.room.canonical_alias"), object{"alias": "odd"})
		s.want(400, "M_BAD_ALIAS", alice, "PUT", at(room, "state", "m.room.canonical_alias"), object{"alias": "#none:test"})
		if got := len(s.ok(bob, "GET", at(room, "state"), nil).list); got < 8 {
			t.Errorf("the state has %d events", got)
		}
	})
}

// spec: c2s/redactEvent
func TestRedactionsNeedPower(t *testing.T) {
	for _, version := range []string{"1", "10", "12"} {
		t.Run(version, func(t *testing.T) {
			s := onSQLite(t)
			room := s.create(alice, object{"preset": "public_chat", "room_version": version})
			s.join(bob, room)
			hers, his := s.say(alice, room, "hers"), s.say(bob, room, "his")
			s.want(403, "M_FORBIDDEN", bob, "PUT", at(room, "redact", hers, "a"), object{})
			s.want(404, "M_NOT_FOUND", bob, "PUT", at(room, "redact", "$nothing:test", "a"), object{})
			// An ID that a message had is another one here.
			mine := s.ok(bob, "PUT", at(room, "send", "m.room.message", "b"), object{"msgtype": "m.text", "body": "b"}).text("event_id")
			red := s.ok(bob, "PUT", at(room, "redact", his, "b"), object{"reason": "oops"}).text("event_id")
			if red == mine {
				t.Error("a redaction was taken for the repetition of a message")
			}
			if again := s.ok(bob, "PUT", at(room, "redact", his, "b"), object{"reason": "oops"}).text("event_id"); again != red {
				t.Error("a repeated redaction made another event")
			}
			a := s.ok(alice, "GET", at(room, "event", his), nil)
			if len(a.at("content").(object)) != 0 || a.text("unsigned", "redacted_because", "event_id") != red {
				t.Errorf("%s", a.raw)
			}
			// spec: rooms/v11, redacts stands in content and beside it for all clients
			a = s.ok(alice, "GET", at(room, "event", red), nil)
			if a.text("redacts") != his || a.text("content", "redacts") != his {
				t.Errorf("%s", a.raw)
			}
			s.ok(alice, "PUT", at(room, "send", "m.room.redaction", "c"), object{"redacts": hers})
			if a = s.ok(bob, "GET", at(room, "event", hers), nil); len(a.at("content").(object)) != 0 {
				t.Errorf("%s", a.raw)
			}
			s.want(400, "M_BAD_JSON", alice, "PUT", at(room, "send", "m.room.redaction", "d"), object{})
		})
	}
}

// spec: c2s#room-membership
func TestMembershipGoesItsWays(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, object{"preset": "private_chat"})
		s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
		s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "invite"), object{"user_id": carol})
		s.want(400, "M_MISSING_PARAM", alice, "POST", at(room, "invite"), object{})
		s.want(400, "M_INVALID_PARAM", alice, "POST", at(room, "invite"), object{"user_id": "bob"})
		s.want(400, "M_SERVER_NOT_TRUSTED", alice, "POST", at(room, "invite"), object{"medium": "email", "address": "a@b", "id_server": "x", "id_access_token": "y"})
		s.ok(alice, "POST", at(room, "invite"), object{"user_id": bob, "reason": "come"})
		s.leave(bob, room) // refused
		s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
		s.ok(alice, "POST", at(room, "invite"), object{"user_id": bob})
		if got := s.ok(bob, "POST", v3+"/join/"+url.PathEscape(room), object{"reason": "hello"}).text("room_id"); got != room {
			t.Errorf("joined %q", got)
		}
		s.join(bob, room) // again is no error
		s.want(403, "M_FORBIDDEN", alice, "POST", at(room, "invite"), object{"user_id": bob})
		s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "kick"), object{"user_id": alice})
		s.ok(alice, "POST", at(room, "kick"), object{"user_id": bob, "reason": "rude"})
		s.want(403, "M_FORBIDDEN", alice, "POST", at(room, "kick"), object{"user_id": bob})
		s.ok(alice, "POST", at(room, "ban"), object{"user_id": bob})
		s.want(403, "M_FORBIDDEN", alice, "POST", at(room, "invite"), object{"user_id": bob})
		s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
		s.ok(alice, "POST", at(room, "unban"), object{"user_id": bob})
		s.want(403, "M_BAD_STATE", alice, "POST", at(room, "unban"), object{"user_id": bob})
		s.want(400, "M_MISSING_PARAM", alice, "POST", at(room, "ban"), object{})
		s.set(alice, room, "m.room.member", bob, object{"membership": "invite"})
		s.set(bob, room, "m.room.member", bob, object{"membership": "join", "displayname": "Bob"})
		if rooms := s.ok(bob, "GET", v3+"/joined_rooms", nil).array("joined_rooms"); len(rooms) != 1 || rooms[0] != room {
			t.Errorf("joined rooms %v", rooms)
		}
		s.want(400, "M_UNKNOWN", bob, "POST", at(room, "forget"), object{})
		s.leave(bob, room)
		s.leave(bob, room)
		s.ok(bob, "POST", at(room, "forget"), object{})
		s.want(404, "M_NOT_FOUND", bob, "POST", at("!nothing:test", "join"), object{})
		s.want(404, "M_NOT_FOUND", bob, "POST", v3+"/join/%23nothing:test", object{})
		s.want(400, "M_INVALID_PARAM", bob, "POST", v3+"/join/odd", object{})
	})
}

// spec: c2s/knockRoom, c2s#restricted-rooms
func TestKnocksAndRestrictedRooms(t *testing.T) {
	s := onSQLite(t)
	space := s.create(alice, nil)
	room := s.create(alice, object{"preset": "private_chat", "initial_state": []object{{"type": "m.room.join_rules", "content": object{
		"join_rule": "knock_restricted", "allow": []object{{"type": "m.room_membership", "room_id": space}}}}}})
	s.want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
	s.ok(carol, "POST", v3+"/knock/"+url.PathEscape(room), object{"reason": "please"})
	s.ok(alice, "POST", at(room, "invite"), object{"user_id": carol})
	s.join(carol, room)
	s.join(bob, space)
	s.join(bob, room)
	if got := s.ok(bob, "GET", at(room, "state", "m.room.member", bob), nil).text("join_authorised_via_users_server"); got != alice {
		t.Errorf("let in by %q", got)
	}
	s.want(403, "M_FORBIDDEN", bob, "POST", v3+"/knock/"+url.PathEscape(room), object{})
}

// spec: c2s#guest-access
func TestGuestsEnterWhereTheyMay(t *testing.T) {
	s := onSQLite(t)
	shut := s.create(alice, object{"preset": "public_chat"})
	open := s.create(alice, object{"preset": "public_chat", "initial_state": []object{{"type": "m.room.guest_access", "content": object{"guest_access": "can_join"}}}})
	s.want(403, "M_GUEST_ACCESS_FORBIDDEN", "@guest1:test", "POST", at(shut, "join"), object{})
	s.join("@guest1:test", open)
	s.say("@guest1:test", open, "hello")
}
