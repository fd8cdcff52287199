package room_test

import (
	"net/url"
	"strings"
	"testing"
)

// spec: c2s/sendMessage, c2s#transaction-identifiers
func TestMessagesAreSentOnce(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		path := at(room, "send", "m.room.message", "t/ä?")
		first := s.OK(alice, "PUT", path, object{"body": "x", "msgtype": "m.text"}).Str("event_id")
		if again := s.OK(alice, "PUT", path, object{"body": "y", "msgtype": "m.text"}).Str("event_id"); again != first {
			t.Error("a repeated transaction ID made another event")
		}
		if other := s.OK(alice+"/OTHER", "PUT", path, object{"body": "z", "msgtype": "m.text"}).Str("event_id"); other == first {
			t.Error("another device's transaction ID found this one's event")
		}
		if got := s.OK(alice, "GET", at(room, "event", first), nil).Str("unsigned", "transaction_id"); got != "t/ä?" {
			t.Errorf("the device is told %q", got)
		}
		if got := s.OK(alice+"/OTHER", "GET", at(room, "event", first), nil).Value("unsigned", "transaction_id"); got != nil {
			t.Errorf("another device is told %v", got)
		}
		s.Want(403, "M_FORBIDDEN", bob, "PUT", path, object{"body": "x", "msgtype": "m.text"})
		s.Want(403, "M_FORBIDDEN", bob, "PUT", at("!nothing:test", "send", "m.room.message", "t"), object{})
		s.Want(413, "M_TOO_LARGE", alice, "PUT", at(room, "send", "m.room.message", "big"), object{"body": strings.Repeat("x", 66000)})
		s.Want(400, "M_NOT_JSON", alice, "PUT", at(room, "send", "m.room.message", "bad"), "{")
		s.Want(400, "M_BAD_JSON", alice, "PUT", at(room, "send", "m.room.message", "bad"), "[]")
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "send", "m.room.message", strings.Repeat("x", 600)), object{})
		s.Want(401, "M_MISSING_TOKEN", "", "PUT", path, object{})
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "send", "m.room.create", "c"), object{})
		s.Want(403, "M_USER_SUSPENDED", "@suspended:test", "PUT", path, object{})
	})
}

// spec: c2s/setRoomStateWithKey, c2s/getRoomStateWithKey
func TestStateIsSetAndRead(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		first := s.OK(alice, "PUT", at(room, "state", "m.room.topic"), object{"topic": "one"}).Str("event_id")
		if again := s.OK(alice, "PUT", at(room, "state", "m.room.topic")+"/", object{"topic": "one"}).Str("event_id"); again != first {
			t.Error("the same state was sent twice")
		}
		second := s.Set(alice, room, "m.room.topic", "", object{"topic": "two"})
		for _, path := range []string{at(room, "state", "m.room.topic"), at(room, "state", "m.room.topic") + "/"} {
			if got := s.OK(bob, "GET", path, nil).Str("topic"); got != "two" {
				t.Errorf("%s: %q", path, got)
			}
		}
		ev := s.OK(bob, "GET", at(room, "state", "m.room.topic")+"?format=event", nil)
		if ev.Str("event_id") != second || ev.Str("unsigned", "prev_content", "topic") != "one" || ev.Str("unsigned", "replaces_state") != first ||
			ev.Str("unsigned", "membership") != "join" {
			t.Errorf("%s", ev.Text)
		}
		s.Set(alice, room, "org.example", "a/b \x00", object{"x": 1})
		if got := s.OK(bob, "GET", at(room, "state", "org.example", "a/b \x00"), nil).Value("x"); got != 1.0 {
			t.Errorf("an odd state key holds %v", got)
		}
		s.Want(404, "M_NOT_FOUND", alice, "GET", at(room, "state", "m.room.nothing"), nil)
		s.Want(400, "M_INVALID_PARAM", alice, "GET", at(room, "state", "m.room.topic")+"?format=odd", nil)
		s.Want(403, "M_FORBIDDEN", bob, "PUT", at(room, "state", "m.room.topic"), object{"topic": "mine"})
		s.Want(403, "M_FORBIDDEN", carol, "GET", at(room, "state", "m.room.topic"), nil)
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "state", "m.room.create"), object{})
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", at(room, "state", "m.room.canonical_alias"), object{"alias": "odd"})
		s.Want(400, "M_BAD_ALIAS", alice, "PUT", at(room, "state", "m.room.canonical_alias"), object{"alias": "#none:test"})
		if got := len(s.OK(bob, "GET", at(room, "state"), nil).List()); got < 8 {
			t.Errorf("the state has %d events", got)
		}
	})
}

// spec: c2s/redactEvent
func TestRedactionsNeedPower(t *testing.T) {
	for _, version := range []string{"1", "10", "12"} {
		t.Run(version, func(t *testing.T) {
			s := onSQLite(t)
			room := s.Create(alice, object{"preset": "public_chat", "room_version": version})
			s.Join(bob, room)
			hers, his := s.Say(alice, room, "hers"), s.Say(bob, room, "his")
			s.Want(403, "M_FORBIDDEN", bob, "PUT", at(room, "redact", hers, "a"), object{})
			s.Want(404, "M_NOT_FOUND", bob, "PUT", at(room, "redact", "$nothing:test", "a"), object{})
			// An ID that a message had is another one here.
			mine := s.OK(bob, "PUT", at(room, "send", "m.room.message", "b"), object{"msgtype": "m.text", "body": "b"}).Str("event_id")
			red := s.OK(bob, "PUT", at(room, "redact", his, "b"), object{"reason": "oops"}).Str("event_id")
			if red == mine {
				t.Error("a redaction was taken for the repetition of a message")
			}
			if again := s.OK(bob, "PUT", at(room, "redact", his, "b"), object{"reason": "oops"}).Str("event_id"); again != red {
				t.Error("a repeated redaction made another event")
			}
			a := s.OK(alice, "GET", at(room, "event", his), nil)
			if len(a.Value("content").(object)) != 0 || a.Str("unsigned", "redacted_because", "event_id") != red {
				t.Errorf("%s", a.Text)
			}
			// spec: rooms/v11, redacts stands in content and beside it for all clients
			a = s.OK(alice, "GET", at(room, "event", red), nil)
			if a.Str("redacts") != his || a.Str("content", "redacts") != his {
				t.Errorf("%s", a.Text)
			}
			s.OK(alice, "PUT", at(room, "send", "m.room.redaction", "c"), object{"redacts": hers})
			if a = s.OK(bob, "GET", at(room, "event", hers), nil); len(a.Value("content").(object)) != 0 {
				t.Errorf("%s", a.Text)
			}
			s.Want(400, "M_BAD_JSON", alice, "PUT", at(room, "send", "m.room.redaction", "d"), object{})
		})
	}
}

// spec: c2s#room-membership
func TestMembershipGoesItsWays(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, object{"preset": "private_chat"})
		s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
		s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "invite"), object{"user_id": carol})
		s.Want(400, "M_MISSING_PARAM", alice, "POST", at(room, "invite"), object{})
		s.Want(400, "M_INVALID_PARAM", alice, "POST", at(room, "invite"), object{"user_id": "bob"})
		s.Want(400, "M_SERVER_NOT_TRUSTED", alice, "POST", at(room, "invite"), object{"medium": "email", "address": "a@b", "id_server": "x", "id_access_token": "y"})
		s.OK(alice, "POST", at(room, "invite"), object{"user_id": bob, "reason": "come"})
		s.Leave(bob, room) // refused
		s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
		s.OK(alice, "POST", at(room, "invite"), object{"user_id": bob})
		if got := s.OK(bob, "POST", v3+"/join/"+url.PathEscape(room), object{"reason": "hello"}).Str("room_id"); got != room {
			t.Errorf("joined %q", got)
		}
		s.Join(bob, room) // again is no error
		s.Want(403, "M_FORBIDDEN", alice, "POST", at(room, "invite"), object{"user_id": bob})
		s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "kick"), object{"user_id": alice})
		s.OK(alice, "POST", at(room, "kick"), object{"user_id": bob, "reason": "rude"})
		s.Want(403, "M_FORBIDDEN", alice, "POST", at(room, "kick"), object{"user_id": bob})
		s.OK(alice, "POST", at(room, "ban"), object{"user_id": bob})
		s.Want(403, "M_FORBIDDEN", alice, "POST", at(room, "invite"), object{"user_id": bob})
		s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
		s.OK(alice, "POST", at(room, "unban"), object{"user_id": bob})
		s.Want(403, "M_BAD_STATE", alice, "POST", at(room, "unban"), object{"user_id": bob})
		s.Want(400, "M_MISSING_PARAM", alice, "POST", at(room, "ban"), object{})
		s.Set(alice, room, "m.room.member", bob, object{"membership": "invite"})
		s.Set(bob, room, "m.room.member", bob, object{"membership": "join", "displayname": "Bob"})
		if rooms := s.OK(bob, "GET", v3+"/joined_rooms", nil).List("joined_rooms"); len(rooms) != 1 || rooms[0] != room {
			t.Errorf("joined rooms %v", rooms)
		}
		s.Want(400, "M_UNKNOWN", bob, "POST", at(room, "forget"), object{})
		s.Leave(bob, room)
		s.Leave(bob, room)
		s.OK(bob, "POST", at(room, "forget"), object{})
		s.Want(404, "M_NOT_FOUND", bob, "POST", at("!nothing:test", "join"), object{})
		s.Want(404, "M_NOT_FOUND", bob, "POST", v3+"/join/%23nothing:test", object{})
		s.Want(400, "M_INVALID_PARAM", bob, "POST", v3+"/join/odd", object{})
	})
}

// spec: c2s/knockRoom, c2s#restricted-rooms
func TestKnocksAndRestrictedRooms(t *testing.T) {
	s := onSQLite(t)
	space := s.Create(alice, nil)
	room := s.Create(alice, object{"preset": "private_chat", "initial_state": []object{{"type": "m.room.join_rules", "content": object{
		"join_rule": "knock_restricted", "allow": []object{{"type": "m.room_membership", "room_id": space}}}}}})
	s.Want(403, "M_FORBIDDEN", bob, "POST", at(room, "join"), object{})
	s.OK(carol, "POST", v3+"/knock/"+url.PathEscape(room), object{"reason": "please"})
	s.OK(alice, "POST", at(room, "invite"), object{"user_id": carol})
	s.Join(carol, room)
	s.Join(bob, space)
	s.Join(bob, room)
	if got := s.OK(bob, "GET", at(room, "state", "m.room.member", bob), nil).Str("join_authorised_via_users_server"); got != alice {
		t.Errorf("let in by %q", got)
	}
	s.Want(403, "M_FORBIDDEN", bob, "POST", v3+"/knock/"+url.PathEscape(room), object{})
}

// spec: c2s#guest-access
func TestGuestsEnterWhereTheyMay(t *testing.T) {
	s := onSQLite(t)
	shut := s.Create(alice, object{"preset": "public_chat"})
	open := s.Create(alice, object{"preset": "public_chat", "initial_state": []object{{"type": "m.room.guest_access", "content": object{"guest_access": "can_join"}}}})
	s.Want(403, "M_GUEST_ACCESS_FORBIDDEN", "@guest1:test", "POST", at(shut, "join"), object{})
	s.Join("@guest1:test", open)
	s.Say("@guest1:test", open, "hello")
}
