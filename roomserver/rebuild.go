package roomserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"

	"chancery"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Rebuilt is what came out when a room's state was resolved again from its events.
type Rebuilt struct {
	Room    id.RoomID `json:"room_id"`
	Events  int       `json:"events"`       // that were looked at
	Trusted int       `json:"taken_as_are"` // of these, whose prev events are not all here: the state before them was given by another server
	Differ  int       `json:"differ"`       // events that have another state before or after them than is stored
	Judged  []Verdict `json:"judged_otherwise"`
	Changes []Moved   `json:"changes"` // of the room's current state
	Applied bool      `json:"applied"`
}

// Verdict is an event that the rules judge otherwise by the state that was found to be before it.
type Verdict struct {
	Brief
	Now string `json:"now"` // allowed or refused
}

// Moved is a piece of the current state that is another; nil where there is none.
type Moved struct {
	Type     string `json:"type"`
	StateKey string `json:"state_key"`
	Was      *Brief `json:"was"`
	Is       *Brief `json:"is"`
}

// Bounds of a rebuild.
const (
	rebuildPiece    = 1000
	maxVerdicts     = 100
	maxMeanwhile    = 2000 // events that may come while it works
	reserveNodes    = 10_000
	maxRebuildNodes = 20_000_000
)

// Rebuild resolves the room's state again: from its create event, or from the lowest events whose state another server
// gave. With apply the room's state, and that of its events, becomes what was found; the room goes on meanwhile. What
// was accepted stays in the history, and what was rejected stays out of it.
func (s *Server) Rebuild(ctx context.Context, roomID id.RoomID, apply bool) (*Rebuilt, error) {
	found, err := s.rebuild(ctx, roomID, 0)
	if err != nil || !apply || found.Differ == 0 && len(found.Changes) == 0 {
		if found == nil {
			return nil, err
		}
		return &found.Rebuilt, err
	}
	// What comes meanwhile is noted as for a collection; the two cannot run at once.
	token := &collection{events: []*Stored{}}
	reserve := 2*found.nodes + reserveNodes
	var base int64
	if err := s.in(ctx, roomID, func(r *room) error { return r.reserveNodes(token, reserve, &base) }); err != nil {
		return nil, err
	}
	defer s.in(context.WithoutCancel(ctx), roomID, func(r *room) error { // it is dropped with the room anyway
		if r.collection == token {
			r.collection = nil
		}
		return nil
	})
	if found, err = s.rebuild(ctx, roomID, base); err != nil {
		return nil, err
	}
	if found.nodes > reserve {
		return nil, errors.New("the room has changed too much meanwhile, try again")
	}
	for piece := range slices.Chunk(found.made, rebuildPiece) {
		err := s.in(ctx, roomID, func(r *room) error {
			if r.collection != token {
				return errDisturbed
			}
			r.commit(&additions{}, func(tx storage.Tx) error {
				for _, n := range piece {
					tx.InsertStateNode(r.row.NID, n.ID, n.Data)
				}
				return nil
			})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if err := s.in(ctx, roomID, func(r *room) error { return r.apply(token, found) }); err != nil {
		return nil, err
	}
	found.Applied = true
	return &found.Rebuilt, nil
}

// reserveNodes takes numbers for nodes that are made beside the room.
func (r *room) reserveNodes(token *collection, count int64, base *int64) error {
	if r.collection != nil {
		return chancery.Errorf(409, chancery.CodeUnknown, "the unused state of the room is being collected: try again in a moment")
	}
	r.collection = token
	*base = r.row.NextNode
	r.row.NextNode += count
	row := r.row
	r.commit(&additions{}, func(tx storage.Tx) error {
		tx.UpdateRoom(row)
		return nil
	})
	return nil
}

// rebuilding is a room while its state is resolved again.
type rebuilding struct {
	Rebuilt
	r      *room
	events []dagEvent
	at     map[id.EventID]int
	moved  map[int64]roots // events with other states than are stored
	made   []state.NewNode
	nodes  int64
	root   state.Root
}

type roots struct{ before, after state.Root }

// dagEvent is an event with what the walk needs; those that are not in the room's graph are left out.
type dagEvent struct {
	nid     int64
	id      id.EventID
	prev    []int
	whole   bool // all prev events are here
	isState bool
	was     roots
	is      roots
}

// rebuild resolves again, beside the room. New nodes are numbered from base, 0 for a look alone.
func (s *Server) rebuild(ctx context.Context, roomID id.RoomID, base int64) (b *rebuilding, err error) {
	b = &rebuilding{Rebuilt: Rebuilt{Room: roomID, Judged: []Verdict{}, Changes: []Moved{}}, at: map[id.EventID]int{}, moved: map[int64]roots{}}
	err = s.aside(ctx, roomID, func(r *room) error {
		b.r = r
		if r.row.Partial {
			return chancery.Errorf(409, chancery.CodeUnknown, "a part of the room's state is still to come: it is resolved again when that is here")
		}
		if base != 0 {
			r.row.NextNode = base
		}
		if err := b.read(ctx); err != nil {
			return err
		}
		for _, i := range b.order() {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := b.resolve(&b.events[i]); err != nil {
				return fmt.Errorf("resolve the state before %s: %w", b.events[i].id, err)
			}
		}
		return b.compare()
	})
	return b, err
}

// read takes in the room's events, a piece at a time.
func (b *rebuilding) read(ctx context.Context) error {
	prevs := [][]id.EventID{}
	ts, nid := int64(math.MinInt64), int64(0)
	for more := true; more; {
		err := b.r.s.DB.Read(ctx, func(tx storage.Tx) error {
			list, err := tx.EventsByTime(b.r.row.NID, ts, nid, rebuildPiece)
			for _, v := range list {
				ts, nid = v.TS, v.NID
				// Known from a state or an auth chain only.
				if v.Status == storage.Outlier || v.RootBefore == 0 && v.Type != "m.room.create" {
					continue
				}
				b.at[id.EventID(v.ID)] = len(b.events)
				was := roots{state.Root(v.RootBefore), state.Root(v.RootAfter)}
				b.events = append(b.events, dagEvent{nid: v.NID, id: id.EventID(v.ID), isState: v.StateKey != nil, was: was, is: was})
				prevs = append(prevs, prevIDs(v.JSON))
			}
			more = len(list) == rebuildPiece
			return err
		})
		if err != nil {
			return fmt.Errorf("read the room's events: %w", err)
		}
	}
	for i, list := range prevs {
		ev := &b.events[i]
		ev.whole = true
		for _, v := range list {
			if at, ok := b.at[v]; ok {
				ev.prev = append(ev.prev, at)
			} else {
				ev.whole = false
			}
		}
	}
	b.Events = len(b.events)
	return nil
}

func prevIDs(text []byte) (ids []id.EventID) {
	for _, v := range gjson.GetBytes(text, "prev_events").Array() {
		if v.IsArray() { // versions 1 and 2 name hashes beside
			v = v.Get("0")
		}
		ids = append(ids, id.EventID(v.Str))
	}
	return ids
}

// order sorts the events so that each comes after its prev events.
func (b *rebuilding) order() []int {
	waits := make([]int, len(b.events))
	next := make([][]int32, len(b.events))
	for i := range b.events {
		for _, p := range b.events[i].prev {
			waits[i]++
			next[p] = append(next[p], int32(i))
		}
	}
	order := make([]int, 0, len(b.events))
	for i := range b.events {
		if waits[i] == 0 {
			order = append(order, i)
		}
	}
	for done := 0; done < len(order); done++ {
		for _, n := range next[order[done]] {
			if waits[n]--; waits[n] == 0 {
				order = append(order, int(n))
			}
		}
	}
	return order
}

// resolve finds the states before and after an event again, and judges it again where the one before is another.
func (b *rebuilding) resolve(ev *dagEvent) error {
	r := b.r
	before := ev.was.before
	switch {
	case !ev.whole:
		b.Trusted++
	case len(ev.prev) > 0:
		var list []state.Root
		for _, p := range ev.prev {
			if root := b.events[p].is.after; !slices.Contains(list, root) {
				list = append(list, root)
			}
		}
		root, err := r.resolve(list)
		if err != nil {
			return err
		}
		same, err := r.array.Diff(root, ev.was.before)
		if err != nil {
			return err
		}
		if len(same) > 0 {
			before = root
		}
	}
	if before == ev.was.before && !ev.isState {
		ev.is = roots{before, before}
		return b.note(ev)
	}
	found, err := r.events([]int64{ev.nid})
	if err != nil {
		return err
	}
	stored := found[ev.nid]
	counts := stored.Status != storage.Rejected
	if before != ev.was.before {
		auths, err := r.eventsByID(stored.AuthEvents())
		if err != nil {
			return err
		}
		list := make([]*Stored, 0, len(auths))
		for _, a := range auths {
			list = append(list, a)
		}
		allowed := r.passesOwnAuth(stored.Event, list) == nil
		if allowed {
			if err := r.allowedBy(stored.Event, before); isRejection(err) {
				allowed = false
			} else if err != nil {
				return err
			}
		}
		if allowed != counts && len(b.Judged) < maxVerdicts {
			b.Judged = append(b.Judged, Verdict{Brief: brief(stored), Now: map[bool]string{true: "allowed", false: "refused"}[allowed]})
		}
		counts = allowed
	}
	after := before
	if key, isState := stored.StateKey(); isState && counts {
		slot, _, err := r.takeSlot(Key{stored.Type(), key})
		if err != nil {
			return err
		}
		if after, err = r.array.Set(before, map[int64]int64{slot: ev.nid}); err != nil {
			return err
		}
	}
	changes, err := r.array.Diff(after, ev.was.after)
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		after = ev.was.after
	}
	ev.is = roots{before, after}
	return b.note(ev)
}

// note keeps what differs. As long as nothing does, nothing that was made to find that out is of use.
func (b *rebuilding) note(ev *dagEvent) error {
	if ev.is != ev.was {
		b.moved[ev.nid] = ev.is
		b.Differ++
	}
	if len(b.moved) == 0 {
		b.r.array.Drop()
		clear(b.r.memo)
	}
	if b.r.array.Made() > maxRebuildNodes {
		return errors.New("too much of the room's state differs")
	}
	return nil
}

// resolveEnds resolves the states after the open ends, some of which are others than is stored, and says how the
// result differs from the state that was: where it does not, it is that one.
func (r *room) resolveEnds(was state.Root, moved map[int64]roots) (root state.Root, changes []state.Change, err error) {
	var list []state.Root
	for _, e := range r.exts {
		after := e.After
		if is, ok := moved[e.NID]; ok {
			after = is.after
		}
		if !slices.Contains(list, after) {
			list = append(list, after)
		}
	}
	if root, err = r.resolve(list); err != nil {
		return 0, nil, err
	}
	if changes, err = r.array.Diff(was, root); err != nil {
		return 0, nil, err
	}
	if len(changes) == 0 {
		root = was
	}
	return root, changes, nil
}

// compare resolves the current state from the open ends, and says how it differs.
func (b *rebuilding) compare() error {
	r := b.r
	was := state.Root(r.row.Root)
	root, changes, err := r.resolveEnds(was, b.moved)
	if err != nil {
		return err
	}
	b.root = root
	b.nodes = int64(r.array.Made())
	b.made = r.array.Take()
	slots, nids := make([]int64, len(changes)), []int64{}
	for i, c := range changes {
		slots[i] = c.Slot
		nids = append(nids, c.Was, c.Is)
	}
	keys, err := r.keysOf(slots)
	if err != nil {
		return err
	}
	events, err := r.events(nids)
	if err != nil {
		return err
	}
	name := func(nid int64) *Brief {
		ev := events[nid]
		if ev == nil {
			return nil
		}
		v := brief(ev)
		return &v
	}
	for _, c := range changes {
		b.Changes = append(b.Changes, Moved{Type: keys[c.Slot].Type, StateKey: keys[c.Slot].StateKey, Was: name(c.Was), Is: name(c.Is)})
	}
	return nil
}

// apply moves the room and its events to the states that were found, and those that came meanwhile with them.
func (r *room) apply(token *collection, b *rebuilding) (err error) {
	defer r.distrust(&err)
	if r.collection != token {
		return errDisturbed
	}
	if len(token.events) > maxMeanwhile {
		return errors.New("too much came into the room meanwhile, try again")
	}
	moved := b.moved
	for _, ev := range token.events {
		if _, known := b.at[ev.ID()]; known || ev.Before == 0 {
			continue
		}
		if err := r.follow(ev, moved); err != nil {
			return fmt.Errorf("resolve the state before %s, which came meanwhile: %w", ev.ID(), err)
		}
	}
	was := state.Root(r.row.Root)
	root, _, err := r.resolveEnds(was, moved)
	if err != nil {
		return err
	}
	r.row.Root = int64(root)
	moves := &moves{}
	if root != was {
		if moves, err = r.moveMembers(0, was, root); err != nil {
			return err
		}
	}
	type move struct {
		nid int64
		is  roots
	}
	rows := make([]move, 0, len(moved))
	changed := make([]int64, 0, len(moved))
	for nid, is := range moved {
		rows = append(rows, move{nid, is})
		changed = append(changed, nid)
	}
	for piece := range slices.Chunk(rows, rebuildPiece) {
		r.commit(&additions{changed: changed}, func(tx storage.Tx) error {
			for _, m := range piece {
				tx.MoveEvent(m.nid, int64(m.is.before), int64(m.is.after))
			}
			return nil
		})
	}
	nodes, slots, row := r.array.Take(), r.newSlots, r.row
	r.newSlots = nil
	r.commit(&additions{changed: changed}, func(tx storage.Tx) error {
		tx.UpdateRoom(row)
		for _, v := range slots {
			tx.InsertSlot(row.NID, v)
		}
		for _, n := range nodes {
			tx.InsertStateNode(row.NID, n.ID, n.Data)
		}
		tx.NoteLoose(row.NID, b.nodes+int64(len(nodes)))
		moves.write(tx, row.NID, row.ID)
		for _, f := range moves.facts {
			tx.Announce(f)
		}
		return nil
	})
	r.tellMoves(moves, zap.String("by", "rebuild-state"))
	r.loaded = false // memory has the states of before
	return nil
}

// follow gives an event that came meanwhile the states that follow from its prev events'.
func (r *room) follow(ev *Stored, moved map[int64]roots) error {
	prev, err := r.eventsByID(ev.PrevEvents())
	if err != nil {
		return err
	}
	var list []state.Root
	touched := false
	for _, v := range ev.PrevEvents() {
		p := prev[v]
		if p == nil || !p.isJudged() {
			return nil // the state before it was given
		}
		after := p.After
		if is, ok := moved[p.NID]; ok {
			after, touched = is.after, true
		}
		if !slices.Contains(list, after) {
			list = append(list, after)
		}
	}
	if !touched {
		return nil
	}
	is := roots{}
	if is.before, err = r.resolve(list); err != nil {
		return err
	}
	is.after = is.before
	if key, isState := ev.StateKey(); isState && ev.Status != storage.Rejected {
		if err := r.allowedBy(ev.Event, is.before); isRejection(err) {
			moved[ev.NID] = is
			return nil
		} else if err != nil {
			return err
		}
		slot, err := r.slot(Key{ev.Type(), key})
		if err != nil {
			return err
		}
		if is.after, err = r.array.Set(is.before, map[int64]int64{slot: ev.NID}); err != nil {
			return err
		}
	}
	moved[ev.NID] = is
	return nil
}
