package account_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"chancery/storage"
	"chancery/test/client"

	"maunium.net/go/mautrix/id"
)

// spec: c2s/changePassword
func TestChangePassword(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice, other := s.Register("alice"), s.Login("alice", nil)
		s.Register("mallory")
		s.Want(401, "M_MISSING_TOKEN", "", "POST", v3+"/account/password", object{"new_password": "x"})
		wrong := alice.Confirm("")
		wrong["password"] = "wrong"
		a := s.Want(401, "M_FORBIDDEN", alice.Token, "POST", v3+"/account/password", object{"new_password": "next", "auth": wrong})
		if a.Str("session") == "" || a.Value("flows") == nil {
			s.T.Fatalf("a wrong password must be able to be tried again: %v", a)
		}
		// another's password does not confirm for me
		s.Want(401, "M_FORBIDDEN", alice.Token, "POST", v3+"/account/password", object{"new_password": "next", "auth": object{
			"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": "mallory"}, "password": password}})
		s.Want(400, "M_MISSING_PARAM", alice.Token, "POST", v3+"/account/password", object{"auth": alice.Confirm("")})
		s.Want(400, "M_INVALID_PARAM", alice.Token, "POST", v3+"/account/password", object{"new_password": many(600), "auth": alice.Confirm("")})

		// a session confirms one body
		first := s.Want(401, "", alice.Token, "POST", v3+"/account/password", object{"new_password": "next"})
		s.Want(401, "M_UNAUTHORIZED", alice.Token, "POST", v3+"/account/password", object{"new_password": "other", "auth": alice.Confirm(first.Str("session"))})
		s.Want(401, "M_UNAUTHORIZED", other.Token, "POST", v3+"/account/password", object{"new_password": "next", "auth": alice.Confirm(first.Str("session"))})
		s.Want(200, "", alice.Token, "POST", v3+"/account/password", object{"new_password": "next", "auth": alice.Confirm(first.Str("session"))})
		if s.whoami(alice) != 200 || s.whoami(other) != 401 {
			s.T.Fatal("the session that changed the password should stay, the other end")
		}
		s.Want(403, "M_FORBIDDEN", "", "POST", v3+"/login", client.Login("alice", password))
		kept := client.PersonOf(s.Want(200, "", "", "POST", v3+"/login", client.Login("alice", "next")))
		auth := alice.Confirm("")
		auth["password"] = "next"
		s.Want(200, "", alice.Token, "POST", v3+"/account/password", object{"new_password": password, "logout_devices": false, "auth": auth})
		if s.whoami(kept) != 200 {
			s.T.Fatal("logout_devices: false ended another session")
		}
	})
}

// spec: c2s/deactivateAccount
func TestDeactivate(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		left := make(chan id.UserID, 4)
		refuse := true
		s.Users.OnDeactivate = func(_ context.Context, user id.UserID) error {
			left <- user
			if refuse {
				refuse = false
				return errors.New("a room is busy")
			}
			return nil
		}
		alice, other := s.Register("alice"), s.Login("alice", object{"refresh_token": true})
		s.Want(401, "M_MISSING_TOKEN", "", "POST", v3+"/account/deactivate", object{})
		s.Want(200, "", alice.Token, "PUT", v3+"/user/"+alice.User+"/account_data/org.example.diary", object{"secret": "x"})
		s.Want(200, "", alice.Token, "PUT", v3+"/profile/"+alice.User+"/displayname", object{"displayname": "Alice"})
		a := s.Confirmed(alice, "POST", v3+"/account/deactivate", object{"erase": true})
		if a.Status != 200 || a.Str("id_server_unbind_result") != "success" {
			t.Fatalf("%d %v", a.Status, a)
		}
		if s.whoami(alice) != 401 || s.whoami(other) != 401 {
			t.Fatal("a session outlives its account")
		}
		s.Want(401, "M_UNKNOWN_TOKEN", "", "POST", v3+"/refresh", object{"refresh_token": other.Refresh})
		s.Want(403, "M_FORBIDDEN", "", "POST", v3+"/login", client.Login("alice", password))
		s.Want(400, "M_USER_IN_USE", "", "GET", v3+"/register/available?username=alice", nil)
		row, ok, err := s.Users.Account(t.Context(), id.UserID(alice.User))
		if err != nil || !ok || !row.Deactivated || !row.Erased || !row.Leaving || row.Password != "" {
			t.Fatalf("what is kept of the account: %+v %v", row, err)
		}
		err = s.DB.Read(t.Context(), func(tx storage.Tx) error {
			kept, err := tx.AllAccountData(alice.User)
			if _, ok, err := tx.Profile(alice.User); ok || err != nil || len(kept) > 0 {
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
			go func() { done <- s.Users.Run(ctx) }()
			select {
			case user := <-left:
				if string(user) != alice.User {
					t.Fatalf("%s left", user)
				}
			case <-time.After(time.Minute):
				t.Fatal("nobody was taken out of their rooms")
			}
			for deadline := time.Now().Add(time.Minute); row.Leaving != wantLeaving && time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				if row, _, err = s.Users.Account(t.Context(), id.UserID(alice.User)); err != nil {
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
		root, alice := s.admin("root"), s.Register("alice")
		path := v1 + "/admin/lock/" + alice.User
		if a := s.Want(200, "", root.Token, "PUT", path, object{"locked": true}); a.Value("locked") != true {
			s.T.Fatal(a)
		}
		if a := s.Want(200, "", root.Token, "GET", path, nil); a.Value("locked") != true {
			s.T.Fatal(a)
		}
		a := s.Want(401, "M_USER_LOCKED", alice.Token, "GET", v3+"/account/whoami", nil)
		if a.Value("soft_logout") != true {
			s.T.Fatalf("no soft logout: %v", a)
		}
		s.Want(401, "M_USER_LOCKED", "", "POST", v3+"/login", client.Login("alice", password))
		s.Want(200, "", root.Token, "PUT", path, object{"locked": false})
		s.Want(200, "", alice.Token, "GET", v3+"/account/whoami", nil)
		s.Want(200, "", root.Token, "PUT", path, object{"locked": true})
		s.Want(200, "", alice.Token, "POST", v3+"/logout", nil)
		s.Want(401, "M_UNKNOWN_TOKEN", alice.Token, "GET", v3+"/account/whoami", nil)
	})
}

// spec: c2s/setAdminSuspendUser, c2s/setAdminLockUser
func TestModerationIsForAdministratorsOnOthers(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		root, second, alice := s.admin("root"), s.admin("second"), s.Register("alice")
		for _, what := range []string{"suspend", "lock"} {
			path, member := v1+"/admin/"+what+"/", what+"ed"
			if what == "suspend" {
				member = "suspended"
			}
			on := object{member: true}
			s.Want(403, "M_FORBIDDEN", alice.Token, "PUT", path+alice.User, on)
			s.Want(403, "M_FORBIDDEN", alice.Token, "GET", path+"@nobody:agency.example", nil)
			s.Want(403, "M_FORBIDDEN", root.Token, "PUT", path+root.User, on)
			s.Want(403, "M_FORBIDDEN", root.Token, "PUT", path+second.User, on)
			s.Want(403, "M_FORBIDDEN", root.Token, "GET", path+second.User, nil)
			s.Want(404, "M_NOT_FOUND", root.Token, "PUT", path+"@nobody:agency.example", on)
			s.Want(400, "M_INVALID_PARAM", root.Token, "PUT", path+"@alice:elsewhere.example", on)
			s.Want(400, "M_INVALID_PARAM", root.Token, "GET", path+"alice", nil)
			s.Want(400, "M_MISSING_PARAM", root.Token, "PUT", path+alice.User, object{})
			s.Want(400, "M_BAD_JSON", root.Token, "PUT", path+alice.User, object{member: "yes"})
			if a := s.Want(200, "", root.Token, "PUT", path+alice.User, on); a.Value(member) != true {
				s.T.Fatal(a)
			}
			if a := s.Want(200, "", root.Token, "GET", path+alice.User, nil); a.Value(member) != true {
				s.T.Fatal(a)
			}
		}
	})
}

func TestWhatAnAccountCanDo(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		root, alice := s.admin("root"), s.Register("alice")
		a := s.Want(200, "", alice.Token, "GET", v3+"/capabilities", nil)
		list, _ := a.Value("capabilities").(object)
		versions, _ := list["m.room_versions"].(object)
		if versions["default"] != "12" || list["m.account_moderation"] != nil {
			s.T.Fatalf("capabilities: %v", list)
		}
		if a := s.Want(200, "", root.Token, "GET", v3+"/capabilities", nil); a.Value("capabilities").(object)["m.account_moderation"] == nil {
			s.T.Fatalf("an administrator's capabilities: %v", a)
		}
		if a := s.Want(200, "", alice.Token, "GET", v3+"/voip/turnServer", nil); a.Text != "{}" {
			s.T.Fatal(a)
		}
		if a := s.Want(200, "", alice.Token, "GET", v3+"/account/3pid", nil); len(a.Value("threepids").([]any)) != 0 {
			s.T.Fatal(a)
		}
		who := s.Want(200, "", alice.Token, "GET", v3+"/admin/whois/"+alice.User, nil)
		if len(who.Value("devices").(object)) != 1 {
			s.T.Fatal(who)
		}
		s.Want(403, "M_FORBIDDEN", alice.Token, "GET", v3+"/admin/whois/"+root.User, nil)
		s.Want(200, "", root.Token, "GET", v3+"/admin/whois/"+alice.User, nil)
		s.Want(404, "M_NOT_FOUND", root.Token, "GET", v3+"/admin/whois/@nobody:agency.example", nil)
		s.Want(400, "M_INVALID_PARAM", root.Token, "GET", v3+"/admin/whois/@a:elsewhere.example", nil)
	})
}

// spec: c2s/requestOpenIdToken
func TestOpenIDTokenNamesItsOwner(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.Register("alice")
		s.Want(403, "M_FORBIDDEN", alice.Token, "POST", v3+"/user/@bob:agency.example/openid/request_token", object{})
		token := s.Want(200, "", alice.Token, "POST", v3+"/user/"+alice.User+"/openid/request_token", object{}).Str("access_token")
		user, ok, err := s.Users.OpenIDUser(s.T.Context(), token)
		if err != nil || !ok || string(user) != alice.User {
			s.T.Fatalf("the token is %q's, %v %v", user, ok, err)
		}
		if _, ok, _ := s.Users.OpenIDUser(s.T.Context(), token+"x"); ok {
			s.T.Fatal("any token is good")
		}
		s.Want(401, "M_UNKNOWN_TOKEN", token, "GET", v3+"/account/whoami", nil)
	})
}
