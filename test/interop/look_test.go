//go:build goolm

package interop

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/test/homeserver"

	"github.com/tidwall/gjson"
)

type (
	user = homeserver.User
	J    = homeserver.J
)

var (
	room  = homeserver.Room
	texts = homeserver.Texts
)

// patience is how long we wait for anything: another server that was away or failed to reach us comes back after a
// minute or more, and the machine may be busy.
const patience = 5 * time.Minute

// eventually waits until something is true.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("in vain waited for: %s", what)
		}
	}
}

// state is the current state of a room by type and key, as event IDs.
func state(u *user, id string) map[string]string {
	out := map[string]string{}
	a := u.Ask("GET", room(id, "state"), nil)
	for _, ev := range gjson.Parse(a.Text).Array() {
		out[ev.Get("type").Str+"|"+ev.Get("state_key").Str] = ev.Get("event_id").Str
	}
	return out
}

// agree waits until the servers of these users have the same state of a room, event by event.
func agree(t *testing.T, id string, one, other *user) {
	t.Helper()
	one, other = one.As(t), other.As(t)
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		a, b := state(one, id), state(other, id)
		if len(a) > 3 && maps.Equal(a, b) {
			return
		}
		if time.Now().Before(deadline) {
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(a)) {
			if a[key] != b[key] {
				t.Errorf("%s: %s has %s, %s has %q", key, one.Server.Name, a[key], other.Server.Name, b[key])
			}
		}
		for key := range b {
			if _, ok := a[key]; !ok {
				t.Errorf("%s: %s has nothing, %s has %s", key, one.Server.Name, other.Server.Name, b[key])
			}
		}
		t.Fatalf("the servers disagree on the state of %s: %d and %d pieces", id, len(a), len(b))
	}
}

// sees waits until a user can read these events.
func sees(t *testing.T, u *user, id string, events ...string) {
	t.Helper()
	for _, event := range events {
		eventually(t, fmt.Sprintf("%s sees %s", u.ID, event), func() bool {
			return u.Ask("GET", room(id, "event", event), nil).Status == 200
		})
	}
}

// membership is what a user's server holds of somebody.
func membership(u *user, id, who string) string {
	return u.Ask("GET", room(id, "state", "m.room.member", who), nil).Get("membership").Str
}

func becomes(t *testing.T, u *user, id, who, want string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s sees %s as %q", u.ID, who, want), func() bool { return membership(u, id, who) == want })
}

// bodies are the texts that a sender said, oldest first.
func bodies(t *testing.T, u *user, id, sender string) []string {
	t.Helper()
	var out []string
	for _, ev := range history(t, u, id) {
		if ev.Get("sender").Str == sender && ev.Get("type").Str == "m.room.message" {
			out = append(out, ev.Get("content.body").Str)
		}
	}
	return out
}

// history pages back to where it ends, and gives it oldest first. Our server gives each event once, or the test fails.
func history(t *testing.T, u *user, id string) []gjson.Result {
	t.Helper()
	var out []gjson.Result
	seen := map[string]bool{}
	for from, pages := "", 0; ; pages++ {
		// Rooms that fork fit into a page: Dendrite leaves out events as deep as the last one of the page before.
		q := url.Values{"dir": {"b"}, "limit": {"100"}}
		if from != "" {
			q.Set("from", from)
		}
		page := u.OK("GET", room(id, "messages")+"?"+q.Encode(), nil)
		repeated, chunk := 0, page.Get("chunk").Array()
		for _, ev := range chunk {
			if seen[ev.Get("event_id").Str] {
				repeated++
			}
		}
		next := page.Get("end").Str
		if len(chunk) > 0 && repeated == len(chunk) && pages > 0 {
			break // Dendrite gives the first event again and again instead of no end
		}
		for _, ev := range chunk {
			event := ev.Get("event_id").Str
			// Dendrite takes a redaction for missing that it has not yet shown to clients: for that page it fetches
			// the events around it once more. Who compares histories waits until that is over.
			if seen[event] && u.Server.CA != nil {
				t.Errorf("%s stands twice in the history that %s reads", event, u.ID)
			}
			seen[event] = true
			out = append(out, ev)
		}
		if next == "" || next == from {
			break
		}
		if pages > 200 {
			t.Fatalf("the history of %s does not end", id)
		}
		from = next
	}
	slices.Reverse(out)
	return out
}

func ids(events []gjson.Result) []string {
	out := make([]string, len(events))
	for i, ev := range events {
		out[i] = ev.Get("event_id").Str
	}
	return out
}

// sameHistory waits until two users read the same events, from the first to the last; inOrder demands one order,
// as a room without forks has it.
func sameHistory(t *testing.T, id string, one, other *user, inOrder bool) {
	t.Helper()
	var a, b []string
	for deadline := time.Now().Add(patience); ; time.Sleep(500 * time.Millisecond) {
		a, b = ids(history(t, one, id)), ids(history(t, other, id))
		if !inOrder {
			slices.Sort(a)
			slices.Sort(b)
		}
		if slices.Equal(a, b) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s reads %d events, %s %d:\n%s\n--- and ---\n%s", one.ID, len(a), other.ID, len(b), kinds(t, one, id), kinds(t, other, id))
		}
	}
}

// kinds is a history in short.
func kinds(t *testing.T, u *user, id string) string {
	var out []string
	for _, ev := range history(t, u, id) {
		out = append(out, fmt.Sprint(ev.Get("event_id").Str, " ", ev.Get("type").Str, " ", ev.Get("state_key").Str, " ", ev.Get("content.body").Str))
	}
	return strings.Join(out, "\n")
}

// invited waits until a user's /sync has an invite to a room, and gives its stripped state.
func invited(t *testing.T, u *user, id string) gjson.Result {
	t.Helper()
	var got gjson.Result
	eventually(t, u.ID+" is invited", func() bool {
		got = u.Sync("").Get("rooms.invite").Map()[id]
		return got.Exists()
	})
	return got.Get("invite_state.events")
}

// gone waits until a user's /sync knows nothing more of an invite.
func gone(t *testing.T, u *user, id string) {
	t.Helper()
	eventually(t, u.ID+" is invited no more", func() bool { return !u.Sync("").Get("rooms.invite").Map()[id].Exists() })
}

func say(u *user, id string, texts []string) {
	for _, text := range texts {
		u.Send(id, text)
	}
}

// reads waits until a user reads exactly these texts of a sender, each once and in this order.
func reads(t *testing.T, u *user, id, sender string, want []string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(patience); ; time.Sleep(500 * time.Millisecond) {
		if got = bodies(t, u, id, sender); slices.Equal(got, want) {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("%s reads %d texts of %s, want %d; the first that differs is %d: %q", u.ID, len(got), sender, len(want), i, got[min(i, len(got)):min(i+3, len(got))])
		}
	}
}
