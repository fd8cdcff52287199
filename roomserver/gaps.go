package roomserver

import (
	"context"
	"math"
	"sync"
	"time"

	"chancery/storage"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// reminders are rooms in which there is something to be asked for though nobody wants it yet. They only remind: what
// there is to do is in storage, and a room that is forgotten here is noted again later.
type reminders struct {
	first, longest time.Duration // pauses between tries
	most           int           // tries

	mu    sync.Mutex // guards rooms; a leaf
	rooms map[id.RoomID]*reminder
	wake  chan struct{}
}

type reminder struct {
	at    time.Time
	tries int
	busy  bool // somebody is there
	again bool // what was noted meanwhile may have come too late for them
}

const (
	maxReminders  = 10_000
	gapsAtOnce    = 2    // rooms at a time
	gapPiece      = 100  // events asked for at a time
	gapBudget     = 2000 // events a visit may bring; what lies below comes when somebody reads there
	gapTries      = 8
	gapFirstPause = 30 * time.Second
	gapMaxPause   = time.Hour
)

func newReminders(first, longest time.Duration, most int) *reminders {
	return &reminders{first: first, longest: longest, most: most, rooms: map[id.RoomID]*reminder{}, wake: make(chan struct{}, 1)}
}

// note has a room visited at once; one that waits for another try goes on waiting.
func (g *reminders) note(roomID id.RoomID) { g.noteAt(roomID, time.Time{}) }

// noteSoon has a room visited after the first pause.
func (g *reminders) noteSoon(roomID id.RoomID) {
	at := time.Now().Add(g.first)
	g.noteAt(roomID, at)
	g.mu.Lock()
	defer g.mu.Unlock()
	try := g.rooms[roomID]
	switch {
	case try == nil:
	case try.busy:
		try.again = true
	case at.Before(try.at):
		try.at = at
	}
}

func (g *reminders) noteAt(roomID id.RoomID, at time.Time) {
	g.mu.Lock()
	if g.rooms[roomID] == nil && len(g.rooms) < maxReminders {
		g.rooms[roomID] = &reminder{at: at}
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// due lists the rooms whose time has come.
func (g *reminders) due(now time.Time) (rooms []id.RoomID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for roomID, try := range g.rooms {
		if !now.Before(try.at) && !try.busy {
			try.busy = true
			rooms = append(rooms, roomID)
		}
	}
	return rooms
}

// tried forgets a room in which nothing is left to do, or where nobody can help; another is tried again, ever later, but
// soon where something was noted during the visit.
func (g *reminders) tried(roomID id.RoomID, whole bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	try := g.rooms[roomID]
	if try == nil {
		return
	}
	again := try.again
	try.busy, try.again = false, false
	try.tries++
	switch done := whole || try.tries >= g.most; {
	case done && again:
		*try = reminder{at: time.Now().Add(g.first)}
	case done:
		delete(g.rooms, roomID)
	case again:
		try.at = time.Now().Add(g.first)
	default:
		try.at = time.Now().Add(min(g.first<<min(try.tries-1, 16), g.longest))
	}
}

// visit goes to rooms when they are due, until ctx ends, and says what it could not do there.
func (s *Server) visit(ctx context.Context, g *reminders, what string, do func(context.Context, id.RoomID) (whole bool, err error)) error {
	tick := time.NewTicker(g.first)
	defer tick.Stop()
	var all errgroup.Group
	all.SetLimit(gapsAtOnce)
	defer all.Wait() // no function fails: each room is tried again by itself
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-g.wake:
		}
		for _, roomID := range g.due(time.Now()) {
			all.Go(func() error {
				whole := false
				err := s.guarded(what, func() (err error) {
					whole, err = do(ctx, roomID)
					return err
				})
				if err != nil && ctx.Err() == nil {
					s.Log.Info("could not "+what, zap.String("room", string(roomID)), zap.Error(err))
				}
				g.tried(roomID, whole)
				return nil
			})
		}
	}
}

// fillGapsOf fills the gaps of a room that lie above the beginning of what we have of it, and says whether
// none is left that is worth another try.
func (s *Server) fillGapsOf(ctx context.Context, roomID id.RoomID) (whole bool, err error) {
	failed := map[int64]bool{}
	for range gapBudget / gapPiece {
		var next *openGap
		if err := s.in(ctx, roomID, func(r *room) error {
			next, err = r.recentGap(failed)
			return err
		}); err != nil {
			return false, err
		}
		if next == nil {
			return len(failed) == 0, nil
		}
		came, err := s.Backfill(ctx, roomID, next.ord, gapPiece)
		if err != nil {
			return false, err
		}
		failed[next.event] = !came
		if came {
			delete(failed, next.event)
		}
	}
	return true, nil
}

// recentGap finds the highest gap but those given, nil when there is none. Below our first event, mostly the join of our
// first user, is all of the past: that is fetched when somebody reads it.
func (r *room) recentGap(but map[int64]bool) (gap *openGap, err error) {
	err = r.read(func(tx storage.Tx) error {
		gaps, err := tx.Gaps(r.row.NID, math.MaxInt64, 4*maxPrev)
		if err != nil || len(gaps) == 0 {
			return err
		}
		first, depth, ok, err := r.firstOf(tx)
		if err != nil || !ok {
			return err
		}
		for _, g := range gaps {
			if g.Ord <= first || but[g.Event] {
				continue
			}
			events, err := r.s.Reader.ByNumber(tx, r.row, []int64{g.Event})
			if err != nil {
				return err
			}
			// By its sender's word the event is older than our first: what is missing there is of the past too.
			if ev := events[g.Event]; ev == nil || ev.Depth() <= depth {
				continue
			}
			gap = &openGap{event: g.Event, ord: g.Ord}
			return nil
		}
		return nil
	})
	return gap, err
}

// firstOf gives place and depth of our first event: what was fetched of the past lies below.
func (r *room) firstOf(tx storage.Tx) (ord, depth int64, ok bool, err error) {
	events, err := tx.EventsAbove(r.row.NID, firstOrd, math.MaxInt64, 1)
	if err != nil || len(events) == 0 {
		return 0, 0, false, err
	}
	return *events[0].Ord, events[0].Depth, true, nil
}

func (r *room) firstDepth() (depth int64, ok bool, err error) {
	err = r.read(func(tx storage.Tx) error {
		_, depth, ok, err = r.firstOf(tx)
		return err
	})
	return depth, ok, err
}
