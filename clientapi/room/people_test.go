package room_test

import (
	"encoding/json"
	"testing"

	"chancery/storage"
)

// keep stores account data as if the user had.
func (s *server) keep(user, typ, content string) {
	s.T.Helper()
	err := s.DB.Write(s.T.Context(), []string{"user:" + user}, func(tx storage.Tx) error {
		tx.SetAccountData(storage.AccountData{User: user, Type: typ, Content: json.RawMessage(content)})
		return nil
	})
	if err != nil {
		s.T.Fatal(err)
	}
}

// spec: c2s#ignoring-users
func TestIgnoredUsersAreNotHeard(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		root := s.Say(alice, room, "root")
		s.Say(bob, room, "noise")
		s.relate(bob, room, "m.thread", root, "more noise")
		s.keep(alice, "m.ignored_user_list", `{"ignored_users":{"@bob:test":{}}}`)
		a := s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=100", nil)
		same(t, bodies(a, "chunk"), []string{"root"})
		joined := false
		for i := range a.List("chunk") {
			joined = joined || a.Str("chunk", i, "state_key") == bob
		}
		if !joined {
			t.Error("the state that an ignored user sets is shown all the same")
		}
		if got := s.OK(alice, "GET", at(room, "event", root), nil).Value("unsigned", "m.relations"); got != nil {
			t.Errorf("the thread counts an ignored user: %v", got)
		}
		same(t, bodies(s.OK(bob, "GET", at(room, "messages")+"?dir=b&limit=100", nil), "chunk"), []string{"more noise", "noise", "root"})
	})
}

// spec: c2s#invite-permission
func TestWhoWantsNoInvitesGetsNone(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.keep(bob, "m.invite_permission_config", `{"default_action":"block"}`)
	s.Want(403, "M_INVITE_BLOCKED", alice, "POST", at(room, "invite"), object{"user_id": bob})
	s.Want(403, "M_INVITE_BLOCKED", alice, "PUT", at(room, "state", "m.room.member", bob), object{"membership": "invite"})
	s.Want(403, "M_INVITE_BLOCKED", alice, "POST", v3+"/createRoom", object{"invite": []string{carol, bob}})
	s.Join(bob, room)
}

// spec: c2s#mroommember
func TestMembersShowTheirProfiles(t *testing.T) {
	eachEngine(t, func(s *server) {
		for _, user := range []string{alice, bob} {
			err := s.DB.Write(t.Context(), []string{"user:" + user}, func(tx storage.Tx) error {
				tx.SetProfile(storage.Profile{User: user, Fields: json.RawMessage(`{}`), DisplayName: "I am " + user, AvatarURL: "mxc://test/" + user[1:4]})
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		room := s.Create(alice, object{"invite": []string{bob}})
		for _, user := range []string{alice, bob} {
			if a := s.OK(alice, "GET", at(room, "state", "m.room.member", user), nil); a.Str("displayname") != "I am "+user || a.Str("avatar_url") == "" {
				t.Errorf("%s", a.Text)
			}
		}
		s.Join(bob, room)
		if a := s.OK(bob, "GET", at(room, "joined_members"), nil); a.Str("joined", bob, "display_name") != "I am "+bob {
			t.Errorf("%s", a.Text)
		}
	})
}
