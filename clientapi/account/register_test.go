package account_test

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"strings"
	"testing"

	"chancery/config"
	"chancery/test/client"
)

var dummy = object{"type": "m.login.dummy"}

// spec: c2s/register
func TestRegisterRefuses(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.Register("alice")
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
			s.Want(c.status, c.code, "", "POST", v3+"/register"+c.query, c.body)
		}
		s.Register("bob") // none of these made him
	})
}

// spec: c2s/register
func TestRegisterWithoutLoginAndWithoutName(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		a := s.Want(200, "", "", "POST", v3+"/register", object{"username": "alice", "password": password, "inhibit_login": true, "auth": dummy})
		if a.Str("user_id") != "@alice:agency.example" || a.Value("access_token") != nil || a.Value("device_id") != nil {
			s.T.Fatalf("inhibit_login: %v", a)
		}
		p := client.PersonOf(s.Want(200, "", "", "POST", v3+"/register", object{"password": password, "refresh_token": true, "auth": dummy}))
		if p.User == "" || p.Device == "" || p.Token == "" || p.Refresh == "" {
			s.T.Fatalf("without a name: %v", p)
		}
		s.Login(p.User, nil)
	})
}

func TestClosedRegistration(t *testing.T) {
	s := serveSQLite(t, func(c *config.Config) { c.Registration.Open = false })
	s.Want(403, "M_FORBIDDEN", "", "POST", v3+"/register", object{"username": "alice", "password": password, "auth": dummy})
	s.Want(403, "M_FORBIDDEN", "", "GET", v1+"/register/m.login.registration_token/validity?token=x", nil)
	s.Want(404, "M_UNRECOGNIZED", "", "GET", "/_synapse/admin/v1/register", nil)
	s.Want(404, "M_UNRECOGNIZED", "", "POST", "/_synapse/admin/v1/register", object{"nonce": "x", "username": "x", "password": "x", "mac": "x"})
}

// spec: c2s#guest-access
func TestGuests(t *testing.T) {
	eachEngine(t, func(c *config.Config) { c.Registration.Guests = true }, func(s *server) {
		a := s.Want(200, "", "", "POST", v3+"/register?kind=guest", object{"username": "alice", "device_id": "MINE", "refresh_token": true})
		guest := client.PersonOf(a)
		if guest.Device == "MINE" || guest.Refresh != "" || !strings.HasPrefix(guest.User, "@guest-") {
			s.T.Fatalf("a guest chose for themselves: %v", a)
		}
		who := s.Want(200, "", guest.Token, "GET", v3+"/account/whoami", nil)
		if who.Value("is_guest") != true {
			s.T.Fatalf("whoami: %v", who)
		}
		s.Want(403, "M_GUEST_ACCESS_FORBIDDEN", guest.Token, "POST", v3+"/user/"+guest.User+"/openid/request_token", object{})
		s.Want(403, "M_FORBIDDEN", "", "POST", v3+"/login", client.Login(guest.User, ""+"x"))
		s.Want(200, "", guest.Token, "GET", v3+"/capabilities", nil)
	})
}

// spec: c2s/checkUsernameAvailability
func TestAvailable(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		s.Register("alice")
		if a := s.Want(200, "", "", "GET", v3+"/register/available?username=bob", nil); a.Value("available") != true {
			s.T.Fatal(a)
		}
		s.Want(400, "M_USER_IN_USE", "", "GET", v3+"/register/available?username=alice", nil)
		s.Want(400, "M_INVALID_USERNAME", "", "GET", v3+"/register/available?username=a:b", nil)
		s.Want(400, "M_INVALID_USERNAME", "", "GET", v3+"/register/available?username=", nil)
		s.Want(400, "M_MISSING_PARAM", "", "GET", v3+"/register/available", nil)
		if a := s.Want(200, "", "", "GET", v1+"/register/m.login.registration_token/validity?token=x", nil); a.Value("valid") != false {
			s.T.Fatal(a)
		}
		s.Want(400, "M_MISSING_PARAM", "", "GET", v1+"/register/m.login.registration_token/validity", nil)
	})
}

func TestRegisterBySharedSecret(t *testing.T) {
	const secret = "between us"
	closed := func(c *config.Config) { c.Registration.Open, c.Registration.SharedSecret = false, secret }
	eachEngine(t, closed, func(s *server) {
		const path = "/_synapse/admin/v1/register"
		nonce := s.Want(200, "", "", "GET", path, nil).Str("nonce")
		mac := func(name, role string) string {
			h := hmac.New(sha1.New, []byte(secret))
			h.Write([]byte(nonce + "\x00" + name + "\x00" + password + "\x00" + role))
			return hex.EncodeToString(h.Sum(nil))
		}
		ask := func(name string, admin bool, mac string) object {
			return object{"nonce": nonce, "username": name, "password": password, "admin": admin, "mac": mac}
		}
		root := client.PersonOf(s.Want(200, "", "", "POST", path, ask("Root", true, mac("Root", "admin"))))
		if root.User != "@root:agency.example" || s.whoami(root) != 200 {
			s.T.Fatalf("made %v", root)
		}
		alice := client.PersonOf(s.Want(200, "", "", "POST", path, ask("alice", false, mac("alice", "notadmin"))))
		s.Want(200, "", root.Token, "GET", v3+"/admin/whois/"+alice.User, nil)
		s.Want(403, "M_FORBIDDEN", alice.Token, "GET", v3+"/admin/whois/"+root.User, nil)
		s.Want(400, "M_USER_IN_USE", "", "POST", path, ask("alice", false, mac("alice", "notadmin")))
		named := ask("carol", false, mac("carol", "notadmin"))
		named["displayname"] = strings.Repeat("x", 256)
		s.Want(400, "M_INVALID_PARAM", "", "POST", path, named)
		named["displayname"] = "Carol"
		carol := client.PersonOf(s.Want(200, "", "", "POST", path, named))
		if name := s.Want(200, "", "", "GET", v3+"/profile/"+carol.User, nil).Str("displayname"); name != "Carol" {
			s.T.Errorf("carol is called %q", name)
		}
		s.Want(400, "M_INVALID_USERNAME", "", "POST", path, ask("a b", false, mac("a b", "notadmin")))
		s.Want(403, "M_FORBIDDEN", "", "POST", path, ask("bob", true, mac("bob", "notadmin")))
		s.Want(403, "M_FORBIDDEN", "", "POST", path, ask("bob", false, "no hex"))
		s.Want(400, "M_MISSING_PARAM", "", "POST", path, object{"nonce": nonce, "username": "bob", "password": "x"})
		nonce = "ff" + nonce[2:]
		s.Want(400, "M_INVALID_PARAM", "", "POST", path, ask("bob", false, mac("bob", "notadmin")))
	})
}
