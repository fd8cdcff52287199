package event

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"reflect"
	"strings"
	"testing"

	"maunium.net/go/mautrix/id"
)

func TestSignAddsACopy(t *testing.T) {
	other := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, 32))
	e := build(t, v12, typeMember, ptr("@bob:other"), `{"membership":"invite"}`)
	before := string(e.JSON())
	signed, err := e.Sign("other", "ed25519:b", other)
	if err != nil {
		t.Fatal(err)
	}
	if string(e.JSON()) != before || len(e.Signatures()) != 1 {
		t.Error("Sign changed the event it was asked to copy")
	}
	if signed.ID() != e.ID() || len(signed.Signatures()) != 2 || len(signed.Signatures()["other"]) != 1 {
		t.Errorf("signed copy: %s", signed.JSON())
	}
	if again, err := signed.Sign("domain", "ed25519:2", key); err != nil || len(again.Signatures()["domain"]) != 2 {
		t.Errorf("a second key of one server: %v", err)
	}
	pub := other.Public().(ed25519.PublicKey)
	for _, c := range []struct {
		what        string
		e           *Event
		server, key string
		pub         ed25519.PublicKey
		ok          bool
	}{
		{"the sender's", signed, domain, keyID, public, true},
		{"the invited server's", signed, "other", "ed25519:b", pub, true},
		{"another's key", signed, "other", "ed25519:b", public, false},
		{"an unknown server", signed, "third", "ed25519:b", pub, false},
		{"an unknown key ID", signed, "other", "ed25519:c", pub, false},
		{"not signed yet", e, "other", "ed25519:b", pub, false},
		{"a key of the wrong size", signed, "other", "ed25519:b", pub[:31], false},
	} {
		if err := VerifySignature(c.e, c.server, c.key, c.pub); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	for _, bad := range []string{"", "AAAA", "!", strings.Repeat("A", 86)} {
		forged, err := Parse(v12, with(t, e, map[string]any{"signatures": map[string]any{domain: map[string]any{keyID: bad}}}))
		if err != nil {
			t.Fatal(err)
		}
		if VerifySignature(forged, domain, keyID, public) == nil {
			t.Errorf("the signature %q verifies", bad)
		}
	}
	want := map[string]map[string]string{domain: {keyID: e.Signatures()[domain][keyID]}}
	if got := e.Signatures(); !reflect.DeepEqual(got, want) {
		t.Errorf("signatures are %v", got)
	}
}

func TestReferenceHashIsTheID(t *testing.T) {
	e := build(t, v4, "x", nil, `{}`)
	sum := sha256.Sum256(e.SignedBytes())
	if id.EventID("$"+base64.RawURLEncoding.EncodeToString(sum[:])) != e.ID() || e.ReferenceHash() != base64.RawStdEncoding.EncodeToString(sum[:]) {
		t.Errorf("ID %s, reference hash %s", e.ID(), e.ReferenceHash())
	}
}

// spec: s2s#validating-hashes-and-signatures-on-received-events, rooms/v8#authorisation-rules
func TestWhoMustHaveSigned(t *testing.T) {
	const via, invite = `"join_authorised_via_users_server":"@admin:third"`, `"third_party_invite":{"signed":{}}`
	for _, c := range []struct {
		what    string
		v       *Version
		content string
		want    []string
	}{
		{"a join", v11, `{"membership":"join"}`, []string{"domain"}},
		{"a restricted join", v11, `{"membership":"join",` + via + `}`, []string{"domain", "third"}},
		{"a restricted join in version 8", v8, `{"membership":"join",` + via + `}`, []string{"domain", "third"}},
		{"the same before it meant anything", v7, `{"membership":"join",` + via + `}`, []string{"domain"}},
		{"authorised by nobody", v11, `{"membership":"join","join_authorised_via_users_server":"admin"}`, []string{"domain", ""}},
		{"authorised by a number", v11, `{"membership":"join","join_authorised_via_users_server":1}`, []string{"domain", ""}},
		{"authorised by our own server", v11, `{"membership":"join","join_authorised_via_users_server":"@admin:domain"}`, []string{"domain"}},
		{"an invite", v11, `{"membership":"invite"}`, []string{"domain"}},
		{"an invite by e-mail address", v11, `{"membership":"invite",` + invite + `}`, nil},
		{"a join that looks like one", v11, `{"membership":"join",` + invite + `}`, []string{"domain"}},
		{"an invite by e-mail address in version 2", v2, `{"membership":"invite",` + invite + `}`, []string{"domain"}},
	} {
		if got := build(t, c.v, typeMember, ptr("@bob:other"), c.content).NeedsSignaturesOf(); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
	// In versions 1 and 2 the server in the event ID must sign as well.
	foreign, err := Build(v1, proto(v1, "x", nil, `{}`), "other", keyID, key, then)
	if err != nil {
		t.Fatal(err)
	}
	if got := foreign.NeedsSignaturesOf(); !reflect.DeepEqual(got, []string{"domain", "other"}) {
		t.Errorf("version 1: %q", got)
	}
}
