package syncapi

import (
	"encoding/json"
	"fmt"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/event"
	"chancery/roomserver/page"
	"chancery/storage"
)

// left is a room of the section "leave": the user left it or was put out of it, since the token or, when
// the filter asks for those too, ever.
type left struct {
	row    storage.Room
	member storage.Member
	news   *roomNews
}

// writeLeft writes the section "leave".
func (a *answer) writeLeft() (*writer, error) {
	section := &writer{}
	for _, l := range a.left {
		room, err := a.writeLeave(l)
		if roomserver.IsGone(err) {
			a.s.Log.Info("left a room out of an answer whose state is gone", zap.String("room", l.row.ID), zap.Error(err))
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("tell of %s, which the user left: %w", l.row.ID, err)
		}
		section.inside(l.row.ID, room)
	}
	// Invites to rooms elsewhere that ended: all that is known is the event that ended them.
	for _, v := range a.invites {
		ended := v.Membership == "leave" && (a.news.elsewhere[v.RoomID] || a.news.all && a.q.filter.Room.IncludeLeave && !a.wasIn(v.RoomID))
		if ended && a.q.filter.Room.room(v.RoomID) {
			var events []json.RawMessage
			if version, ok := event.Lookup(v.Version); ok {
				ended, err := event.ParseStored(version, id.EventID(v.EventID), v.Event)
				if err != nil {
					return nil, fmt.Errorf("tell of the ended invite to %s: %w", v.RoomID, err)
				}
				if ended.Membership() != "invite" && ended.Membership() != "knock" {
					events = append(events, event.Client(ended, nil, false))
				}
			}
			room := &writer{}
			a.writeState(room, nil)
			writeTimeline(room, &timeline{}, events)
			section.inside(v.RoomID, room)
		}
	}
	return section, nil
}

// wasIn says whether the user is or was in a room here, and has not forgotten it: then there is more to tell than an invite.
func (a *answer) wasIn(roomID string) bool {
	for nid, row := range a.rooms {
		if row.ID == roomID {
			return !a.members[nid].Forgotten
		}
	}
	return false
}

// writeLeave tells a room up to the event by which the user left.
func (a *answer) writeLeave(l *left) (*writer, error) {
	found, err := a.s.Reader.ByNumber(a.tx, l.row, []int64{l.member.Event})
	if err != nil {
		return nil, err
	}
	leave := found[l.member.Event]
	j := &joined{row: l.row, news: l.news, fresh: true, base: base{ord: noOrd}, timeline: &timeline{}}
	if leave != nil {
		if err := a.fillLeft(j, leave); err != nil {
			return nil, err
		}
	}
	if leave != nil {
		a.viewer.Until = leave.Ord
		defer func() { a.viewer.Until = 0 }()
	}
	events, err := a.format(l.row, j.timeline.events, clientevent.Form{})
	if err != nil {
		return nil, err
	}
	stateEvents, err := a.format(l.row, j.state, clientevent.Form{Brief: true})
	if err != nil {
		return nil, err
	}
	w := &writer{}
	a.writeState(w, stateEvents)
	writeTimeline(w, j.timeline, events)
	data, err := a.leftData(l)
	if err != nil {
		return nil, err
	}
	if len(data) > 0 {
		w.events("account_data", data)
	}
	return w, nil
}

// fillLeft finds what the user may see of a room that they left.
func (a *answer) fillLeft(j *joined, leave *roomserver.Stored) error {
	if !leave.Placed {
		return a.fillMoved(j, leave)
	}
	wasIn, err := a.membershipAt(j.row, leave.Before)
	if err != nil {
		return err
	}
	if !a.news.all {
		if j.base, err = a.base(j.row, j.news); err != nil {
			return err
		}
		was, err := a.membershipAt(j.row, j.base.root)
		if err != nil {
			return err
		}
		j.fresh = a.q.full || was != "join"
		if (j.row.Partial || j.news != nil && j.news.whole) && !a.lazy() {
			j.fresh = true // before, the room was not shown
		}
	}
	if wasIn != "join" && j.fresh { // they were never in it: the event is all that concerns them
		j.timeline = &timeline{events: []*roomserver.Stored{leave}, limited: true, prev: page.Before(leave.Ord)}
		return nil
	}
	if j.fresh { // they came and went since the token: what they have ends before that
		j.base.ord = noOrd
	}
	if j.base.ord >= leave.Ord { // told before; it was the state that moved
		j.timeline = &timeline{prev: page.After(leave.Ord)}
		return nil
	}
	t, err := a.timeline(span{room: j.row, above: j.base.ord, upTo: leave.Ord, hidden: true})
	if err != nil {
		return err
	}
	j.timeline = t
	switch {
	case !j.fresh && !t.limited:
		t.start = j.base.root
	case len(t.events) > 0:
		t.start = t.events[0].Before
	default:
		t.start = leave.Before
	}
	if wasIn == "join" || !j.fresh { // who was put out first and banned then has lost the others too
		a.part(j)
	}
	if wasIn != "join" {
		return nil
	}
	row := j.row
	row.Root = int64(leave.After) // what happened later is not for them
	j.row = row
	j.state, err = a.stateOf(j)
	return err
}

// fillMoved is fillLeft where the event failed softly and is in the room's state all the same, or came with a state: it has no
// place in the timeline, and is told as state, each time that the state moves to it. Before it comes what the user was in for.
//
// spec: s2s#soft-failure
func (a *answer) fillMoved(j *joined, leave *roomserver.Stored) error {
	j.state = []*roomserver.Stored{leave}
	end, ok, err := a.tx.OrdAt(j.row.NID, a.pos)
	if err != nil || !ok {
		return err
	}
	if !a.news.all {
		if j.base, err = a.base(j.row, j.news); err != nil {
			return err
		}
	}
	j.timeline, err = a.timeline(span{room: j.row, above: j.base.ord, upTo: end, hidden: true})
	return err
}
