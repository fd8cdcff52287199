// Package durability kills whole servers, takes their log away and gives them yesterday's database back. What was
// acknowledged is there afterwards, once, and no client misses anything or is told it twice.
package durability

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"

	"github.com/tidwall/gjson"
)

type J = homeserver.J

// watcher is a client that syncs all the time and writes down each event of a room that it is told.
type watcher struct {
	user *homeserver.User
	room string
	t    testing.TB
	stop func()

	mu     sync.Mutex // guards the rest
	token  string
	order  []string // event IDs
	times  map[string]int
	bodies map[string]int
	faults []string
}

func newWatcher(t testing.TB, user *homeserver.User, room, since string) *watcher {
	t.Helper()
	w := &watcher{user: user, room: room, t: t, token: since, times: map[string]int{}, bodies: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if !w.once(ctx, 1000) {
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	w.stop = func() { cancel(); <-done }
	t.Cleanup(func() { w.stop() })
	return w
}

// once syncs once; a server that is down is no fault.
func (w *watcher) once(ctx context.Context, timeout int) bool {
	a, err := w.user.Try(ctx, "GET", homeserver.SyncPath(w.token, timeout), nil)
	if err != nil {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.Status != http.StatusOK {
		w.faults = append(w.faults, "sync: "+a.String())
		return false
	}
	in := a.Get("rooms.join").Map()[w.room]
	if in.Get("timeline.limited").Bool() && w.token != "" {
		w.faults = append(w.faults, "a sync was limited")
	}
	in.Get("timeline.events").ForEach(func(_, ev gjson.Result) bool {
		id := ev.Get("event_id").Str
		w.order = append(w.order, id)
		if w.times[id]++; w.times[id] > 1 {
			w.faults = append(w.faults, "told twice: "+ev.Raw)
		}
		if body := ev.Get("content.body").Str; body != "" {
			w.bodies[body]++
		}
		return true
	})
	w.token = a.Get("next_batch").Str
	return true
}

// forgive leaves out faults that were to be expected.
func (w *watcher) forgive(prefix string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = slices.DeleteFunc(w.faults, func(f string) bool { return strings.HasPrefix(f, prefix) })
}

// sawAll waits until each of these bodies was told, and checks that each was told once.
func (w *watcher) sawAll(bodies []string) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		w.mu.Lock()
		missing := slices.DeleteFunc(slices.Clone(bodies), func(b string) bool { return w.bodies[b] > 0 })
		w.mu.Unlock()
		if len(missing) == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Errorf("%d of %d messages were never told, the first is %s", len(missing), len(bodies), missing[0])
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for body, n := range w.bodies {
		if n > 1 {
			w.faults = append(w.faults, fmt.Sprintf("%s was told %d times", body, n))
		}
	}
	for i, fault := range w.faults {
		if i == 5 {
			w.t.Errorf("... and %d more", len(w.faults)-i)
			break
		}
		w.t.Error(fault)
	}
}

// history reads a room from its end to its beginning and gives the events in their order.
func history(t testing.TB, u *homeserver.User, room string) []gjson.Result {
	t.Helper()
	var events []gjson.Result
	for from := ""; ; {
		path := homeserver.Room(room, "messages") + "?dir=b&limit=500"
		if from != "" {
			path += "&from=" + from
		}
		page := u.OK("GET", path, nil)
		events = append(events, page.Get("chunk").Array()...)
		if from = page.Get("end").Str; from == "" {
			break
		}
	}
	slices.Reverse(events)
	return events
}

// eachOnce is the history, in which each of the bodies has to stand once.
func eachOnce(t testing.TB, u *homeserver.User, room string, bodies []string) []gjson.Result {
	t.Helper()
	events := history(t, u, room)
	times := map[string]int{}
	for _, ev := range events {
		times[ev.Get("content.body").Str]++
	}
	for _, body := range bodies {
		if times[body] != 1 {
			t.Errorf("%q stands %d times in the history", body, times[body])
		}
	}
	return events
}

// sameOrder checks that what was told stands in the same order in the history.
func (w *watcher) sameOrder(events []gjson.Result) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	at := map[string]int{}
	for i, ev := range events {
		at[ev.Get("event_id").Str] = i
	}
	last := -1
	for _, id := range w.order {
		i, ok := at[id]
		if !ok {
			w.t.Errorf("%s was told and is not in the history", id)
			continue
		}
		if i < last {
			w.t.Errorf("%s was told in another order than the history has", id)
			return
		}
		last = i
	}
}

// keys are one-time keys with new names; their signatures are for clients to check.
func keys(u *homeserver.User, names ...string) J {
	all := J{}
	for _, name := range names {
		all["signed_curve25519:"+name] = J{"key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
			"signatures": J{u.ID: J{"ed25519:" + u.Device: "AAAA"}}}
	}
	return J{"one_time_keys": all}
}

// claim asks for a one-time key and gives its name, empty when there is none.
func claim(ctx context.Context, by, of *homeserver.User) (string, error) {
	a, err := by.Try(ctx, "POST", "/_matrix/client/v3/keys/claim", J{"one_time_keys": J{of.ID: J{of.Device: "signed_curve25519"}}})
	if err != nil {
		return "", err
	}
	if a.Status != http.StatusOK {
		return "", fmt.Errorf("claim: %s", a)
	}
	var out struct {
		Keys map[string]map[string]map[string]json.RawMessage `json:"one_time_keys"`
	}
	if err := json.Unmarshal([]byte(a.Text), &out); err != nil {
		return "", err
	}
	for name := range out.Keys[of.ID][of.Device] {
		return name, nil
	}
	return "", nil
}
