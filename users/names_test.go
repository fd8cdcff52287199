package users

import (
	"testing"

	"maunium.net/go/mautrix/id"
)

// Whatever is taken as a user name makes a user ID of the grammar, always the same.
//
// spec: appendices#user-identifiers
func FuzzUserName(f *testing.F) {
	for _, name := range []string{"alice", "Alice", "a.b_c=d-e/f+g", "@alice:agency.example", "_x", "", "a\x00", "é", "K"} {
		f.Add(name)
	}
	s := New(Options{ServerName: "agency.example"})
	f.Fuzz(func(t *testing.T, name string) {
		user, err := s.UserID(name)
		if err != nil {
			return
		}
		localpart, server, err := user.ParseAndValidateStrict()
		if err != nil || server != "agency.example" {
			t.Fatalf("%q makes %q, which is no user ID: %v", name, user, err)
		}
		if again, err := s.UserID(localpart); err != nil || again != user {
			t.Fatalf("%q makes %q, and that %q (%v)", name, user, again, err)
		}
		if found, ok := s.LocalUser(name); !ok || found != user {
			t.Fatalf("%q makes %q and signs in as %q (%v)", name, user, found, ok)
		}
	})
}

// What is stored may be broken; reading it never panics and never asks for much work.
func FuzzStoredPassword(f *testing.F) {
	f.Add(lowCost.format(random(saltBytes), random(hashBytes)))
	f.Add("$argon2id$v=19$m=8,t=1,p=1$$")
	f.Add("$$$$$")
	f.Fuzz(func(t *testing.T, stored string) {
		c, _, sum, err := parsePHC(stored)
		if err == nil && (c.memory > maxCost.memory || c.passes == 0 || c.passes > maxCost.passes || c.threads == 0 || len(sum) < 16) {
			t.Fatalf("%q is taken as %+v", stored, c)
		}
	})
}

func TestWhoMaySignInByName(t *testing.T) {
	s := New(Options{ServerName: "agency.example"})
	for name, want := range map[string]id.UserID{
		"alice": "@alice:agency.example", "@ALICE:agency.example": "@alice:agency.example", "@alice:elsewhere.example": "",
		"": "", "@": "", "@:agency.example": "", "@alice": "", "alice:agency.example": "@alice:agency.example:agency.example",
	} {
		if user, ok := s.LocalUser(name); user != want || ok != (want != "") {
			t.Errorf("%q signs in as %q, %v; want %q", name, user, ok, want)
		}
	}
}
