package syncapi

import (
	"fmt"
	"math"
	"slices"

	"chancery/roomserver"
	"chancery/roomserver/page"
	"chancery/roomserver/state"
	"chancery/roomserver/visibility"
	"chancery/storage"
)

// timeline is a part of a room's history, oldest first.
type timeline struct {
	events  []*roomserver.Stored
	limited bool   // something is missing between the token and the first event
	prev    string // where to go on backwards
	bare    bool   // no event relates to these
	start   state.Root
}

// size is about what a timeline holds in memory: its events may be nowhere else any more.
func (t *timeline) size() int {
	size := 200
	for _, ev := range t.events {
		size += ev.Size() + 400
	}
	return size
}

type timelineKey struct {
	room, first, last int64
	limit             int
}

// span says which part of a room's history is asked for.
type span struct {
	room   storage.Room
	above  int64 // noOrd: from the beginning
	upTo   int64
	hidden bool // some of it may be older than the user's time in the room
	pos    int64
}

// Looking for events that a filter takes in, or that the user may see, ends after so many others.
const maxPassed = 2000

// timeline reads the newest events of a span. It never spans an open gap: it begins above it, and what is
// missing is fetched when the client walks back.
func (a *answer) timeline(p span) (*timeline, error) {
	f := &a.q.filter.Room.Timeline
	t := &timeline{}
	if p.upTo <= p.above {
		return t, nil
	}
	limit := f.limit()
	if !f.inRoom(p.room.ID) {
		limit = 0
	}
	gap, err := a.tx.HighestGap(p.room.NID, p.upTo)
	if err != nil {
		return nil, fmt.Errorf("look for gaps: %w", err)
	}
	if gap != 0 && gap > p.above {
		p.above, t.limited = gap-1, true
	}
	from, passed := p.upTo, 0
	for more := true; more; {
		want := max(limit+1-len(t.events), 10)
		places, err := a.tx.PlacesBelow(p.room.NID, from, p.above, want)
		if err != nil {
			return nil, fmt.Errorf("read the timeline: %w", err)
		}
		more = len(places) == want
		events, err := a.wanted(p, places)
		if err != nil {
			return nil, err
		}
		for i, at := range places {
			if events[i] == nil {
				if passed++; passed > maxPassed {
					t.limited, more = true, false
					t.prev = page.Before(at.Ord)
					break
				}
				continue
			}
			if len(t.events) == limit {
				t.limited, more = true, false
				t.prev = page.After(at.Ord)
				break
			}
			t.events = append(t.events, events[i])
		}
		if len(places) > 0 {
			from = places[len(places)-1].Ord - 1
		}
	}
	slices.Reverse(t.events)
	switch {
	case len(t.events) > 0 && (t.prev == "" || passed <= maxPassed):
		t.prev = page.Before(t.events[0].Ord)
	case t.prev == "" && p.upTo != math.MaxInt64:
		t.prev = page.After(p.upTo)
	}
	return t, nil
}

// wanted reads the events at some places; nil stands for those that are not for the client.
func (a *answer) wanted(p span, places []storage.Standing) ([]*roomserver.Stored, error) {
	nids := make([]int64, len(places))
	for i, at := range places {
		nids[i] = at.NID
	}
	found, err := a.s.Reader.ByNumber(a.tx, p.room, nids)
	if err != nil {
		return nil, err
	}
	events := make([]*roomserver.Stored, len(nids))
	for i, n := range nids {
		ev := found[n]
		if ev == nil || !a.q.filter.Room.Timeline.event(ev.Event) {
			continue
		}
		if _, isState := ev.StateKey(); !isState && a.isIgnored(ev.Sender()) {
			continue
		}
		events[i] = ev
	}
	if p.hidden {
		return events, a.hide(p.room, events)
	}
	return events, nil
}

// hide takes out the events that the user may not see.
//
// spec: c2s#room-history-visibility
func (a *answer) hide(room storage.Room, events []*roomserver.Stored) error {
	own := roomserver.Key{Type: "m.room.member", StateKey: string(a.q.user)}
	history := roomserver.Key{Type: "m.room.history_visibility"}
	var asked []roomserver.Lookup
	at := map[state.Root]int{}
	for _, ev := range events {
		if ev == nil {
			continue
		}
		if _, ok := at[ev.Before]; !ok {
			at[ev.Before] = len(asked)
			asked = append(asked, roomserver.Lookup{Root: ev.Before, Key: own}, roomserver.Lookup{Root: ev.Before, Key: history})
		}
	}
	found, err := a.s.Reader.Lookup(a.tx, room, asked)
	if err != nil {
		return fmt.Errorf("read who may see events: %w", err)
	}
	joined := a.members[room.NID].Membership == "join"
	for i, ev := range events { // newest first: who was in the room at a later event joined after this one
		if ev == nil {
			continue
		}
		viewer := visibility.Viewer{User: a.q.user, JoinedLater: joined}
		member, shown := found[at[ev.Before]], found[at[ev.Before]+1]
		if member != nil {
			viewer.Membership = member.Membership()
		}
		before := visibility.Shared
		if shown != nil {
			before = visibility.Of(shown.Event)
		}
		isOwn := ev.IsState(own.Type, own.StateKey)
		if isOwn && ev.Membership() == "join" || viewer.Membership == "join" {
			joined = true
		}
		// Whatever becomes of the user's own membership is theirs to know.
		if !isOwn && !visibility.Event(ev.Event, before, viewer) {
			events[i] = nil
		}
	}
	return nil
}

// startOf finds the room's state below the first event of a timeline: as the room was, not as the event's
// own branch of it saw it.
func (a *answer) startOf(room storage.Room, t *timeline, pos int64) (state.Root, error) {
	if len(t.events) == 0 {
		return state.Root(room.Root), nil
	}
	first := t.events[0]
	facts, err := a.tx.RootsDown(room.NID, pos, len(t.events)+100)
	if err != nil {
		return 0, fmt.Errorf("read the state at the timeline's start: %w", err)
	}
	moved := state.Root(0) // without an event, between the one below and the first
	for _, f := range facts {
		switch {
		case f.Ord >= first.Ord:
			moved = 0
		case f.Ord != 0 && moved != 0:
			return moved, nil
		case f.Ord != 0:
			return state.Root(f.Root), nil
		case moved == 0:
			moved = state.Root(f.Root)
		}
	}
	return first.Before, nil
}
