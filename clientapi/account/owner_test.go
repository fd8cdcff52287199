package account_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// spec: c2s/changePassword
func TestChangePassword(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice, other := s.register("alice"), s.login("alice", nil)
		s.register("mallory")
		s.want(401, "M_MISSING_TOKEN", "", "POST", v3+"/account/password", object{"new_password": "x"})
		wrong := alice.confirm("")
		wrong["password"] = "wrong"
		a := s.want(401, "M_FORBIDDEN", alice.token, "POST", v3+"/account/password", object{"new_password": "next", "auth": wrong})
		if a.text("session") == "" || a.body["flows"] == nil {
			s.t.Fatalf("a wrong password must be able to be tried again: %v", a.body)
		}
		// another's password does not confirm for me
		s.want(401, "M_FORBIDDEN", alice.token, "POST", v3+"/account/password", object{"new_password": "next", "auth": object{
			"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": "mallory"}, "password": password}})
		s.want(400, "M_MISSING_PARAM", alice.token, "POST", v3+"/account/password", object{"auth": alice.confirm("")})
		s.want(400, "M_INVALID_PARAM", alice.token, "POST", v3+"/account/password", object{"new_password": many(600), "auth": alice.confirm("")})

		// a session confirms one body
		first := s.want(401, "", alice.token, "POST", v3+"/account/password", object{"new_password": "next"})
		s.want(401, "M_UNAUTHORIZED", alice.token, "POST", v3+"/account/password", object{"new_password": "other", "auth": alice.confirm(first.text("session"))})
		s.want(401, "M_UNAUTHORIZED", other.token, "POST", v3+"/account/password", object{"new_password": "next", "auth": alice.confirm(first.text("session"))})
		s.want(200, "", alice.token, "POST", v3+"/account/password", object{"new_password": "next", "auth": alice.confirm(first.text("session"))})
		if s.whoami(alice) != 200 || s.whoami(other) != 401 {
			s.t.Fatal("the session that changed the password should stay, the other end")
		}
		s.want(403, "M_FORBIDDEN", "", "POST", v3+"/login", login("alice", password))
		kept := personOf(s.want(200, "", "", "POST", v3+"/login", login("alice", "next")))
		auth := alice.confirm("")
		auth["password"] = "next"
		s.want(200, "", alice.token, "POST", v3+"/account/password", object{"new_password": password, "logout_devices": false, "auth": auth})
		if s.whoami(kept) != 200 {
			s.t.Fatal("logout_devices: false ended another session")
		}
	})
}

// spec: c2s/deactivateAccount
func TestDeactivate(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		left := make(chan id.UserID, 4)
		refuse := true
		s.users.OnDeactivate = func(_ context.Context, user id.UserID) error {
			left <- user
			if refuse {
				refuse = false
				return errors.New("a room is busy")
			}
			return nil
		}
		alice, other := s.register("alice"), s.login("alice", object{"refresh_token": true})
		s.want(401, "M_MISSING_TOKEN", "", "POST", v3+"/account/deactivate", object{})
		s.want(200, "", alice.token, "PUT", v3+"/user/"+alice.user+"/account_data/org.example.diary", object{"secret": "x"})
		s.want(200, "", alice.token, "PUT", v3+"/profile/"+alice.user+"/displayname", object{"displayname": "Alice"})
		a := s.confirmed(alice, "POST", v3+"/account/deactivate", object{"erase": true})
		if a.status != 200 || a.text("id_server_unbind_result") != "success" {
			t.Fatalf("%d %v", a.status, a.body)
		}
		if s.whoami(alice) != 401 || s.whoami(other) != 401 {
			t.Fatal("a session outlives its account")
		}
		s.want(401, "M_UNKNOWN_TOKEN", "", "POST", v3+"/refresh", object{"refresh_token": other.refresh})
		s.want(403, "M_FORBIDDEN", "", "POST", v3+"/login", login("alice", password))
		s.want(400, "M_USER_IN_USE", "", "GET", v3+"/register/available?username=alice", nil)
		row, ok, err := s.users.Account(t.Context(), id.UserID(alice.user))
		if err != nil || !ok || !row.Deactivated || !row.Erased || !row.Leaving || row.Password != "" {
			t.Fatalf("what is kept of the account: %+v %v", row, err)
		}
		err = s.db.Read(t.Context(), func(tx storage.Tx) error {
			kept, err := tx.AllAccountData(alice.user)
			if _, ok, err := tx.Profile(alice.user); ok || err != nil || len(kept) > 0 {
				t.Errorf("what was to be erased is there: %v, profile %v %v", kept, ok, err)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}

		// Two runs: the first does not get her out of her rooms, a later one does, and then it is done.
		for _, wantLeaving := range []bool{true, false} {
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error)
			go func() { done <- s.users.Run(ctx) }()
			select {
			case user := <-left:
				if string(user) != alice.user {
					t.Fatalf("%s left", user)
				}
			case <-time.After(time.Minute):
				t.Fatal("nobody was taken out of their rooms")
			}
			for deadline := time.Now().Add(time.Minute); row.Leaving != wantLeaving && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				if row, _, err = s.users.Account(t.Context(), id.UserID(alice.user)); err != nil {
					t.Fatal(err)
				}
			}
			stop()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		if row.Leaving {
			t.Fatal("she is still leaving")
		}
	})
}

// spec: c2s#account-locking
func TestLockedUserCanOnlyLeave(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		root, alice := s.admin("root"), s.register("alice")
		path := v1 + "/admin/lock/" + alice.user
		if a := s.want(200, "", root.token, "PUT", path, object{"locked": true}); a.body["locked"] != true {
			s.t.Fatal(a.body)
		}
		if a := s.want(200, "", root.token, "GET", path, nil); a.body["locked"] != true {
			s.t.Fatal(a.body)
		}
		a := s.want(401, "M_USER_LOCKED", alice.token, "GET", v3+"/account/whoami", nil)
		if a.body["soft_logout"] != true {
			s.t.Fatalf("no soft logout: %v", a.body)
		}
		s.want(401, "M_USER_LOCKED", "", "POST", v3+"/login", login("alice", password))
		s.want(200, "", root.token, "PUT", path, object{"locked": false})
		s.want(200, "", alice.token, "GET", v3+"/account/whoami", nil)
		s.want(200, "", root.token, "PUT", path, object{"locked": true})
		s.want(200, "", alice.token, "POST", v3+"/logout", nil)
		s.want(401, "M_UNKNOWN_TOKEN", alice.token, "GET", v3+"/account/whoami", nil)
	})
}

// spec: c2s/setAdminSuspendUser, c2s/setAdminLockUser
func TestModerationIsForAdministratorsOnOthers(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		root, second, alice := s.admin("root"), s.admin("second"), s.register("alice")
		for _, what := range []string{"suspend", "lock"} {
			path, member := v1+"/admin/"+what+"/", what+"ed"
			if what == "suspend" {
				member = "suspended"
			}
			on := object{member: true}
			s.want(403, "M_FORBIDDEN", alice.token, "PUT", path+alice.user, on)
			s.want(403, "M_FORBIDDEN", alice.token, "GET", path+"@nobody:agency.example", nil)
			s.want(403, "M_FORBIDDEN", root.token, "PUT", path+root.user, on)
			s.want(403, "M_FORBIDDEN", root.token, "PUT", path+second.user, on)
			s.want(403, "M_FORBIDDEN", root.token, "GET", path+second.user, nil)
			s.want(404, "M_NOT_FOUND", root.token, "PUT", path+"@nobody:agency.example", on)
			s.want(400, "M_INVALID_PARAM", root.token, "PUT", path+"@alice:elsewhere.example", on)
			s.want(400, "M_INVALID_PARAM", root.token, "GET", path+"alice", nil)
			s.want(400, "M_MISSING_PARAM", root.token, "PUT", path+alice.user, object{})
			s.want(400, "M_BAD_JSON", root.token, "PUT", path+alice.user, object{member: "yes"})
			if a := s.want(200, "", root.token, "PUT", path+alice.user, on); a.body[member] != true {
				s.t.Fatal(a.body)
			}
			if a := s.want(200, "", root.token, "GET", path+alice.user, nil); a.body[member] != true {
				s.t.Fatal(a.body)
			}
		}
	})
}

func TestWhatAnAccountCanDo(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		root, alice := s.admin("root"), s.register("alice")
		a := s.want(200, "", alice.token, "GET", v3+"/capabilities", nil)
		list, _ := a.body["capabilities"].(object)
		versions, _ := list["m.room_versions"].(object)
		if versions["default"] != "12" || list["m.account_moderation"] != nil {
			s.t.Fatalf("capabilities: %v", list)
		}
		if a := s.want(200, "", root.token, "GET", v3+"/capabilities", nil); a.body["capabilities"].(object)["m.account_moderation"] == nil {
			s.t.Fatalf("an administrator's capabilities: %v", a.body)
		}
		if a := s.want(200, "", alice.token, "GET", v3+"/voip/turnServer", nil); len(a.body) != 0 {
			s.t.Fatal(a.body)
		}
		if a := s.want(200, "", alice.token, "GET", v3+"/account/3pid", nil); len(a.body["threepids"].([]any)) != 0 {
			s.t.Fatal(a.body)
		}
		who := s.want(200, "", alice.token, "GET", v3+"/admin/whois/"+alice.user, nil)
		if len(who.body["devices"].(object)) != 1 {
			s.t.Fatal(who.body)
		}
		s.want(403, "M_FORBIDDEN", alice.token, "GET", v3+"/admin/whois/"+root.user, nil)
		s.want(200, "", root.token, "GET", v3+"/admin/whois/"+alice.user, nil)
		s.want(404, "M_NOT_FOUND", root.token, "GET", v3+"/admin/whois/@nobody:agency.example", nil)
		s.want(400, "M_INVALID_PARAM", root.token, "GET", v3+"/admin/whois/@a:elsewhere.example", nil)
	})
}

// spec: c2s/requestOpenIdToken
func TestOpenIDTokenNamesItsOwner(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.register("alice")
		s.want(403, "M_FORBIDDEN", alice.token, "POST", v3+"/user/@bob:agency.example/openid/request_token", object{})
		token := s.want(200, "", alice.token, "POST", v3+"/user/"+alice.user+"/openid/request_token", object{}).text("access_token")
		user, ok, err := s.users.OpenIDUser(s.t.Context(), token)
		if err != nil || !ok || string(user) != alice.user {
			s.t.Fatalf("the token is %q's, %v %v", user, ok, err)
		}
		if _, ok, _ := s.users.OpenIDUser(s.t.Context(), token+"x"); ok {
			s.t.Fatal("any token is good")
		}
		s.want(401, "M_UNKNOWN_TOKEN", token, "GET", v3+"/account/whoami", nil)
	})
}
