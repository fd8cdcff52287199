package homeserver

import (
	"testing"

	"github.com/tidwall/gjson"
)

// A server keeps its name, ports and accounts when it is stopped or killed and started again.
func TestServersComeBack(t *testing.T) {
	EachEngine(t, func(t *testing.T, fresh func() string) {
		for name, process := range map[string]bool{"in this process": false, "as a process": true} {
			t.Run(name, func(t *testing.T) {
				s := Start(t, Options{Database: fresh(), Process: process})
				alice := s.Register(t, "alice")
				if alice.ID != "@alice:"+s.Name {
					t.Fatalf("the user is %s", alice.ID)
				}
				s.Restart()
				alice.OK("GET", "/_matrix/client/v3/account/whoami", nil)
				if process {
					s.Kill()
					s.Start()
					alice.OK("GET", "/_matrix/client/v3/account/whoami", nil)
				}
				if s.Login(t, "alice").Device == alice.Device {
					t.Error("two devices have one ID")
				}
			})
		}
	})
}

// A peer is believed by its signature alone.
func TestPeersAreKnown(t *testing.T) {
	s := Start(t, Options{})
	p := NewPeer(t, s.CA)
	a := p.Ask(s, Signed{Method: "PUT", Path: "/_matrix/federation/v1/send/1", Body: J{"origin": p.Name, "origin_server_ts": 1, "pdus": []any{}}})
	if a.Status != 200 || !gjson.Get(a.Text, "pdus").IsObject() {
		t.Fatal(a)
	}
	p.Refused(s, 401, "M_UNAUTHORIZED", Signed{Method: "PUT", Path: "/_matrix/federation/v1/send/2", Body: J{"pdus": []any{}}, Destination: "elsewhere.example"})
}
