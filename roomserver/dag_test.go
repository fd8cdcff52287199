package roomserver_test

import (
	"cmp"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"

	"maunium.net/go/mautrix/id"
)

// stateMap is a state as the specification speaks of it, by the model's numbers.
type stateMap map[auth.Key]int64

// node is an event of a generated room, with what the rules say of it.
type node struct {
	*event.Event
	nid           int64
	before, after stateMap
	rejected      bool
	auth          []int64
}

// dag is a generated room: an event graph with forks, and the state before each event by the pure functions.
// It says what an engine must come to, in whatever order it is told of the events.
type dag struct {
	t       testing.TB
	v       *event.Version
	r       *rand.Rand
	keys    map[string]peer.SigningKey // of servers
	homes   []string
	users   []id.UserID
	room    id.RoomID
	create  int64
	nodes   map[int64]*node
	byID    map[id.EventID]*node
	order   []*node // each after what it builds on
	refs    map[id.EventID]string
	ends    []*node
	cover   *state.Cover
	clock   time.Time
	refused int
}

// nowhere is a chain cover's storage with nothing in it: all is in memory.
type nowhere struct{}

func (nowhere) Places([]int64) (map[int64]state.Place, error)               { return nil, nil }
func (nowhere) Events([]state.Span, int) (map[state.Place]int64, error)     { return nil, nil }
func (nowhere) Lengths([]int64) (map[int64]int64, error)                    { return nil, nil }
func (nowhere) LinksFrom([]int64) ([]state.Link, error)                     { return nil, nil }
func (nowhere) LinksTo(spans []state.Span, limit int) ([]state.Link, error) { return nil, nil }

// newDAG founds a room whose users are on some servers; the first of them has made it.
func newDAG(t testing.TB, version string, seed uint64, homes []string, keys map[string]peer.SigningKey) *dag {
	v, ok := event.Lookup(version)
	if !ok {
		t.Fatalf("no room version %s", version)
	}
	d := &dag{t: t, v: v, r: rand.New(rand.NewPCG(seed, 5)), keys: keys, homes: homes, nodes: map[int64]*node{}, byID: map[id.EventID]*node{},
		refs: map[id.EventID]string{}, cover: state.NewCover(nowhere{}), clock: time.Now().Add(-time.Hour)}
	for i, home := range homes {
		d.users = append(d.users, id.UserID(fmt.Sprintf("@owner%d:%s", i, home)), id.UserID(fmt.Sprintf("@other%d:%s", i, home)))
	}
	owner := d.users[0]
	create := map[string]any{"room_version": version}
	if !v.CreatorFromSender {
		create["creator"] = owner
	}
	if !v.RoomIDIsCreateHash {
		d.room = id.RoomID("!room:" + homes[0])
	}
	made := d.put(d.build(nil, owner, "m.room.create", "", create))
	d.create = made.nid
	if v.RoomIDIsCreateHash {
		d.room = made.RoomID()
	}
	d.grow(owner, "m.room.member", string(owner), map[string]any{"membership": "join"})
	d.grow(owner, "m.room.power_levels", "", d.levels(map[id.UserID]int{d.users[2]: 100, d.users[1]: 50}))
	d.grow(owner, "m.room.join_rules", "", map[string]any{"join_rule": "public"})
	for _, user := range d.users[1:] {
		d.grow(user, "m.room.member", string(user), map[string]any{"membership": "join"})
	}
	return d
}

// levels is the content of power levels in which the owner has all power.
func (d *dag) levels(users map[id.UserID]int) map[string]any {
	users = maps.Clone(users)
	delete(users, d.users[0])
	if !d.v.PrivilegedCreators {
		users[d.users[0]] = 100
	}
	return map[string]any{"users": users, "events": map[string]any{"m.room.topic": 0}}
}

// grow adds an event of somebody at the end of the room.
func (d *dag) grow(sender id.UserID, typ, key string, content any) *node {
	return d.put(d.build(d.ends, sender, typ, key, content))
}

// resolved merges the states after events.
func (d *dag) resolved(prev []*node) stateMap {
	if len(prev) == 0 {
		return stateMap{}
	}
	states := make([]stateMap, len(prev))
	for i, p := range prev {
		states[i] = p.after
	}
	agreed, sets := stateMap{}, make([][]int64, len(states))
	keys := map[auth.Key]bool{}
	for _, s := range states {
		for k := range s {
			keys[k] = true
		}
	}
	same := true
	for k := range keys {
		is := true
		for _, s := range states {
			is = is && s[k] == states[0][k]
		}
		if is {
			agreed[k] = states[0][k]
			continue
		}
		same = false
		for i, s := range states {
			if s[k] != 0 {
				sets[i] = append(sets[i], s[k])
			}
		}
	}
	if same {
		return states[0]
	}
	got, err := state.Resolve(d.v, sets, state.Input{Cover: d.cover, Create: d.create,
		Events: func(nids []int64) (map[int64]state.Known, error) {
			out := map[int64]state.Known{}
			for _, n := range nids {
				if e := d.nodes[n]; e != nil {
					out[n] = state.Known{NID: n, Event: e.Event, Auth: e.auth, Rejected: e.rejected}
				}
			}
			return out, nil
		},
		Agreed: func(keys []auth.Key) ([]int64, error) {
			out := make([]int64, len(keys))
			for i, k := range keys {
				out[i] = agreed[k]
			}
			return out, nil
		}})
	if err != nil {
		d.t.Fatal(err)
	}
	for k, n := range got {
		if n != 0 {
			agreed[k] = n
		}
	}
	return agreed
}

// view is a state as the rules see it.
type view struct {
	d *dag
	s stateMap
}

func (v view) Get(typ, key string) *event.Event {
	if n := v.d.nodes[v.s[auth.Key{Type: typ, StateKey: key}]]; n != nil {
		return n.Event
	}
	return nil
}

// build makes an event on some others, signed by its sender's server. key is "-" for what is no state.
func (d *dag) build(prev []*node, sender id.UserID, typ, key string, content any) *event.Event {
	text, err := json.Marshal(content)
	if err != nil {
		d.t.Fatal(err)
	}
	p := event.Proto{RoomID: d.room, Sender: sender, Type: typ, Content: text, ReferenceHashes: d.refs}
	if key != "-" {
		p.StateKey = &key
	}
	before := d.resolved(prev)
	for _, e := range prev {
		p.PrevEvents = append(p.PrevEvents, e.ID())
		p.Depth = max(p.Depth, e.Depth())
	}
	p.Depth++
	for _, k := range auth.Needed(d.v, typ, p.StateKey, sender, text) {
		if n := d.nodes[before[k]]; n != nil {
			p.AuthEvents = append(p.AuthEvents, n.ID())
		}
	}
	d.clock = d.clock.Add(time.Second)
	home := sender.Homeserver()
	key1 := d.keys[home]
	at := d.clock.Add(time.Duration(d.r.IntN(20)-10) * time.Second) // clocks differ
	ev, err := event.Build(d.v, p, home, key1.ID, ed25519.PrivateKey(key1.Private), at)
	if err != nil {
		d.t.Fatal(err)
	}
	return ev
}

// put judges an event by what it says itself and by the state before it, and makes it an end of the room.
func (d *dag) put(ev *event.Event) *node {
	n := &node{Event: ev, nid: int64(len(d.order) + 1)}
	var prev []*node
	for _, v := range ev.PrevEvents() {
		prev = append(prev, d.byID[v])
	}
	n.before = d.resolved(prev)
	var auths []*event.Event
	var follows int64
	for _, v := range ev.AuthEvents() {
		a := d.byID[v]
		auths, n.auth = append(auths, a.Event), append(n.auth, a.nid)
		if key, ok := ev.StateKey(); ok && a.IsState(ev.Type(), key) {
			follows = a.nid
		}
	}
	if ev.Type() != "m.room.create" {
		create := d.nodes[d.create].Event
		var missing *event.Event
		if d.v.CreateNotInAuthEvents {
			missing = create
			auths = append(auths, create)
		}
		own := slices.DeleteFunc(slices.Clone(auths), func(e *event.Event) bool { return d.v.CreateNotInAuthEvents && e == create })
		err := auth.CheckAuthEvents(ev, own, missing, func(e *event.Event) bool { return d.byID[e.ID()].rejected })
		n.rejected = cmp.Or(err, auth.Check(ev, auth.Events(auths)), auth.Check(ev, view{d, n.before})) != nil
	}
	n.after = n.before
	if key, ok := ev.StateKey(); ok {
		if _, err := d.cover.Add(n.nid, n.auth, follows); err != nil {
			d.t.Fatal(err)
		}
		if !n.rejected {
			n.after = maps.Clone(n.before)
			n.after[auth.Key{Type: ev.Type(), StateKey: key}] = n.nid
		}
	}
	if n.rejected {
		d.refused++
	}
	d.nodes[n.nid], d.byID[ev.ID()] = n, n
	d.order = append(d.order, n)
	if d.v.EventFormat == event.FormatReferences {
		d.refs[ev.ID()] = ev.ReferenceHash()
	}
	if !n.rejected { // nobody builds on what was rejected, but by mistake
		d.ends = slices.DeleteFunc(slices.Clone(d.ends), func(e *node) bool { return slices.Contains(ev.PrevEvents(), e.ID()) })
		d.ends = append(d.ends, n)
	}
	return n
}

// some gives a few events to build on: ends of the room, or what came not long ago, which forks it.
func (d *dag) some() []*node {
	var out []*node
	for range 1 + d.r.IntN(3) {
		from := d.ends
		if d.r.IntN(3) == 0 {
			from = d.order[max(len(d.order)-12, 2*len(d.users)-2):]
		}
		if len(from) == 0 {
			from = d.ends
		}
		if e := from[d.r.IntN(len(from))]; !e.rejected && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	if len(out) == 0 {
		return d.ends[:1]
	}
	return out
}

// play adds random events: some of them are against the rules.
func (d *dag) play(steps int) {
	pick := func() id.UserID { return d.users[d.r.IntN(len(d.users))] }
	for range steps {
		prev := d.some()
		sender, target := pick(), pick()
		typ, key := "m.room.message", "-"
		content := map[string]any{"msgtype": "m.text", "body": fmt.Sprint(d.r.Int())}
		switch d.r.IntN(12) {
		case 0, 1:
			typ, key = "m.room.power_levels", ""
			users := map[id.UserID]int{d.users[2]: 100}
			for range 1 + d.r.IntN(3) {
				users[pick()] = []int{0, 25, 50, 50, 100}[d.r.IntN(5)]
			}
			content = d.levels(users)
			if d.r.IntN(2) == 0 {
				sender = d.users[2*d.r.IntN(2)]
			}
		case 2:
			typ, key, content = "m.room.join_rules", "", map[string]any{"join_rule": []string{"public", "invite"}[d.r.IntN(2)]}
			sender = d.users[2*d.r.IntN(2)]
		case 3, 4:
			typ, key, content = "m.room.member", string(sender), map[string]any{"membership": "join", "displayname": fmt.Sprint(d.r.IntN(100))}
		case 5:
			for sender == d.users[0] {
				sender = pick()
			}
			typ, key, content = "m.room.member", string(sender), map[string]any{"membership": "leave"}
		case 6, 7:
			typ, key, content = "m.room.member", string(target), map[string]any{"membership": []string{"leave", "ban", "invite"}[d.r.IntN(3)]}
			sender = d.users[d.r.IntN(3)]
		case 8:
			typ, key, content = "m.room.topic", "", map[string]any{"topic": fmt.Sprint(d.r.Int())}
		}
		d.put(d.build(prev, sender, typ, key, content))
	}
}

// tie ends all forks with messages of the owner, whom nobody can put out.
func (d *dag) tie() *node {
	prev := slices.Clone(d.ends)
	for {
		n := d.put(d.build(prev[:min(10, len(prev))], d.users[0], "m.room.message", "-", map[string]any{"body": "tie", "msgtype": "m.text"}))
		if n.rejected {
			d.t.Fatal("the owner cannot speak: the room proves nothing")
		}
		if prev = append(prev[min(10, len(prev)):], n); len(prev) == 1 {
			return n
		}
	}
}
