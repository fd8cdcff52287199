package roomserver

import (
	"context"
	"fmt"
	"slices"

	"chancery"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// addOutliers stores events that another server gave us as state or auth events, auth events first. Each
// is judged by its own auth events; those that fail are kept as rejected, those whose auth events nobody
// gave us are left out.
func (r *room) addOutliers(list []*event.Event) error { return r.addState(list, nil) }

// addState is addOutliers for events of which some stand in the state that a partial room waits for: those get their
// slots and their rows among the members, which nobody takes for the truth before the room is whole.
func (r *room) addState(list []*event.Event, inState func(*event.Event) bool) (err error) {
	defer r.distrust(&err)
	ids := make([]id.EventID, 0, len(list))
	byID := make(map[id.EventID]*event.Event, len(list))
	for _, ev := range list {
		if _, ok := byID[ev.ID()]; !ok && ev.RoomID() == r.id {
			byID[ev.ID()] = ev
			ids = append(ids, ev.ID())
		}
	}
	known, err := r.eventsByID(withAuth(ids, byID))
	if err != nil {
		return err
	}
	elsewhere, err := r.claim(ids)
	if err != nil {
		return err
	}
	if _, err := r.createEvent(); err != nil { // else a list could bring another one
		return err
	}
	for _, ev := range list {
		if ev.Type() == "m.room.create" && r.create == nil && ev.RoomID() == r.id && checkAlone(ev) == nil {
			r.create = ev
		}
	}
	b := &batch{}
	var standing []*Stored
	for _, ev := range authOrder(ids, byID) {
		s := known[ev.ID()]
		if s == nil && elsewhere[ev.ID()] {
			continue
		}
		if s == nil {
			if s, err = r.addOutlier(ev, known, b); err != nil {
				return err
			}
		}
		if s != nil && inState != nil && s.Status != storage.Rejected && inState(ev) {
			standing = append(standing, s)
		}
	}
	if err := r.stand(standing, b); err != nil {
		return err
	}
	if len(b.rows)+len(b.slots)+len(b.members) == 0 {
		return nil
	}
	stored := &additions{}
	for _, row := range b.rows {
		stored.list = append(stored.list, &addition{Stored: r.pending[row.NID]})
	}
	made := r.cover.Take()
	if len(stored.list) > 0 {
		stored.list[0].places = made
	}
	places, links := placeRows(made)
	// The room's row comes with its first events: they would belong to nobody if the join ended half-way.
	first, row := !r.stored, r.row
	r.stored = true
	r.commit(stored, func(tx storage.Tx) error {
		if first {
			tx.InsertRoom(row)
		} else if len(b.slots) > 0 {
			tx.UpdateRoom(row)
		}
		if err := tx.CopyEvents(b.rows); err != nil {
			return fmt.Errorf("store outliers: %w", err)
		}
		if err := tx.CopyIn("event_auth", []string{"event", "auth"}, b.edges); err != nil {
			return err
		}
		if err := tx.CopyPlaces(r.row.NID, places, links); err != nil {
			return err
		}
		if err := tx.CopySlots(row.NID, b.slots); err != nil {
			return err
		}
		return tx.CopyMembers(row.NID, b.members)
	})
	return nil
}

// batch is what one transaction of many events writes.
type batch struct {
	rows    []*storage.Event
	edges   [][]any
	slots   []storage.Slot
	members []storage.Member
}

// withAuth adds to events those that they cite and that are not among them: all are looked up at once.
func withAuth(ids []id.EventID, byID map[id.EventID]*event.Event) []id.EventID {
	all := slices.Clone(ids)
	seen := map[id.EventID]bool{}
	for _, v := range ids {
		for _, a := range byID[v].AuthEvents() {
			if byID[a] == nil && !seen[a] {
				seen[a] = true
				all = append(all, a)
			}
		}
	}
	return all
}

// addOutlier judges an event by its auth events and makes its rows; nil when not all of them are here.
func (r *room) addOutlier(ev *event.Event, known map[id.EventID]*Stored, b *batch) (*Stored, error) {
	auths := make([]*Stored, 0, 4)
	for _, v := range ev.AuthEvents() {
		a := known[v]
		if a == nil {
			return nil, nil
		}
		auths = append(auths, a)
	}
	nid, err := r.s.DB.NewEventNumber()
	if err != nil {
		return nil, err
	}
	s := &Stored{Event: ev, NID: nid, Room: r.row.NID, Status: storage.Outlier}
	if err := r.passesOwnAuth(ev, auths); err != nil {
		s.Status = r.rejected(ev, err)
	}
	known[ev.ID()] = s
	r.pending[nid], r.pendingID[ev.ID()] = s, s
	b.rows = append(b.rows, s.row(false))
	numbers := make([]int64, len(auths))
	for i, a := range auths {
		numbers[i] = a.NID
		b.edges = append(b.edges, []any{nid, a.NID})
	}
	return s, r.cite(s, numbers, auths)
}

// stand gives events of a state their slots and their rows among the members.
func (r *room) stand(list []*Stored, b *batch) error {
	keys := make([]Key, len(list))
	for i, s := range list {
		key, _ := s.StateKey()
		keys[i] = Key{s.Type(), key}
	}
	if err := r.learnSlots(keys...); err != nil {
		return err
	}
	for _, s := range list {
		key, isState := s.StateKey()
		if !isState {
			continue
		}
		slot, isNew, err := r.takeSlot(Key{s.Type(), key})
		if err != nil {
			return err
		}
		if isNew {
			b.slots = append(b.slots, storage.Slot{Slot: slot, Type: s.Type(), StateKey: key})
		}
		if s.Type() == "m.room.member" {
			b.members = append(b.members, memberRow(r.row.NID, key, s))
		}
	}
	return nil
}

// authOrder sorts events so that each comes after its auth events; what is on a cycle is left out.
func authOrder(ids []id.EventID, byID map[id.EventID]*event.Event) []*event.Event {
	waits := make(map[id.EventID]int, len(ids))
	waiters := make(map[id.EventID][]id.EventID, len(ids))
	var ready []id.EventID
	for _, v := range ids {
		for _, a := range byID[v].AuthEvents() {
			if byID[a] != nil {
				waits[v]++
				waiters[a] = append(waiters[a], v)
			}
		}
		if waits[v] == 0 {
			ready = append(ready, v)
		}
	}
	out := make([]*event.Event, 0, len(ids))
	for len(ready) > 0 {
		v := ready[0]
		ready = ready[1:]
		out = append(out, byID[v])
		for _, w := range waiters[v] {
			if waits[w]--; waits[w] == 0 {
				ready = append(ready, w)
			}
		}
	}
	return out
}

// rootOf puts some stored events into a state; base is 0 where they are all of it. Those that were rejected are no part of it.
func (r *room) rootOf(base state.Root, list []*event.Event) (state.Root, error) {
	ids := make([]id.EventID, len(list))
	keys := make([]Key, 0, len(list))
	for i, ev := range list {
		ids[i] = ev.ID()
		if key, ok := ev.StateKey(); ok {
			keys = append(keys, Key{ev.Type(), key})
		}
	}
	if err := r.learnSlots(keys...); err != nil {
		return 0, err
	}
	found, err := r.eventsByID(ids)
	if err != nil {
		return 0, err
	}
	changes := make(map[int64]int64, len(list))
	for _, ev := range list {
		s := found[ev.ID()]
		key, isState := ev.StateKey()
		if s == nil || !isState || s.Status == storage.Rejected {
			continue
		}
		slot, err := r.keptSlot(Key{ev.Type(), key})
		if err != nil {
			return 0, err
		}
		changes[slot] = s.NID
	}
	return r.array.Set(base, changes)
}

// piece is an event of a state and where in the state it stands.
type piece struct {
	Key
	nid int64
}

// piecesOf makes a state of what a server named: every event stored, at most one for each key, and a create
// event among them. What was rejected is no part of any state.
func piecesOf(server string, ids []id.EventID, have map[id.EventID]storage.Bearing) ([]piece, error) {
	at := make(map[Key]int64, len(ids))
	for _, v := range ids {
		row, ok := have[v]
		switch {
		case !ok:
			return nil, falseState(server, "it names an event that it does not give, or that stands on nothing")
		case row.StateKey == nil:
			return nil, falseState(server, "it names an event that is no state")
		case row.Status == storage.Rejected:
			continue
		}
		key := Key{row.Type, *row.StateKey}
		if was, twice := at[key]; twice && was != row.NID {
			return nil, falseState(server, "it names two events for one key")
		}
		at[key] = row.NID
	}
	if at[Key{"m.room.create", ""}] == 0 {
		return nil, falseState(server, "it has no create event")
	}
	pieces := make([]piece, 0, len(at))
	for key, nid := range at {
		pieces = append(pieces, piece{key, nid})
	}
	return pieces, nil
}

// outsideAtOnce is how many events from outside a room takes in one turn.
const outsideAtOnce = 200

// addOutside stores events that another server gave us as state or auth events, a few in each turn of the room.
func (s *Server) addOutside(ctx context.Context, who caller, roomID id.RoomID, events []*event.Event) error {
	byID := make(map[id.EventID]*event.Event, len(events))
	ids := make([]id.EventID, 0, len(events))
	for _, ev := range events {
		if byID[ev.ID()] == nil {
			byID[ev.ID()] = ev
			ids = append(ids, ev.ID())
		}
	}
	for part := range slices.Chunk(authOrder(ids, byID), outsideAtOnce) {
		if err := s.inAs(ctx, who, roomID, func(r *room) error { return r.addOutliers(part) }); err != nil {
			return err
		}
	}
	return nil
}

// rootTold makes the state before an event of what another server tells: that state itself, or those before its prev
// events that are not here, which are resolved with what we know.
func (r *room) rootTold(prev []*Stored, list []told) (state.Root, error) {
	roots := rootsAfter(prev)
	for _, t := range list {
		root, err := r.rootOfPieces(t.pieces)
		if err != nil || t.of == "" {
			return root, err
		}
		if root, err = r.stateAfter(root, t.of); err != nil {
			return 0, err
		}
		roots = append(roots, root)
	}
	return r.resolve(roots)
}

// stateAfter is the state after an event that has no place here, by the state before it.
func (r *room) stateAfter(before state.Root, v id.EventID) (state.Root, error) {
	found, err := r.eventsByID([]id.EventID{v})
	if err != nil {
		return 0, err
	}
	ev := found[v]
	if ev == nil {
		return 0, fmt.Errorf("event %s is not here", v)
	}
	key, isState := ev.StateKey()
	if !isState || ev.Status == storage.Rejected {
		return before, nil
	}
	if err := r.allowedBy(ev.Event, before); isRejection(err) {
		return before, nil
	} else if err != nil {
		return 0, err
	}
	return r.withKeys(before, map[Key]int64{{ev.Type(), key}: ev.NID})
}

// rootOfPieces makes the state that consists of some stored events.
func (r *room) rootOfPieces(pieces []piece) (state.Root, error) {
	create, err := r.createNumber(state.Root(r.row.Root))
	if err != nil {
		return 0, err
	}
	keys := make([]Key, len(pieces))
	for i, p := range pieces {
		keys[i] = p.Key
		if p.Type == "m.room.create" && p.StateKey == "" && p.nid != create {
			return 0, chancery.Errorf(502, chancery.CodeUnknown, "the state has another create event than the room")
		}
	}
	if err := r.learnSlots(keys...); err != nil {
		return 0, err
	}
	changes := make(map[int64]int64, len(pieces))
	for _, p := range pieces {
		slot, err := r.keptSlot(p.Key)
		if err != nil {
			return 0, err
		}
		changes[slot] = p.nid
	}
	return r.array.Set(0, changes)
}
