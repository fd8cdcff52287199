package event

import (
	"strings"
	"testing"
)

func TestClientFormat(t *testing.T) {
	e := build(t, v11, "m.room.topic", ptr(""), `{"topic":"t\u0000"}`)
	common := `{"content":{"topic":"t\u0000"},"event_id":"` + string(e.ID()) + `","origin_server_ts":1790000000000,"sender":"@alice:domain","state_key":"","type":"m.room.topic"`
	for _, c := range []struct{ got, want string }{
		{string(Client(e, nil, false)), common + `}`},
		{string(Client(e, nil, true)), common + `,"room_id":"!room:domain"}`},
		{string(Client(e, []byte(`{"age":1}`), false)), common + `,"unsigned":{"age":1}}`},
		{string(Client(e, []byte(`{"age":1}`), true)), common + `,"unsigned":{"age":1},"room_id":"!room:domain"}`},
		{string(e.Stripped()), `{"content":{"topic":"t\u0000"},"sender":"@alice:domain","state_key":"","type":"m.room.topic"}`},
	} {
		if c.got != c.want {
			t.Errorf("got\n%s, want\n%s", c.got, c.want)
		}
	}
	before, after := e.ClientPieces()
	if got := string(before) + `,"unsigned":{}` + string(after); got != common+`,"unsigned":{},"room_id":"!room:domain"}` {
		t.Errorf("pieces make %s", got)
	}
	if got := string(Client(build(t, v11, "x", nil, `{}`), nil, false)); strings.Contains(got, "state_key") {
		t.Errorf("a message has a state key: %s", got)
	}
}

// spec: rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
func TestRedactsStandsAtBothPlacesForClients(t *testing.T) {
	for _, v := range Versions() {
		p := proto(v, typeRedaction, nil, `{"reason":"spam"}`)
		p.Redacts = eventOf(v, "spam")
		e, err := Build(v, p, domain, keyID, key, then)
		if err != nil {
			t.Fatal(err)
		}
		if e.Redacts() != p.Redacts {
			t.Errorf("version %s redacts %q", v.Name, e.Redacts())
		}
		if in := lookup(e.Content(), "redacts") != nil; in != v.RedactsInContent {
			t.Errorf("version %s: redacts in content: %v", v.Name, in)
		}
		client := Client(e, nil, true)
		for where, got := range map[string][]byte{"the top level": lookup(client, "redacts"), "content": lookup(lookup(client, "content"), "redacts")} {
			if s, _ := text(got); s != string(p.Redacts) {
				t.Errorf("version %s: %s has redacts %s", v.Name, where, got)
			}
		}
		redacted, err := e.Redact()
		if err != nil || (redacted.Redacts() == p.Redacts) != v.RedactsInContent {
			t.Errorf("version %s: a redacted redaction redacts %q", v.Name, redacted.Redacts())
		}
	}
	// A message with such a key in its content redacts nothing.
	if e := build(t, v11, "m.room.message", nil, `{"redacts":"$x"}`); e.Redacts() != "" || lookup(Client(e, nil, true), "redacts") != nil {
		t.Errorf("a message redacts %q", e.Redacts())
	}
	if e := build(t, v11, typeRedaction, nil, `{"redacts":5}`); e.Redacts() != "" {
		t.Errorf("a number redacts %q", e.Redacts())
	}
}

func TestIDs(t *testing.T) {
	for s, want := range map[string]bool{
		"@a:b": true, "@:b": true, "@A é\n:b": true, "@a:b:8448": true, "@a:[::1]:80": true, "@a:1.2.3.4": true, "@a:b-c.d": true,
		"": false, "@": false, "a:b": false, "@a": false, "@a:": false, "@a:b:": false, "@a:b:123456": false, "@a:b:x": false,
		"@a:b c": false, "@a:[::1": false, "@a:[x]": false, "@a:[::1]x": false, "@a\x00:b": false, "@a:b_c": false, "@a:é": false,
		"@" + strings.Repeat("a", 252) + ":b": true, "@" + strings.Repeat("a", 253) + ":b": false,
	} {
		if ValidUserID(s) != want {
			t.Errorf("user ID %q: %v, want %v", s, !want, want)
		}
	}
}
