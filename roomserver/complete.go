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
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// truth is what a room needs to become whole: the state before our join, and what the states before events with
// missing prev events have otherwise.
type truth struct {
	join    int64
	server  string                   // that told it
	lacks   bool                     // not all of it is here
	state   map[int64]int64          // by slot
	rows    map[Key]int64            // what has no slot yet
	slots   map[Key]int64            // what has one
	around  map[int64]map[Key]int64  // by event; 0 where there is nothing
	told    map[string]map[Key]int64 // the same by the prev events: what builds on the same has the same state before it
	untold  map[int64]bool           // events around which nobody tells the state
	members map[string]int64         // of the state, their events
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
		if differs, ok := t.told[on]; ok {
			t.around[p.NID] = differs
			continue
		}
		if len(t.told) >= maxAround {
			t.untold[p.NID] = true
			continue
		}
		differs, err := map[Key]int64(nil), errUntold
		if time.Now().Before(late) {
			differs, err = f.stateAround(ctx, p.Stored, t, others, failing)
		}
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil:
			t.around[p.NID], t.told[on] = differs, differs
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
		around: map[int64]map[Key]int64{}, told: map[string]map[Key]int64{}, untold: map[int64]bool{}, members: map[string]int64{}}
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
func (t *truth) differs(rows []storage.StateRow) map[Key]int64 {
	out := map[Key]int64{}
	seen := make(map[Key]bool, len(rows))
	for _, row := range rows {
		key := Key{row.Type, row.StateKey}
		seen[key] = true
		if t.has(key) != row.NID {
			out[key] = row.NID
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
// asked yet what the state before them was.
func (r *room) gapsIn(list []noted, t *truth) (gaps []noted, err error) {
	for _, p := range list {
		if _, told := t.around[p.NID]; told || t.untold[p.NID] || p.NID == t.join {
			continue
		}
		n := &needs{}
		if _, err := r.prevOf(p.Event, n); err != nil {
			return nil, err
		}
		if len(n.prev) > 0 {
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

// restating walks forward through the events that were judged by a part of the state.
type restating struct {
	r    *room
	t    *truth
	base state.Root          // the state before our join
	news map[int64]*addition // by event, what it is now
	ends []*Stored
	now  state.Root // the room's, as it was when the event in hand came

	guessed []int64           // events the state before which nobody tells
	later   map[int64]*Stored // and those that are not allowed by what we make of it: another time they may be
}

// becomeWhole gives every event that was judged by a part of the state its true state, judges it again, and tells
// what is other than it seemed. While there are gaps around which the state is not known it does nothing, and lists them.
//
// spec: msc3902
func (r *room) becomeWhole(t *truth) (gaps []noted, err error) {
	defer r.distrust(&err)
	list, err := r.partialEvents()
	if err != nil {
		return nil, err
	}
	join := seqOf(list, t.join)
	for i := range list { // of when we were here before: it moves nothing
		list[i].history = list[i].history || list[i].seq < join
	}
	if gaps, err = r.gapsIn(list, t); err != nil || len(gaps) > 0 {
		return gaps, err
	}
	seemed := state.Root(r.row.Root)
	w := &restating{r: r, t: t, news: make(map[int64]*addition, len(list)), later: map[int64]*Stored{}}
	if w.base, err = r.rootOfTruth(t); err != nil {
		return nil, err
	}
	for _, p := range prevFirst(list) {
		if err := w.restate(p); err != nil {
			return nil, fmt.Errorf("judge %s again: %w", p.ID(), err)
		}
	}
	if w.now == 0 {
		return nil, fmt.Errorf("the state that was fetched does not let us join")
	}
	r.row.Root, r.row.Partial, r.partial = int64(w.now), false, nil
	m, err := r.seemedOther(seemed, w)
	if err != nil {
		return nil, err
	}
	all := &additions{}
	for _, p := range list {
		a := w.news[p.NID]
		if a.Placed && !p.Placed {
			if err := r.placeLate(a); err != nil {
				return nil, err
			}
		}
		all.list = append(all.list, a)
	}
	was, is := nidsOf(r.exts), nidsOf(w.ends)
	nodes, slots, row := r.array.Take(), r.newSlots, r.row
	r.newSlots = nil
	if len(all.list) > 0 {
		all.list[0].nodes = nodes
	}
	r.commit(all, func(tx storage.Tx) error {
		tx.UpdateRoom(row)
		if err := copyNodes(tx, row.NID, nodes); err != nil {
			return err
		}
		if err := tx.CopySlots(row.NID, slots); err != nil {
			return err
		}
		for _, a := range all.list {
			if err := a.writeAgain(tx); err != nil {
				return err
			}
		}
		w.writeLater(tx)
		tx.KeepPartialEvents(row.NID, w.guessed)
		for _, n := range was {
			if !slices.Contains(is, n) {
				tx.RemoveExtremity(row.NID, n)
			}
		}
		for _, n := range is {
			if !slices.Contains(was, n) {
				tx.AddExtremity(row.NID, n)
			}
		}
		m.write(tx, row.NID, row.ID)
		tx.EndInvites(row.NID, row.ID, r.s.ServerName)
		for _, f := range m.facts {
			tx.Announce(f)
		}
		tx.Announce(storage.Fact{Kind: sql.FactRoomComplete, Room: row.NID, Root: row.Root})
		tx.EndPartial(row.NID)
		return nil
	})
	// What is in memory has the old roots; the room is read again.
	r.loaded = false
	return nil, nil
}

func nidsOf(events []*Stored) (nids []int64) {
	for _, e := range events {
		nids = append(nids, e.NID)
	}
	return nids
}

func copyNodes(tx storage.Tx, room int64, nodes []state.NewNode) error {
	ids, data := make([]int64, len(nodes)), make([][]byte, len(nodes))
	for i, n := range nodes {
		ids[i], data[i] = n.ID, n.Data
	}
	return tx.CopyStateNodes(room, ids, data)
}

// rootOfTruth makes the state before our join.
func (r *room) rootOfTruth(t *truth) (state.Root, error) {
	root, err := r.array.Set(0, t.state)
	if err != nil {
		return 0, err
	}
	return r.withKeys(root, t.rows)
}

// withKeys changes a state; what is 0 is taken out of it.
func (r *room) withKeys(root state.Root, changes map[Key]int64) (state.Root, error) {
	if err := r.learnSlots(slices.Collect(maps.Keys(changes))...); err != nil {
		return 0, err
	}
	of := make(map[int64]int64, len(changes))
	for key, nid := range changes {
		slot, isNew, err := r.takeSlot(key)
		if err != nil {
			return 0, err
		}
		if isNew {
			r.newSlots = append(r.newSlots, storage.Slot{Slot: slot, Type: key.Type, StateKey: key.StateKey})
		}
		of[slot] = nid
	}
	return r.array.Set(root, of)
}

// prevFirst sorts events so that each comes after those of them that it builds on and cites, else as they came.
func prevFirst(list []noted) []noted {
	at := make(map[id.EventID]int, len(list))
	for i, p := range list {
		at[p.ID()] = i
	}
	out := make([]noted, 0, len(list))
	mark := make([]int, len(list)) // 1: under way, 2: done
	for i := range list {
		walk := []int{i}
		for len(walk) > 0 {
			n := walk[len(walk)-1]
			if mark[n] == 0 {
				mark[n] = 1
				for _, v := range slices.Concat(list[n].PrevEvents(), list[n].AuthEvents()) {
					if j, ok := at[v]; ok && mark[j] == 0 {
						walk = append(walk, j)
					}
				}
				continue
			}
			walk = walk[:len(walk)-1]
			if mark[n] == 1 {
				mark[n] = 2
				out = append(out, list[n])
			}
		}
	}
	return out
}

// restate judges one event by its true state.
func (w *restating) restate(p noted) error {
	r := w.r
	auths, err := r.authOf(p.Event, &needs{})
	if err != nil {
		return err
	}
	for i, a := range auths {
		if n := w.news[a.NID]; n != nil {
			auths[i] = n.Stored
		}
	}
	before, guessed, err := w.before(p, auths)
	if err != nil {
		return err
	}
	s := *p.Stored
	s.Before, s.After = before, before
	if s.Status, err = w.judge(p, before, auths); err != nil {
		return err
	}
	switch {
	case !guessed:
	case s.Status == storage.Rejected && r.passesOwnAuth(p.Event, auths) == nil:
		s.Status, s.Before, s.After = storage.Outlier, 0, 0
		w.later[s.NID] = &s
	default:
		w.guessed = append(w.guessed, s.NID)
	}
	a := &addition{Stored: &s, known: true, restated: true}
	key, isState := s.StateKey()
	if isState && s.isJudged() && s.Status != storage.Rejected {
		if err := r.setState(a, Key{s.Type(), key}); err != nil {
			return err
		}
		r.newSlots = append(r.newSlots, a.slots...)
		a.slots = nil
	}
	if s.Status != storage.Accepted {
		s.Ord, s.Placed = 0, false
	}
	w.news[s.NID] = a
	// Whatever is looked up from now on has its true state.
	r.pending[s.NID], r.pendingID[s.ID()] = &s, &s
	if s.Status != storage.Accepted || p.history {
		return nil
	}
	s.Placed = true
	prev := s.PrevEvents()
	kept := make([]*Stored, 0, len(w.ends)+1)
	for _, e := range w.ends {
		if !slices.Contains(prev, e.ID()) {
			kept = append(kept, e)
		}
	}
	if len(kept) >= maxEnds {
		kept = kept[1:]
	}
	w.ends = append(kept, &s)
	w.now, err = r.resolve(rootsAfter(w.ends))
	return err
}

// before is the state before an event. Where nobody tells it, it is guessed.
func (w *restating) before(p noted, auths []*Stored) (root state.Root, guessed bool, err error) {
	if p.NID == w.t.join {
		return w.base, w.t.lacks, nil
	}
	n := &needs{}
	prev, err := w.r.prevOf(p.Event, n)
	if err != nil {
		return 0, false, err
	}
	roots := rootsAfter(prev)
	if len(n.prev) == 0 {
		root, err = w.r.resolve(roots)
		return root, false, err
	}
	if differs, ok := w.t.around[p.NID]; ok {
		root, err = w.r.withKeys(w.base, differs)
		return root, false, err
	}
	if p.history || w.now == 0 {
		roots = append(roots, w.base)
	} else {
		roots = append(roots, w.now)
	}
	if root, err = w.r.resolve(roots); err != nil {
		return 0, false, err
	}
	root, err = w.r.guess(nil, auths, root)
	return root, true, err
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

// judge applies the checks of a received event; the room's state is that at its receipt.
func (w *restating) judge(p noted, before state.Root, auths []*Stored) (storage.EventStatus, error) {
	if p.history && p.Status == storage.Rejected {
		return storage.Rejected, nil // it has no place to come back to
	}
	status, err := w.r.judgePast(p.Event, before, auths)
	if err != nil || status == storage.Rejected || p.history || p.NID == w.t.join || w.now == 0 {
		return status, err
	}
	if err := w.r.allowedBy(p.Event, w.now); err != nil {
		if !isRejection(err) {
			return 0, err
		}
		return storage.SoftFailed, nil
	}
	return storage.Accepted, nil
}

// placeLate gives an event that was refused by a part of the state, and is allowed by all of it, the newest place.
func (r *room) placeLate(a *addition) error {
	r.high++
	a.Ord, a.Placed = r.high, true
	if err := r.noteRedaction(a); err != nil {
		return err
	}
	r.noteRelation(a)
	if err := r.noteNotifications(a); err != nil {
		return err
	}
	fact := storage.Fact{Kind: sql.FactEvent, Room: r.row.NID, Event: a.NID, Ord: a.Ord, Root: r.row.Root}
	if a.Type() == "m.room.member" {
		fact.User, _ = a.StateKey()
	}
	a.facts = append([]storage.Fact{fact}, a.facts...)
	return nil
}

// seemedOther finds the members who are not what the partial state said, and writes those who are not what the fetched
// state said. Those whom nobody had seen are told of by "room complete" alone.
func (r *room) seemedOther(seemed state.Root, w *restating) (*moves, error) {
	m := &moves{}
	shown, err := r.membersBetween(0, seemed)
	if err != nil {
		return nil, err
	}
	since, err := r.membersBetween(w.base, w.now)
	if err != nil {
		return nil, err
	}
	users := map[string]bool{}
	for _, list := range []map[string]state.Change{shown, since} {
		for user := range list {
			users[user] = true
		}
	}
	keys := make([]Key, 0, len(users))
	for user := range users {
		keys = append(keys, Key{"m.room.member", user})
	}
	is, err := r.stateAt(w.now, keys)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		ev := is[k]
		if ev != nil {
			m.members = append(m.members, memberRow(r.row.NID, k.StateKey, ev))
		} else {
			m.notMember = append(m.notMember, k.StateKey)
		}
		if was, ok := shown[k.StateKey]; ok && (ev == nil || ev.NID != was.Is) {
			m.facts = append(m.facts, storage.Fact{Kind: sql.FactState, Room: r.row.NID, Root: int64(w.now), User: k.StateKey})
			m.users = append(m.users, id.UserID(k.StateKey))
		}
	}
	if len(m.users) > 0 {
		r.s.Log.Info("members of a partial room were not what they seemed", zap.String("room", string(r.id)), zap.Strings("members", named(m.users)))
	}
	return m, nil
}

// membersBetween lists the users whose membership differs between two states.
func (r *room) membersBetween(was, is state.Root) (map[string]state.Change, error) {
	changes, err := r.array.Diff(was, is)
	if err != nil {
		return nil, err
	}
	slots := make([]int64, len(changes))
	for i, c := range changes {
		slots[i] = c.Slot
	}
	keys, err := r.keysOf(slots)
	if err != nil {
		return nil, err
	}
	out := map[string]state.Change{}
	for _, c := range changes {
		if k := keys[c.Slot]; k.Type == "m.room.member" {
			out[k.StateKey] = c
		}
	}
	return out, nil
}

// writeAgain is write for an event that is stored and was judged again.
func (a *addition) writeAgain(tx storage.Tx) error {
	tx.RestateEvent(a.Stored.row(a.notify))
	if err := a.writeBearing(tx); err != nil {
		return err
	}
	for _, f := range a.facts {
		tx.Announce(f)
	}
	return nil
}
