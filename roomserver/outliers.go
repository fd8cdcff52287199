package roomserver

import (
	"fmt"

	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// addOutliers stores events that another server gave us as state or auth events, auth events first. Each
// is judged by its own auth events; those that fail are kept as rejected, those whose auth events nobody
// gave us are left out.
func (r *room) addOutliers(list []*event.Event) (err error) {
	defer r.distrust(&err)
	ids := make([]id.EventID, 0, 2*len(list))
	byID := make(map[id.EventID]*event.Event, len(list))
	for _, ev := range list {
		if _, ok := byID[ev.ID()]; !ok && ev.RoomID() == r.id {
			byID[ev.ID()] = ev
			ids = append(ids, ev.ID())
		}
	}
	known, err := r.eventsByID(ids)
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
	var rows []*storage.Event
	var edges [][]any
	for _, ev := range authOrder(ids, byID) {
		if known[ev.ID()] != nil {
			continue
		}
		auths := make([]*Stored, 0, 4)
		complete := true
		var elsewhere []id.EventID
		for _, v := range ev.AuthEvents() {
			if a := known[v]; a != nil {
				auths = append(auths, a)
			} else {
				elsewhere = append(elsewhere, v)
			}
		}
		if len(elsewhere) > 0 {
			found, err := r.eventsByID(elsewhere)
			if err != nil {
				return err
			}
			for _, v := range elsewhere {
				if a := found[v]; a != nil {
					known[v] = a
					auths = append(auths, a)
				} else {
					complete = false
				}
			}
		}
		if !complete {
			continue
		}
		nid, err := r.s.DB.NewEventNumber()
		if err != nil {
			return err
		}
		s := &Stored{Event: ev, NID: nid, Room: r.row.NID, Status: storage.Outlier}
		if err := r.passesOwnAuth(ev, auths); err != nil {
			s.Status = r.rejected(ev, err)
		}
		known[ev.ID()] = s
		r.pending[nid], r.pendingID[ev.ID()] = s, s
		rows = append(rows, s.row(false))
		numbers := make([]int64, len(auths))
		for i, a := range auths {
			numbers[i] = a.NID
			edges = append(edges, []any{nid, a.NID})
		}
		if err := r.cite(s, numbers); err != nil {
			return err
		}
	}
	if len(rows) == 0 {
		return nil
	}
	stored := &additions{}
	for _, row := range rows {
		stored.list = append(stored.list, &addition{Stored: r.pending[row.NID]})
	}
	stored.list[0].places = r.cover.Take()
	places, links := placeRows(stored.list[0].places)
	// The room's row comes with its first events: they would belong to nobody if the join ended half-way.
	first, row := !r.stored, r.row
	r.stored = true
	r.commit(stored, func(tx storage.Tx) error {
		if first {
			tx.InsertRoom(row)
		}
		if err := tx.CopyEvents(rows); err != nil {
			return fmt.Errorf("store outliers: %w", err)
		}
		if err := tx.CopyIn("event_auth", []string{"event", "auth"}, edges); err != nil {
			return err
		}
		return tx.CopyPlaces(r.row.NID, places, links)
	})
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

// rootOf makes the state that consists of some stored events. Those that were rejected are no part of it.
func (r *room) rootOf(list []*event.Event) (state.Root, error) {
	ids := make([]id.EventID, len(list))
	byType := map[string][]string{}
	for i, ev := range list {
		ids[i] = ev.ID()
		if key, ok := ev.StateKey(); ok {
			byType[ev.Type()] = append(byType[ev.Type()], key)
		}
	}
	for typ, keys := range byType {
		if err := r.learnSlots(typ, keys); err != nil {
			return 0, err
		}
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
		slot, isNew, err := r.takeSlot(Key{ev.Type(), key})
		if err != nil {
			return 0, err
		}
		if isNew {
			r.newSlots = append(r.newSlots, storage.Slot{Slot: slot, Type: ev.Type(), StateKey: key})
		}
		changes[slot] = s.NID
	}
	return r.array.Set(0, changes)
}
