package syncapi

import (
	"fmt"

	"chancery/roomserver"
	"chancery/roomserver/state"
)

// stateOf finds the state events that a client needs beside the timeline: what changed between the token
// and the timeline's start, or its end where the client says so; all of it for a fresh room.
//
// Where branches of the room meet, what holds after the timeline may be neither what held before it nor
// what stands in it: such events come too.
//
// spec: c2s/sync, msc4222
func (a *answer) stateOf(j *joined) ([]*roomserver.Stored, error) {
	end := rootOf(j.row)
	at := j.timeline.start
	if a.q.after != "" {
		at = end
	}
	list := &stateList{at: map[roomserver.Key]int{}}
	if j.fresh {
		if err := a.wholeState(j, at, list); err != nil {
			return nil, err
		}
	} else if err := a.changes(j, j.base.root, at, nil, list); err != nil {
		return nil, err
	}
	if a.q.after == "" && at != end {
		in := make(map[int64]bool, len(j.timeline.events))
		for _, ev := range j.timeline.events {
			in[ev.NID] = true
		}
		from := j.base.root
		if j.fresh {
			from = at
		}
		if err := a.changes(j, from, end, in, list); err != nil {
			return nil, err
		}
	}
	if a.lazy() {
		if err := a.lazyMembers(j, at, list); err != nil {
			return nil, err
		}
	}
	return a.filterState(j.row.ID, list.events), nil
}

// stateList is state by key: what is added later takes the place of what was there.
type stateList struct {
	events []*roomserver.Stored
	at     map[roomserver.Key]int
}

func keyOf(ev *roomserver.Stored) roomserver.Key {
	key, _ := ev.StateKey()
	return roomserver.Key{Type: ev.Type(), StateKey: key}
}

func (l *stateList) add(events ...*roomserver.Stored) {
	for _, ev := range events {
		k := keyOf(ev)
		if i, ok := l.at[k]; ok {
			l.events[i] = ev
			continue
		}
		l.at[k] = len(l.events)
		l.events = append(l.events, ev)
	}
}

// wholeState is all of a state, without the members where they are loaded lazily.
func (a *answer) wholeState(j *joined, at state.Root, list *stateList) error {
	if at == 0 {
		return nil
	}
	var events []*roomserver.Stored
	var err error
	if a.lazy() {
		events, err = a.s.Reader.StateExcept(a.tx, j.row, at, "m.room.member")
	} else {
		events, err = a.s.Reader.State(a.tx, j.row, at)
	}
	if err != nil {
		return fmt.Errorf("read the state: %w", err)
	}
	list.add(events...)
	return nil
}

// changes are the differences of two states, but those that stand in the timeline.
func (a *answer) changes(j *joined, was, is state.Root, but map[int64]bool, list *stateList) error {
	if was == is {
		return nil
	}
	if a.lazy() && j.news != nil && j.news.whole {
		return a.changesKnown(j, was, is, but, list)
	}
	changed, _, err := a.s.Reader.Differences(a.tx, j.row, was, is)
	if err != nil {
		return fmt.Errorf("compare states: %w", err)
	}
	for _, ev := range changed {
		if !but[ev.NID] {
			list.add(ev)
		}
	}
	return nil
}

// changesKnown is changes for who loads members lazily, when a partial room has become whole: members of whom nothing
// was known before come when they are needed, as in any room.
//
// spec: msc3902
func (a *answer) changesKnown(j *joined, was, is state.Root, but map[int64]bool, list *stateList) error {
	changes, err := a.s.Reader.Changes(a.tx, j.row, was, is)
	if err != nil {
		return fmt.Errorf("compare states: %w", err)
	}
	others, err := a.tx.SlotsExcept(j.row.NID, "m.room.member")
	if err != nil {
		return fmt.Errorf("read what a room is made of: %w", err)
	}
	isOther := make(map[int64]bool, len(others))
	for _, s := range others {
		isOther[s.Slot] = true
	}
	var nids []int64
	for _, c := range changes {
		if c.Is != 0 && !but[c.Is] && (c.Was != 0 || isOther[c.Slot]) {
			nids = append(nids, c.Is)
		}
	}
	events, err := a.s.Reader.ByNumber(a.tx, j.row, nids)
	if err != nil {
		return fmt.Errorf("read changed state: %w", err)
	}
	for _, n := range nids {
		if ev := events[n]; ev != nil {
			list.add(ev)
		}
	}
	return nil
}

func (a *answer) filterState(roomID string, events []*roomserver.Stored) []*roomserver.Stored {
	f := &a.q.filter.Room.State
	if !f.inRoom(roomID) {
		return nil
	}
	if f.plain() {
		return events
	}
	kept := make([]*roomserver.Stored, 0, len(events))
	for _, ev := range events {
		if f.event(ev.Event) {
			kept = append(kept, ev)
		}
	}
	return kept
}
