package roomserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"chancery/roomserver/event"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// fills lets the same work be done once at a time: who comes second waits for the first.
type fills struct {
	mu      sync.Mutex // guards running; a leaf
	running map[string]*fill
}

type fill struct {
	done chan struct{}
	err  error
}

func newFills() *fills { return &fills{running: map[string]*fill{}} }

// once does the work, or waits while somebody else does. A waiter goes when its ctx ends, and when the one
// who did the work has gone, a waiter does it again.
func (f *fills) once(ctx context.Context, key string, do func() error) error {
	for {
		f.mu.Lock()
		w, ok := f.running[key]
		if !ok {
			w = &fill{done: make(chan struct{}), err: errNotDone}
			f.running[key] = w
			f.mu.Unlock()
			return f.do(key, w, do)
		}
		f.mu.Unlock()
		select {
		case <-w.done:
		case <-ctx.Done():
			return ctx.Err()
		}
		if !errors.Is(w.err, context.Canceled) || ctx.Err() != nil {
			return w.err
		}
	}
}

// alone does the work when nobody else is at work on the same.
func (f *fills) alone(ctx context.Context, key string, do func() error) (err error) {
	for did := false; !did; {
		err = f.once(ctx, key, func() error {
			did = true
			return do()
		})
		if ctx.Err() != nil {
			return err
		}
	}
	return err
}

var errNotDone = errors.New("whoever was at work on it has panicked")

func (f *fills) do(key string, w *fill, do func() error) error {
	defer func() {
		f.mu.Lock()
		delete(f.running, key)
		f.mu.Unlock()
		close(w.done)
	}()
	w.err = do()
	return w.err
}

// How many servers are asked for history before we give up, and how long each has to answer.
const (
	maxAsked     = 5
	backfillTime = 10 * time.Second
)

var (
	errNothingCame = errors.New("no server has given any of the missing history")
	errOfLowerGap  = errors.New("what is missing has its place at a lower gap")
)

// Backfill asks other servers for what lies below the highest open gap at or under an order: those with the
// most members first, since they are the likeliest to have it. It says whether there is more to read than before.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func (s *Server) Backfill(ctx context.Context, roomID id.RoomID, under int64, limit int) (came bool, err error) {
	// One after the other: a place in the room is chosen before it is taken.
	err = s.fills.alone(ctx, "backfill "+string(roomID), func() error {
		gap, err := s.gapUnder(ctx, roomID, under)
		if err != nil || gap == nil {
			return err // it was closed since the caller saw it
		}
		for gap != nil {
			err := s.fillGap(ctx, roomID, gap, limit)
			if !errors.Is(err, errOfLowerGap) {
				return err
			}
			if gap, err = s.gapUnder(ctx, roomID, gap.next); err != nil {
				return err
			}
		}
		return errNothingCame
	})
	if errors.Is(err, errNothingCame) {
		return false, nil
	}
	return err == nil, err
}

// askedGap is a gap, by the event above it, of which a server was asked.
type askedGap struct {
	gap    int64
	server string
}

// fillGap asks servers in turn for what lies below a gap, until something has come.
func (s *Server) fillGap(ctx context.Context, roomID id.RoomID, gap *openGap, limit int) error {
	servers, err := s.otherServers(ctx, roomID)
	if err != nil {
		return err
	}
	servers = slices.DeleteFunc(servers, func(server string) bool { return s.vain.is(askedGap{gap.event, server}, time.Now()) })
	for _, server := range servers[:min(len(servers), maxAsked)] {
		wasOff := s.backedOff(server)
		n, err := s.backfillFrom(ctx, server, roomID, gap, limit)
		if n > 0 {
			return nil
		}
		if err != nil {
			s.Log.Debug("backfill failed", zap.String("server", server), zap.Error(err))
		}
		// Whom we do not reach has not been asked: the back-off sees to it that we try seldom, and ends when they speak.
		// What a part of the state refuses comes with the whole.
		if ctx.Err() == nil && !wasOff && !s.backedOff(server) && !isOfPart(err) {
			s.vain.note(askedGap{gap.event, server}, time.Now())
		}
		if errors.Is(err, errOfLowerGap) {
			return err
		}
	}
	return errNothingCame
}

// backfillFrom asks one server for what lies below a gap, and says how much of it has come.
func (s *Server) backfillFrom(ctx context.Context, server string, roomID id.RoomID, gap *openGap, limit int) (int, error) {
	events, err := s.askBackfill(ctx, server, roomID, gap.ids, limit)
	if err != nil {
		return 0, err
	}
	return s.placeHistory(ctx, server, roomID, gap, events)
}

// otherServers gives the servers in a room, but ours: the likeliest to have what we lack first.
func (s *Server) otherServers(ctx context.Context, roomID id.RoomID) (servers []string, err error) {
	err = s.in(ctx, roomID, func(r *room) error {
		members := maps.Clone(r.servers)
		delete(members, s.ServerName)
		servers = ranked(members, s.backedOff)
		return nil
	})
	return servers, err
}

func (s *Server) backedOff(server string) bool {
	return time.Now().Before(s.Peer.Destination(server).RetryAt)
}

// ranked sorts servers: those that are not to be asked now last, then by their members.
func ranked(members map[string]int64, backedOff func(string) bool) []string {
	off := make(map[string]int, len(members))
	for server := range members {
		if backedOff(server) {
			off[server] = 1
		}
	}
	return slices.SortedFunc(maps.Keys(members), func(a, b string) int {
		return cmp.Or(cmp.Compare(off[a], off[b]), cmp.Compare(members[b], members[a]), cmp.Compare(a, b))
	})
}

// openGap is a place in the room's history where prev events are missing.
type openGap struct {
	event   int64
	ord     int64
	ids     []id.EventID // the events that are there, whose prev events are missing
	missing []id.EventID
	lower   []id.EventID // what is missing at lower gaps: that has its place there
	next    int64        // the place of the next lower gap's event
}

func (s *Server) gapUnder(ctx context.Context, roomID id.RoomID, under int64) (gap *openGap, err error) {
	err = s.in(ctx, roomID, func(r *room) error {
		return r.read(func(tx storage.Tx) error {
			gaps, err := tx.Gaps(r.row.NID, under, maxPrev)
			for _, g := range gaps {
				if gap == nil {
					gap = &openGap{event: g.Event, ord: g.Ord, ids: []id.EventID{id.EventID(g.ID)}}
				}
				if g.Event == gap.event {
					gap.missing = append(gap.missing, id.EventID(g.PrevID))
				} else {
					if gap.lower == nil {
						gap.next = g.Ord
					}
					gap.lower = append(gap.lower, id.EventID(g.PrevID))
				}
			}
			return err
		})
	})
	return gap, err
}

// placeHistory stores backfilled events below the gap's event, newest first, and moves the gap to the
// oldest of them. The state before the oldest is asked for; the others follow from it.
func (s *Server) placeHistory(ctx context.Context, server string, roomID id.RoomID, gap *openGap, events []*event.Event) (int, error) {
	events = s.verified(ctx, belowGap(gap.missing, events, func(id.EventID) bool { return false }), nil)
	var chain []*event.Event
	var unaskeds []*unasked
	var places []int64
	placed := 0 // what was missing, by another way, meanwhile
	err := s.in(ctx, roomID, func(r *room) error {
		isHere, err := r.judged(append(idsOf(events), gap.missing...))
		if err != nil {
			return err
		}
		for _, v := range gap.missing {
			if isHere(v) {
				placed++
			}
		}
		below := belowGap(gap.missing, events, isHere)
		chain = without(below, belowGap(gap.lower, events, isHere))
		if len(chain) == 0 && len(below) > 0 && placed == 0 {
			return errOfLowerGap
		}
		if unaskeds, err = r.unaskedOf(chain); err != nil {
			return err
		}
		return r.read(func(tx storage.Tx) error {
			chain, places, err = r.placesBelow(tx, gap.ord, chain)
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	s.askPast(ctx, unaskeds)
	var failed error
	// Oldest first: each one's state is that after its prev events.
	for i, ev := range slices.Backward(chain) {
		err := s.takeHistory(ctx, server, roomID, ev, places[i])
		if err != nil {
			s.Log.Info("could not take an event of the past", zap.String("event", string(ev.ID())), zap.Error(err))
			failed = err
			continue
		}
		placed++
	}
	if placed == 0 {
		return 0, failed
	}
	return placed, s.closeGap(ctx, roomID, gap)
}

// judged finds out which of some events have been judged: they are here, and what lies below them is here too or
// missing at gaps of their own.
func (r *room) judged(ids []id.EventID) (is func(id.EventID) bool, err error) {
	known, err := r.eventsByID(ids)
	return func(v id.EventID) bool { return known[v] != nil && known[v].isJudged() }, err
}

func idsOf(events []*event.Event) []id.EventID {
	ids := make([]id.EventID, len(events))
	for i, ev := range events {
		ids[i] = ev.ID()
	}
	return ids
}

// placesBelow finds places below a gap for the events that are missing there, newest first. They come in a row under
// the gap. But what is older than our first event, by its sender's word, is of the past, with all that it builds on,
// wherever it came to light: above that event it would end, with the room's creation, the history of who reads back.
func (r *room) placesBelow(tx storage.Tx, gap int64, events []*event.Event) (sorted []*event.Event, places []int64, err error) {
	first, depth, _, err := r.firstOf(tx)
	if err != nil {
		return nil, nil, err
	}
	var older []id.EventID
	for _, ev := range events {
		if gap <= first || ev.Depth() < depth {
			older = append(older, ev.ID())
		}
	}
	past := belowGap(older, events, func(id.EventID) bool { return false })
	recent := without(events, past)
	start := gap
	if n := int64(len(recent)); n > 0 {
		if start, err = r.roomBelow(tx, gap, n); err != nil {
			return nil, nil, err
		}
		for i := range n {
			places = append(places, start+n-1-i)
		}
	}
	inPast, err := r.placesInPast(tx, min(start, first), past)
	return append(recent, past...), append(places, inPast...), err
}

// placesInPast finds places for events, newest first, below our first event, or below a gap there: by their depths, so that
// pieces of the past fit together in whatever order they come, and the room's creation is the last that is reached.
func (r *room) placesInPast(tx storage.Tx, above int64, events []*event.Event) (places []int64, err error) {
	for pieces := 1; len(events) > 0; pieces++ {
		top, older, err := r.slotInPast(tx, above, events[0].Depth())
		if err != nil {
			return nil, err
		}
		n := int64(len(events))
		step := int64(gapRoom) // what is missing between them gets its place there later
		if older != nil {
			if i := slices.IndexFunc(events[1:], func(ev *event.Event) bool { return ev.Depth() <= older.Depth }); i >= 0 && pieces < pastPieces {
				n = int64(i) + 1
			}
			step = (top - *older.Ord) / (n + 1)
			above = *older.Ord
		}
		if step == 0 {
			start, err := r.roomBelow(tx, top, n)
			if err != nil {
				return nil, err
			}
			top, step, above = start+n, 1, min(above, start)
		}
		for i := range n {
			places = append(places, top-(i+1)*step)
		}
		events = events[n:]
	}
	return places, nil
}

// pastPieces is between how many neighbours the events of one answer are put: order is not worth more queries.
const pastPieces = 20

// slotInPast finds, at or below a place, the lowest place above all that is older than a depth, and the newest of that, nil
// when nothing is.
func (r *room) slotInPast(tx storage.Tx, top, depth int64) (above int64, older *storage.Event, err error) {
	from := r.low - 1 // what is older ends here or above
	for {
		middle := from + (top-from)/2
		found, err := tx.EventsBelow(r.row.NID, middle+1, from, 1)
		if err == nil && len(found) == 0 {
			found, err = tx.EventsAbove(r.row.NID, middle, top, 1)
		}
		switch {
		case err != nil || len(found) == 0:
			return top, older, err
		case found[0].Depth < depth:
			older, from = &found[0], *found[0].Ord
		default:
			top = *found[0].Ord
		}
	}
}

// A run of events without room between them is followed this many pieces down; below a longer one
// events go under everything.
const (
	runPiece  = 1000
	runPieces = 50
)

// roomBelow finds the highest n free places in a row below an order. They need not be next to it: what is
// missing below an event in the middle of what came at once finds its neighbours there already.
func (r *room) roomBelow(tx storage.Tx, ord, n int64) (first int64, err error) {
	top := ord // everything from here up to ord is taken, or too narrow
	for range runPieces {
		places, err := tx.PlacesBelow(r.row.NID, top-1, math.MinInt64, runPiece)
		if err != nil {
			return 0, err
		}
		for _, p := range places {
			if top-p.Ord > n {
				return top - n, nil
			}
			top = p.Ord
		}
		if len(places) < runPiece {
			return top - n, nil
		}
	}
	return r.low - n, nil
}

func without(events, but []*event.Event) []*event.Event {
	out := make([]*event.Event, 0, len(events))
	for _, ev := range events {
		if !slices.Contains(but, ev) {
			out = append(out, ev)
		}
	}
	return out
}

// belowGap sorts what was sent so that every event comes after those that build on it: newest first. What
// does not hang below the missing events of a gap is left out, and so is what is here and all below that.
func belowGap(missing []id.EventID, events []*event.Event, isHere func(id.EventID) bool) []*event.Event {
	byID := make(map[id.EventID]*event.Event, len(events))
	for _, ev := range events {
		byID[ev.ID()] = ev
	}
	reach := map[id.EventID]bool{}
	var walk []id.EventID
	walk = append(walk, missing...)
	var out []*event.Event
	for len(walk) > 0 {
		v := walk[0]
		walk = walk[1:]
		ev := byID[v]
		if ev == nil || reach[v] || isHere(v) {
			continue
		}
		reach[v] = true
		out = append(out, ev)
		walk = append(walk, ev.PrevEvents()...)
	}
	// Between what does not build on each other the senders' words decide.
	out = inOrder(out, func(x, y *event.Event) int {
		return cmp.Or(cmp.Compare(x.Depth(), y.Depth()), cmp.Compare(x.OriginServerTS(), y.OriginServerTS()))
	})
	slices.Reverse(out)
	return out
}

// takeHistory is take for an event of the past: it gets a place in the gap and moves nothing.
func (s *Server) takeHistory(ctx context.Context, server string, roomID id.RoomID, ev *event.Event, at int64) error {
	n := (*needs)(nil)
	if err := s.inAs(ctx, caller{theirs, server}, roomID, func(r *room) error { return r.takeHistory(ev, at, nil) }); err == nil {
		return nil
	} else if !errors.As(err, &n) {
		return err
	}
	g, err := s.aroundPast(ctx, server, ev, n)
	if err != nil {
		return err
	}
	return s.inAs(ctx, caller{theirs, server}, roomID, func(r *room) error { return r.takeHistory(ev, at, g) })
}

// aroundPast asks for what an event of the past stands on. A partial room judges it by the state that it has.
func (s *Server) aroundPast(ctx context.Context, server string, ev *event.Event, n *needs) (*given, error) {
	if !n.partial {
		return s.fetchState(ctx, caller{theirs, server}, server, ev)
	}
	g := &given{guess: errPartial, past: true}
	if len(n.auth) == 0 {
		return g, nil
	}
	chain, err := s.fetchAuth(ctx, server, ev.RoomID(), ev)
	if err == nil {
		err = s.addOutside(ctx, caller{theirs, server}, ev.RoomID(), chain)
	}
	return g, err
}

func (r *room) takeHistory(ev *event.Event, at int64, g *given) error {
	known, err := r.eventsByID([]id.EventID{ev.ID()})
	if err != nil {
		return err
	}
	before := known[ev.ID()]
	if before != nil && before.isJudged() {
		return nil
	}
	h := how{row: before, history: &at}
	n := &needs{}
	prev, err := r.prevOf(ev, n)
	if err != nil {
		return err
	}
	if before == nil {
		if err := r.mayName(ev.ID()); err != nil {
			return err
		}
	}
	n.partial = r.partial != nil
	if len(n.prev) > 0 && (g == nil || g.isOfPart(r)) {
		if n.partial {
			_, err = r.authOf(ev, n)
		}
		return cmp.Or(err, error(n))
	}
	if g != nil {
		if err := r.addOutliers(append(slices.Clone(g.chain), g.state...)); err != nil {
			return err
		}
	}
	auths, err := r.authOf(ev, n)
	if err != nil {
		return err
	}
	if len(n.auth) > 0 {
		return n
	}
	h.missing = n.prev
	if h.before, err = r.rootBefore(ev, prev, auths, n, g); err != nil {
		return err
	}
	if h.status, err = r.judgePast(ev, h.before, auths); err != nil {
		return err
	}
	if h.status == storage.Rejected && r.refusedByPart(ev, auths) {
		return fmt.Errorf("judge %s of the past: %w", ev.ID(), errPartial)
	}
	if before != nil && before.Status == storage.Rejected {
		h.status = storage.Rejected // by its own auth events, and for good
	}
	if h.status == storage.Accepted && before == nil {
		if ev, h.status, err = r.refusedOrNot(ev); err != nil {
			return err
		}
	}
	if err = r.await(ev, &h); err != nil {
		return err
	}
	h.referenced, h.prev = true, prev // it hangs below a gap, through what may not be here yet
	a, err := r.add(ev, h)
	if err != nil {
		return err
	}
	r.submit(a)
	return nil
}

// closeGap ends the waiting of the gap's event for prev events that have come.
func (s *Server) closeGap(ctx context.Context, roomID id.RoomID, gap *openGap) error {
	return s.in(ctx, roomID, func(r *room) error {
		found, err := r.eventsByID(gap.missing)
		if err != nil {
			return err
		}
		r.commit(&additions{}, func(tx storage.Tx) error {
			for _, v := range gap.missing {
				if p := found[v]; p != nil && p.isJudged() {
					tx.RemoveMissing(r.row.NID, string(v))
				}
			}
			return nil
		})
		return nil
	})
}

// place gives an event of the past its place, and tells records and search of it.
func (r *room) placePast(a *addition, h how) error {
	a.Ord, a.Placed = *h.history, true
	r.low = min(r.low, a.Ord)
	if err := r.moveEnds(a, h); err != nil {
		return err
	}
	if err := r.noteRedaction(a); err != nil {
		return err
	}
	r.noteRelation(a)
	a.facts = append([]storage.Fact{{Kind: sql.FactHistory, Room: r.row.NID, Event: a.NID, Ord: a.Ord, Root: r.row.Root}}, a.facts...)
	return nil
}
