package state

import (
	"cmp"
	"container/heap"
	"math"
	"slices"
	"strings"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// resolveV2 is the algorithm of room versions 2 to 11 and, with two differences, of 12.
//
// spec: rooms/v2#algorithm, rooms/v12#algorithm
func (r *resolution) resolveV2(sets [][]int64, conflicted []int64) error {
	r.in.Cover.begin()
	difference, err := r.in.Cover.authDifference(sets, r.areAgreed)
	if err != nil {
		return err
	}
	full := append(slices.Clone(conflicted), difference...)
	var subgraph []int64
	if r.v.StateResolution == event.StateV21 {
		between, err := r.in.Cover.conflictedSubgraph(conflicted)
		if err != nil {
			return err
		}
		full, subgraph = append(full, between...), between
	}
	slices.Sort(full)
	full = slices.Compact(full)
	r.in.Trace.sets(difference, subgraph, full)
	if err := r.load(full); err != nil {
		return err
	}
	if err := r.foresee(full); err != nil {
		return err
	}
	first, rest, err := r.powerEvents(full)
	if err != nil {
		return err
	}
	r.apply("in reverse topological power order", r.powerOrder(first))
	sorted, err := r.mainlineOrder(rest)
	if err != nil {
		return err
	}
	r.apply("in mainline order", sorted)
	return nil
}

// isPower says whether an event might take away someone's ability to do something.
//
// spec: rooms/v2#definitions
func isPower(ev *event.Event) bool {
	key, isState := ev.StateKey()
	if !isState {
		return false
	}
	switch ev.Type() {
	case "m.room.power_levels", "m.room.join_rules":
		return true
	case "m.room.member":
		m := ev.Membership()
		return (m == "leave" || m == "ban") && string(ev.Sender()) != key
	}
	return false
}

// powerEvents splits the full conflicted set: its power events with what it has of their
// auth chains, and the rest. A chain may leave the set and come back into it: places tell,
// a walk inside of the set would not.
//
// spec: rooms/v2#algorithm 1
func (r *resolution) powerEvents(full []int64) (first, rest []*Known, err error) {
	var power []int64
	for _, nid := range full {
		if isPower(r.known[nid].Event) {
			power = append(power, nid)
		}
	}
	chain, err := r.in.Cover.reach(power)
	if err != nil {
		return nil, nil, err
	}
	places, err := r.in.Cover.standing(full)
	if err != nil {
		return nil, nil, err
	}
	for i, nid := range full {
		k := r.known[nid]
		if isPower(k.Event) || chain.has(places[i]) {
			first = append(first, k)
		} else {
			rest = append(rest, k)
		}
	}
	return first, rest, nil
}

// powerOrder is the reverse topological power ordering: Kahn's algorithm that takes of the
// events whose auth events are done the smallest.
//
// spec: rooms/v2#definitions
func (r *resolution) powerOrder(events []*Known) []*Known {
	at := make(map[int64]int, len(events))
	for i, k := range events {
		at[k.NID] = i
	}
	waits := make([]int, len(events))     // how many of its auth events are not done
	unlocks := make([][]int, len(events)) // which events have it as an auth event
	for i, k := range events {
		for _, a := range k.Auth {
			if j, ok := at[a]; ok {
				waits[i]++
				unlocks[j] = append(unlocks[j], i)
			}
		}
	}
	ready := make(powerHeap, 0, len(events))
	for i, k := range events {
		if waits[i] == 0 {
			ready = append(ready, powerItem{k, r.senderLevel(k), i})
		}
	}
	heap.Init(&ready)
	sorted := make([]*Known, 0, len(events))
	for len(ready) > 0 {
		item := heap.Pop(&ready).(powerItem)
		sorted = append(sorted, item.k)
		for _, i := range unlocks[item.at] {
			if waits[i]--; waits[i] == 0 {
				heap.Push(&ready, powerItem{events[i], r.senderLevel(events[i]), i})
			}
		}
	}
	return sorted
}

// senderLevel is the power of an event's sender by the event's own auth events.
func (r *resolution) senderLevel(k *Known) auth.Level {
	var create, levels *event.Event
	if r.v.CreateNotInAuthEvents {
		create = r.known[r.in.Create].Event
	}
	for _, nid := range k.Auth {
		switch ev := r.known[nid].Event; {
		case ev.IsState("m.room.create", ""):
			create = ev
		case ev.IsState("m.room.power_levels", ""):
			levels = ev
		}
	}
	if k.Event.Type() == "m.room.create" {
		create = k.Event
	}
	return auth.PowerLevelsOf(create, levels).Of(k.Event.Sender())
}

type powerItem struct {
	k     *Known
	level auth.Level
	at    int
}

type powerHeap []powerItem

func (h powerHeap) Len() int      { return len(h) }
func (h powerHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *powerHeap) Push(x any)   { *h = append(*h, x.(powerItem)) }

func (h powerHeap) Less(i, j int) bool {
	if c := h[i].level.Cmp(h[j].level); c != 0 {
		return c > 0
	}
	return older(h[i].k.Event, h[j].k.Event) < 0
}

func (h *powerHeap) Pop() any {
	last := len(*h) - 1
	x := (*h)[last]
	*h = (*h)[:last]
	return x
}

func older(x, y *event.Event) int {
	return cmp.Or(cmp.Compare(x.OriginServerTS(), y.OriginServerTS()), strings.Compare(string(x.ID()), string(y.ID())))
}

// mainlineOrder sorts events by where they leave the mainline of the power levels in the
// partially resolved state.
//
// spec: rooms/v2#definitions
func (r *resolution) mainlineOrder(events []*Known) ([]*Known, error) {
	levels := auth.Key{Type: "m.room.power_levels"}
	base := r.state[levels]
	if base == nil && r.startsFromAgreed() {
		base = r.lookup(levels)
	}
	m := mainline{r: r, top: make(map[int64]int64), position: make(map[int64]int64), chains: make(map[int64]int64)}
	if base != nil {
		if err := m.build(base); err != nil {
			return nil, err
		}
	}
	positions := make(map[int64]int64, len(events))
	for _, k := range events {
		p, err := m.of(k)
		if err != nil {
			return nil, err
		}
		positions[k.NID] = p
	}
	r.in.Trace.mainline(base, positions)
	slices.SortFunc(events, func(x, y *Known) int {
		return cmp.Or(cmp.Compare(positions[y.NID], positions[x.NID]), older(x.Event, y.Event))
	})
	return events, nil
}

// mainline finds positions by arithmetic. Power levels events that follow each other stand in
// one chain of the cover, so the mainline is a few stretches of chains; only where a chain
// begins is an event read to see what it follows.
type mainline struct {
	r        *resolution
	top      map[int64]int64 // by chain, the highest index that is in the mainline
	position map[int64]int64 // by chain, the mainline position of that index
	chains   map[int64]int64 // of chains beside the mainline, the position of their events
}

const offMainline = math.MaxInt64

// followed gives the power levels event that an event lists, nil for none.
func (r *resolution) followed(k *Known) (*Known, error) {
	if err := r.load(k.Auth); err != nil {
		return nil, err
	}
	for _, nid := range k.Auth {
		if a := r.known[nid]; a.Event.IsState("m.room.power_levels", "") {
			return a, nil
		}
	}
	return nil, nil
}

// begins gives what the first event of a power levels event's chain follows.
func (m *mainline) begins(p Place) (*Known, error) {
	if err := m.r.load([]int64{p.Chain}); err != nil {
		return nil, err
	}
	return m.r.followed(m.r.known[p.Chain])
}

func (m *mainline) place(k *Known) (Place, error) {
	places, err := m.r.in.Cover.standing([]int64{k.NID})
	if err != nil {
		return Place{}, err
	}
	return places[0], nil
}

func (m *mainline) build(base *Known) error {
	var length int64
	for k := base; k != nil; {
		p, err := m.place(k)
		if err != nil {
			return err
		}
		m.top[p.Chain], m.position[p.Chain] = p.Index, length
		length += p.Index
		if k, err = m.begins(p); err != nil {
			return err
		}
	}
	return nil
}

// of is the mainline position of an event: that of the first power levels event that is in
// the mainline, going from the one it lists to the one that lists, and so on.
func (m *mainline) of(k *Known) (int64, error) {
	k, err := m.r.followed(k)
	var passed []int64
	position := int64(offMainline)
	for k != nil && err == nil {
		var p Place
		if p, err = m.place(k); err != nil {
			break
		}
		if top, ok := m.top[p.Chain]; ok {
			// An event above the top follows the mainline's event at the top.
			position = m.position[p.Chain] + top - min(top, p.Index)
			break
		}
		if known, ok := m.chains[p.Chain]; ok {
			position = known
			break
		}
		passed = append(passed, p.Chain)
		k, err = m.begins(p)
	}
	for _, chain := range passed {
		m.chains[chain] = position
	}
	return position, err
}
