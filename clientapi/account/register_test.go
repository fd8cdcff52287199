package account_test

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"testing"

	"chancery/config"
)

var dummy = object{"type": "m.login.dummy"}

// spec: c2s/register
func TestRegisterRefuses(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.register("alice")
		for _, c := range []struct {
			status int
			code   string
			query  string
			body   any
		}{
			{400, "M_NOT_JSON", "", "x"},
			{400, "M_BAD_JSON", "", `"x"`},
			{400, "M_BAD_JSON", "", object{"username": 1}},
			{400, "M_BAD_JSON", "", object{"username": "bob", "auth": "x"}},
			{400, "M_INVALID_PARAM", "?kind=king", object{}},
			// Faults of the name are told before anything must be confirmed.
			{400, "M_USER_IN_USE", "", object{"username": "alice"}},
			{400, "M_USER_IN_USE", "", object{"username": "ALICE"}},
			{400, "M_INVALID_USERNAME", "", object{"username": "a%b"}},
			{400, "M_INVALID_USERNAME", "", object{"username": "@bob:agency.example"}},
			{400, "M_INVALID_USERNAME", "", object{"username": "bób"}},
			{400, "M_INVALID_USERNAME", "", object{"username": "_bridge"}},
			{400, "M_INVALID_USERNAME", "", object{"username": "bob\x00"}},
			{400, "M_INVALID_USERNAME", "", object{"username": strings.Repeat("b", 255)}},
			{401, "", "", object{"username": "bob", "password": "x"}},
			{401, "M_UNRECOGNIZED", "", object{"username": "bob", "password": "x", "auth": object{"type": "m.login.password"}}},
			{401, "M_UNRECOGNIZED", "", object{"username": "bob", "password": "x", "auth": object{"type": "dance"}}},
			{401, "M_UNAUTHORIZED", "", object{"username": "bob", "password": "x", "auth": object{"type": "m.login.dummy", "session": "no"}}},
			{401, "", "", object{"username": "bob", "password": "x", "auth": object{}}},
			{400, "M_MISSING_PARAM", "", object{"username": "bob", "auth": dummy}},
			{400, "M_INVALID_PARAM", "", object{"username": "bob", "password": many(513), "auth": dummy}},
			{400, "M_INVALID_PARAM", "", object{"username": "bob", "password": "x", "auth": dummy, "device_id": many(256)}},
			{403, "M_FORBIDDEN", "?kind=guest", object{}},
		} {
			s.want(c.status, c.code, "", "POST", v3+"/register"+c.query, c.body)
		}
		s.register("bob") // none of these made him
	})
}

// spec: c2s/register
func TestRegisterWithoutLoginAndWithoutName(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		a := s.want(200, "", "", "POST", v3+"/register", object{"username": "alice", "password": password, "inhibit_login": true, "auth": dummy})
		if a.text("user_id") != "@alice:agency.example" || a.body["access_token"] != nil || a.body["device_id"] != nil {
			s.t.Fatalf("inhibit_login: %v", a.body)
		}
		p := personOf(s.want(200, "", "", "POST", v3+"/register", object{"password": password, "refresh_token": true, "auth": dummy}))
		if p.user == "" || p.device == "" || p.token == "" || p.refresh == "" {
			s.t.Fatalf("without a name: %v", p)
		}
		s.login(p.user, nil)
	})
}

func TestClosedRegistration(t *testing.T) {
	s := serveSQLite(t, func(c *config.Config) { c.Registration.Open = false })
	s.want(403, "M_FORBIDDEN", "", "POST", v3+"/register", object{"username": "alice", "password": password, "auth": dummy})
	s.want(403, "M_FORBIDDEN", "", "GET", v1+"/register/m.login.registration_token/validity?token=x", nil)
	s.want(404, "M_UNRECOGNIZED", "", "GET", "/_synapse/admin/v1/register", nil)
	s.want(404, "M_UNRECOGNIZED", "", "POST", "/_synapse/admin/v1/register", object{"nonce": "x", "username": "x", "password": "x", "mac": "x"})
}

// spec: c2s#guest-access
func TestGuests(t *testing.T) {
	eachEngine(t, func(c *config.Config) { c.Registration.Guests = true }, func(s *server) {
		a := s.want(200, "", "", "POST", v3+"/register?kind=guest", object{"username": "alice", "device_id": "MINE", "refresh_token": true})
		guest := personOf(a)
		if guest.device == "MINE" || guest.refresh != "" || !strings.HasPrefix(guest.user, "@guest-") {
			s.t.Fatalf("a guest chose for themselves: %v", a.body)
		}
		who := s.want(200, "", guest.token, "GET", v3+"/account/whoami", nil)
		if who.body["is_guest"] != true {
			s.t.Fatalf("whoami: %v", who.body)
		}
		s.want(403, "M_GUEST_ACCESS_FORBIDDEN", guest.token, "POST", v3+"/user/"+guest.user+"/openid/request_token", object{})
		s.want(403, "M_FORBIDDEN", "", "POST", v3+"/login", login(guest.user, ""+"x"))
		s.want(200, "", guest.token, "GET", v3+"/capabilities", nil)
	})
}

// spec: c2s/checkUsernameAvailability
func TestAvailable(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.register("alice")
		if a := s.want(200, "", "", "GET", v3+"/register/available?username=bob", nil); a.body["available"] != true {
			s.t.Fatal(a.body)
		}
		s.want(400, "M_USER_IN_USE", "", "GET", v3+"/register/available?username=alice", nil)
		s.want(400, "M_INVALID_USERNAME", "", "GET", v3+"/register/available?username=a:b", nil)
		s.want(400, "M_INVALID_USERNAME", "", "GET", v3+"/register/available?username=", nil)
		s.want(400, "M_MISSING_PARAM", "", "GET", v3+"/register/available", nil)
		if a := s.want(200, "", "", "GET", v1+"/register/m.login.registration_token/validity?token=x", nil); a.body["valid"] != false {
			s.t.Fatal(a.body)
		}
		s.want(400, "M_MISSING_PARAM", "", "GET", v1+"/register/m.login.registration_token/validity", nil)
	})
}

func TestRegisterBySharedSecret(t *testing.T) {
	const secret = "between us"
	closed := func(c *config.Config) { c.Registration.Open, c.Registration.SharedSecret = false, secret }
	eachEngine(t, closed, func(s *server) {
		const path = "/_synapse/admin/v1/register"
		nonce := s.want(200, "", "", "GET", path, nil).text("nonce")
		mac := func(name, role string) string {
			h := hmac.New(sha1.New, []byte(secret))
			h.Write([]byte(nonce + "\x00" + name + "\x00" + password + "\x00" + role))
			return hex.EncodeToString(h.Sum(nil))
		}
		ask := func(name string, admin bool, mac string) object {
			return object{"nonce": nonce, "username": name, "password": password, "admin": admin, "mac": mac}
		}
		root := personOf(s.want(200, "", "", "POST", path, ask("Root", true, mac("Root", "admin"))))
		if root.user != "@root:agency.example" || s.whoami(root) != 200 {
			s.t.Fatalf("made %v", root)
		}
		alice := personOf(s.want(200, "", "", "POST", path, ask("alice", false, mac("alice", "notadmin"))))
		s.want(200, "", root.token, "GET", v3+"/admin/whois/"+alice.user, nil)
		s.want(403, "M_FORBIDDEN", alice.token, "GET", v3+"/admin/whois/"+root.user, nil)
		s.want(400, "M_USER_IN_USE", "", "POST", path, ask("alice", false, mac("alice", "notadmin")))
		named := ask("carol", false, mac("carol", "notadmin"))
		named["displayname"] = strings.Repeat("x", 256)
		s.want(400, "M_INVALID_PARAM", "", "POST", path, named)
		named["displayname"] = "Carol"
		carol := personOf(s.want(200, "", "", "POST", path, named))
		if name := s.want(200, "", "", "GET", v3+"/profile/"+carol.user, nil).text("displayname"); name != "Carol" {
			s.t.Errorf("carol is called %q", name)
		}
		s.want(400, "M_INVALID_USERNAME", "", "POST", path, ask("a b", false, mac("a b", "notadmin")))
		s.want(403, "M_FORBIDDEN", "", "POST", path, ask("bob", true, mac("bob", "notadmin")))
		s.want(403, "M_FORBIDDEN", "", "POST", path, ask("bob", false, "no hex"))
		s.want(400, "M_MISSING_PARAM", "", "POST", path, object{"nonce": nonce, "username": "bob", "password": "x"})
		nonce = "ff" + nonce[2:]
		s.want(400, "M_INVALID_PARAM", "", "POST", path, ask("bob", false, mac("bob", "notadmin")))
	})
}
