package roomserver

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// truth is what a room needs to become whole: the state before our join, and what the states before events with
// missing prev events have otherwise.
type truth struct {
	join int64
	pieces
	around  map[int64]*pieces  // by event: in what that state differs
	told    map[string]*pieces // the same by the prev events, nil where nobody told
	looked  map[int64]bool     // events of which it is known whether prev events are missing
	members map[string]int64   // of the state, their events
}

// pieces are events of a state, 0 for what it has not.
type pieces struct {
	state map[int64]int64 // by slot
	rows  map[Key]int64   // what has no slot yet
}

func newPieces() pieces { return pieces{map[int64]int64{}, map[Key]int64{}} }

const (
	// For so many sets of missing prev events other servers say the state around them; other events get the room's.
	maxAround = 20
	// How often we ask for the states around events that came while we asked for those of others.
	aroundRounds = 5
)

// complete makes a room whole whose state is stored.
func (s *Server) complete(ctx context.Context, f *rest) error {
	t, err := s.gather(ctx, f)
	if err != nil {
		return err
	}
	if err := s.correctMembers(ctx, f, t); err != nil {
		return err
	}
	for round := 1; ; round++ {
		var gaps []*Stored
		if err := s.in(ctx, id.RoomID(f.room.ID), func(r *room) error {
			if r.partial == nil || r.partial.join != f.join.NID {
				return errOvertaken
			}
			if gaps, err = r.partialGaps(f.join.NID, t.looked); err != nil || len(gaps) > 0 && round < aroundRounds {
				return err
			}
			gaps = nil
			return r.becomeWhole(t)
		}); err != nil || len(gaps) == 0 {
			return err
		}
		if err := f.askAround(ctx, t, gaps); err != nil {
			return err
		}
	}
}

// gather reads what the state is made of, and asks for the states around events with missing prev events.
func (s *Server) gather(ctx context.Context, f *rest) (*truth, error) {
	rows, err := f.rows(ctx)
	if err != nil {
		return nil, err
	}
	slots, err := f.slots(ctx)
	if err != nil {
		return nil, err
	}
	t := &truth{join: f.join.NID, pieces: newPieces(), around: map[int64]*pieces{}, told: map[string]*pieces{}, looked: map[int64]bool{}, members: map[string]int64{}}
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
		for _, row := range after {
			put(row)
		}
	}
	if slot, ok := slots[Key{"m.room.create", ""}]; !ok || t.state[slot] == 0 {
		return nil, fmt.Errorf("the state that %s gives has not this room's create event", f.server)
	}
	var gaps []*Stored
	if err := s.in(ctx, id.RoomID(f.room.ID), func(r *room) error {
		gaps, err = r.partialGaps(f.join.NID, t.looked)
		return err
	}); err != nil {
		return nil, err
	}
	return t, f.askAround(ctx, t, gaps)
}

// slots reads the slots of all that the room ever had in its state.
func (f *rest) slots(ctx context.Context) (map[Key]int64, error) {
	slots := map[Key]int64{}
	return slots, f.s.DB.Read(ctx, func(tx storage.Tx) error {
		list, err := tx.AllSlots(f.room.NID)
		for _, v := range list {
			slots[Key{v.Type, v.StateKey}] = v.Slot
		}
		return err
	})
}

// askAround asks for the states around events with missing prev events. Those that build on the same have the same.
func (f *rest) askAround(ctx context.Context, t *truth, gaps []*Stored) error {
	for _, ev := range gaps {
		on := fmt.Sprint(slices.Sorted(slices.Values(ev.PrevEvents())))
		around, asked := t.told[on]
		if !asked && len(t.told) < maxAround {
			var err error
			if around, err = f.stateAround(ctx, ev, t.pieces); err != nil {
				f.s.Log.Debug("nobody gives the state around an event", zap.String("event", string(ev.ID())), zap.Error(err))
			}
			t.told[on] = around
		}
		if around != nil {
			t.around[ev.NID] = around
		}
	}
	return ctx.Err()
}

// partialGaps lists the events that were judged by a part of the state and have missing prev events, but our join and
// those that were looked at before.
func (r *room) partialGaps(join int64, looked map[int64]bool) (gaps []*Stored, err error) {
	noted, err := r.partialEvents()
	if err != nil {
		return nil, err
	}
	for _, p := range noted {
		n := &needs{}
		if p.NID == join || looked[p.NID] {
			continue
		}
		looked[p.NID] = true
		if _, err := r.prevOf(p.Event, n); err != nil {
			return nil, err
		}
		if len(n.prev) > 0 {
			gaps = append(gaps, p.Stored)
		}
	}
	return gaps, nil
}

// noted is an event that was judged by a part of the state.
type noted struct {
	*Stored
	history bool
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
			list = append(list, noted{ev, p.History})
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
	if err := r.learnSlots("m.room.member", users); err != nil {
		return err
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
}

// becomeWhole gives every event that was judged by a part of the state its true state, judges it again, and tells
// what is other than it seemed.
//
// spec: msc3902
func (r *room) becomeWhole(t *truth) (err error) {
	defer r.distrust(&err)
	list, err := r.partialEvents()
	if err != nil {
		return err
	}
	seemed := state.Root(r.row.Root)
	w := &restating{r: r, t: t, news: make(map[int64]*addition, len(list))}
	if w.base, err = r.rootWith(0, &t.pieces); err != nil {
		return err
	}
	for _, p := range prevFirst(list) {
		if err := w.restate(p); err != nil {
			return fmt.Errorf("judge %s again: %w", p.ID(), err)
		}
	}
	if w.now == 0 {
		return fmt.Errorf("the state that was fetched does not let us join")
	}
	r.row.Root, r.row.Partial, r.partial = int64(w.now), false, nil
	m, err := r.seemedOther(seemed, w)
	if err != nil {
		return err
	}
	all := &additions{}
	for _, p := range list {
		a := w.news[p.NID]
		if a.Placed && !p.Placed {
			if err := r.placeLate(a); err != nil {
				return err
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
	return nil
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

// rootWith puts pieces into a state.
func (r *room) rootWith(base state.Root, p *pieces) (state.Root, error) {
	changes := maps.Clone(p.state)
	for key, nid := range p.rows {
		slot, isNew, err := r.takeSlot(key)
		if err != nil {
			return 0, err
		}
		if isNew {
			r.newSlots = append(r.newSlots, storage.Slot{Slot: slot, Type: key.Type, StateKey: key.StateKey})
		}
		changes[slot] = nid
	}
	return r.array.Set(base, changes)
}

// prevFirst sorts events so that each comes after those of them that it builds on, else as they came.
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
				for _, v := range list[n].PrevEvents() {
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
	before, err := w.before(p)
	if err != nil {
		return err
	}
	auths, err := r.authOf(p.Event, &needs{})
	if err != nil {
		return err
	}
	for i, a := range auths {
		if n := w.news[a.NID]; n != nil {
			auths[i] = n.Stored
		}
	}
	s := *p.Stored
	s.Before, s.After = before, before
	if s.Status, err = w.judge(p, before, auths); err != nil {
		return err
	}
	a := &addition{Stored: &s, known: true, restated: true}
	key, isState := s.StateKey()
	if isState && s.Status != storage.Rejected {
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

// before is the state before an event.
func (w *restating) before(p noted) (state.Root, error) {
	if p.NID == w.t.join {
		return w.base, nil
	}
	n := &needs{}
	prev, err := w.r.prevOf(p.Event, n)
	if err != nil {
		return 0, err
	}
	roots := rootsAfter(prev)
	if len(n.prev) > 0 {
		if differs, ok := w.t.around[p.NID]; ok {
			return w.r.rootWith(w.base, differs)
		}
		if p.history || w.now == 0 {
			roots = append(roots, w.base)
		} else {
			roots = append(roots, w.now)
		}
	}
	return w.r.resolve(roots)
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
	if len(a.notifications) > 0 {
		if err := tx.InsertNotifications(a.notifications); err != nil {
			return err
		}
	}
	if a.relation != nil {
		tx.InsertRelation(*a.relation)
	}
	if a.redacts != nil {
		tx.RedactEvent(a.redacts.target, string(a.redacts.by), a.redacts.text)
		tx.DeleteRelation(a.redacts.target)
	}
	if a.Placed && a.Redacts() != "" {
		tx.InsertRedaction(a.Room, string(a.Redacts()), string(a.ID()), a.NID)
	}
	for _, f := range a.facts {
		tx.Announce(f)
	}
	return nil
}
