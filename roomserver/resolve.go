package roomserver

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"chancery/roomserver/auth"
	"chancery/roomserver/state"
	"chancery/storage"
)

// resolve merges states. Only what differs between them is looked at; a result is kept for the pair.
//
// spec: rooms/v12#state-resolution
func (r *room) resolve(roots []state.Root) (state.Root, error) {
	roots = slices.Clone(roots)
	slices.Sort(roots)
	roots = slices.Compact(roots)
	switch len(roots) {
	case 0:
		return 0, nil
	case 1:
		return roots[0], nil
	}
	memoKey := fmt.Sprint(roots)
	if root, ok := r.memo[memoKey]; ok {
		return root, nil
	}
	root, err := r.resolveAnew(roots, nil, nil)
	if err != nil {
		return 0, err
	}
	if len(r.memo) > 100 {
		clear(r.memo)
	}
	r.memo[memoKey] = root
	return root, nil
}

// resolveAnew merges two states or more. Told are, where somebody wants to know, the conflicted slots with each
// state's events in them, and how it went.
func (r *room) resolveAnew(roots []state.Root, told func(slots []int64, sets [][]int64), trace *state.Trace) (state.Root, error) {
	slots, err := r.conflicting(roots)
	if err != nil {
		return 0, err
	}
	sets, values := make([][]int64, len(roots)), make([][]int64, len(roots))
	for i, root := range roots {
		nids, err := r.array.Get(root, slots...)
		if err != nil {
			return 0, err
		}
		values[i] = nids
		sets[i] = slices.DeleteFunc(slices.Clone(nids), func(n int64) bool { return n == 0 })
	}
	if told != nil {
		told(slots, sets)
	}
	create, err := r.createNumber(roots[0])
	if err != nil {
		return 0, err
	}
	result, err := state.Resolve(r.version, sets, state.Input{
		Events: r.knownEvents,
		Agreed: func(keys []auth.Key) ([]int64, error) { return r.agreed(roots[0], slots, keys) },
		Cover:  r.cover,
		Create: create,
		Trace:  trace,
		Budget: r.s.maxRead,
	})
	if errors.Is(err, state.ErrBudget) {
		r.s.metrics.over.Inc()
	}
	if err != nil {
		return 0, fmt.Errorf("resolve %d states of %s: %w", len(roots), r.id, err)
	}
	if err := r.learnSlots(stateKeys(slices.Collect(maps.Keys(result)))...); err != nil {
		return 0, err
	}
	changes := make(map[int64]int64, len(result))
	for k, nid := range result {
		// The resolution may name a key that none of the states has.
		slot, err := r.keptSlot(Key{k.Type, k.StateKey})
		if err != nil {
			return 0, err
		}
		changes[slot] = nid
	}
	made := r.array.Made()
	root, err := r.array.Set(roots[nearest(slots, values, changes)], changes)
	r.loose += int64(r.array.Made() - made)
	r.collection.note(root)
	return root, err
}

// nearest finds the state that differs least from the result: mostly the result is one of those that were merged,
// and then nothing new is made.
func nearest(slots []int64, values [][]int64, result map[int64]int64) int {
	best, least := 0, len(slots)+1
	for i, nids := range values {
		differ := 0
		for j, slot := range slots {
			if result[slot] != nids[j] {
				differ++
			}
		}
		if differ < least {
			best, least = i, differ
		}
	}
	return best
}

// conflicting lists the slots in which some of the states differ.
func (r *room) conflicting(roots []state.Root) ([]int64, error) {
	var slots []int64
	for _, root := range roots[1:] {
		changes, err := r.array.Diff(roots[0], root)
		if err != nil {
			return nil, err
		}
		for _, c := range changes {
			slots = append(slots, c.Slot)
		}
	}
	slices.Sort(slots)
	return slices.Compact(slots), nil
}

func (r *room) createNumber(root state.Root) (int64, error) {
	found, err := r.stateAt(root, []Key{{"m.room.create", ""}})
	if err != nil {
		return 0, err
	}
	ev := found[Key{"m.room.create", ""}]
	if ev == nil {
		return 0, fmt.Errorf("a state of %s has no create event", r.id)
	}
	return ev.NID, nil
}

// agreed looks up keys in the part of the state that is not conflicted.
func (r *room) agreed(root state.Root, conflicting []int64, keys []auth.Key) ([]int64, error) {
	wanted := stateKeys(keys)
	if err := r.learnSlots(wanted...); err != nil {
		return nil, err
	}
	slots := make([]int64, len(keys))
	for i, k := range wanted {
		slot, err := r.slot(k)
		if err != nil {
			return nil, err
		}
		if _, bad := slices.BinarySearch(conflicting, slot); bad {
			slot = noSlot
		}
		slots[i] = slot
	}
	nids, err := r.array.Get(root, slots...)
	return nids, err
}

func stateKeys(list []auth.Key) []Key {
	keys := make([]Key, len(list))
	for i, k := range list {
		keys[i] = Key(k)
	}
	return keys
}

// knownEvents reads events with the numbers of their auth events.
func (r *room) knownEvents(nids []int64) (map[int64]state.Known, error) {
	events, err := r.events(nids)
	if err != nil {
		return nil, err
	}
	auths := make(map[int64][]int64, len(nids))
	var stored []int64
	for _, n := range nids {
		if list, ok := r.pendingAuth[n]; ok {
			auths[n] = list
		} else if list, ok := r.s.Reader.auths.Get(n); ok {
			auths[n] = list
		} else {
			stored = append(stored, n)
		}
	}
	if len(stored) > 0 {
		err := r.read(func(tx storage.Tx) error {
			of, err := r.s.Reader.readAuth(tx, stored)
			maps.Copy(auths, of)
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	out := make(map[int64]state.Known, len(events))
	for n, ev := range events {
		out[n] = state.Known{NID: n, Event: ev.Event, Auth: auths[n], Rejected: ev.Status == storage.Rejected}
	}
	return out, nil
}

// cite gives a state event its place in the chain cover.
func (r *room) cite(ev *Stored, auths []int64, known []*Stored) error {
	var follows int64
	key, _ := ev.StateKey()
	for _, a := range known {
		if a.IsState(ev.Type(), key) {
			follows = a.NID
		}
	}
	if _, err := r.cover.Add(ev.NID, auths, follows); err != nil {
		return fmt.Errorf("place %s among the auth chains: %w", ev.ID(), err)
	}
	r.pendingAuth[ev.NID] = auths
	return nil
}

// placeRows are new places as storage keeps them.
func placeRows(made []state.NewPlace) (places []storage.Place, links []storage.PlaceLink) {
	for _, m := range made {
		places = append(places, storage.Place{Event: m.NID, Chain: m.Place.Chain, Index: m.Place.Index})
		for _, l := range m.Links {
			links = append(links, storage.PlaceLink{From: placeRow(l.From), To: placeRow(l.To)})
		}
	}
	return places, links
}

func placeRow(p state.Place) storage.Place { return storage.Place{Chain: p.Chain, Index: p.Index} }

// roomPlaces reads the room's chain cover.
type roomPlaces struct{ r *room }

func (p roomPlaces) Places(nids []int64) (map[int64]state.Place, error) {
	out := make(map[int64]state.Place, len(nids))
	err := p.r.read(func(tx storage.Tx) error {
		rows, err := tx.PlacesOf(nids)
		for _, row := range rows {
			out[row.Event] = state.Place{Chain: row.Chain, Index: row.Index}
		}
		return err
	})
	return out, err
}

func (p roomPlaces) Events(spans []state.Span, limit int) (map[state.Place]int64, error) {
	out := map[state.Place]int64{}
	err := p.r.read(func(tx storage.Tx) error {
		for _, s := range alike(spans) {
			if len(out) >= limit {
				break
			}
			rows, err := tx.PlacesIn(p.r.row.NID, s.chains, s.first, s.last, limit-len(out))
			if err != nil {
				return err
			}
			for _, row := range rows {
				out[state.Place{Chain: row.Chain, Index: row.Index}] = row.Event
			}
		}
		return nil
	})
	return out, err
}

// part is the same part of some chains.
type part struct {
	chains      []int64
	first, last int64
}

// alike puts spans together that one query reads: where many members' chains are looked at, all of them.
func alike(spans []state.Span) (parts []part) {
	type bounds struct{ first, last int64 }
	at := map[bounds]int{}
	for _, s := range spans {
		i, ok := at[bounds{s.First, s.Last}]
		if !ok {
			i = len(parts)
			at[bounds{s.First, s.Last}] = i
			parts = append(parts, part{first: s.First, last: s.Last})
		}
		parts[i].chains = append(parts[i].chains, s.Chain)
	}
	return parts
}

func (p roomPlaces) Lengths(chains []int64) (map[int64]int64, error) {
	out := make(map[int64]int64, len(chains))
	err := p.r.read(func(tx storage.Tx) error {
		rows, err := tx.ChainLengths(p.r.row.NID, chains)
		for _, row := range rows {
			out[row.Chain] = row.Index
		}
		return err
	})
	return out, err
}

func (p roomPlaces) LinksFrom(chains []int64) (out []state.Link, err error) {
	err = p.r.read(func(tx storage.Tx) error {
		rows, err := tx.LinksFrom(p.r.row.NID, chains)
		out = linksOf(rows)
		return err
	})
	return out, err
}

func (p roomPlaces) LinksTo(spans []state.Span, limit int) (out []state.Link, err error) {
	err = p.r.read(func(tx storage.Tx) error {
		for _, s := range alike(spans) {
			if len(out) >= limit {
				break
			}
			rows, err := tx.LinksTo(p.r.row.NID, s.chains, s.first, s.last, limit-len(out))
			if err != nil {
				return err
			}
			out = append(out, linksOf(rows)...)
		}
		return nil
	})
	return out, err
}

func linksOf(rows []storage.PlaceLink) []state.Link {
	out := make([]state.Link, len(rows))
	for i, l := range rows {
		out[i] = state.Link{From: state.Place{Chain: l.From.Chain, Index: l.From.Index}, To: state.Place{Chain: l.To.Chain, Index: l.To.Index}}
	}
	return out
}
