package roomserver

import (
	"fmt"
	"maps"
	"slices"

	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// restating walks forward through the events that were judged by a part of the state.
type restating struct {
	r    *room
	t    *truth
	base state.Root          // the state before our join
	news map[int64]*addition // by event, what it is now
	past map[int64]bool      // events of the past: they were placed below others, and moved nothing
	ends []*Stored
	now  state.Root // the room's, as it was when the event in hand came

	guessed []int64             // events the state before which nobody tells
	shaky   map[id.EventID]bool // these, and those the state before which follows from what we make of it
	later   map[int64]*Stored   // those of both that are not allowed by it: another time they may be
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
	list = slices.DeleteFunc(list, func(p noted) bool { return p.seq < join && p.Status == storage.Outlier })
	for i := range list { // of when we were here before: it moves nothing
		list[i].history = list[i].history || list[i].seq < join
	}
	if gaps, err = r.gapsIn(list, t); err != nil || len(gaps) > 0 {
		return gaps, err
	}
	seemed := state.Root(r.row.Root)
	w := &restating{r: r, t: t, news: make(map[int64]*addition, len(list)), past: map[int64]bool{},
		shaky: map[id.EventID]bool{}, later: map[int64]*Stored{}}
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
		endPartial(tx, row)
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
		slot, err := r.keptSlot(key)
		if err != nil {
			return 0, err
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
	shaky := guessed || slices.ContainsFunc(p.PrevEvents(), func(v id.EventID) bool { return w.shaky[v] })
	if shaky {
		w.shaky[s.ID()] = true
	}
	switch {
	case shaky && s.Status == storage.Rejected && r.passesOwnAuth(p.Event, auths) == nil:
		s.Status, s.Before, s.After = storage.Outlier, 0, 0
		w.later[s.NID] = &s
	case guessed:
		w.guessed = append(w.guessed, s.NID)
	}
	a := &addition{Stored: &s, known: true, restated: true, awaited: !p.isJudged() && s.isJudged()}
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
	w.news[s.NID], w.past[s.NID] = a, p.history
	// Whatever is looked up from now on has its true state.
	r.pending[s.NID], r.pendingID[s.ID()] = &s, &s
	if s.Status != storage.Accepted {
		return nil
	}
	prev, err := r.prevOf(s.Event, &needs{})
	if err != nil {
		return err
	}
	if err := r.noteBuiltOn(a, how{status: s.Status, prev: prev}); err != nil {
		return err
	}
	if p.history {
		return nil
	}
	s.Placed = true
	kept := make([]*Stored, 0, len(w.ends)+1)
	for _, e := range w.ends {
		if !slices.Contains(a.builtOn, e.ID()) {
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
	if list, ok := w.t.around[p.NID]; ok {
		root, err = w.told(roots, list)
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

// told is the state before an event that another server told, or that follows from those before the prev events that are
// not here and from the states after the others.
func (w *restating) told(roots []state.Root, list []around) (state.Root, error) {
	for _, a := range list {
		root, err := w.r.withKeys(w.base, a.differs)
		if err != nil || a.of == "" {
			return root, err
		}
		if root, err = w.r.stateAfter(root, a.of); err != nil {
			return 0, err
		}
		roots = append(roots, root)
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
	n := &needs{}
	prev, err := w.r.prevOf(p.Event, n)
	if err != nil {
		return 0, err
	}
	gap := len(n.prev) > 0 || slices.ContainsFunc(prev, func(s *Stored) bool { return w.past[s.NID] })
	if err := w.r.allowedNow(p.Event, w.now, before, gap); err != nil {
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
	a.facts = append([]storage.Fact{r.factOf(a)}, a.facts...)
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
	for _, v := range a.missing { // beneath what seemed to be allowed, and is not: no gap there is seen any more
		tx.AddMissing(a.Room, a.NID, string(v))
	}
	if a.awaited {
		tx.RemoveMissing(a.Room, string(a.ID()))
	}
	if err := a.writeBearing(tx); err != nil {
		return err
	}
	for _, f := range a.facts {
		tx.Announce(f)
	}
	return nil
}
