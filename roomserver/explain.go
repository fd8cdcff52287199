package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"

	"chancery"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Brief names an event as a person looks for it.
type Brief struct {
	ID         id.EventID `json:"event_id"`
	Type       string     `json:"type,omitempty"`
	StateKey   *string    `json:"state_key,omitempty"`
	Sender     id.UserID  `json:"sender,omitempty"`
	Membership string     `json:"membership,omitempty"`
	TS         int64      `json:"origin_server_ts,omitempty"`
	Depth      int64      `json:"depth,omitempty"`
	Status     string     `json:"status"`
}

// Explanation is how an event was judged and what it did to the room's state, replayed from what is stored.
type Explanation struct {
	Room    id.RoomID  `json:"room_id"`
	Version string     `json:"room_version"`
	Event   Brief      `json:"event"`
	Prev    []Brief    `json:"prev_events"`
	Auth    []Brief    `json:"auth_events"`
	Content string     `json:"-"`
	Before  []Brief    `json:"state_before"`
	Given   bool       `json:"state_before_given"` // by another server, since prev events were not here
	Merge   *Merge     `json:"resolution_before,omitempty"`
	By      Judgements `json:"judgements"`
	// After is the resolution over the room's open ends when the event came, where it moved more than the event.
	After *Merge `json:"resolution_after,omitempty"`
}

// Judgements are what the authorisation rules say of an event, by three states.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 4, 5, 6
type Judgements struct {
	List    string      `json:"auth_events_list"` // of the list of auth events itself: "in order", or what is wrong with it
	OwnAuth []auth.Said `json:"by_auth_events"`
	Before  []auth.Said `json:"by_state_before"`
	// Now is by the room's present state; on receipt it was the one of then that decided over soft failure.
	Now []auth.Said `json:"by_current_state"`
}

// Merge is one state resolution.
//
// spec: rooms/v2#state-resolution, rooms/v12#state-resolution
type Merge struct {
	Algorithm  string    `json:"algorithm"`
	Sets       [][]Brief `json:"conflicted_sets"` // for each state, its events that others do not have
	Difference []Brief   `json:"auth_difference"`
	Subgraph   []Brief   `json:"conflicted_subgraph,omitempty"`
	Full       []Brief   `json:"full_conflicted_set"`
	Mainline   *Brief    `json:"mainline_from,omitempty"`
	Tried      []Tried   `json:"tried"`
	Result     []Result  `json:"result"`
	AsStored   bool      `json:"as_stored"` // the replay came to the state that is stored
}

// Tried is an event that was tried against the partially resolved state.
type Tried struct {
	Brief
	Order    string      `json:"order"`
	Mainline *int64      `json:"mainline_position,omitempty"`
	Off      bool        `json:"off_mainline,omitempty"`
	Allowed  bool        `json:"allowed"`
	Said     []auth.Said `json:"rules"`
}

// Result is what holds in the end for one piece of state that was in conflict; no event: nothing does.
type Result struct {
	Type     string `json:"type"`
	StateKey string `json:"state_key"`
	Event    *Brief `json:"event"`
}

var algorithms = map[event.StateResolution]string{event.StateV1: "1", event.StateV2: "2", event.StateV21: "2.1"}

var statusNames = map[storage.EventStatus]string{storage.Accepted: "accepted", storage.SoftFailed: "soft-failed",
	storage.Rejected: "rejected", storage.Outlier: "outlier"}

func brief(ev *Stored) Brief {
	b := Brief{ID: ev.ID(), Type: ev.Type(), Sender: ev.Sender(), TS: ev.OriginServerTS(), Depth: ev.Depth(), Status: statusNames[ev.Status]}
	if key, ok := ev.StateKey(); ok {
		b.StateKey = &key
		if b.Type == "m.room.member" {
			b.Membership = ev.Membership()
		}
	}
	return b
}

// aside gives fn the room as it is stored, apart from the one that is in use: fn may resolve and compare as it
// likes, nothing of it is written and nobody waits.
func (s *Server) aside(ctx context.Context, roomID id.RoomID, fn func(*room) error) error {
	r := newRoom(s, roomID)
	r.ctx = ctx
	if err := r.load(); err != nil {
		return err
	}
	return fn(r)
}

// Explain replays how an event was judged, and the resolutions that it was part of, from what is stored.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu, rooms/v12#state-resolution
func (s *Server) Explain(ctx context.Context, roomID id.RoomID, eventID id.EventID) (*Explanation, error) {
	var x *Explanation
	err := s.aside(ctx, roomID, func(r *room) error {
		found, err := r.eventsByID([]id.EventID{eventID})
		if err != nil {
			return err
		}
		ev := found[eventID]
		if ev == nil {
			return chancery.NotFound("the room has no event %s", eventID)
		}
		x, err = r.explain(ev)
		return err
	})
	return x, err
}

func (r *room) explain(ev *Stored) (*Explanation, error) {
	x := &Explanation{Room: r.id, Version: r.version.Name, Event: brief(ev)}
	prev, whole, err := r.briefs(ev.PrevEvents(), &x.Prev)
	if err != nil {
		return nil, err
	}
	auths, _, err := r.briefs(ev.AuthEvents(), &x.Auth)
	if err != nil {
		return nil, err
	}
	if err := r.explainJudgements(ev, auths, &x.By); err != nil {
		return nil, err
	}
	if !ev.isJudged() {
		return x, nil // its place in the room is not known
	}
	if x.Before, err = r.briefState(ev.Before); err != nil {
		return nil, err
	}
	x.Given = !whole
	if roots := rootsAfter(prev); whole && len(roots) > 1 {
		if x.Merge, err = r.replay(roots, ev.Before); err != nil {
			return nil, err
		}
	}
	x.After, err = r.replayMove(ev)
	return x, err
}

// briefs names events in the order of their IDs; all says that each of them is here with its place in the room.
func (r *room) briefs(ids []id.EventID, to *[]Brief) (events []*Stored, all bool, err error) {
	found, err := r.eventsByID(ids)
	if err != nil {
		return nil, false, err
	}
	all = true
	for _, v := range ids {
		ev := found[v]
		if ev == nil {
			*to = append(*to, Brief{ID: v, Status: "not here"})
			all = false
			continue
		}
		*to = append(*to, brief(ev))
		all = all && ev.isJudged()
		events = append(events, ev)
	}
	return events, all, nil
}

func (r *room) briefState(root state.Root) ([]Brief, error) {
	entries, err := r.array.All(root)
	if err != nil {
		return nil, err
	}
	nids := make([]int64, len(entries))
	for i, e := range entries {
		nids[i] = e.NID
	}
	return r.briefsOf(nids)
}

func (r *room) briefsOf(nids []int64) ([]Brief, error) {
	events, err := r.events(nids)
	if err != nil {
		return nil, err
	}
	list := make([]Brief, 0, len(nids))
	for _, n := range nids {
		if ev := events[n]; ev != nil {
			list = append(list, brief(ev))
		}
	}
	return list, nil
}

// explainJudgements asks the rules by the event's own auth events, by the state before it, and by the present one.
func (r *room) explainJudgements(ev *Stored, auths []*Stored, by *Judgements) error {
	events, rejected := authEvents(auths)
	create, err := r.createEvent()
	if err != nil {
		return err
	}
	by.List = "in order"
	err = auth.CheckAuthEvents(ev.Event, events, create, rejected)
	if no := (*auth.Rejection)(nil); errors.As(err, &no) {
		by.List = fmt.Sprintf("rejected by rule %s: %s", no.Rule, no.Why)
	}
	if r.version.CreateNotInAuthEvents && create != nil && ev.Type() != "m.room.create" {
		events = append(events, create)
	}
	by.OwnAuth, _ = auth.Explain(ev.Event, auth.Events(events))
	if ev.Before != 0 {
		if by.Before, err = r.explainBy(ev.Event, ev.Before); err != nil {
			return err
		}
	}
	by.Now, err = r.explainBy(ev.Event, state.Root(r.row.Root))
	return err
}

func (r *room) explainBy(ev *event.Event, root state.Root) ([]auth.Said, error) {
	var stateKey *string
	if key, isState := ev.StateKey(); isState {
		stateKey = &key
	}
	as, err := r.authStateFor(root, ev.Type(), stateKey, ev.Sender(), ev.Content())
	if err != nil {
		return nil, err
	}
	said, _ := auth.Explain(ev, as)
	return said, nil
}

// replay resolves states again and says how it went.
func (r *room) replay(roots []state.Root, stored state.Root) (*Merge, error) {
	roots = slices.Clone(roots)
	slices.Sort(roots)
	m := &Merge{Algorithm: algorithms[r.version.StateResolution]}
	var slots []int64
	var sets [][]int64
	trace := &state.Trace{}
	root, err := r.resolveAnew(roots, func(at []int64, of [][]int64) { slots, sets = at, of }, trace)
	if err != nil {
		return nil, err
	}
	changes, err := r.array.Diff(root, stored)
	if err != nil {
		return nil, err
	}
	m.AsStored = len(changes) == 0
	for _, set := range sets {
		list, err := r.briefsOf(set)
		if err != nil {
			return nil, err
		}
		m.Sets = append(m.Sets, list)
	}
	for _, part := range []struct {
		nids []int64
		to   *[]Brief
	}{{trace.Difference, &m.Difference}, {trace.Subgraph, &m.Subgraph}, {trace.Full, &m.Full}} {
		if *part.to, err = r.briefsOf(part.nids); err != nil {
			return nil, err
		}
	}
	if trace.Mainline != 0 {
		list, err := r.briefsOf([]int64{trace.Mainline})
		if err != nil {
			return nil, err
		}
		m.Mainline = &list[0]
	}
	if err := r.briefTried(trace, m); err != nil {
		return nil, err
	}
	return m, r.briefResult(slots, root, m)
}

func (r *room) briefTried(trace *state.Trace, m *Merge) error {
	nids := make([]int64, len(trace.Tried))
	for i, t := range trace.Tried {
		nids[i] = t.NID
	}
	events, err := r.events(nids)
	if err != nil {
		return err
	}
	for _, t := range trace.Tried {
		tried := Tried{Brief: brief(events[t.NID]), Order: t.Order, Allowed: t.Allowed, Said: t.Said}
		switch {
		case t.Mainline == math.MaxInt64:
			tried.Off = true
		case t.Mainline >= 0:
			tried.Mainline = &t.Mainline
		}
		m.Tried = append(m.Tried, tried)
	}
	return nil
}

// briefResult says what holds in the slots that were in conflict.
func (r *room) briefResult(slots []int64, root state.Root, m *Merge) error {
	keys, err := r.keysOf(slots)
	if err != nil {
		return err
	}
	nids, err := r.array.Get(root, slots...)
	if err != nil {
		return err
	}
	events, err := r.events(nids)
	if err != nil {
		return err
	}
	for i, slot := range slots {
		result := Result{Type: keys[slot].Type, StateKey: keys[slot].StateKey}
		if ev := events[nids[i]]; ev != nil {
			b := brief(ev)
			result.Event = &b
		}
		m.Result = append(m.Result, result)
	}
	return nil
}

// As far back as this many moves of a room's state are looked through.
const maxMoves = 1000

// replayMove replays the resolution over the room's open ends when the event came, if it moved state that the
// event does not speak of. Nil: it did not, or it is so long ago that the fact is trimmed.
func (r *room) replayMove(ev *Stored) (m *Merge, err error) {
	var by movedBy
	var root state.Root
	err = r.read(func(tx storage.Tx) error {
		facts, err := tx.StateMoves(r.row.NID, maxMoves)
		for _, f := range facts {
			var b movedBy
			if json.Unmarshal([]byte(f.Extra), &b) == nil && b.Event == ev.NID {
				by, root = b, state.Root(f.Root)
			}
		}
		return err
	})
	if err != nil || len(by.Roots) < 2 {
		return nil, err
	}
	return r.replay(by.Roots, root)
}
