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

// gaps are the rooms in whose history something is missing, to be asked for though nobody reads it yet. They
// are only a reminder: the gaps themselves are in storage, and a room that is forgotten here is noted again
// when it is next read.
type gaps struct {
	mu    sync.Mutex // guards rooms; a leaf
	rooms map[id.RoomID]*gapTry
	wake  chan struct{}
}

type gapTry struct {
	at    time.Time
	tries int
}

const (
	maxGapRooms   = 10_000
	gapsAtOnce    = 2    // rooms at a time
	gapPiece      = 100  // events asked for at a time
	gapBudget     = 2000 // events a visit may bring; what lies below comes when somebody reads there
	gapTries      = 8
	gapFirstPause = 30 * time.Second
	gapMaxPause   = time.Hour
)

func newGaps() *gaps { return &gaps{rooms: map[id.RoomID]*gapTry{}, wake: make(chan struct{}, 1)} }

// note has the gaps of a room filled soon.
func (g *gaps) note(roomID id.RoomID) {
	g.mu.Lock()
	if g.rooms[roomID] == nil && len(g.rooms) < maxGapRooms {
		g.rooms[roomID] = &gapTry{}
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// due lists the rooms whose time has come.
func (g *gaps) due(now time.Time) (rooms []id.RoomID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for roomID, try := range g.rooms {
		if !now.Before(try.at) {
			rooms = append(rooms, roomID)
		}
	}
	return rooms
}

// tried forgets a room that is whole, or that nobody can make whole; another is tried again, ever later.
func (g *gaps) tried(roomID id.RoomID, whole bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	try := g.rooms[roomID]
	if try == nil {
		return
	}
	if try.tries++; whole || try.tries >= gapTries {
		delete(g.rooms, roomID)
		return
	}
	try.at = time.Now().Add(min(gapFirstPause<<(try.tries-1), gapMaxPause))
}

// fillGaps asks for what is missing in rooms' histories until ctx ends.
func (s *Server) fillGaps(ctx context.Context) error {
	tick := time.NewTicker(gapFirstPause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-s.gaps.wake:
		}
		var g errgroup.Group
		g.SetLimit(gapsAtOnce)
		for _, roomID := range s.gaps.due(time.Now()) {
			g.Go(func() error {
				whole, err := s.fillGapsOf(ctx, roomID)
				if err != nil && ctx.Err() == nil {
					s.Log.Info("could not fill the gaps of a room", zap.String("room", string(roomID)), zap.Error(err))
				}
				s.gaps.tried(roomID, whole)
				return nil
			})
		}
		g.Wait() // no function fails: each room is tried again by itself
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

// recentGap finds the highest gap but those given, nil when there is none. Below the first event that we have,
// mostly the join of our first user, is all of the past: that is fetched when somebody reads it.
func (r *room) recentGap(but map[int64]bool) (gap *openGap, err error) {
	err = r.read(func(tx storage.Tx) error {
		gaps, err := tx.Gaps(r.row.NID, math.MaxInt64, 4*maxPrev)
		if err != nil || len(gaps) == 0 {
			return err
		}
		low, lowest, ok, err := r.lowest(tx)
		if err != nil || !ok {
			return err
		}
		for _, g := range gaps {
			if g.Ord <= low || but[g.Event] {
				continue
			}
			events, err := r.s.Reader.ByNumber(tx, r.row, []int64{g.Event})
			if err != nil {
				return err
			}
			// By its sender's word the event is older than our first: what is missing there is of the past too.
			if ev := events[g.Event]; ev == nil || ev.Depth() <= lowest {
				continue
			}
			gap = &openGap{event: g.Event, ord: g.Ord}
			return nil
		}
		return nil
	})
	return gap, err
}

// lowest gives place and depth of the first event of the history that is here.
func (r *room) lowest(tx storage.Tx) (ord, depth int64, ok bool, err error) {
	low, _, err := tx.OrdBounds(r.row.NID)
	if err != nil {
		return 0, 0, false, err
	}
	events, err := tx.EventsAt(r.row.NID, []int64{low})
	if err != nil || len(events) == 0 {
		return 0, 0, false, err
	}
	return low, events[0].Depth, true, nil
}

func (r *room) lowestDepth() (depth int64, ok bool, err error) {
	err = r.read(func(tx storage.Tx) error {
		_, depth, ok, err = r.lowest(tx)
		return err
	})
	return depth, ok, err
}
