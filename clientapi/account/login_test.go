package account_test

import (
	"testing"
	"time"

	"chancery/config"
	"chancery/storage"
	"chancery/test/client"
)

// spec: c2s/register
func TestRegisterThenWhoAmIThenLogout(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		asked := s.Want(401, "", "", "POST", v3+"/register", object{})
		if asked.Str("session") == "" || asked.Value("flows") == nil {
			t.Fatalf("the first answer has no session and flows: %v", asked)
		}
		a := s.Want(200, "", "", "POST", v3+"/register", object{"username": "Alice", "password": password,
			"device_id": "PHONE", "auth": object{"type": "m.login.dummy", "session": asked.Str("session")}})
		alice := client.PersonOf(a)
		if alice.User != "@alice:agency.example" || alice.Device != "PHONE" || alice.Refresh != "" || a.Value("expires_in_ms") != nil {
			t.Fatalf("registered as %v", a)
		}
		who := s.Want(200, "", alice.Token, "GET", v3+"/account/whoami", nil)
		if who.Str("user_id") != alice.User || who.Str("device_id") != "PHONE" {
			t.Fatalf("whoami: %v", who)
		}
		s.Want(200, "", alice.Token, "POST", v3+"/logout", nil)
		gone := s.Want(401, "M_UNKNOWN_TOKEN", alice.Token, "GET", v3+"/account/whoami", nil)
		if gone.Value("soft_logout") != false {
			t.Fatalf("a session that is over is told softly: %v", gone)
		}
	})
}

// spec: c2s/login
func TestEveryWayToNameOneself(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.Register("alice")
		s.Want(200, "", "", "GET", v3+"/login", nil)
		for _, who := range []object{
			{"identifier": object{"type": "m.id.user", "user": "alice"}},
			{"identifier": object{"type": "m.id.user", "user": "@alice:agency.example"}},
			{"identifier": object{"type": "m.id.user", "user": "Alice"}},
			{"user": "alice"},
			{"user": "@alice:agency.example"},
		} {
			who["type"], who["password"] = "m.login.password", password
			s.Want(200, "", "", "POST", v3+"/login", who)
		}
	})
}

// spec: c2s/login
func TestLoginRefuses(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.Register("alice")
		user := object{"type": "m.id.user", "user": "alice"}
		for _, c := range []struct {
			status int
			code   string
			body   any
		}{
			{400, "M_NOT_JSON", "{"},
			{400, "M_BAD_JSON", "[]"},
			{400, "M_BAD_JSON", `{"type":1}`},
			{400, "M_BAD_JSON", `{"type":"m.login.password","type":"m.login.token"}`},
			{400, "M_MISSING_PARAM", object{}},
			{400, "M_UNKNOWN", object{"type": "m.login.dance"}},
			{400, "M_MISSING_PARAM", object{"type": "m.login.password"}},
			{400, "M_MISSING_PARAM", object{"type": "m.login.password", "identifier": user}},
			{400, "M_MISSING_PARAM", object{"type": "m.login.password", "identifier": object{}, "password": "x"}},
			{400, "M_INVALID_PARAM", object{"type": "m.login.password", "identifier": object{"type": "x"}, "password": "x"}},
			{400, "M_MISSING_PARAM", object{"type": "m.login.password", "identifier": object{"type": "m.id.user"}, "password": "x"}},
			{403, "M_FORBIDDEN", client.Login("alice", "wrong")},
			{403, "M_FORBIDDEN", client.Login("alice", many(5000))},
			{403, "M_FORBIDDEN", client.Login("nobody", password)},
			{403, "M_FORBIDDEN", client.Login("@alice:elsewhere.example", password)},
			{403, "M_FORBIDDEN", client.Login("@", password)},
			{403, "M_FORBIDDEN", client.Login("a\x00b", password)},
			{403, "M_FORBIDDEN", client.Login(many(300), password)},
			{403, "M_FORBIDDEN", object{"type": "m.login.password", "password": "x", "identifier": object{"type": "m.id.thirdparty", "medium": "email", "address": "a@b.example"}}},
			{403, "M_FORBIDDEN", object{"type": "m.login.password", "password": "x", "medium": "email", "address": "a@b.example"}},
			{403, "M_FORBIDDEN", object{"type": "m.login.password", "password": "x", "identifier": object{"type": "m.id.phone", "country": "DE", "phone": "030 1"}}},
			{400, "M_MISSING_PARAM", object{"type": "m.login.token"}},
			{403, "M_FORBIDDEN", object{"type": "m.login.token", "token": "no"}},
			{400, "M_INVALID_PARAM", object{"type": "m.login.password", "identifier": user, "password": password, "device_id": many(256)}},
			{400, "M_INVALID_PARAM", object{"type": "m.login.password", "identifier": user, "password": password, "initial_device_display_name": many(256)}},
		} {
			s.Want(c.status, c.code, "", "POST", v3+"/login", c.body)
		}
		s.Login("alice", object{"device_id": "odd \x00 device", "initial_device_display_name": "\x00"})
	})
}

// spec: c2s#relationship-between-access-tokens-and-devices
func TestLoginOnTheSameDeviceEndsItsOldTokens(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		other := s.Register("alice")
		first := s.Login("alice", object{"device_id": "PHONE", "initial_device_display_name": "My phone"})
		if s.whoami(first) != 200 {
			s.T.Fatal("the first token is not good")
		}
		second := s.Login("alice", object{"device_id": "PHONE", "initial_device_display_name": "Ignored"})
		if s.whoami(first) != 401 || s.whoami(second) != 200 || s.whoami(other) != 200 {
			s.T.Fatal("of three tokens the second and third should be good")
		}
		d := s.Want(200, "", second.Token, "GET", v3+"/devices/PHONE", nil)
		if d.Str("display_name") != "My phone" {
			s.T.Fatalf("signing in again renamed the device: %v", d)
		}
	})
}

// spec: c2s#using-access-tokens
func TestTokensThatAreNone(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.Want(401, "M_MISSING_TOKEN", "", "GET", v3+"/account/whoami", nil)
		s.Want(401, "M_UNKNOWN_TOKEN", "no", "GET", v3+"/account/whoami", nil)
		alice := s.Register("alice")
		s.Want(200, "", "", "GET", v3+"/account/whoami?access_token="+alice.Token, nil)
		s.Want(200, "", alice.Token, "POST", v3+"/logout/all", nil)
		s.Want(401, "M_UNKNOWN_TOKEN", alice.Token, "GET", v3+"/account/whoami", nil)
	})
}

// spec: c2s#refreshing-access-tokens
func TestRefreshTokenIsGoodUntilItsSuccessorIsUsed(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		s.Register("alice")
		first := s.Login("alice", object{"refresh_token": true})
		refresh := func(token string) person {
			t.Helper()
			a := s.Want(200, "", "", "POST", v3+"/refresh", object{"refresh_token": token})
			if ms, _ := a.Value("expires_in_ms").(float64); ms <= 0 {
				t.Fatalf("a token that can be refreshed does not expire: %v", a)
			}
			return client.PersonOf(a)
		}
		lost := refresh(first.Refresh)
		again := refresh(first.Refresh) // the answer was lost: the client asks again
		if s.whoami(lost) != 401 {
			t.Fatal("what was given for a refresh token and never used outlives the next use of it")
		}
		if s.whoami(first) != 200 {
			t.Fatal("the old access token ended before its successor was used")
		}
		if s.whoami(again) != 200 {
			t.Fatal("the new access token is not good")
		}
		if s.whoami(first) != 401 {
			t.Fatal("the old access token outlives the use of its successor")
		}
		s.Want(401, "M_UNKNOWN_TOKEN", "", "POST", v3+"/refresh", object{"refresh_token": first.Refresh})
		last := refresh(again.Refresh)
		refresh(last.Refresh) // using the new refresh token ends the old one too
		s.Want(401, "M_UNKNOWN_TOKEN", "", "POST", v3+"/refresh", object{"refresh_token": again.Refresh})
		for _, bad := range []struct {
			status int
			code   string
			body   any
		}{{400, "M_MISSING_PARAM", object{}}, {400, "M_BAD_JSON", `{"refresh_token":[]}`}, {401, "M_UNKNOWN_TOKEN", object{"refresh_token": "no"}}, {400, "M_NOT_JSON", "x"}} {
			s.Want(bad.status, bad.code, "", "POST", v3+"/refresh", bad.body)
		}
	})
}

// spec: c2s#soft-logout
func TestExpiredTokenIsASoftLogout(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.Register("alice")
		p := s.Login("alice", object{"refresh_token": true})
		err := s.DB.Write(s.T.Context(), []string{p.User}, func(tx storage.Tx) error {
			tx.Exec(`UPDATE access_tokens SET expires = $1 WHERE expires > 0`, time.Now().Add(-time.Minute).UnixMilli())
			return nil
		})
		if err != nil {
			s.T.Fatal(err)
		}
		a := s.Want(401, "M_UNKNOWN_TOKEN", p.Token, "GET", v3+"/account/whoami", nil)
		if a.Value("soft_logout") != true {
			s.T.Fatalf("no soft logout: %v", a)
		}
		fresh := client.PersonOf(s.Want(200, "", "", "POST", v3+"/refresh", object{"refresh_token": p.Refresh}))
		if s.whoami(fresh) != 200 {
			s.T.Fatal("an expired session cannot be refreshed")
		}
	})
}

// spec: c2s/generateLoginToken
func TestLoginTokenIsGoodOnce(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.Register("alice")
		a := s.Confirmed(alice, "POST", v1+"/login/get_token", object{})
		if a.Status != 200 {
			s.T.Fatalf("no login token: %v", a)
		}
		by := object{"type": "m.login.token", "token": a.Str("login_token")}
		other := client.PersonOf(s.Want(200, "", "", "POST", v3+"/login", by))
		if other.User != alice.User || other.Device == alice.Device {
			s.T.Fatalf("signed in as %v", other)
		}
		s.Want(403, "M_FORBIDDEN", "", "POST", v3+"/login", by)
	})
}

func TestWrongPasswordsAreLimitedByAccount(t *testing.T) {
	eachEngine(t, func(c *config.Config) { c.RateLimits.Enabled = true }, func(s *server) {
		s.Register("alice")
		s.Register("bob")
		limited := 0
		for range 15 {
			switch a := s.Ask("", "POST", v3+"/login", client.Login("alice", "guess")); a.Code() {
			case "M_LIMIT_EXCEEDED":
				limited++
				if ms, _ := a.Value("retry_after_ms").(float64); ms <= 0 {
					s.T.Fatalf("no retry_after_ms: %v", a)
				}
			case "M_FORBIDDEN":
			default:
				s.T.Fatal(a)
			}
		}
		if limited != 5 {
			s.T.Fatalf("of 15 wrong passwords %d were limited, want 5", limited)
		}
		for range 15 {
			s.Login("bob", nil) // right ones are not counted
		}
	})
}
