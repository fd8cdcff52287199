package state

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	"chancery/roomserver/auth"
)

var (
	levelsKey = auth.Key{Type: "m.room.power_levels"}
	rulesKey  = auth.Key{Type: "m.room.join_rules"}
	topicKey  = auth.Key{Type: "m.room.topic"}
)

func memberKey(user string) auth.Key { return auth.Key{Type: "m.room.member", StateKey: user} }

// history makes a random room with forks, some of whose states are wrong in the way that a
// partial view of the room makes them wrong, and calls each with what is to be merged.
func history(w *world, steps int, wrong bool, levels string, merge func(states []stateMap) stateMap) {
	users := []string{alice, bob, carol, dave, eve}
	base := w.found(levels, bob, carol)
	branches := []stateMap{base}
	ever := []stateMap{base}
	for range steps {
		i := w.r.IntN(len(branches))
		s := branches[i]
		p := proto{sender: users[w.r.IntN(len(users))], ts: w.clock - 100 + w.r.Int64N(200)}
		target := users[w.r.IntN(len(users))]
		switch w.r.IntN(9) {
		case 0, 1:
			levels := map[string]int{alice: 100}
			for range 1 + w.r.IntN(3) {
				levels[users[w.r.IntN(len(users))]] = []int{0, 50, 50, 100}[w.r.IntN(4)]
			}
			p.typ, p.content = "m.room.power_levels", w.levels(levels)
		case 2:
			p.typ = "m.room.join_rules"
			p.content = `{"join_rule":"` + []string{"public", "invite"}[w.r.IntN(2)] + `"}`
		case 3:
			p.typ, p.content = "m.room.topic", fmt.Sprintf(`{"topic":"%d"}`, w.r.Int())
		case 4, 5:
			p.typ, p.key, p.content = "m.room.member", p.sender, `{"membership":"join"}`
		case 6:
			p.typ, p.key, p.content = "m.room.member", p.sender, `{"membership":"leave"}`
		case 7:
			p.typ, p.key = "m.room.member", target
			p.content = `{"membership":"` + []string{"leave", "ban", "invite"}[w.r.IntN(3)] + `"}`
		case 8:
			switch {
			case len(branches) < 4 && w.r.IntN(2) == 0:
				branches = append(branches, s)
			case len(branches) > 1:
				states := slices.Clone(branches)
				w.r.Shuffle(len(states), func(i, j int) { states[i], states[j] = states[j], states[i] })
				states = states[:2+w.r.IntN(len(states)-1)]
				if wrong {
					for i := range states {
						states[i] = spoil(w, states[i], ever)
					}
				}
				branches[i] = merge(states)
				if w.r.IntN(2) == 0 {
					branches = []stateMap{branches[i]}
				}
			}
			continue
		}
		nid := w.add(s, p)
		k := w.events[nid]
		if auth.Check(k.Event, literalView{w, s, Known{}}) != nil && (!wrong || w.r.IntN(20) > 0) {
			if wrong {
				k.Rejected = true
				w.events[nid] = k
			}
			continue // not in the state, yet others may list it in a wrong world
		}
		branches[i] = s.with(w, nid)
		ever = append(ever, branches[i])
	}
}

// spoil gives a state some entries of older states, or takes some away.
func spoil(w *world, s stateMap, ever []stateMap) stateMap {
	s = maps.Clone(s)
	for range w.r.IntN(4) {
		old := ever[w.r.IntN(len(ever))]
		for k, nid := range old {
			if w.r.IntN(4) == 0 {
				s[k] = nid
			}
		}
	}
	if w.r.IntN(8) == 0 {
		for k := range s {
			if k.Type != "m.room.create" && w.r.IntN(5) == 0 {
				delete(s, k)
			}
		}
	}
	return s
}

// What we resolve is what the specification says, word by word, in ordinary rooms and in
// those where the order of states and that of auth events contradict each other.
//
// spec: rooms/v2#state-resolution, rooms/v12#state-resolution
func TestResolutionIsTheSpecifications(t *testing.T) {
	for _, version := range []string{"2", "6", "10", "11", "12"} {
		t.Run(version, func(t *testing.T) {
			merges, changed := 0, 0
			for seed := range uint64(80) {
				w := newWorld(t, version, seed)
				history(w, 80, seed%3 > 0, "", func(states []stateMap) stateMap {
					want := w.literal(states...)
					got := w.resolve(states...)
					if !maps.Equal(got, want) {
						t.Fatalf("seed %d: resolved%s\nwant%s", seed, w.tell(got), w.tell(want))
					}
					merges++
					if !maps.Equal(got, states[0]) {
						changed++
					}
					return got
				})
			}
			if merges < 120 || changed < merges/4 {
				t.Errorf("only %d merges, %d of them with a change: the histories prove nothing", merges, changed)
			}
		})
	}
}

// The result is the same for any order of the sets, of the events in them, and when a state
// is given twice.
func TestResolutionDoesNotDependOnOrder(t *testing.T) {
	for _, version := range []string{"1", "11", "12"} {
		for seed := range uint64(60) {
			w := newWorld(t, version, 1000+seed)
			history(w, 60, seed%2 == 0, "", func(states []stateMap) stateMap {
				want := w.resolve(states...)
				for range 3 {
					w.r.Shuffle(len(states), func(i, j int) { states[i], states[j] = states[j], states[i] })
					if got := w.resolve(append(states, states[0])...); !maps.Equal(got, want) {
						t.Fatalf("version %s, seed %d: resolved%s\nwant%s", version, seed, w.tell(got), w.tell(want))
					}
				}
				return want
			})
		}
	}
}

// Two conflicting power levels, which in version 12 make gomatrixserverlib panic: those of
// the more powerful sender stand.
//
// spec: rooms/v12#algorithm
func TestConflictingPowerLevels(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		w := newWorld(t, version, 1)
		users := map[string]int{alice: 100, bob: 99}
		base := w.found(w.levels(users), bob, carol)
		users[carol] = 50
		one := w.set(base, bob, "m.room.power_levels", "", w.levels(users))
		users[carol], users[bob] = 0, 0
		two := w.set(base, alice, "m.room.power_levels", "", w.levels(users))
		got := w.resolve(one, two)
		// Bob's is older, but alice has more power: hers comes first and takes his away.
		if got[levelsKey] != two[levelsKey] || len(got) != len(base) {
			t.Errorf("version %s: resolved%s", version, w.tell(got))
		}
	}
}

// A conflict about the topic alone loses neither the topic nor anything else.
func TestConflictingTopics(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		w := newWorld(t, version, 2)
		base := w.found(w.levels(map[string]int{alice: 100, bob: 50}), bob)
		one := w.set(base, alice, "m.room.topic", "", `{"topic":"one"}`)
		two := w.set(base, bob, "m.room.topic", "", `{"topic":"two"}`)
		got := w.resolve(one, two)
		if got[topicKey] != two[topicKey] || len(got) != len(base)+1 {
			t.Errorf("version %s: resolved%s", version, w.tell(got))
		}
		// A state that lacks the topic makes it conflicted, and it survives.
		if got := w.resolve(base, two); got[topicKey] != two[topicKey] {
			t.Errorf("version %s: resolved%s", version, w.tell(got))
		}
	}
}

// An event that cannot be read is an error that says so, not a panic.
func TestMissingEventsAreAnError(t *testing.T) {
	for _, version := range []string{"1", "11", "12"} {
		w := newWorld(t, version, 3)
		base := w.found(w.levels(map[string]int{alice: 100, bob: 50}), bob)
		one := w.set(base, alice, "m.room.topic", "", `{"topic":"one"}`)
		two := w.set(base, bob, "m.room.topic", "", `{"topic":"two"}`)
		agreed, sets := split([]stateMap{one, two})
		for nid := range w.events {
			in := w.input(agreed)
			all := in.Events
			asked := false
			in.Events = func(nids []int64) (map[int64]Known, error) {
				asked = asked || slices.Contains(nids, nid)
				out, err := all(nids)
				delete(out, nid)
				return out, err
			}
			if _, err := Resolve(w.v, sets, in); asked != errors.Is(err, ErrMissing) {
				t.Errorf("version %s: without event %d: %v", version, nid, err)
			}
		}
	}
}

// Up to version 11 the creator of a room without power levels has 100, in the order of events too.
//
// spec: rooms/v11#authorisation-rules
func TestCreatorHasPowerWithoutPowerLevels(t *testing.T) {
	w := newWorld(t, "11", 4)
	base := w.found("", bob)
	// Bob's event is older; were alice's power taken for 0 it would come first.
	rules := w.add(base, proto{sender: alice, typ: "m.room.join_rules", content: `{"join_rule":"invite"}`, ts: 5000})
	k := w.events[rules]
	r := &resolution{v: w.v, in: w.input(base), known: make(map[int64]*Known), budget: MaxRead}
	if err := r.load(append(k.Auth, rules)); err != nil {
		t.Fatal(err)
	}
	if level := r.senderLevel(r.known[rules]); level != auth.LevelOf(100) {
		t.Errorf("the creator has %v", level)
	}
	w = newWorld(t, "12", 4)
	base = w.found(w.levels(map[string]int{bob: 1 << 50}), bob)
	mine := w.add(base, proto{sender: alice, typ: "m.room.topic"})
	bobs := w.add(base, proto{sender: bob, typ: "m.room.topic"})
	r = &resolution{v: w.v, in: w.input(base), known: make(map[int64]*Known), budget: MaxRead}
	if err := r.load([]int64{w.create, mine, bobs}); err != nil {
		t.Fatal(err)
	}
	if err := r.loadAuthOf([]int64{mine, bobs}); err != nil {
		t.Fatal(err)
	}
	if r.senderLevel(r.known[mine]).Cmp(r.senderLevel(r.known[bobs])) <= 0 {
		t.Error("a number is above the creator")
	}
}

// Problem A of MSC4297: both forks know that alice has left, one has an old join rule. The
// join rules must not be lost for being checked against a state in which alice has left.
//
// spec: msc4297
func TestOldJoinRulesAreNotLost(t *testing.T) {
	scenario := func(version string) (w *world, got, new stateMap) {
		w = newWorld(t, version, 5)
		base := w.found(w.levels(map[string]int{alice: 100, bob: 50}), bob)
		old := base[rulesKey]
		new = w.set(base, alice, "m.room.join_rules", "", `{"join_rule":"invite"}`)
		new = w.set(new, alice, "m.room.member", alice, `{"membership":"leave"}`)
		partial := maps.Clone(new)
		partial[rulesKey] = old
		one := w.set(new, bob, "m.room.member", bob, `{"membership":"join","displayname":"1"}`)
		two := w.set(partial, bob, "m.room.member", bob, `{"membership":"join","displayname":"2"}`)
		return w, w.resolve(one, two), new
	}
	w, got, new := scenario("12")
	if got[rulesKey] != new[rulesKey] {
		t.Errorf("version 12 resolved%s", w.tell(got))
	}
	// Version 11 has the fault that 12 mends: the test knows the scenario when it sees it.
	if w, got, _ := scenario("11"); got[rulesKey] != 0 {
		t.Errorf("version 11 resolved%s", w.tell(got))
	}
}

// Problem B of MSC4297: alice promotes bob, bob promotes carol; one fork has the first power
// levels. Carol's promotion must not be lost for bob's not being replayed before it.
//
// spec: msc4297
func TestPromotionsBetweenConflictsAreReplayed(t *testing.T) {
	scenario := func(version string) (w *world, got, new stateMap) {
		w = newWorld(t, version, 6)
		users := map[string]int{alice: 100}
		base := w.found(w.levels(users), bob, carol)
		old := base[levelsKey]
		users[bob] = 100
		second := w.set(base, alice, "m.room.power_levels", "", w.levels(users))
		users[carol] = 50
		new = w.set(second, bob, "m.room.power_levels", "", w.levels(users))
		one := w.set(new, carol, "m.room.member", carol, `{"membership":"join","displayname":"1"}`)
		// The other fork has seen all in auth chains, and yet says the first is the state.
		two := maps.Clone(one)
		two[levelsKey] = old
		return w, w.resolve(one, two), new
	}
	w, got, new := scenario("12")
	if got[levelsKey] != new[levelsKey] {
		t.Errorf("version 12 resolved%s", w.tell(got))
	}
	if w, got, new := scenario("11"); got[levelsKey] == new[levelsKey] {
		t.Errorf("version 11 resolved%s", w.tell(got))
	}
}

// Rejected auth events do not authorise.
//
// spec: rooms/v12#rejected-events
func TestRejectedAuthEventsDoNotAuthorise(t *testing.T) {
	w := newWorld(t, "12", 7)
	base := w.found(w.levels(map[string]int{alice: 100}), bob)
	forged := w.add(base, proto{sender: bob, typ: "m.room.power_levels", content: w.levels(map[string]int{bob: 100})})
	topic := w.add(base, proto{sender: bob, typ: "m.room.topic", auth: []int64{forged, base[memberKey(bob)]}})
	for _, rejected := range []bool{true, false} {
		k := w.events[forged]
		k.Rejected = rejected
		w.events[forged] = k
		got := w.resolve(base, base.with(w, topic))
		// An auth event that is not rejected is trusted: that is why rejection must count.
		if has := got[topicKey] == topic; has == rejected {
			t.Errorf("rejected %v: resolved%s", rejected, w.tell(got))
		}
	}
}

// Version 1 sorts by depth, stops at the first power levels not allowed, and takes the
// highest of other events that is allowed.
//
// spec: rooms/v1#state-resolution
func TestVersion1(t *testing.T) {
	w := newWorld(t, "1", 8)
	base := w.found(w.levels(map[string]int{alice: 100, bob: 50}), bob, carol)
	one := w.set(base, alice, "m.room.power_levels", "", w.levels(map[string]int{alice: 100}))
	two := w.set(base, bob, "m.room.topic", "", `{"topic":"bob's"}`)
	two = w.set(two, carol, "m.room.topic", "", `{"topic":"not allowed"}`)
	one = w.set(one, alice, "m.room.topic", "", `{"topic":"alice's"}`)
	got := w.resolve(one, two)
	if got[levelsKey] != one[levelsKey] || got[topicKey] != one[topicKey] {
		t.Errorf("resolved%s", w.tell(got))
	}
	// What only one state has is no conflict in version 1.
	three := w.set(base, carol, "m.room.topic", "", `{"topic":"alone"}`)
	if got := w.resolve(base, three); got[topicKey] != three[topicKey] {
		t.Errorf("resolved%s", w.tell(got))
	}
}

// 30 power levels each following the last, conflicted with the first: gomatrixserverlib did
// not end at 14.
func TestChainedPowerLevelsEndAtOnce(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		w, states := chainedLevels(t, version, 30)
		start := time.Now()
		got := w.resolve(states...)
		if d := time.Since(start); d > time.Minute {
			t.Errorf("version %s took %v", version, d)
		}
		if want := w.literal(states...); !maps.Equal(got, want) {
			t.Errorf("version %s: resolved%s\nwant%s", version, w.tell(got), w.tell(want))
		}
	}
}

func chainedLevels(t testing.TB, version string, length int) (*world, []stateMap) {
	w := newWorld(t, version, 9)
	users := map[string]int{alice: 100, bob: 100}
	base := w.found(w.levels(users), bob)
	s := base
	for i := range length {
		users[carol] = i
		s = w.set(s, []string{alice, bob}[i%2], "m.room.power_levels", "", w.levels(users))
	}
	return w, []stateMap{base, s}
}

// A linear history is sorted in time that grows as it does: with its square, this one would take many minutes.
func TestPowerOrderIsNotQuadratic(t *testing.T) {
	const length = 150_000
	w := newWorld(t, "11", 10)
	base := w.found(w.levels(map[string]int{alice: 100}))
	r := &resolution{v: w.v, in: w.input(base), known: make(map[int64]*Known), budget: MaxRead}
	ev := w.events[base[rulesKey]].Event
	var list []*Known
	for i := range int64(length) {
		k := &Known{NID: 1<<50 + i, Event: ev}
		if i > 0 {
			k.Auth = []int64{k.NID - 1}
		}
		r.known[k.NID] = k
		list = append(list, k)
	}
	w.r.Shuffle(length, func(i, j int) { list[i], list[j] = list[j], list[i] })
	start := time.Now()
	sorted := r.powerOrder(list)
	if d := time.Since(start); d > time.Minute {
		t.Errorf("took %v", d)
	}
	for i, k := range sorted {
		if k.NID != 1<<50+int64(i) {
			t.Fatalf("event %d stands at %d", k.NID-1<<50, i)
		}
	}
}

// A small fork in a large room costs what the fork costs.
func TestSmallForkInALargeRoomReadsLittle(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		w, states := largeRoom(t, version, 3000)
		w.read = 0
		want := w.literal(states...)
		if got := w.resolve(states...); !maps.Equal(got, want) {
			t.Errorf("version %s: a wrong result", version)
		}
		if w.read > 100 {
			t.Errorf("version %s: %d events were read for a fork of 3", version, w.read)
		}
	}
}

// largeRoom has many members, and a fork in which power levels, a topic and a membership conflict.
func largeRoom(t testing.TB, version string, members int) (*world, []stateMap) {
	w := newWorld(t, version, 11)
	s := w.found(w.levels(map[string]int{alice: 100, bob: 50}), bob, carol)
	for i := range members {
		user := fmt.Sprintf("@user%d:b", i)
		nid := w.add(s, proto{sender: user, typ: "m.room.member", key: user, content: `{"membership":"join"}`})
		s[memberKey(user)] = nid
	}
	one := w.set(s, alice, "m.room.power_levels", "", w.levels(map[string]int{alice: 100, bob: 50, carol: 50}))
	one = w.set(one, carol, "m.room.topic", "", `{"topic":"one"}`)
	two := w.set(s, bob, "m.room.topic", "", `{"topic":"two"}`)
	two = w.set(two, carol, "m.room.member", carol, `{"membership":"leave"}`)
	w.atlas.store(w.cover)
	return w, []stateMap{one, two}
}

// A fork larger than the budget is refused.
func TestResolutionHasABudget(t *testing.T) {
	w, states := largeRoom(t, "12", 10)
	agreed, sets := split(states)
	in := w.input(agreed)
	for len(sets[0]) <= MaxRead {
		sets[0] = append(sets[0], int64(len(sets[0]))+1<<50)
	}
	if _, err := Resolve(w.v, sets, in); !errors.Is(err, ErrBudget) {
		t.Errorf("a fork of %d events: %v", len(sets[0]), err)
	}
}

// Conflicts of arrays are those of the states in them.
func TestConflictsOfArrays(t *testing.T) {
	s := newShelf()
	a := s.open()
	base := mustSet(t, a, 0, map[int64]int64{1: 10, 2: 20, 3: 30, 70: 40})
	one := mustSet(t, a, base, map[int64]int64{1: 11, 70: 0})
	two := mustSet(t, a, base, map[int64]int64{1: 12, 5: 50})
	c, err := a.Conflicts(one, two, base)
	if err != nil {
		t.Fatal(err)
	}
	want := Conflicts{Slots: []int64{1, 5, 70}, Sets: [][]int64{{11}, {12, 50, 40}, {10, 40}}}
	if !slices.Equal(c.Slots, want.Slots) || !slices.EqualFunc(c.Sets, want.Sets, slices.Equal[[]int64]) {
		t.Errorf("conflicts %v, want %v", c, want)
	}
	agreed := a.Agreed(two, c, func(keys []auth.Key) ([]int64, error) { return []int64{1, 2, 5, -1, 9}, nil })
	got, err := agreed(make([]auth.Key, 5))
	if err != nil || !slices.Equal(got, []int64{0, 20, 0, 0, 0}) {
		t.Errorf("agreed on %v (%v)", got, err)
	}
}
