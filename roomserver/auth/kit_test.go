package auth_test

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

const (
	alice = id.UserID("@alice:a.example") // creates the rooms
	bob   = id.UserID("@bob:b.example")
	carol = id.UserID("@carol:c.example")
	dan   = id.UserID("@dan:a.example")
)

var signingKey = ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))

// obj is a JSON object.
type obj map[string]any

// room is a room as its events and its present state.
type room struct {
	t     testing.TB
	v     *event.Version
	state map[auth.Key]*event.Event
	last  *event.Event
	depth int64
}

func (r *room) Get(typ, key string) *event.Event { return r.state[auth.Key{Type: typ, StateKey: key}] }

// newRoom makes a room with its create event alone.
func newRoom(t testing.TB, version string, create obj) *room {
	t.Helper()
	v, ok := event.Lookup(version)
	if !ok {
		t.Fatalf("room version %s is not known", version)
	}
	r := &room{t: t, v: v, state: map[auth.Key]*event.Event{}}
	content := obj{"room_version": version}
	if !v.CreatorFromSender {
		content["creator"] = alice
	}
	for key, value := range create {
		content[key] = value
	}
	r.put(r.state0(alice, "m.room.create", content))
	return r
}

// joinedRoom makes a public room with alice and the others in it.
func joinedRoom(t testing.TB, version string, others ...id.UserID) *room {
	t.Helper()
	r := newRoom(t, version, nil)
	r.send(r.member(alice, alice, "join"))
	r.send(r.state0(alice, "m.room.join_rules", obj{"join_rule": "public"}))
	for _, user := range others {
		r.send(r.member(user, user, "join"))
	}
	return r
}

// proto is an event that would come next.
func (r *room) proto(sender id.UserID, typ string, stateKey *string, content obj) event.Proto {
	r.t.Helper()
	raw, err := json.Marshal(content)
	if err != nil {
		r.t.Fatal(err)
	}
	p := event.Proto{Sender: sender, Type: typ, StateKey: stateKey, Content: raw, Depth: r.depth + 1}
	if typ == "m.room.create" && r.last == nil {
		if !r.v.RoomIDIsCreateHash {
			p.RoomID = "!room:a.example"
		}
		return p
	}
	p.RoomID = r.Get("m.room.create", "").RoomID()
	p.PrevEvents = []id.EventID{r.last.ID()}
	for _, k := range auth.Needed(r.v, typ, stateKey, sender, raw) {
		if ev := r.state[k]; ev != nil {
			p.AuthEvents = append(p.AuthEvents, ev.ID())
		}
	}
	return p
}

func (r *room) build(p event.Proto) *event.Event {
	r.t.Helper()
	p.ReferenceHashes = map[id.EventID]string{}
	ev, err := event.Build(r.v, p, event.Domain(string(p.Sender)), "ed25519:k", signingKey, time.UnixMilli(1700000000000))
	if err != nil {
		r.t.Fatalf("build %s: %v", p.Type, err)
	}
	return ev
}

func (r *room) message(sender id.UserID) *event.Event {
	r.t.Helper()
	return r.build(r.proto(sender, "m.room.message", nil, obj{"msgtype": "m.text", "body": "hello"}))
}

func (r *room) stateAt(sender id.UserID, typ, key string, content obj) *event.Event {
	r.t.Helper()
	return r.build(r.proto(sender, typ, &key, content))
}

func (r *room) state0(sender id.UserID, typ string, content obj) *event.Event {
	r.t.Helper()
	return r.stateAt(sender, typ, "", content)
}

func (r *room) member(sender, target id.UserID, membership string) *event.Event {
	r.t.Helper()
	return r.stateAt(sender, "m.room.member", string(target), obj{"membership": membership})
}

func (r *room) power(sender id.UserID, content obj) *event.Event {
	r.t.Helper()
	return r.state0(sender, "m.room.power_levels", content)
}

// put takes an event into the room unasked.
func (r *room) put(ev *event.Event) *event.Event {
	if key, ok := ev.StateKey(); ok {
		r.state[auth.Key{Type: ev.Type(), StateKey: key}] = ev
	}
	r.last, r.depth = ev, ev.Depth()
	return ev
}

// send takes an event into the room that must be allowed.
func (r *room) send(ev *event.Event) *event.Event {
	r.t.Helper()
	if err := r.check(ev); err != nil {
		r.t.Fatalf("%s by %s is refused: %v", ev.Type(), ev.Sender(), err)
	}
	return r.put(ev)
}

// cited are the events that ev has as auth events.
func (r *room) cited(ev *event.Event) []*event.Event {
	var cited []*event.Event
	for _, authID := range ev.AuthEvents() {
		for _, have := range r.state {
			if have.ID() == authID {
				cited = append(cited, have)
			}
		}
	}
	return cited
}

// check asks all rules: about the auth events, against them, and against the room's state.
func (r *room) check(ev *event.Event) error {
	create := r.Get("m.room.create", "")
	cited := r.cited(ev)
	if err := auth.CheckAuthEvents(ev, cited, create, nil); err != nil {
		return err
	}
	if err := auth.Check(ev, auth.Events(append(cited, create))); err != nil {
		return err
	}
	explainAgrees(r.t, ev, r)
	return auth.Check(ev, r)
}

// ruleOf is the rule that refuses, or "allow".
func ruleOf(t testing.TB, err error) string {
	t.Helper()
	if err == nil {
		return "allow"
	}
	var rejection *auth.Rejection
	if !errors.As(err, &rejection) {
		t.Fatalf("not a rejection: %v", err)
	}
	if rejection.Why == "" || rejection.Event == "" || rejection.Version == "" {
		t.Errorf("the rejection does not say everything: %+v", rejection)
	}
	return rejection.Rule
}

// want expects a rule to refuse, or "allow".
func (r *room) want(ev *event.Event, rule string) {
	r.t.Helper()
	err := r.check(ev)
	if got := ruleOf(r.t, err); got != rule {
		r.t.Errorf("version %s: %s by %s: rule %s (%v), want %s", r.v.Name, ev.Type(), ev.Sender(), got, err, rule)
	}
}

// in are the outcomes by versions, such as {"1-5": "5.2.3", "12": "allow"}. Versions that no
// entry names are not asked.
type in map[string]string

func (w in) of(t testing.TB, version string) (outcome string, asked bool) {
	t.Helper()
	n, _ := strconv.Atoi(version)
	for span, outcome := range w {
		first, last, isSpan := strings.Cut(span, "-")
		if !isSpan {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil {
			t.Fatalf("%q is no span of versions", span)
		}
		if from <= n && n <= to {
			return outcome, true
		}
	}
	return "", false
}

// story is one event in one situation with its outcome in each version.
type story struct {
	name string
	tell func(*room) *event.Event // in a public room of alice
	want in
}

func tellAll(t *testing.T, stories []story) {
	t.Helper()
	names := map[string]bool{}
	for _, s := range stories {
		if names[s.name] {
			t.Errorf("two stories are called %q", s.name)
		}
		names[s.name] = true
		for _, v := range event.Versions() {
			rule, asked := s.want.of(t, v.Name)
			if !asked {
				continue
			}
			t.Run(fmt.Sprintf("%s/v%s", s.name, v.Name), func(t *testing.T) {
				r := joinedRoom(t, v.Name)
				r.want(s.tell(r), rule)
			})
		}
	}
}

// versionsFrom are the names of the room versions from one on.
func versionsFrom(first string) []string {
	var names []string
	for _, v := range event.Versions() {
		names = append(names, v.Name)
	}
	return names[slices.Index(names, first):]
}
