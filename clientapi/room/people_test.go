package room_test

import (
	"encoding/json"
	"testing"

	"chancery/storage"
)

// keep stores account data as if the user had.
func (s *server) keep(user, typ, content string) {
	s.t.Helper()
	err := s.db.Write(s.t.Context(), []string{"user:" + user}, func(tx storage.Tx) error {
		tx.SetAccountData(storage.AccountData{User: user, Type: typ, Content: json.RawMessage(content)})
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

// spec: c2s#ignoring-users
func TestIgnoredUsersAreNotHeard(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		s.join(bob, room)
		root := s.say(alice, room, "root")
		s.say(bob, room, "noise")
		s.relate(bob, room, "m.thread", root, "more noise")
		s.keep(alice, "m.ignored_user_list", `{"ignored_users":{"@bob:test":{}}}`)
		a := s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=100", nil)
		same(t, bodies(a, "chunk"), []string{"root"})
		joined := false
		for i := range a.array("chunk") {
			joined = joined || a.text("chunk", i, "state_key") == bob
		}
		if !joined {
			t.Error("the state that an ignored user sets is shown all the same")
		}
		if got := s.ok(alice, "GET", at(room, "event", root), nil).at("unsigned", "m.relations"); got != nil {
			t.Errorf("the thread counts an ignored user: %v", got)
		}
		same(t, bodies(s.ok(bob, "GET", at(room, "messages")+"?dir=b&limit=100", nil), "chunk"), []string{"more noise", "noise", "root"})
	})
}

// spec: c2s#invite-permission
func TestWhoWantsNoInvitesGetsNone(t *testing.T) {
	s := onSQLite(t)
	room := s.create(alice, nil)
	s.keep(bob, "m.invite_permission_config", `{"default_action":"block"}`)
	s.want(403, "M_INVITE_BLOCKED", alice, "POST", at(room, "invite"), object{"user_id": bob})
	s.want(403, "M_INVITE_BLOCKED", alice, "PUT", at(room, "state", "m.room.member", bob), object{"membership": "invite"})
	s.want(403, "M_INVITE_BLOCKED", alice, "POST", v3+"/createRoom", object{"invite": []string{carol, bob}})
	s.join(bob, room)
}

// spec: c2s#mroommember
func TestMembersShowTheirProfiles(t *testing.T) {
	eachEngine(t, func(s *server) {
		for _, user := range []string{alice, bob} {
			err := s.db.Write(t.Context(), []string{"user:" + user}, func(tx storage.Tx) error {
				tx.SetProfile(storage.Profile{User: user, Fields: json.RawMessage(`{}`), DisplayName: "I am " + user, AvatarURL: "mxc://test/" + user[1:4]})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		room := s.create(alice, object{"invite": []string{bob}})
		for _, user := range []string{alice, bob} {
			if a := s.ok(alice, "GET", at(room, "state", "m.room.member", user), nil); a.text("displayname") != "I am "+user || a.text("avatar_url") == "" {
				t.Errorf("%s", a.raw)
			}
		}
		s.join(bob, room)
		if a := s.ok(bob, "GET", at(room, "joined_members"), nil); a.text("joined", bob, "display_name") != "I am "+bob {
			t.Errorf("%s", a.raw)
		}
	})
}
