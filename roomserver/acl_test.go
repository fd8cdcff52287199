package roomserver_test

import (
	"crypto/ed25519"
	"encoding/json"
	"testing"
	"time"

	"chancery/roomserver"
	"chancery/roomserver/event"
)

// spec: c2s#server-access-control-lists-acls-for-rooms
func TestServerACLsAreNotDodged(t *testing.T) {
	for content, servers := range map[string]map[string]bool{
		`{"allow":["*"],"deny":["evil.example","*.bad.example"]}`: {
			"evil.example": false, "EVIL.example": false, "Evil.Example:8448": false, "evil.example.": false, "evil.example.:443": false,
			"evil.example..": false, "a.bad.example": false, "A.B.BAD.example": false, "bad.example": true, "notevil.example": true,
			"evil.example.org": true, "1.2.3.4": true, "[::1]:8448": true,
		},
		`{"allow":["*"],"deny":["EVIL.*"]}`:                            {"evil.example": false, "evil.": true, "devil.example": true},
		`{"allow":["*"],"allow_ip_literals":false}`:                    {"1.2.3.4": false, "1.2.3.4:8448": false, "1.2.3.4.": false, "[::1]": false, "[2001:DB8::1]:8448": false, "a.example": true},
		`{"allow":["*"],"allow_ip_literals":"no"}`:                     {"1.2.3.4": true},
		`{"allow":["good.example","g??d.example"]}`:                    {"good.example": true, "GOOD.example:1": true, "gaad.example": true, "god.example": false, "a.good.example": false},
		`{"deny":["evil.example"]}`:                                    {"good.example": false},
		`{"allow":["*"],"deny":[5,null,{},"evil.example"]}`:            {"evil.example": false, "good.example": true},
		`{"allow":["*"],"deny":["a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*a*b"]}`: {"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa": true},
		`{}`: {"good.example": false},
	} {
		v, _ := event.Lookup("12")
		empty := ""
		acl, err := event.Build(v, event.Proto{RoomID: "!xFnHxXNfPnbpDxHyPCIANbFnhfcoxUpWTbbAdvPuKgQ", Sender: "@a:b.example", Type: "m.room.server_acl", StateKey: &empty,
			Content: json.RawMessage(content)}, "b.example", "ed25519:1", ed25519.NewKeyFromSeed(make([]byte, 32)), time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for server, want := range servers {
			if got := roomserver.ACLAllows(acl, server); got != want {
				t.Errorf("%s: %s is allowed: %v, want %v", content, server, got, want)
			}
		}
	}
}
