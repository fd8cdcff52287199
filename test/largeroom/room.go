// Package largeroom builds validly signed rooms of any size from several synthetic servers and serves them as those
// servers over federation: for tests and figures of joins. It keeps to what a good server does; a test spoils any
// answer by Intercept. It is no server of ours: nothing of the room engine is in it but the form of events.
package largeroom

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/test/homeserver"

	"maunium.net/go/mautrix/id"
)

// Options say what room to build.
type Options struct {
	Members int    // joined at the end
	Servers int    // 0: ten
	Version string // "": 11
	// What else is in the room's history: members who renamed themselves, members who left, and changes
	// of the power levels, spread over its length.
	Renamed, Left, LevelChanges int
}

// Room is a room that lives on the synthetic servers.
type Room struct {
	ID      id.RoomID
	Version *event.Version
	Servers []*homeserver.Peer

	// Live makes what servers of ours send part of the room.
	Live bool

	// Intercept sees each request before it is answered; true says that it has answered itself. kind is the
	// word of the path: make_join, send_join, state, state_ids, event, ...
	Intercept func(kind string, w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex // guards the rest
	order    []*event.Event
	at       map[id.EventID]int
	state    map[auth.Key]id.EventID // after the last event
	users    int
	answered time.Time // when the last send_join was written
	requests map[string]int
	received map[id.EventID]json.RawMessage // PDUs that were sent to us, joins apart
	edus     []json.RawMessage
	made     map[id.EventID]*event.Event // that are not part of the room
	arrived  chan struct{}               // closed when something is received
}

// New builds a room. The servers answer until the test ends.
func New(t testing.TB, ca *homeserver.CA, o Options) *Room {
	t.Helper()
	if o.Servers == 0 {
		o.Servers = 10
	}
	if o.Version == "" {
		o.Version = "11"
	}
	version, ok := event.Lookup(o.Version)
	if !ok {
		t.Fatalf("no room version %q", o.Version)
	}
	r := &Room{Version: version, at: map[id.EventID]int{}, state: map[auth.Key]id.EventID{},
		requests: map[string]int{}, received: map[id.EventID]json.RawMessage{}, made: map[id.EventID]*event.Event{}, arrived: make(chan struct{})}
	for range o.Servers {
		r.Servers = append(r.Servers, homeserver.NewPeer(t, ca))
	}
	if err := r.build(o); err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Servers {
		r.serve(s)
	}
	return r
}

// User is the name of a member; the first is the room's creator.
func (r *Room) User(n int) id.UserID {
	return id.UserID(fmt.Sprintf("@u%d:%s", n, r.Servers[n%len(r.Servers)].Name))
}

func (r *Room) build(o Options) error {
	empty := ""
	state := func(typ string, content any) error {
		_, err := r.add(0, typ, &empty, content)
		return err
	}
	create := map[string]any{"room_version": o.Version}
	if !r.Version.CreatorFromSender {
		create["creator"] = r.User(0)
	}
	if err := state("m.room.create", create); err != nil {
		return err
	}
	if err := r.join(0, "user 0"); err != nil {
		return err
	}
	for _, s := range []struct {
		typ     string
		content any
	}{
		{"m.room.power_levels", r.levels(0)},
		{"m.room.join_rules", map[string]any{"join_rule": "public"}},
		{"m.room.history_visibility", map[string]any{"history_visibility": "shared"}},
		{"m.room.name", map[string]any{"name": fmt.Sprintf("a room of %d", o.Members)}},
		{"m.room.topic", map[string]any{"topic": "how many fit in"}},
	} {
		if err := state(s.typ, s.content); err != nil {
			return err
		}
	}
	every := func(times, n int) bool { return times > 0 && n%max(1, o.Members/times) == 0 }
	for n := 1; n < o.Members+o.Left; n++ {
		if err := r.join(n, fmt.Sprintf("user %d", n)); err != nil {
			return err
		}
		if every(o.Renamed, n) && n <= o.Renamed*max(1, o.Members/max(o.Renamed, 1)) {
			if err := r.join(n, fmt.Sprintf("user %d, renamed", n)); err != nil {
				return err
			}
		}
		if n >= o.Members {
			if err := r.leave(n); err != nil {
				return err
			}
		}
		if every(o.LevelChanges, n) {
			if err := state("m.room.power_levels", r.levels(n)); err != nil {
				return err
			}
		}
	}
	r.users = o.Members + o.Left
	for i := range 3 {
		if _, err := r.add(i%o.Members, "m.room.message", nil, map[string]any{"msgtype": "m.text", "body": fmt.Sprint("message ", i)}); err != nil {
			return err
		}
	}
	return nil
}

func (r *Room) levels(changed int) map[string]any {
	users := map[id.UserID]int{}
	if !r.Version.PrivilegedCreators {
		users[r.User(0)] = 100
	}
	if changed > 0 {
		users[r.User(changed)] = 1
	}
	return map[string]any{"users": users, "state_default": 50, "ban": 50, "kick": 50, "redact": 50, "invite": 0, "events_default": 0, "users_default": 0}
}

func (r *Room) join(n int, name string) error {
	key := string(r.User(n))
	_, err := r.add(n, "m.room.member", &key, map[string]any{"membership": "join", "displayname": name})
	return err
}

func (r *Room) leave(n int) error {
	key := string(r.User(n))
	_, err := r.add(n, "m.room.member", &key, map[string]any{"membership": "leave"})
	return err
}

// add makes an event at the room's end.
func (r *Room) add(sender int, typ string, stateKey *string, content any) (*event.Event, error) {
	ev, err := r.make(sender, typ, stateKey, content, nil)
	if err == nil {
		r.append(ev)
	}
	return ev, err
}

// make builds an event of a member; change may spoil it before it is signed.
func (r *Room) make(sender int, typ string, stateKey *string, content any, change func(*event.Proto)) (*event.Event, error) {
	text, err := json.Marshal(content)
	if err != nil {
		return nil, err
	}
	server := r.Servers[sender%len(r.Servers)]
	p := event.Proto{RoomID: r.ID, Sender: r.User(sender), Type: typ, StateKey: stateKey, Content: text, ReferenceHashes: map[id.EventID]string{}}
	if len(r.order) > 0 {
		last := r.order[len(r.order)-1]
		p.PrevEvents, p.Depth = []id.EventID{last.ID()}, last.Depth()+1
		p.ReferenceHashes[last.ID()] = last.ReferenceHash()
		for _, k := range auth.Needed(r.Version, typ, stateKey, p.Sender, text) {
			if v, ok := r.state[k]; ok {
				p.AuthEvents = append(p.AuthEvents, v)
				p.ReferenceHashes[v] = r.order[r.at[v]].ReferenceHash()
			}
		}
	} else if !r.Version.RoomIDIsCreateHash {
		p.RoomID = id.RoomID("!large" + fmt.Sprint(time.Now().UnixNano()) + ":" + server.Name)
	}
	if change != nil {
		change(&p)
	}
	key := server.Keys.Key()
	ev, err := event.Build(r.Version, p, server.Name, key.ID, ed25519.PrivateKey(key.Private), time.Now())
	if err != nil {
		return nil, fmt.Errorf("build a %s: %w", typ, err)
	}
	return ev, nil
}

// append puts an event at the room's end.
func (r *Room) append(ev *event.Event) {
	r.ID = ev.RoomID()
	r.at[ev.ID()] = len(r.order)
	r.order = append(r.order, ev)
	if key, ok := ev.StateKey(); ok {
		r.state[auth.Key{Type: ev.Type(), StateKey: key}] = ev.ID()
	}
}

// Make builds an event that is not part of the room; change may make it whatever a bad server would.
func (r *Room) Make(t testing.TB, sender int, typ string, stateKey *string, content any, change func(*event.Proto)) *event.Event {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	ev, err := r.make(sender, typ, stateKey, content, change)
	if err != nil {
		t.Fatal(err)
	}
	r.made[ev.ID()] = ev
	return ev
}

// Add makes an event of a member at the room's end, without telling anybody.
func (r *Room) Add(t testing.TB, sender int, typ string, stateKey *string, content any) *event.Event {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	ev, err := r.add(sender, typ, stateKey, content)
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// Tell sends events to a server in a transaction of the first event's server.
func (r *Room) Tell(t testing.TB, to *homeserver.Server, events ...*event.Event) homeserver.Answer {
	t.Helper()
	var from *homeserver.Peer
	pdus := make([]json.RawMessage, len(events))
	for i, ev := range events {
		pdus[i] = ev.JSON()
	}
	for _, s := range r.Servers {
		if s.Name == events[0].Sender().Homeserver() {
			from = s
		}
	}
	return from.As(t).Ask(to, homeserver.Signed{Method: "PUT", Path: "/_matrix/federation/v1/send/" + homeserver.Txn(),
		Body: map[string]any{"origin": from.Name, "origin_server_ts": time.Now().UnixMilli(), "pdus": pdus}})
}

// Answered is when the last answer to a send_join had been written.
func (r *Room) Answered() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.answered
}

// Requests is how many requests of a kind have come.
func (r *Room) Requests(kind string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.requests[kind]
}

// State is the room's state after its last event, the IDs of its events.
func (r *Room) State() map[id.EventID]bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[id.EventID]bool, len(r.state))
	for _, v := range r.state {
		out[v] = true
	}
	return out
}

// JoinOf is the first event by which a user joined.
func (r *Room) JoinOf(t testing.TB, user id.UserID) id.EventID {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ev := range r.order {
		if ev.IsState("m.room.member", string(user)) && ev.Membership() == "join" {
			return ev.ID()
		}
	}
	t.Fatalf("%s never joined", user)
	return ""
}

// Event finds an event of the room.
func (r *Room) Event(eventID id.EventID) *event.Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.find(eventID)
}

// AwaitMember waits until a user is something in the room; Live must be set.
func (r *Room) AwaitMember(t testing.TB, user, membership string) {
	t.Helper()
	r.await(t, user+" has membership "+membership, func() bool {
		ev := r.find(r.state[auth.Key{Type: "m.room.member", StateKey: user}])
		return ev != nil && ev.Membership() == membership
	})
}

// Await waits until an event was sent to one of the servers.
func (r *Room) Await(t testing.TB, eventID id.EventID) {
	t.Helper()
	r.await(t, string(eventID)+" is here", func() bool { return r.received[eventID] != nil || r.find(eventID) != nil })
}

func (r *Room) await(t testing.TB, what string, is func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		r.mu.Lock()
		done, arrived := is(), r.arrived
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-arrived:
		case <-late:
			t.Fatalf("waited in vain until %s", what)
		}
	}
}
