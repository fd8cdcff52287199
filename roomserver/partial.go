package roomserver

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// partial is what a room that is not whole knows of itself: of all its members only those who have shown themselves.
// Decision 0013 says how it becomes whole.
//
// spec: msc3902
type partial struct {
	join   int64      // our join
	before state.Root // the part of the state before it that we have

	held map[id.EventID]bool // events that a part of the state refuses: outliers until the room is whole
}

// readPartial finds out how far a room is from being whole.
func (r *room) readPartial(tx storage.Tx) (err error) {
	r.partial = nil
	if r.seq, err = tx.LastPartialEvent(r.row.NID); err != nil || !r.row.Partial {
		return err
	}
	join, ok, err := tx.PartialJoin(r.row.NID)
	if err != nil || !ok {
		return err
	}
	events, err := r.s.Reader.ByNumber(tx, r.row, []int64{join.Join})
	if err != nil {
		return err
	}
	r.partial = &partial{join: join.Join, held: map[id.EventID]bool{}}
	if ev := events[join.Join]; ev != nil {
		r.partial.before = ev.Before
	}
	held, err := tx.HeldPartialEvents(r.row.NID)
	for _, v := range held {
		r.partial.held[id.EventID(v)] = true
	}
	return err
}

// holds says that all of some prev events are held here.
func (r *room) holds(ids []id.EventID) bool { return len(ids) > 0 && len(r.notHeld(ids)) == 0 }

// notHeld leaves out those of some prev events that are held here: nobody needs to be asked for them.
func (r *room) notHeld(ids []id.EventID) []id.EventID {
	if r.partial == nil {
		return ids
	}
	return slices.DeleteFunc(slices.Clone(ids), func(v id.EventID) bool { return r.partial.held[v] })
}

// maxHeld is how many events a room holds, since anybody can make what nobody allows. More wait as those do of which
// something is missing: of each server a few.
const maxHeld = 1000

func (r *room) mayHold(v id.EventID) bool { return r.partial.held[v] || len(r.partial.held) < maxHeld }

// hold keeps an event, all that it builds on and cites being here, that a part of the state refuses: it is judged when
// the room is whole, by the state of when it came.
//
// spec: msc3902
func (r *room) hold(ev *event.Event) error {
	if r.partial.held[ev.ID()] {
		return nil
	}
	if err := r.addOutliers([]*event.Event{ev}); err != nil {
		return err
	}
	found, err := r.eventsByID([]id.EventID{ev.ID()})
	if err != nil {
		return err
	}
	s := found[ev.ID()]
	if s == nil {
		return errPartial
	}
	r.seq++
	r.partial.held[ev.ID()] = true
	room, note := r.row.NID, storage.PartialEvent{Event: s.NID, Seq: r.seq}
	r.commit(&additions{}, func(tx storage.Tx) error {
		tx.InsertPartialEvent(room, note)
		return nil
	})
	return nil
}

// errPartial is for servers that ask what only a whole room can answer.
//
// spec: msc3902
var errPartial = chancery.Errorf(403, codePartial, "we do not know the whole state of this room yet")

const codePartial chancery.Code = "M_UNABLE_DUE_TO_PARTIAL_STATE"

// isOfPart says that something failed because somebody, perhaps we, knows only a part of the room's state yet.
func isOfPart(err error) bool {
	e := (*peer.Error)(nil)
	return errors.Is(err, errPartial) || errors.As(err, &e) && e.Code == codePartial
}

// fillIn adds to a state what an event cites of memberships: a partial state lacks most of them. Where it has another
// one the two are resolved as if branches met.
//
// spec: msc3902
func (r *room) fillIn(root state.Root, ev *event.Event, auths []*Stored) (state.Root, error) {
	missing, other := map[int64]int64{}, map[int64]int64{}
	for _, a := range auths {
		key, _ := a.StateKey()
		if a.Type() != "m.room.member" || a.Status == storage.Rejected {
			continue
		}
		slot, err := r.keptSlot(Key{a.Type(), key})
		if err != nil {
			return 0, err
		}
		now, err := r.array.Get(root, slot)
		if err != nil {
			return 0, err
		}
		switch now[0] {
		case a.NID:
		case 0:
			missing[slot] = a.NID
		default:
			other[slot] = a.NID
		}
	}
	root, err := r.array.Set(root, missing)
	if err != nil || len(other) == 0 {
		return root, err
	}
	cited, err := r.array.Set(root, other)
	if err != nil {
		return 0, err
	}
	return r.resolve([]state.Root{root, cited})
}

// partials are the rooms that are being made whole.
type partials struct {
	mu    sync.Mutex // guards rooms; a leaf
	rooms map[id.RoomID]*completion
	wake  chan struct{}
}

// completion is the work on one of them.
type completion struct {
	running bool
	changed chan struct{} // closed when the room was left, or joined anew: begin again
	whole   chan struct{} // closed when nothing is missing any more
	given   *given        // the whole state, when the one who took the join gave it at once
}

func newPartials() *partials {
	return &partials{rooms: map[id.RoomID]*completion{}, wake: make(chan struct{}, 1)}
}

// begin has the rest of a room fetched, anew if it is being fetched.
func (p *partials) begin(roomID id.RoomID, g *given) {
	p.mu.Lock()
	c := p.rooms[roomID]
	if c == nil {
		c = &completion{changed: make(chan struct{}), whole: make(chan struct{})}
		p.rooms[roomID] = c
	} else {
		close(c.changed)
		c.changed = make(chan struct{})
	}
	c.given = g
	p.mu.Unlock()
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// stir has the work on a room look again at what it works for.
func (p *partials) stir(roomID id.RoomID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.rooms[roomID]; c != nil {
		close(c.changed)
		c.changed = make(chan struct{})
	}
}

// next gives the rooms that nobody works on yet.
func (p *partials) next() (rooms []id.RoomID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for roomID, c := range p.rooms {
		if !c.running {
			c.running = true
			rooms = append(rooms, roomID)
		}
	}
	return rooms
}

// look gives what the work on a room is about now.
func (p *partials) look(roomID id.RoomID) (changed <-chan struct{}, g *given) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.rooms[roomID]
	g, c.given = c.given, nil
	return c.changed, g
}

// end lets go of a room that is whole, or that nobody of ours is in, unless it was joined anew since changed was looked at.
func (p *partials) end(roomID id.RoomID, since <-chan struct{}) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.rooms[roomID]
	select {
	case <-since:
		return false
	default:
	}
	close(c.whole)
	delete(p.rooms, roomID)
	return true
}

// waiting is closed when the room is whole; nil when nobody here works on it.
func (p *partials) waiting(roomID id.RoomID) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.rooms[roomID]; c != nil {
		return c.whole
	}
	return nil
}

// AwaitWhole waits until everything of a room is known, or ctx ends. It returns at once for a room that is whole, and
// for one that nobody makes whole since none of ours is in it.
//
// spec: msc3902
func (s *Server) AwaitWhole(ctx context.Context, roomID id.RoomID) error {
	for {
		isPartial := false
		err := s.DB.Read(ctx, func(tx storage.Tx) error {
			row, ok, err := tx.Room(string(roomID))
			if err != nil || !ok || !row.Partial {
				return err
			}
			_, isPartial, err = tx.PartialJoin(row.NID)
			return err
		})
		if err != nil || !isPartial {
			return err
		}
		// The work may be another process's: then we look again from time to time.
		tick := time.NewTimer(time.Second)
		select {
		case <-s.partials.waiting(roomID):
		case <-tick.C:
		case <-ctx.Done():
			tick.Stop()
			return ctx.Err()
		}
		tick.Stop()
	}
}

// KnowMember waits for a room to be whole unless it knows what a user is in it: our own users are known, and those
// who have shown themselves. Only who is in the room waits: others would hold what they may not use.
func (s *Server) KnowMember(ctx context.Context, roomID id.RoomID, user, asks id.UserID) error {
	if s.IsLocal(user) {
		return nil
	}
	known := true
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(roomID))
		if err != nil || !ok || !row.Partial {
			return err
		}
		if m, _, err := tx.Member(row.NID, string(asks)); err != nil || m.Membership != "join" {
			return err
		}
		ev, err := s.Reader.StateEvent(tx, row, state.Root(row.Root), "m.room.member", string(user))
		known = ev != nil
		return err
	})
	if err != nil || known {
		return err
	}
	return s.AwaitWhole(ctx, roomID)
}

// Rooms made whole at a time, and the pauses between tries.
const (
	wholeAtOnce     = 4
	wholeFirstPause = 2 * time.Second
	wholeMaxPause   = 10 * time.Minute
	untoldPause     = 5 * time.Second
)

// makeWhole fetches what is missing of rooms until ctx ends. What was begun before a restart is in storage.
func (s *Server) makeWhole(ctx context.Context) error {
	var open []id.RoomID
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		joins, err := tx.PartialJoins()
		if err != nil {
			return err
		}
		nids := make([]int64, len(joins))
		for i, v := range joins {
			nids[i] = v.Room
		}
		rooms, err := tx.Rooms(nids)
		for _, v := range rooms {
			open = append(open, id.RoomID(v.ID))
		}
		return err
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	for _, roomID := range open {
		s.partials.begin(roomID, nil)
	}
	slots := make(chan struct{}, wholeAtOnce)
	var running sync.WaitGroup
	defer running.Wait()
	for {
		for _, roomID := range s.partials.next() {
			running.Go(func() { s.makeRoomWhole(ctx, roomID, slots) })
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.partials.wake:
		}
	}
}

// makeRoomWhole works on one room until it is whole or left. slots bounds the rooms that are fetched at a time; one
// that waits for its next try has none.
func (s *Server) makeRoomWhole(ctx context.Context, roomID id.RoomID, slots chan struct{}) {
	for try, untold := 0, 0; ctx.Err() == nil; {
		changed, g := s.partials.look(roomID)
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		begun := time.Now()
		done, err := s.tryWhole(ctx, roomID, g, changed, try, untold)
		<-slots
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			s.Log.Info("could not fetch the rest of a room", zap.String("room", string(roomID)), zap.Int("tries", try+1), zap.Error(err))
		case done:
			if s.partials.end(roomID, changed) {
				s.late.noteSoon(roomID) // what a part of the state refused
				s.unsure.noteSoon(roomID)
				s.Log.Info("nothing of a room is missing any more", zap.String("room", string(roomID)), zap.Duration("took", time.Since(begun)))
				return
			}
		}
		longest := wholeMaxPause
		if errors.Is(err, errUntold) {
			untold++
			longest = untoldPause // all the rest is here
		}
		pause := time.NewTimer(min(wholeFirstPause<<min(try, 16), longest))
		select {
		case <-pause.C:
			try++
		case <-changed:
			try, untold = 0, 0
		case <-ctx.Done():
		}
		pause.Stop()
	}
}

// tryWhole guards the process: what a peer sends must not be able to end it.
func (s *Server) tryWhole(ctx context.Context, roomID id.RoomID, g *given, changed <-chan struct{}, try, untold int) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a peer's slow answer is no matter once the room was left
		select {
		case <-changed:
			cancel()
		case <-ctx.Done():
		}
	}()
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic while fetching the rest of a room", zap.String("room", string(roomID)), zap.Any("panic", p), zap.Stack("stack"))
			done, err = false, errNotDone
		}
	}()
	return s.fetchRest(ctx, roomID, g, try, untold)
}
