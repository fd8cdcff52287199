package visibility_test

import (
	"crypto/ed25519"
	"fmt"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
	"chancery/roomserver/visibility"
)

const (
	alice = id.UserID("@alice:a.example")
	bob   = id.UserID("@bob:b.example")
	carol = id.UserID("@carol:b.example")
)

var signingKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

func build(t *testing.T, typ string, stateKey *string, content string) *event.Event {
	t.Helper()
	v, _ := event.Lookup("11")
	ev, err := event.Build(v, event.Proto{
		RoomID: "!room:a.example", Sender: alice, Type: typ, StateKey: stateKey, Content: []byte(content), Depth: 1,
	}, "a.example", "ed25519:k", signingKey, time.UnixMilli(1))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

func message(t *testing.T) *event.Event { return build(t, "m.room.message", nil, `{"body":"hello"}`) }

func history(t *testing.T, to string) *event.Event {
	return build(t, "m.room.history_visibility", new(string), fmt.Sprintf(`{"history_visibility":%q}`, to))
}

func member(t *testing.T, user id.UserID, to string) *event.Event {
	key := string(user)
	return build(t, "m.room.member", &key, fmt.Sprintf(`{"membership":%q}`, to))
}

// The whole table: four settings, six memberships, joined later or not.
//
// spec: c2s#room-history-visibility
func TestWhoSeesAMessage(t *testing.T) {
	ev := message(t)
	for _, history := range []string{"world_readable", "shared", "invited", "joined"} {
		for _, membership := range []string{"join", "invite", "knock", "leave", "ban", ""} {
			for _, later := range []bool{false, true} {
				want := history == "world_readable" ||
					membership == "join" ||
					history == "shared" && later ||
					history == "invited" && membership == "invite"
				viewer := visibility.Viewer{User: bob, Membership: membership, JoinedLater: later}
				if got := visibility.Event(ev, history, viewer); got != want {
					t.Errorf("%s, %q, joined later %t: %t", history, membership, later, got)
				}
			}
		}
	}
}

// spec: c2s#room-history-visibility
func TestWhoLeftSeesNothingNewer(t *testing.T) {
	left := visibility.Viewer{User: bob, Membership: "leave"}
	for _, history := range []string{"shared", "invited", "joined"} {
		if visibility.Event(message(t), history, left) {
			t.Errorf("who left sees new messages where history is %s", history)
		}
	}
	back := visibility.Viewer{User: bob, Membership: "leave", JoinedLater: true}
	if !visibility.Event(message(t), "shared", back) || visibility.Event(message(t), "joined", back) {
		t.Error("who came back sees what was missed where history is shared, and only there")
	}
}

// Before or after the event is enough.
//
// spec: c2s#room-history-visibility
func TestChangesOfHistoryVisibility(t *testing.T) {
	stranger := visibility.Viewer{User: bob}
	invited := visibility.Viewer{User: bob, Membership: "invite"}
	for _, c := range []struct {
		from, to string
		viewer   visibility.Viewer
		want     bool
	}{
		{"world_readable", "joined", stranger, true},
		{"joined", "world_readable", stranger, true},
		{"joined", "shared", stranger, false},
		{"joined", "invited", invited, true},
		{"invited", "joined", invited, true},
		{"joined", "shared", visibility.Viewer{User: bob, JoinedLater: true}, true},
	} {
		if got := visibility.Event(history(t, c.to), c.from, c.viewer); got != c.want {
			t.Errorf("from %s to %s for %q: %t", c.from, c.to, c.viewer.Membership, got)
		}
	}
	// Only the room's own setting counts, not a state event of the same type with another key.
	key := "other"
	if visibility.Event(build(t, "m.room.history_visibility", &key, `{"history_visibility":"world_readable"}`), "joined", stranger) {
		t.Error("history visibility with a state key opens the room")
	}
}

// spec: c2s#room-history-visibility
func TestOwnMembership(t *testing.T) {
	for _, c := range []struct {
		history, from, to string
		want              bool
	}{
		{"joined", "leave", "join", true},
		{"joined", "join", "leave", true},
		{"joined", "join", "ban", true},
		{"joined", "invite", "leave", false},
		{"joined", "leave", "invite", false},
		{"invited", "leave", "invite", true},
		{"invited", "invite", "leave", true},
		{"shared", "leave", "ban", false},
		{"shared", "leave", "knock", false},
		{"world_readable", "leave", "ban", true},
	} {
		viewer := visibility.Viewer{User: bob, Membership: c.from}
		if got := visibility.Event(member(t, bob, c.to), c.history, viewer); got != c.want {
			t.Errorf("%s: own membership from %s to %s: %t", c.history, c.from, c.to, got)
		}
		if c.history != "world_readable" && c.from != "join" && c.from != "invite" {
			if visibility.Event(member(t, alice, c.to), c.history, viewer) {
				t.Errorf("%s: %s sees another user go to %s", c.history, c.from, c.to)
			}
		}
	}
}

// spec: c2s#room-history-visibility
func TestSettingsThatAreNotUnderstood(t *testing.T) {
	for content, want := range map[string]string{
		`{"history_visibility":"joined"}`:         "joined",
		`{"history_visibility":"world_readable"}`: "world_readable",
		`{"history_visibility":"invited"}`:        "invited",
		`{"history_visibility":"shared"}`:         "shared",
		`{"history_visibility":"secret"}`:         "shared",
		`{"history_visibility":["joined"]}`:       "shared",
		`{"History_visibility":"joined"}`:         "shared",
		`{}`:                                      "shared",
	} {
		if got := visibility.Of(build(t, "m.room.history_visibility", new(string), content)); got != want {
			t.Errorf("%s: %s, want %s", content, got, want)
		}
	}
	if got := visibility.Of(nil); got != "shared" {
		t.Errorf("without an event: %s", got)
	}
}

// A server sees what any of its users sees.
//
// spec: c2s#room-history-visibility
func TestServers(t *testing.T) {
	bobIn := visibility.Viewer{User: bob, Membership: "join"}
	carolInvited := visibility.Viewer{User: carol, Membership: "invite"}
	for _, c := range []struct {
		name    string
		ev      *event.Event
		history string
		viewers []visibility.Viewer
		want    bool
	}{
		{"a member", message(t), "joined", []visibility.Viewer{carolInvited, bobIn}, true},
		{"an invited user", message(t), "invited", []visibility.Viewer{carolInvited}, true},
		{"an invited user where that is not enough", message(t), "joined", []visibility.Viewer{carolInvited}, false},
		{"another server's member", message(t), "joined", []visibility.Viewer{{User: alice, Membership: "join"}}, false},
		{"nobody", message(t), "shared", nil, false},
		{"a later member", message(t), "shared", []visibility.Viewer{{User: bob, JoinedLater: true}}, true},
		{"anybody", message(t), "world_readable", nil, true},
		{"its user's first join", member(t, bob, "join"), "joined", nil, true},
		{"its user's ban", member(t, bob, "ban"), "joined", nil, false},
		{"another's join", member(t, alice, "join"), "joined", nil, false},
		{"history opened", history(t, "world_readable"), "joined", nil, true},
	} {
		if got := visibility.Server(c.ev, c.history, "b.example", c.viewers); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
	}
}
