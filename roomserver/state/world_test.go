package state

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

const (
	alice = "@alice:a"
	bob   = "@bob:b"
	carol = "@carol:c"
	dave  = "@dave:a"
	eve   = "@eve:b"
)

// stateMap is a state as the specification speaks of it.
type stateMap map[auth.Key]int64

func (s stateMap) with(w *world, nid int64) stateMap {
	s = maps.Clone(s)
	s[keyOf(w.events[nid].Event)] = nid
	return s
}

// world is a room with its events, made by hand or at random.
type world struct {
	t      testing.TB
	v      *event.Version
	r      *rand.Rand
	events map[int64]Known
	auth   dag
	names  map[id.EventID]int64
	create int64
	cover  *Cover
	atlas  *atlas
	clock  int64
	read   int // events read by resolutions
	// fellBack says that an auth check took an event of auth_events.
	fellBack bool
}

func newWorld(t testing.TB, version string, seed uint64) *world {
	v, ok := event.Lookup(version)
	if !ok {
		t.Fatalf("no room version %s", version)
	}
	w := &world{
		t: t, v: v, r: rand.New(rand.NewPCG(seed, 77)), events: make(map[int64]Known),
		auth: dag{make(map[int64][]int64)}, names: make(map[id.EventID]int64), atlas: newAtlas(), clock: 1000,
	}
	w.cover = NewCover(w.atlas)
	return w
}

// proto is an event to be made.
type proto struct {
	sender, typ, key, content string
	ts                        int64
	auth                      []int64 // nil: by the selection of the state
}

// add makes a state event on a state, with the auth events that the state gives.
func (w *world) add(on stateMap, p proto) int64 {
	w.t.Helper()
	if p.content == "" {
		p.content = "{}"
	}
	w.clock += 10
	if p.ts == 0 {
		p.ts = w.clock
	}
	var nid int64
	for nid == 0 || w.events[nid].Event != nil {
		nid = 1 + w.r.Int64N(1<<40) // identities, never an order
	}
	if p.auth == nil {
		key := p.key
		for _, k := range auth.Needed(w.v, p.typ, &key, id.UserID(p.sender), []byte(p.content)) {
			if a := on[k]; a != 0 {
				p.auth = append(p.auth, a)
			}
		}
	}
	eventID := id.EventID(fmt.Sprintf("$%043d", w.r.Uint64()))
	if w.v.EventIDFormat == event.IDFromSender {
		eventID += ":a"
	}
	refs := []any{}
	var follows int64
	depth := int64(1)
	for _, a := range p.auth {
		ev := w.events[a].Event
		depth = max(depth, ev.Depth()+1)
		if ev.IsState(p.typ, p.key) {
			follows = a
		}
		if w.v.EventFormat == event.FormatReferences {
			refs = append(refs, []any{ev.ID(), map[string]string{"sha256": "xxxx"}})
		} else {
			refs = append(refs, ev.ID())
		}
	}
	room := "!room:a"
	if w.v.RoomIDIsCreateHash && w.create != 0 {
		room = "!" + string(w.events[w.create].Event.ID()[1:])
	}
	prev := []any{}
	if p.typ != "m.room.create" {
		prev = refs
	}
	raw := map[string]any{
		"type": p.typ, "state_key": p.key, "sender": p.sender, "content": json.RawMessage(p.content),
		"origin_server_ts": p.ts, "depth": depth, "auth_events": refs, "prev_events": prev,
		"hashes": map[string]string{"sha256": "xxxx"}, "signatures": map[string]any{}, "room_id": room,
	}
	if w.v.EventIDFormat == event.IDFromSender {
		raw["event_id"] = eventID
	}
	if w.v.RoomIDIsCreateHash && p.typ == "m.room.create" {
		delete(raw, "room_id")
	}
	b, err := json.Marshal(raw)
	if err != nil {
		w.t.Fatal(err)
	}
	ev, err := event.ParseStored(w.v, eventID, b)
	if err != nil {
		w.t.Fatalf("%s: %v", b, err)
	}
	w.events[nid] = Known{NID: nid, Event: ev, Auth: p.auth}
	w.auth.auth[nid] = p.auth
	w.names[eventID] = nid
	if p.typ == "m.room.create" {
		w.create = nid
	}
	if _, err := w.cover.Add(nid, p.auth, follows); err != nil {
		w.t.Fatal(err)
	}
	if w.r.IntN(3) == 0 {
		w.atlas.store(w.cover)
	}
	return nid
}

// set adds an event and gives the state after it.
func (w *world) set(on stateMap, sender, typ, key, content string) stateMap {
	w.t.Helper()
	return on.with(w, w.add(on, proto{sender: sender, typ: typ, key: key, content: content}))
}

// found makes a public room of alice in which the others have joined.
func (w *world) found(levels string, joined ...string) stateMap {
	create := `{"room_version":"` + w.v.Name + `"}`
	if !w.v.CreatorFromSender {
		create = `{"creator":"` + alice + `","room_version":"` + w.v.Name + `"}`
	}
	s := w.set(stateMap{}, alice, "m.room.create", "", create)
	s = w.set(s, alice, "m.room.member", alice, `{"membership":"join"}`)
	if levels != "" {
		s = w.set(s, alice, "m.room.power_levels", "", levels)
	}
	s = w.set(s, alice, "m.room.join_rules", "", `{"join_rule":"public"}`)
	for _, user := range joined {
		s = w.set(s, user, "m.room.member", user, `{"membership":"join"}`)
	}
	return s
}

// levels is the content of power levels; from version 12 on creators must not be in it.
func (w *world) levels(users map[string]int) string {
	users = maps.Clone(users)
	if w.v.PrivilegedCreators {
		delete(users, alice)
	}
	b, _ := json.Marshal(map[string]any{"users": users})
	return string(b)
}

// split is the unconflicted state map and the conflicted events of each state.
func split(states []stateMap) (agreed stateMap, conflicted [][]int64) {
	agreed = stateMap{}
	conflicted = make([][]int64, len(states))
	keys := make(map[auth.Key]bool)
	for _, s := range states {
		for k := range s {
			keys[k] = true
		}
	}
	for k := range keys {
		same := true
		for _, s := range states {
			same = same && s[k] == states[0][k]
		}
		if same {
			agreed[k] = states[0][k]
			continue
		}
		for i, s := range states {
			if s[k] != 0 {
				conflicted[i] = append(conflicted[i], s[k])
			}
		}
	}
	return agreed, conflicted
}

func (w *world) input(agreed stateMap) Input {
	return Input{
		Cover: w.cover, Create: w.create,
		Events: func(nids []int64) (map[int64]Known, error) {
			w.read += len(nids)
			out := make(map[int64]Known, len(nids))
			for _, nid := range nids {
				if k, ok := w.events[nid]; ok {
					out[nid] = k
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
		},
	}
}

// resolve runs Resolve and gives the whole resolved state.
func (w *world) resolve(states ...stateMap) stateMap {
	w.t.Helper()
	agreed, sets := split(states)
	for _, s := range sets {
		w.r.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
	}
	got, err := Resolve(w.v, sets, w.input(agreed))
	if err != nil {
		w.t.Fatal(err)
	}
	out := maps.Clone(agreed)
	for k, nid := range got {
		if agreed[k] != 0 {
			w.t.Fatalf("the result has %v, on which all states agree", k)
		}
		if nid != 0 {
			out[k] = nid
		}
	}
	return out
}

// literal is the algorithm as the specification has it, with sets and definitions taken at
// their word and no thought of cost.
//
// spec: rooms/v2#state-resolution, rooms/v12#state-resolution
func (w *world) literal(states ...stateMap) stateMap {
	v21 := w.v.StateResolution == event.StateV21
	unconflicted, sets := split(states)
	full := make(map[int64]bool)
	for _, nid := range slices.Concat(sets...) {
		full[nid] = true
	}
	if v21 {
		maps.Copy(full, w.auth.subgraph(slices.Concat(sets...)))
	}
	whole := make([][]int64, len(states))
	for i, s := range states {
		whole[i] = slices.Collect(maps.Values(s))
	}
	maps.Copy(full, w.auth.authDifference(whole))

	// 1
	x := make(map[int64]bool)
	for p := range full {
		if isPower(w.events[p].Event) {
			x[p] = true
			for a := range w.auth.chain(p) {
				if full[a] {
					x[a] = true
				}
			}
		}
	}
	level := func(nid int64) auth.Level {
		create := w.events[w.create].Event
		var pl *event.Event
		for _, a := range w.events[nid].Auth {
			if ev := w.events[a].Event; ev.Type() == "m.room.power_levels" {
				pl = ev
			}
		}
		return auth.PowerLevelsOf(create, pl).Of(w.events[nid].Event.Sender())
	}
	var first []int64
	left := maps.Clone(x)
	for len(left) > 0 {
		var best int64
		for nid := range left {
			if slices.ContainsFunc(w.events[nid].Auth, func(a int64) bool { return left[a] }) {
				continue
			}
			if best == 0 {
				best = nid
				continue
			}
			if c := level(nid).Cmp(level(best)); c > 0 || c == 0 && older(w.events[nid].Event, w.events[best].Event) < 0 {
				best = nid
			}
		}
		first = append(first, best)
		delete(left, best)
	}
	// 2
	state := stateMap{}
	if !v21 {
		state = maps.Clone(unconflicted)
	}
	check := func(list []int64) {
		for _, nid := range list {
			k := w.events[nid]
			if auth.Check(k.Event, literalView{w, state, k}) == nil {
				state[keyOf(k.Event)] = nid
			}
		}
	}
	check(first)
	// 3
	levelsOf := func(nid int64) int64 {
		for _, a := range w.events[nid].Auth {
			if w.events[a].Event.Type() == "m.room.power_levels" {
				return a
			}
		}
		return 0
	}
	position := make(map[int64]int)
	for p := state[auth.Key{Type: "m.room.power_levels"}]; p != 0; p = levelsOf(p) {
		position[p] = len(position)
	}
	of := make(map[int64]int)
	var rest []int64
	for nid := range full {
		if x[nid] {
			continue
		}
		rest = append(rest, nid)
		of[nid] = 1 << 60
		for e := levelsOf(nid); e != 0; e = levelsOf(e) {
			if i, ok := position[e]; ok {
				of[nid] = i
				break
			}
		}
	}
	slices.SortFunc(rest, func(a, b int64) int {
		if of[a] != of[b] {
			return of[b] - of[a]
		}
		return older(w.events[a].Event, w.events[b].Event)
	})
	// 4, 5
	check(rest)
	maps.Copy(state, unconflicted)
	return state
}

type literalView struct {
	w     *world
	state stateMap
	k     Known
}

func (s literalView) Get(typ, key string) *event.Event {
	if nid := s.state[auth.Key{Type: typ, StateKey: key}]; nid != 0 {
		return s.w.events[nid].Event
	}
	for _, a := range s.k.Auth {
		if k := s.w.events[a]; !k.Rejected && k.Event.IsState(typ, key) {
			s.w.fellBack = true
			return k.Event
		}
	}
	if typ == "m.room.create" && s.w.v.CreateNotInAuthEvents {
		return s.w.events[s.w.create].Event
	}
	return nil
}

// tell describes a state for a failing test.
func (w *world) tell(s stateMap) string {
	var lines []string
	for k, nid := range s {
		ev := w.events[nid].Event
		lines = append(lines, fmt.Sprintf("\n  %s %q: %d by %s %s", k.Type, k.StateKey, nid, ev.Sender(), ev.Content()))
	}
	slices.Sort(lines)
	return fmt.Sprint(lines)
}

// slots gives (type, state key) pairs their numbers.
type slots struct{ byKey map[auth.Key]int64 }

func newSlots() *slots { return &slots{make(map[auth.Key]int64)} }

func (s *slots) of(k auth.Key) int64 {
	slot, ok := s.byKey[k]
	if !ok {
		slot = int64(len(s.byKey))
		s.byKey[k] = slot
	}
	return slot
}

func (s *slots) find(keys []auth.Key) ([]int64, error) {
	out := make([]int64, len(keys))
	for i, k := range keys {
		slot, ok := s.byKey[k]
		if !ok {
			slot = -1
		}
		out[i] = slot
	}
	return out, nil
}

func idOf(p interface{ EventID() string }) id.EventID { return id.EventID(p.EventID()) }
