package syncapi

import (
	"encoding/json"
	"fmt"
	"math"

	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
)

// joined is a room of the section "join".
type joined struct {
	row      storage.Room
	news     *roomNews
	fresh    bool // the client has nothing of it, or wants all of its state
	away     bool // the user came since the token
	base     base
	timeline *timeline
	state    []*roomserver.Stored
	summary  *summary
}

// writeJoined writes the section "join".
func (a *answer) writeJoined() (*writer, error) {
	list := make([]*joined, 0, len(a.joined))
	typing := a.typingRooms()
	for _, j := range a.joined {
		if !a.news.all && !a.q.full && j.news == nil && !typing[j.row.NID] {
			continue
		}
		err := a.fill(j)
		if roomserver.IsGone(err) { // purged meanwhile: the others are told all the same
			a.s.Log.Info("left a room out of an answer whose state is gone", zap.String("room", j.row.ID), zap.Error(err))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("tell of %s: %w", j.row.ID, err)
		}
		list = append(list, j)
	}
	beside, err := a.besideRooms(list)
	if err != nil {
		return nil, err
	}
	section := &writer{}
	for _, j := range list {
		room, err := a.writeJoin(j, beside)
		if err != nil {
			return nil, err
		}
		if room != nil {
			section.inside(j.row.ID, room)
		}
	}
	return section, nil
}

// fill finds the timeline and the state of a room.
func (a *answer) fill(j *joined) (err error) {
	r := j.news
	if a.news.all {
		j.fresh, j.base = true, base{ord: noOrd}
	} else {
		if j.base, err = a.base(j.row, r); err != nil {
			return err
		}
		if j.away, err = a.wasAway(j.row, r, j.base); err != nil {
			return err
		}
		if r != nil && r.whole && !a.lazy() {
			j.away = true // before, the room was not shown
		}
		j.fresh = a.q.full || j.away
	}
	if j.timeline, err = a.timelineOf(j); err != nil {
		return err
	}
	if j.fresh || r != nil && r.members {
		if j.summary, err = a.summarise(j.row); err != nil {
			return err
		}
	}
	j.state, err = a.stateOf(j)
	if err == nil {
		a.meet(j)
	}
	return err
}

// timelineOf reads the room's timeline. Who asks from between the same two facts, and without wishes of
// their own, gets the same one: it is read once.
func (a *answer) timelineOf(j *joined) (*timeline, error) {
	whole := a.news.all || j.away
	p := span{room: j.row, above: j.base.ord, upTo: math.MaxInt64, hidden: whole, pos: a.pos}
	if whole {
		p.above = noOrd
	}
	if !whole && (j.news == nil || j.news.ord == 0) {
		return &timeline{start: j.base.root}, nil
	}
	f := &a.q.filter.Room.Timeline
	alike := !whole && f.plain() && f.Rooms == nil && f.NotRooms == nil && len(a.ignored) == 0
	var key timelineKey
	if alike {
		key = timelineKey{j.row.NID, j.news.first, j.news.last, f.limit()}
		// Who comes second waits for the first, who holds a connection of their own and waits for nobody.
		done := a.s.shared.turn.take(key)
		defer done()
		if t, ok := a.s.shared.timelines.Get(key); ok {
			return t, nil
		}
	}
	if !whole {
		p.upTo, p.pos = j.news.ord, j.news.last
	}
	t, err := a.timeline(p)
	if err != nil {
		return nil, err
	}
	if j.away { // it does not follow what the client may have of the room from before
		t.limited = true
	}
	if !whole && !t.limited {
		t.start = j.base.root
	} else if t.start, err = a.startOf(j.row, t, p.pos); err != nil {
		return nil, err
	}
	if alike {
		// What relates to them later comes with a later fact of the room, and so in another timeline.
		ids := make([]string, len(t.events))
		for i, ev := range t.events {
			ids[i] = string(ev.ID())
		}
		types, err := a.tx.RelTypesTo(j.row.NID, ids)
		if err != nil {
			return nil, fmt.Errorf("read relations: %w", err)
		}
		t.bare = len(types) == 0
		a.s.shared.timelines.Put(key, t, t.size())
	}
	return t, nil
}

// writeJoin writes one room; nil when there is nothing to tell of it.
func (a *answer) writeJoin(j *joined, beside *beside) (*writer, error) {
	f := &a.q.filter.Room
	events, err := a.format(j.row, j.timeline.events, clientevent.Form{Unrelated: j.timeline.bare})
	if err != nil {
		return nil, err
	}
	stateEvents, err := a.format(j.row, j.state, clientevent.Form{Brief: true})
	if err != nil {
		return nil, err
	}
	ephemeral := a.ephemeral(j, beside)
	data := beside.data[j.row.NID]
	unread := beside.unread[j.row.NID]
	if !j.fresh && len(events) == 0 && len(stateEvents) == 0 && len(ephemeral) == 0 && len(data) == 0 && j.summary == nil &&
		!j.timeline.limited && (j.news == nil || !j.news.read[string(a.q.user)] && !j.news.allRead) {
		return nil, nil
	}
	w := &writer{}
	if j.summary != nil {
		j.summary.write(w)
	}
	a.writeState(w, stateEvents)
	writeTimeline(w, j.timeline, events)
	w.events("ephemeral", ephemeral)
	w.events("account_data", data)
	unread.write(w, f.Timeline.ThreadCounts)
	return w, nil
}

func (a *answer) writeState(w *writer, events []json.RawMessage) {
	if a.q.after != "" {
		w.events(a.q.after, events)
		return
	}
	w.events("state", events)
}

func writeTimeline(w *writer, t *timeline, events []json.RawMessage) {
	in := &writer{}
	in.name("events")
	in.list(events)
	in.value("limited", t.limited)
	if t.prev != "" {
		in.string("prev_batch", t.prev)
	}
	w.inside("timeline", in)
}

// format gives events the form that the client asked for.
func (a *answer) format(room storage.Room, events []*roomserver.Stored, form clientevent.Form) ([]json.RawMessage, error) {
	if a.q.filter.Format == "federation" {
		out := make([]json.RawMessage, len(events))
		for i, ev := range events {
			w := &writer{}
			w.string("event_id", string(ev.ID())) // in no event of today's room versions, and wanted by the schema
			w.b = append(append(w.b, ','), ev.JSON()[1:len(ev.JSON())-1]...)
			out[i] = w.object()
		}
		return out, nil
	}
	out, err := clientevent.Format(a.tx, a.s.Reader, room, a.viewer, events, form)
	if err != nil {
		return nil, fmt.Errorf("give events their form: %w", err)
	}
	return out, nil
}

func rootOf(room storage.Room) state.Root { return state.Root(room.Root) }
