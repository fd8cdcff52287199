package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// Known is an event as resolution reads it.
type Known struct {
	NID      int64
	Event    *event.Event
	Auth     []int64 // the events it lists in auth_events
	Rejected bool
}

// Input is what resolution reads of a room. All of it is asked for in batches, and only for
// what the conflict touches.
type Input struct {
	// Events reads events by number; one that is not stored is left out.
	Events func(nids []int64) (map[int64]Known, error)
	// Agreed looks up keys in the unconflicted state map: 0 for a key that is not in it.
	Agreed func(keys []auth.Key) ([]int64, error)
	// Cover is the room's chain cover.
	Cover *Cover
	// Create is the room's create event. From version 12 on no event lists it, yet it is part
	// of every auth state.
	Create int64
	// Trace is told how the result came about. Nil: nobody wants to know.
	Trace *Trace
	// Budget is how many events it may read; over it the error is ErrBudget. 0: MaxRead.
	Budget int
}

// MaxRead is how many events one resolution may read.
const MaxRead = 100_000

// Resolve merges states of a room that differ. sets holds for each state its conflicted
// events, those in which it differs from others; what all states agree on is read through
// the input where it matters. The result has the event of every conflicted key, 0 where none
// remains, and of keys that no state has but the resolution does; all other keys are as agreed.
//
// The result depends neither on the order of the sets nor on that of the events in them.
//
// spec: rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
func Resolve(v *event.Version, sets [][]int64, in Input) (map[auth.Key]int64, error) {
	r := &resolution{
		v: v, in: in,
		known:  make(map[int64]*Known),
		agreed: make(map[auth.Key]int64),
		state:  make(map[auth.Key]*Known),
		budget: cmp.Or(in.Budget, MaxRead),
	}
	if err := r.load([]int64{in.Create}); err != nil {
		return nil, err
	}
	conflicted := slices.Concat(sets...)
	slices.Sort(conflicted)
	conflicted = slices.Compact(conflicted)
	if err := r.load(conflicted); err != nil {
		return nil, err
	}
	var err error
	switch v.StateResolution {
	case event.StateV1:
		err = r.resolveV1(conflicted)
	case event.StateV2, event.StateV21:
		err = r.resolveV2(sets, conflicted)
	default:
		err = fmt.Errorf("state: room version %s has no resolution", v.Name)
	}
	if err == nil {
		err = r.err
	}
	if err != nil {
		return nil, err
	}
	return r.result(conflicted)
}

// resolution is one run of the algorithm.
type resolution struct {
	v      *event.Version
	in     Input
	known  map[int64]*Known
	agreed map[auth.Key]int64  // of the unconflicted state map, what was looked up
	state  map[auth.Key]*Known // the partially resolved state, without the unconflicted
	budget int
	err    error // of a lookup in the middle of an auth check
}

func keyOf(ev *event.Event) auth.Key {
	key, _ := ev.StateKey()
	return auth.Key{Type: ev.Type(), StateKey: key}
}

// load reads events that are not known yet.
func (r *resolution) load(nids []int64) error {
	var missing []int64
	for _, nid := range nids {
		if r.known[nid] == nil {
			missing = append(missing, nid)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	missing = slices.Compact(missing)
	if r.budget -= len(missing); r.budget < 0 {
		return fmt.Errorf("%w: resolution of more than %d events", ErrBudget, cmp.Or(r.in.Budget, MaxRead))
	}
	got, err := r.in.Events(missing)
	if err != nil {
		return fmt.Errorf("read %d events: %w", len(missing), err)
	}
	for _, nid := range missing {
		k, ok := got[nid]
		if !ok || k.Event == nil {
			return fmt.Errorf("%w: event %d", ErrMissing, nid)
		}
		k.NID = nid
		r.known[nid] = &k
	}
	return nil
}

func (r *resolution) loadAuthOf(nids []int64) error {
	var auth []int64
	for _, nid := range nids {
		auth = append(auth, r.known[nid].Auth...)
	}
	return r.load(auth)
}

// loadAgreed looks keys up in the unconflicted state map.
func (r *resolution) loadAgreed(keys []auth.Key) error {
	var missing []auth.Key
	for _, k := range keys {
		if _, ok := r.agreed[k]; !ok {
			r.agreed[k] = 0
			missing = append(missing, k)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	nids, err := r.in.Agreed(missing)
	if err != nil {
		return fmt.Errorf("look up %d keys all states agree on: %w", len(missing), err)
	}
	for i, k := range missing {
		r.agreed[k] = nids[i]
	}
	return nil
}

// areAgreed says which events stand in all states.
func (r *resolution) areAgreed(nids []int64) ([]bool, error) {
	if err := r.load(nids); err != nil {
		return nil, err
	}
	keys := make([]auth.Key, len(nids))
	for i, nid := range nids {
		keys[i] = keyOf(r.known[nid].Event)
	}
	if err := r.loadAgreed(keys); err != nil {
		return nil, err
	}
	is := make([]bool, len(nids))
	for i, nid := range nids {
		is[i] = r.agreed[keys[i]] == nid
	}
	return is, nil
}

// result takes the resolved state of the conflicted keys, and of those that no state has:
// the unconflicted state map wins wherever it has a key.
//
// spec: rooms/v2#algorithm 5
func (r *resolution) result(conflicted []int64) (map[auth.Key]int64, error) {
	out := make(map[auth.Key]int64)
	for _, nid := range conflicted {
		out[keyOf(r.known[nid].Event)] = 0
	}
	if err := r.loadAgreed(slices.Collect(maps.Keys(r.state))); err != nil {
		return nil, err
	}
	for key, k := range r.state {
		if r.agreed[key] == 0 {
			out[key] = k.NID
		}
	}
	return out, nil
}

// apply runs the iterative auth checks over a sorted list.
//
// spec: rooms/v2#definitions
func (r *resolution) apply(stage string, sorted []*Known) {
	for _, k := range sorted {
		if _, isState := k.Event.StateKey(); !isState {
			continue
		}
		if r.check(stage, k) == nil {
			r.state[keyOf(k.Event)] = k
		}
	}
}

// view is the state an event is checked against: the partially resolved state, and where
// that lacks a key the event's own auth events unless they were rejected.
type view struct {
	r *resolution
	k *Known
}

func (s view) Get(typ, stateKey string) *event.Event {
	key := auth.Key{Type: typ, StateKey: stateKey}
	if k := s.r.state[key]; k != nil {
		return k.Event
	}
	if s.r.startsFromAgreed() {
		if k := s.r.lookup(key); k != nil {
			return k.Event
		}
	}
	if s.r.v.StateResolution == event.StateV1 {
		return nil // version 1 asks the state alone
	}
	for _, nid := range s.k.Auth {
		if k := s.r.known[nid]; k != nil && !k.Rejected && k.Event.IsState(typ, stateKey) {
			return k.Event
		}
	}
	if s.r.v.CreateNotInAuthEvents && key == (auth.Key{Type: "m.room.create"}) {
		return s.r.known[s.r.in.Create].Event
	}
	return nil
}

// startsFromAgreed says whether the partially resolved state begins with the unconflicted
// state map; in version 2.1 it begins empty.
//
// spec: rooms/v12#algorithm 2
func (r *resolution) startsFromAgreed() bool { return r.v.StateResolution != event.StateV21 }

// lookup reads one key of the unconflicted state map. Keys and events were loaded in a batch
// before, as far as they could be foreseen.
func (r *resolution) lookup(key auth.Key) *Known {
	nid, ok := r.agreed[key]
	if !ok {
		if err := r.loadAgreed([]auth.Key{key}); err != nil && r.err == nil {
			r.err = err
		}
		nid = r.agreed[key]
	}
	if nid == 0 {
		return nil
	}
	if err := r.load([]int64{nid}); err != nil {
		if r.err == nil {
			r.err = err
		}
		return nil
	}
	return r.known[nid]
}

// foresee loads in two batches what the auth checks of events will ask for.
func (r *resolution) foresee(nids []int64) error {
	if err := r.loadAuthOf(nids); err != nil || !r.startsFromAgreed() {
		return err
	}
	seen := make(map[auth.Key]bool)
	var keys []auth.Key
	for _, nid := range nids {
		for _, key := range auth.NeededBy(r.known[nid].Event) {
			if !seen[key] {
				seen[key] = true
				keys = append(keys, key)
			}
		}
	}
	if err := r.loadAgreed(keys); err != nil {
		return err
	}
	var agreed []int64
	for _, key := range keys {
		if nid := r.agreed[key]; nid != 0 {
			agreed = append(agreed, nid)
		}
	}
	return r.load(agreed)
}
