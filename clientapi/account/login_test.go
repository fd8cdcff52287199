package account_test

import (
	"testing"
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
