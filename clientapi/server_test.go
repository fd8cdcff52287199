package clientapi

import (
	"net/http/httptest"
	"strings"
	"testing"

	"chancery/config"
)

func get(t *testing.T, cfg *config.Config, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	(&Server{Config: cfg}).Handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
	return w.Code, w.Body.String()
}

func TestVersionsNameTheSpec(t *testing.T) {
	code, body := get(t, config.Default(), "/_matrix/client/versions")
	if code != 200 || !strings.Contains(body, `"v1.11"`) || !strings.Contains(body, `"org.matrix.e2e_cross_signing":true`) {
		t.Fatalf("%d %s", code, body)
	}
}

// spec: c2s/getWellknown
func TestWellKnownTellsThePublicAddress(t *testing.T) {
	cfg := config.Default()
	cfg.Client.PublicURL = "https://matrix.agency.example"
	if code, body := get(t, cfg, "/.well-known/matrix/client"); code != 200 || body != `{"m.homeserver":{"base_url":"https://matrix.agency.example"}}` {
		t.Fatalf("%d %s", code, body)
	}
	cfg.WellKnown.Client = false
	if code, _ := get(t, cfg, "/.well-known/matrix/client"); code != 404 {
		t.Fatalf("switched off, it answers %d", code)
	}
}

// spec: c2s/getWellknownSupport
func TestSupportIsToldOnceItIsSet(t *testing.T) {
	cfg := config.Default()
	if code, _ := get(t, cfg, "/.well-known/matrix/support"); code != 404 {
		t.Fatalf("nobody is named and it answers %d", code)
	}
	cfg.WellKnown.Support.Contacts = []config.Contact{{Role: "m.role.admin", Email: "help@agency.example"}}
	if code, body := get(t, cfg, "/.well-known/matrix/support"); code != 200 || body != `{"contacts":[{"role":"m.role.admin","email_address":"help@agency.example"}]}` {
		t.Fatalf("%d %s", code, body)
	}
}

// The probes of clients for abilities depend on this answer.
func TestUnknownAndPlannedPathsAreUnrecognized(t *testing.T) {
	for _, path := range []string{"/_matrix/client/unstable/org.example/x", "/_matrix/client/v3/login/sso/redirect"} {
		if code, body := get(t, config.Default(), path); code != 404 || !strings.Contains(body, "M_UNRECOGNIZED") {
			t.Errorf("%s: %d %s", path, code, body)
		}
	}
}
