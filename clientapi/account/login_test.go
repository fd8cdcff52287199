package account_test

import (
	"testing"
	"time"

	"chancery/config"
	"chancery/storage"
)

// spec: c2s/register
func TestRegisterThenWhoAmIThenLogout(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		asked := s.want(401, "", "", "POST", v3+"/register", object{})
		if asked.text("session") == "" || asked.body["flows"] == nil {
			t.Fatalf("the first answer has no session and flows: %v", asked.body)
		}
		a := s.want(200, "", "", "POST", v3+"/register", object{"username": "Alice", "password": password,
			"device_id": "PHONE", "auth": object{"type": "m.login.dummy", "session": asked.text("session")}})
		alice := personOf(a)
		if alice.user != "@alice:agency.example" || alice.device != "PHONE" || alice.refresh != "" || a.body["expires_in_ms"] != nil {
			t.Fatalf("registered as %v", a.body)
		}
		who := s.want(200, "", alice.token, "GET", v3+"/account/whoami", nil)
		if who.text("user_id") != alice.user || who.text("device_id") != "PHONE" {
			t.Fatalf("whoami: %v", who.body)
		}
		s.want(200, "", alice.token, "POST", v3+"/logout", nil)
		gone := s.want(401, "M_UNKNOWN_TOKEN", alice.token, "GET", v3+"/account/whoami", nil)
		if gone.body["soft_logout"] != false {
			t.Fatalf("a session that is over is told softly: %v", gone.body)
		}
	})
}

// spec: c2s/login
func TestEveryWayToNameOneself(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.register("alice")
		s.want(200, "", "", "GET", v3+"/login", nil)
		for _, who := range []object{
			{"identifier": object{"type": "m.id.user", "user": "alice"}},
			{"identifier": object{"type": "m.id.user", "user": "@alice:agency.example"}},
			{"identifier": object{"type": "m.id.user", "user": "Alice"}},
			{"user": "alice"},
			{"user": "@alice:agency.example"},
		} {
			who["type"], who["password"] = "m.login.password", password
			s.want(200, "", "", "POST", v3+"/login", who)
		}
	})
}

// spec: c2s/login
func TestLoginRefuses(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.register("alice")
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
			{403, "M_FORBIDDEN", login("alice", "wrong")},
			{403, "M_FORBIDDEN", login("alice", many(5000))},
			{403, "M_FORBIDDEN", login("nobody", password)},
			{403, "M_FORBIDDEN", login("@alice:elsewhere.example", password)},
			{403, "M_FORBIDDEN", login("@", password)},
			{403, "M_FORBIDDEN", login("a\x00b", password)},
			{403, "M_FORBIDDEN", login(many(300), password)},
			{403, "M_FORBIDDEN", object{"type": "m.login.password", "password": "x", "identifier": object{"type": "m.id.thirdparty", "medium": "email", "address": "a@b.example"}}},
			{403, "M_FORBIDDEN", object{"type": "m.login.password", "password": "x", "medium": "email", "address": "a@b.example"}},
			{403, "M_FORBIDDEN", object{"type": "m.login.password", "password": "x", "identifier": object{"type": "m.id.phone", "country": "DE", "phone": "030 1"}}},
			{400, "M_MISSING_PARAM", object{"type": "m.login.token"}},
			{403, "M_FORBIDDEN", object{"type": "m.login.token", "token": "no"}},
			{400, "M_INVALID_PARAM", object{"type": "m.login.password", "identifier": user, "password": password, "device_id": many(256)}},
			{400, "M_INVALID_PARAM", object{"type": "m.login.password", "identifier": user, "password": password, "initial_device_display_name": many(256)}},
		} {
			s.want(c.status, c.code, "", "POST", v3+"/login", c.body)
		}
		s.login("alice", object{"device_id": "odd \x00 device", "initial_device_display_name": "\x00"})
	})
}

// spec: c2s#relationship-between-access-tokens-and-devices
func TestLoginOnTheSameDeviceEndsItsOldTokens(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		other := s.register("alice")
		first := s.login("alice", object{"device_id": "PHONE", "initial_device_display_name": "My phone"})
		if s.whoami(first) != 200 {
			s.t.Fatal("the first token is not good")
		}
		second := s.login("alice", object{"device_id": "PHONE", "initial_device_display_name": "Ignored"})
		if s.whoami(first) != 401 || s.whoami(second) != 200 || s.whoami(other) != 200 {
			s.t.Fatal("of three tokens the second and third should be good")
		}
		d := s.want(200, "", second.token, "GET", v3+"/devices/PHONE", nil)
		if d.text("display_name") != "My phone" {
			s.t.Fatalf("signing in again renamed the device: %v", d.body)
		}
	})
}

// spec: c2s#using-access-tokens
func TestTokensThatAreNone(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.want(401, "M_MISSING_TOKEN", "", "GET", v3+"/account/whoami", nil)
		s.want(401, "M_UNKNOWN_TOKEN", "no", "GET", v3+"/account/whoami", nil)
		alice := s.register("alice")
		s.want(200, "", "", "GET", v3+"/account/whoami?access_token="+alice.token, nil)
		s.want(200, "", alice.token, "POST", v3+"/logout/all", nil)
		s.want(401, "M_UNKNOWN_TOKEN", alice.token, "GET", v3+"/account/whoami", nil)
	})
}

// spec: c2s#refreshing-access-tokens
func TestRefreshTokenIsGoodUntilItsSuccessorIsUsed(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		s.register("alice")
		first := s.login("alice", object{"refresh_token": true})
		refresh := func(token string) person {
			t.Helper()
			a := s.want(200, "", "", "POST", v3+"/refresh", object{"refresh_token": token})
			if ms, _ := a.body["expires_in_ms"].(float64); ms <= 0 {
				t.Fatalf("a token that can be refreshed does not expire: %v", a.body)
			}
			return personOf(a)
		}
		lost := refresh(first.refresh)
		again := refresh(first.refresh) // the answer was lost: the client asks again
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
		s.want(401, "M_UNKNOWN_TOKEN", "", "POST", v3+"/refresh", object{"refresh_token": first.refresh})
		last := refresh(again.refresh)
		refresh(last.refresh) // using the new refresh token ends the old one too
		s.want(401, "M_UNKNOWN_TOKEN", "", "POST", v3+"/refresh", object{"refresh_token": again.refresh})
		for _, bad := range []struct {
			status int
			code   string
			body   any
		}{{400, "M_MISSING_PARAM", object{}}, {400, "M_BAD_JSON", `{"refresh_token":[]}`}, {401, "M_UNKNOWN_TOKEN", object{"refresh_token": "no"}}, {400, "M_NOT_JSON", "x"}} {
			s.want(bad.status, bad.code, "", "POST", v3+"/refresh", bad.body)
		}
	})
}

// spec: c2s#soft-logout
func TestExpiredTokenIsASoftLogout(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.register("alice")
		p := s.login("alice", object{"refresh_token": true})
		err := s.db.Write(s.t.Context(), []string{p.user}, func(tx storage.Tx) error {
			tx.Exec(`UPDATE access_tokens SET expires = $1 WHERE expires > 0`, time.Now().Add(-time.Minute).UnixMilli())
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		a := s.want(401, "M_UNKNOWN_TOKEN", p.token, "GET", v3+"/account/whoami", nil)
		if a.body["soft_logout"] != true {
			s.t.Fatalf("no soft logout: %v", a.body)
		}
		fresh := personOf(s.want(200, "", "", "POST", v3+"/refresh", object{"refresh_token": p.refresh}))
		if s.whoami(fresh) != 200 {
			s.t.Fatal("an expired session cannot be refreshed")
		}
	})
}

// spec: c2s/generateLoginToken
func TestLoginTokenIsGoodOnce(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.register("alice")
		a := s.confirmed(alice, "POST", v1+"/login/get_token", object{})
		if a.status != 200 {
			s.t.Fatalf("no login token: %v", a.body)
		}
		by := object{"type": "m.login.token", "token": a.text("login_token")}
		other := personOf(s.want(200, "", "", "POST", v3+"/login", by))
		if other.user != alice.user || other.device == alice.device {
			s.t.Fatalf("signed in as %v", other)
		}
		s.want(403, "M_FORBIDDEN", "", "POST", v3+"/login", by)
	})
}

func TestWrongPasswordsAreLimitedByAccount(t *testing.T) {
	eachEngine(t, func(c *config.Config) { c.RateLimits.Enabled = true }, func(s *server) {
		s.register("alice")
		s.register("bob")
		limited := 0
		for range 15 {
			switch a := s.ask("", "POST", v3+"/login", login("alice", "guess")); a.code() {
			case "M_LIMIT_EXCEEDED":
				limited++
				if ms, _ := a.body["retry_after_ms"].(float64); ms <= 0 {
					s.t.Fatalf("no retry_after_ms: %v", a.body)
				}
			case "M_FORBIDDEN":
			default:
				s.t.Fatal(a.body)
			}
		}
		if limited != 5 {
			s.t.Fatalf("of 15 wrong passwords %d were limited, want 5", limited)
		}
		for range 15 {
			s.login("bob", nil) // right ones are not counted
		}
	})
}
