package roomserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// truth is what a room needs to become whole: the state before our join, and what the states before events with
// missing prev events have otherwise.
type truth struct {
	join    int64
	server  string              // that told it
	lacks   bool                // not all of it is here
	state   map[int64]int64     // by slot
	rows    map[Key]int64       // what has no slot yet
	slots   map[Key]int64       // what has one
	around  map[int64][]around  // by event
	told    map[string][]around // the same by the prev events: what builds on the same has the same state before it
	untold  map[int64]bool      // events around which nobody tells the state
	members map[string]int64    // of the state, their events
}

// around is what a state before an event, or before one that it builds on, has otherwise than the one before our join.
type around struct {
	differs map[Key]int64 // 0 where there is nothing
	of      id.EventID    // the prev event, "" for the event itself
}

const (
	// For so many sets of missing prev events other servers say the state around them before the room is whole.
	maxAround = 200
	// So often is asked for the states around events that came while we asked for those around others.
	aroundRounds = 10
	// After so many tries in vain an event is given the state that we make of what we know, and asked about again later.
	aroundPatience = 3
	aroundServers  = 5
	aroundFailures = 3 // and then the room waits for the next try
	aroundTime     = 30 * time.Second
	slowAnswer     = 5 * time.Second
)

// errUntold: nobody tells now what the state before an event was that the room needs to be whole.
var errUntold = errors.New("nobody tells the state before an event whose prev events are missing")

// errNobodyKnows: also the server of who sent it says that it does not know.
var errNobodyKnows = errors.New("nobody knows the state before an event whose prev events are missing")

// complete makes a room whole whose state is stored. It stays partial as long as there are events with missing prev
// events around which nobody tells the state, but not for ever: untold is how often that was so.
func (s *Server) complete(ctx context.Context, f *rest, untold int) error {
	t, err := s.gather(ctx, f)
	if err != nil {
		return err
	}
	if err := s.correctMembers(ctx, f, t); err != nil {
		return err
	}
	for range aroundRounds {
		var gaps []noted
		if err := s.in(ctx, id.RoomID(f.room.ID), func(r *room) error {
			if r.partial == nil || r.partial.join != f.join.NID {
				return errOvertaken
			}
			gaps, err = r.becomeWhole(t)
			return err
		}); err != nil || len(gaps) == 0 {
			return err
		}
		if err := s.around(ctx, f, t, gaps, untold); err != nil {
			return err
		}
	}
	return errUntold
}

// around asks for the states before events with missing prev events. An event of the past moves nothing: that nobody
// tells its state does not keep the room from being whole.
func (s *Server) around(ctx context.Context, f *rest, t *truth, gaps []noted, untold int) error {
	others, err := s.otherServers(ctx, id.RoomID(f.room.ID))
	if err != nil {
		return err
	}
	failures := 0
	failing := map[string]bool{} // servers that let us wait in vain: once is enough
	late := time.Now().Add(aroundTime)
	for _, p := range gaps {
		on := fmt.Sprint(slices.Sorted(slices.Values(p.PrevEvents())))
		if list, ok := t.told[on]; ok {
			t.around[p.NID] = list
			continue
		}
		if len(t.told) >= maxAround {
			t.untold[p.NID] = true
			continue
		}
		list, err := []around(nil), errUntold
		if time.Now().Before(late) {
			list, err = f.stateAround(ctx, p.Stored, t, others, failing)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			t.around[p.NID], t.told[on] = list, list
			continue
		}
		s.Log.Info("nobody gives the state around an event", zap.String("event", string(p.ID())), zap.Error(err))
		if p.history || untold >= aroundPatience || errors.Is(err, errNobodyKnows) {
			t.untold[p.NID] = true
		} else if failures++; failures >= aroundFailures {
			break
		}
	}
	if failures > 0 {
		return errUntold
	}
	return nil
}

// gather reads what the state is made of.
func (s *Server) gather(ctx context.Context, f *rest) (*truth, error) {
	rows, err := f.rows(ctx)
	if err != nil {
		return nil, err
	}
	slots := map[Key]int64{}
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		list, err := tx.AllSlots(f.room.NID)
		for _, v := range list {
			slots[Key{v.Type, v.StateKey}] = v.Slot
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	t := &truth{join: f.join.NID, server: f.server, lacks: f.lacks, state: make(map[int64]int64, len(rows)), rows: map[Key]int64{}, slots: slots,
		around: map[int64][]around{}, told: map[string][]around{}, untold: map[int64]bool{}, members: map[string]int64{}}
	put := func(row storage.StateRow) {
		key := Key{row.Type, row.StateKey}
		if slot, ok := slots[key]; ok {
			t.state[slot] = row.NID
		} else {
			t.rows[key] = row.NID
		}
		if row.Type == "m.room.member" {
			t.members[row.StateKey] = row.NID
		}
	}
	rows = notRejected(rows)
	slices.SortFunc(rows, func(a, b storage.StateRow) int { return int(a.NID - b.NID) }) // who names two of a key has no say
	for _, row := range rows {
		put(row)
	}
	if f.on != "" {
		on := &rest{s: s, room: f.room, ids: []id.EventID{f.on}}
		after, err := on.rows(ctx)
		if err != nil {
			return nil, err
		}
		for _, row := range notRejected(after) {
			put(row)
		}
	}
	if slot, ok := slots[Key{"m.room.create", ""}]; !ok || t.state[slot] == 0 {
		return nil, fmt.Errorf("the state that %s gives has not this room's create event", f.server)
	}
	return t, ctx.Err()
}

// has is the event of the state before our join for a key, 0 when there is none.
func (t *truth) has(key Key) int64 {
	if slot, ok := t.slots[key]; ok {
		return t.state[slot]
	}
	return t.rows[key]
}

// differs is what a state has otherwise than the one before our join.
func (t *truth) differs(pieces []piece) map[Key]int64 {
	out := map[Key]int64{}
	seen := make(map[Key]bool, len(pieces))
	for _, p := range pieces {
		seen[p.Key] = true
		if t.has(p.Key) != p.nid {
			out[p.Key] = p.nid
		}
	}
	for key, slot := range t.slots {
		if !seen[key] && t.state[slot] != 0 {
			out[key] = 0
		}
	}
	for key := range t.rows {
		if !seen[key] {
			out[key] = 0
		}
	}
	return out
}

// gapsIn lists the events that were judged by a part of the state and whose prev events are missing, of which nobody was
// asked yet what the state before them was. What is held is judged before what builds on it.
func (r *room) gapsIn(list []noted, t *truth) (gaps []noted, err error) {
	held := map[id.EventID]bool{}
	for _, p := range list {
		held[p.ID()] = !p.isJudged()
	}
	for _, p := range list {
		if _, told := t.around[p.NID]; told || t.untold[p.NID] || p.NID == t.join {
			continue
		}
		n := &needs{}
		if _, err := r.prevOf(p.Event, n); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(n.prev, func(v id.EventID) bool { return !held[v] }) {
			gaps = append(gaps, p)
		}
	}
	return gaps, nil
}

// noted is an event that was judged by a part of the state.
type noted struct {
	*Stored
	seq     int64
	history bool
}

// seqOf finds the place of an event in the order in which they came.
func seqOf(list []noted, nid int64) int64 {
	for _, p := range list {
		if p.NID == nid {
			return p.seq
		}
	}
	return 0
}

func (r *room) partialEvents() (list []noted, err error) {
	// Those under way to storage are awaited: the list is read from there.
	if err := r.settled(); err != nil {
		return nil, err
	}
	var rows []storage.PartialEvent
	if err := r.read(func(tx storage.Tx) (err error) {
		rows, err = tx.PartialEvents(r.row.NID)
		return err
	}); err != nil {
		return nil, err
	}
	nids := make([]int64, len(rows))
	for i, p := range rows {
		nids[i] = p.Event
	}
	events, err := r.events(nids)
	for _, p := range rows {
		if ev := events[p.Event]; ev != nil {
			list = append(list, noted{ev, p.Seq, p.History})
		}
	}
	return list, err
}

// correctMembers makes the table of members that of the fetched state, as far as it differs and nobody has changed
// since. Mostly it does not: rows came with their events.
func (s *Server) correctMembers(ctx context.Context, f *rest, t *truth) error {
	var is map[string]int64
	if err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		is, err = tx.MemberEvents(f.room.NID)
		return err
	}); err != nil {
		return fmt.Errorf("read the members: %w", err)
	}
	var wrong []string
	for user, event := range t.members {
		if is[user] != event {
			wrong = append(wrong, user)
		}
	}
	for user := range is {
		if t.members[user] == 0 {
			wrong = append(wrong, user)
		}
	}
	slices.Sort(wrong)
	for piece := range slices.Chunk(wrong, restPiece) {
		if err := s.inAs(ctx, caller{theirs, f.server}, id.RoomID(f.room.ID), func(r *room) error {
			if r.partial == nil || r.partial.join != f.join.NID {
				return errOvertaken
			}
			return r.correct(piece, t)
		}); err != nil {
			return err
		}
	}
	return nil
}

// correct writes the rows of some members, but of those whom the partial state knows better.
func (r *room) correct(users []string, t *truth) error {
	keys := make([]Key, len(users))
	for i, u := range users {
		keys[i] = Key{"m.room.member", u}
	}
	known, err := r.stateAt(state.Root(r.row.Root), keys)
	if err != nil {
		return err
	}
	var nids []int64
	for _, u := range users {
		nids = append(nids, t.members[u])
	}
	events, err := r.events(nids)
	if err != nil {
		return err
	}
	m := &moves{}
	for i, u := range users {
		switch ev := events[nids[i]]; {
		case known[keys[i]] != nil:
		case ev != nil:
			m.members = append(m.members, memberRow(r.row.NID, u, ev))
		default:
			m.notMember = append(m.notMember, u)
		}
	}
	r.commit(&additions{}, func(tx storage.Tx) error {
		m.write(tx, r.row.NID, string(r.id))
		return nil
	})
	return nil
}

// writeLater keeps what cannot be judged yet for later, and notes where it is missing.
func (w *restating) writeLater(tx storage.Tx) {
	since := time.Now().UnixMilli()
	for _, s := range slices.SortedFunc(maps.Values(w.later), func(a, b *Stored) int { return int(a.NID - b.NID) }) {
		origin := s.Sender().Homeserver()
		if origin == w.r.s.ServerName {
			origin = w.t.server
		}
		tx.AddUnjudged(storage.Unjudged{Room: s.Room, ID: string(s.ID()), Origin: origin, Since: since, JSON: s.JSON()})
		for nid, a := range w.news {
			if a.Status == storage.Accepted && slices.Contains(a.PrevEvents(), s.ID()) {
				tx.AddMissing(s.Room, nid, string(s.ID()))
			}
		}
	}
}
