package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery"
	"chancery/roomserver/event"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// rest is what is missing of a room's state, while it is fetched from one server.
type rest struct {
	s       *Server
	server  string
	room    storage.Room
	version *event.Version
	join    *Stored

	ids    []id.EventID                  // the state, by that server's word
	on     id.EventID                    // the event that the state is the one before, when it is not the join
	stands map[id.EventID]bool           // the same as a set
	wanted map[id.EventID]bool           // these, and their auth chain; nil: whatever comes
	have   map[id.EventID]bool           // stored, about to be, or refused for good
	waits  map[id.EventID][]*event.Event // by an auth event that is not here yet
	held   int                           // bytes of those that wait
	lacks  bool                          // some of the state nobody gives
	ready  []*event.Event
}

const (
	restPiece   = 250       // events stored in one transaction
	restHeld    = 128 << 20 // bytes that may wait for their auth events; what is more comes again
	restPasses  = 3
	restServers = 5
	idsPiece    = 2000
	// After so many tries a state is taken without what no server gives, if it is at most one part in so many.
	restPatience = 3
	restLack     = 20
)

// fetchRest makes a room whole. It is done also when nobody of ours is in the room any more.
func (s *Server) fetchRest(ctx context.Context, roomID id.RoomID, g *given, try, untold int) (done bool, err error) {
	var at rest
	var servers []string
	err = s.in(ctx, roomID, func(r *room) error {
		if r.partial == nil {
			done = true
			return nil
		}
		if r.servers[s.ServerName] == 0 {
			done = true
			r.abandon()
			return nil
		}
		events, err := r.events([]int64{r.partial.join})
		if err != nil {
			return err
		}
		at = rest{s: s, room: r.row, version: r.version, join: events[r.partial.join]}
		return r.read(func(tx storage.Tx) error {
			join, _, err := tx.PartialJoin(r.row.NID)
			servers = append(servers, join.Server)
			return err
		})
	})
	if chancery.IsCode(err, chancery.CodeNotFound) {
		return true, nil // purged
	}
	if err != nil || done {
		return done, err
	}
	if at.join == nil {
		return false, fmt.Errorf("the join of %s is not here", roomID)
	}
	others, err := s.otherServers(ctx, roomID)
	if err != nil {
		return false, err
	}
	for _, server := range others {
		if server != servers[0] {
			servers = append(servers, server)
		}
	}
	var last error
	for _, server := range servers[:min(len(servers), restServers)] {
		from := at
		from.server = server
		if last = from.fetch(ctx, g, try); last == nil {
			last = s.complete(ctx, &from, untold)
		}
		switch {
		case last == nil:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(last, errOvertaken), errors.Is(last, errUntold):
			return false, last
		}
		s.Log.Info("a server could not give the rest of a room", zap.String("server", server), zap.String("room", string(roomID)), zap.Error(last))
		g = nil
	}
	return false, last
}

// abandon leaves a room as it is: nobody of ours is in it to see the rest. What is noted of its events stays noted, for
// whoever comes back.
func (r *room) abandon() {
	r.row.Partial, r.partial = false, nil
	row := r.row
	r.commit(&additions{}, func(tx storage.Tx) error {
		tx.UpdateRoom(row)
		endPartial(tx, row)
		return nil
	})
	r.loaded = false
}

// endPartial says that a room is joined in part no longer: its state is whole, or nobody of ours is in it any more.
func endPartial(tx storage.Tx, row storage.Room) {
	tx.Announce(storage.Fact{Kind: sql.FactRoomComplete, Room: row.NID, Root: row.Root})
	tx.EndPartial(row.NID)
}

// fetch has everything that a server says of the state stored here, but what it is the state of.
func (f *rest) fetch(ctx context.Context, g *given, try int) error {
	f.stands, f.have = map[id.EventID]bool{}, map[id.EventID]bool{}
	f.waits = map[id.EventID][]*event.Event{}
	if g != nil {
		return f.takeGiven(ctx, g)
	}
	if err := f.askIDs(ctx); err != nil {
		return err
	}
	if err := f.lookUp(ctx); err != nil {
		return err
	}
	missing := f.missing()
	for pass := 0; len(missing) > 0 && pass < restPasses; pass++ {
		if err := f.ask(ctx, missing); err != nil {
			return err
		}
		before := len(missing)
		if missing = f.missing(); len(missing) == before {
			break
		}
	}
	switch {
	case len(missing) == 0:
	case try < restPatience || restLack*len(missing) > len(f.wanted) || f.on != "" && !f.have[f.on]:
		return fmt.Errorf("%s does not give %d of %d events that it names, or not what they stand on", f.server, len(missing), len(f.wanted))
	default:
		f.lacks = true
		f.s.Log.Warn("some of a room's state is given by nobody", zap.String("room", f.room.ID), zap.Int("events", len(missing)))
	}
	return nil
}

// askIDs asks for the names of the state before our join. Where the join builds on one event, that is the state before
// it with the event itself, which every server in the room can tell; else only one that knows our join.
//
// spec: s2s/getRoomStateIds
func (f *rest) askIDs(ctx context.Context) error {
	short, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	roomID, at := id.RoomID(f.room.ID), f.join.ID()
	if prev := f.join.PrevEvents(); len(prev) == 1 {
		f.on, at = prev[0], prev[0]
	}
	got, err := f.s.Peer.GetStateIDs(short, f.server, roomID, at)
	if f.on != "" && knowsNot(err) {
		f.on = ""
		got, err = f.s.Peer.GetStateIDs(short, f.server, roomID, f.join.ID())
	}
	if err != nil {
		return fmt.Errorf("ask %s for the state: %w", f.server, err)
	}
	f.wanted = map[id.EventID]bool{}
	for _, v := range got.PDUs {
		if !f.stands[v] {
			f.stands[v] = true
			f.ids = append(f.ids, v)
		}
	}
	for _, v := range append(got.PDUs, got.AuthChain...) {
		f.wanted[v] = true
	}
	if f.on != "" {
		f.wanted[f.on] = true
	}
	return nil
}

// lookUp finds what is here already: from the join, or from before a restart.
func (f *rest) lookUp(ctx context.Context) error {
	all := make([]string, 0, len(f.wanted))
	for v := range f.wanted {
		all = append(all, string(v))
	}
	slices.Sort(all)
	for piece := range slices.Chunk(all, idsPiece) {
		if err := f.s.DB.Read(ctx, func(tx storage.Tx) error {
			found, err := tx.EventNumbers(piece)
			for v := range found {
				f.have[id.EventID(v)] = true
			}
			return err
		}); err != nil {
			return fmt.Errorf("look up a state: %w", err)
		}
	}
	return nil
}

func (f *rest) missing() (ids []id.EventID) {
	for v := range f.wanted {
		if !f.have[v] {
			ids = append(ids, v)
		}
	}
	return ids
}

// ask asks for events: one by one when they are few, else for the whole state.
func (f *rest) ask(ctx context.Context, missing []id.EventID) error {
	if len(missing) <= stateByIDsLimit {
		short, cancel := context.WithTimeout(ctx, stateTime)
		defer cancel()
		for _, ev := range f.s.fetchEvents(short, f.server, f.version, id.RoomID(f.room.ID), missing) {
			f.note(ev)
		}
		return f.flush(ctx, 1)
	}
	event := f.join.ID()
	if f.on != "" {
		event = f.on
	}
	return f.stream(ctx, func(ctx context.Context, each func(json.RawMessage) error) error {
		return f.s.Peer.StreamState(ctx, f.server, id.RoomID(f.room.ID), event, each)
	})
}

// takeGiven stores the members that came with the answer to our join, from a server that does not leave them out.
func (f *rest) takeGiven(ctx context.Context, g *given) error {
	for _, ev := range g.state {
		f.ids = append(f.ids, ev.ID())
	}
	for _, ev := range append(slices.Clone(g.chain), g.state...) {
		f.have[ev.ID()] = true
	}
	err := f.stream(ctx, func(_ context.Context, each func(json.RawMessage) error) error {
		for i, raw := range g.members {
			if err := each(raw); err != nil {
				return err
			}
			g.members[i] = nil // memory is free as soon as it is stored
		}
		return nil
	})
	for v := range f.stands {
		f.ids = append(f.ids, v)
	}
	return err
}

// stream stores events as they arrive, as long as they come fast enough: the next are read and checked while those before
// are stored.
func (f *rest) stream(ctx context.Context, ask func(context.Context, func(json.RawMessage) error) error) error {
	ctx, tooLate := context.WithCancelCause(ctx)
	defer tooLate(nil)
	first := time.AfterFunc(firstEvent, func() { tooLate(errTooSlow) })
	defer first.Stop()
	speed := &pace{least: paceLeast, per: paceTime}
	raws, checked := make(chan []json.RawMessage, 1), make(chan []*event.Event, 1)
	g, ctx := errgroup.WithContext(ctx)
	side := func(do func() error) {
		g.Go(func() error { return f.s.guarded("take the rest of a room", do) })
	}
	side(func() error {
		defer close(raws)
		var piece []json.RawMessage
		send := func() error {
			select {
			case raws <- piece:
				piece = nil
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		err := ask(ctx, func(raw json.RawMessage) error {
			first.Stop()
			if err := speed.came(time.Now()); err != nil {
				return err
			}
			defer func() { speed.goOn(time.Now()) }()
			if piece = append(piece, raw); len(piece) < restPiece {
				return nil
			}
			return send()
		})
		if err == nil && len(piece) > 0 {
			err = send()
		}
		return err
	})
	side(func() error {
		defer close(checked)
		for piece := range raws {
			events := f.check(ctx, piece)
			speed.useful.Add(int64(len(events)))
			select {
			case checked <- events:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	side(func() error {
		for events := range checked {
			for _, ev := range events {
				f.note(ev)
			}
			if err := f.flush(ctx, restPiece); err != nil {
				return err
			}
		}
		return f.flush(ctx, 1)
	})
	return g.Wait()
}

// check keeps the events that are wanted and validly signed.
func (f *rest) check(ctx context.Context, raws []json.RawMessage) []*event.Event {
	events := ofRoom(f.version, id.RoomID(f.room.ID), raws, len(raws))
	if f.wanted != nil {
		events = slices.DeleteFunc(events, func(ev *event.Event) bool { return !f.wanted[ev.ID()] })
	}
	return f.s.verified(ctx, events, nil)
}

// note takes up an event. It is ready when all that it cites is here.
func (f *rest) note(ev *event.Event) {
	todo := []*event.Event{ev}
	for len(todo) > 0 {
		ev, todo = todo[len(todo)-1], todo[:len(todo)-1]
		if f.have[ev.ID()] {
			continue
		}
		if f.wanted == nil {
			f.stands[ev.ID()] = true
		}
		if i := slices.IndexFunc(ev.AuthEvents(), func(a id.EventID) bool { return !f.have[a] }); i >= 0 {
			if at := ev.AuthEvents()[i]; f.held+ev.Size() <= restHeld {
				f.held += ev.Size()
				f.waits[at] = append(f.waits[at], ev)
			}
			continue
		}
		f.have[ev.ID()] = true
		f.ready = append(f.ready, ev)
		waited := f.waits[ev.ID()]
		delete(f.waits, ev.ID())
		for _, w := range waited {
			f.held -= w.Size()
		}
		todo = append(todo, waited...)
	}
}

// errOvertaken: the room was left, joined anew or completed while we worked on it.
var errOvertaken = errors.New("the room is not partial any more, or by another join")

// flush stores what is ready, in pieces, as long as there is so much. Nobody sees it: outliers have no place, and
// members are looked at in whole rooms.
func (f *rest) flush(ctx context.Context, atLeast int) error {
	for len(f.ready) >= atLeast && len(f.ready) > 0 {
		piece := f.ready[:min(len(f.ready), restPiece)]
		err := f.s.inAs(ctx, caller{theirs, f.server}, id.RoomID(f.room.ID), func(r *room) error {
			if r.partial == nil || r.partial.join != f.join.NID {
				return errOvertaken
			}
			return r.addState(piece, func(ev *event.Event) bool { return f.stands[ev.ID()] })
		})
		if err != nil {
			return fmt.Errorf("store a piece of a state: %w", err)
		}
		f.ready = slices.Clone(f.ready[len(piece):])
	}
	return nil
}

// stateAround asks for the state before an event whose prev events are missing: only what differs from the state that
// was fetched is kept. Most of it is here. Its sender's server is asked first, then who gave us the state, then others.
func (f *rest) stateAround(ctx context.Context, ev *Stored, t *truth, others []string, failing map[string]bool) ([]around, error) {
	last := errNothingCame
	sender := ev.Sender().Homeserver()
	answered := sender != f.s.ServerName // the server that we joined through must know
	asked := map[string]bool{f.s.ServerName: true}
	for _, server := range append([]string{sender, f.server}, others...) {
		if asked[server] || len(asked) > aroundServers {
			continue
		}
		asked[server] = true
		if failing[server] {
			answered = false
			continue
		}
		begun := time.Now()
		short, cancel := context.WithTimeout(ctx, fetchTime)
		g, err := f.s.fetchState(short, caller{theirs, server}, server, ev.Event)
		cancel()
		if err == nil {
			var list []around
			for _, told := range g.told {
				list = append(list, around{t.differs(told.pieces), told.of})
			}
			return list, nil
		}
		last, failing[server] = err, time.Since(begun) > slowAnswer
		answered = answered && knowsNot(err)
	}
	if answered {
		return nil, fmt.Errorf("%w: %w", errNobodyKnows, last)
	}
	return nil, last
}

// rows reads what is here of the state.
func (f *rest) rows(ctx context.Context) (rows []storage.StateRow, err error) {
	for piece := range slices.Chunk(f.ids, idsPiece) {
		texts := make([]string, len(piece))
		for i, v := range piece {
			texts[i] = string(v)
		}
		if err := f.s.DB.Read(ctx, func(tx storage.Tx) error {
			found, err := tx.StateRows(f.room.NID, texts)
			rows = append(rows, found...)
			return err
		}); err != nil {
			return nil, fmt.Errorf("read a state: %w", err)
		}
	}
	return rows, nil
}

// notRejected leaves out what is no part of any state.
func notRejected(rows []storage.StateRow) []storage.StateRow {
	return slices.DeleteFunc(rows, func(row storage.StateRow) bool { return row.Status == storage.Rejected })
}
