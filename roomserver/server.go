// Package roomserver owns rooms: it is the only writer of events, edges and state.
// Everybody else asks it with Send, Join or Leave and learns what happened from the log.
// It knows nothing of HTTP, access tokens or sync tokens.
package roomserver

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/recent"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// Options are what a Server needs.
type Options struct {
	DB             *storage.DB
	Reader         *Reader
	ServerName     string
	KeyID          string
	Key            ed25519.PrivateKey
	Peer           *peer.Client
	Keys           *peer.KeyRing
	DefaultVersion string
	PolicyServer   bool // recommend events in rooms that name this server and its key for it
	// Exists says whether one of our users has an account that is in use. Nil: all have.
	Exists func(context.Context, id.UserID) (bool, error)
	// Metrics is where the engine's own metrics are registered. Nil: nowhere.
	Metrics prometheus.Registerer
	Log     *zap.Logger
}

// Server is the room engine of one process.
type Server struct {
	Options
	mu        sync.Mutex // guards rooms; never held while waiting
	rooms     map[id.RoomID]*room
	fills     *fills
	gaps      *reminders // rooms in whose history something is missing
	late      *reminders // rooms with events that could not be judged yet
	unsure    *reminders // rooms with events the state before which is not known
	partials  *partials
	answering *answering
	metrics   *metrics
	lost      *lost
	farSpaces *recent.Cache[string, *farSpace]
	opinions  *recent.Cache[string, *opinion]
	shards    ownership
	outliers  *recent.Cache[int64, *Stored] // see room.events
	share     *share                        // of this server, for the work of others
	states    chan struct{}                 // held while a whole state is on the way
	names     names
	vain      vain[askedGap] // of which gaps which servers were asked
	strangers vain[string]   // servers that anybody may have us ask for an invite
	rules     atomic.Int64   // counts changes of push rules
	maxSlots  int64          // of a room
	maxRead   int            // events that a resolution reads
}

// New makes the engine. Run must be running for idle rooms to leave memory.
func New(o Options) *Server {
	s := &Server{Options: o, rooms: map[id.RoomID]*room{}}
	s.fills, s.partials, s.answering = newFills(), newPartials(), newAnswering()
	s.gaps = newReminders(gapFirstPause, gapMaxPause, gapTries)
	s.late = newReminders(lateFirstPause, lateMaxPause, lateTries)
	s.unsure = newReminders(lateFirstPause, lateMaxPause, lateTries)
	s.metrics, s.lost = newMetrics(o.Metrics), newLost()
	s.farSpaces = recent.New[string, *farSpace](farSpaceBytes)
	s.opinions = recent.New[string, *opinion](opinionsBytes)
	s.outliers = recent.New[int64, *Stored](outliersBytes)
	s.share, s.states = newShare(), make(chan struct{}, largeStates)
	s.vain = vain[askedGap]{pause: 10 * time.Second, most: 1}
	s.strangers = vain[string]{pause: time.Minute, most: 3}
	s.names.room, s.maxSlots, s.maxRead = map[id.EventID]int64{}, maxSlots, state.MaxRead
	return s
}

// Idle rooms leave memory after this time.
const idleAfter = 10 * time.Minute

// Run keeps the shards and keeps house until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.keepShards(ctx) })
	g.Go(func() error { return s.keepHouse(ctx) })
	g.Go(func() error { return s.collectNodes(ctx) })
	g.Go(func() error { return s.visit(ctx, s.gaps, "fill the gaps of a room", s.fillGapsOf) })
	g.Go(func() error { return s.judgeLate(ctx) })
	g.Go(func() error { return s.learnAllStates(ctx) })
	g.Go(func() error { s.lookAtDoors(ctx); return nil })
	g.Go(func() error { return s.findAllLost(ctx) })
	g.Go(func() error { return s.makeWhole(ctx) })
	return g.Wait()
}

func (s *Server) keepHouse(ctx context.Context) error {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.dropIdle(time.Now().Add(-idleAfter))
		}
	}
}

func (s *Server) dropIdle(before time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for roomID, r := range s.rooms {
		if !r.turn.try() {
			continue // in use
		}
		if r.used.Before(before) && r.inFlight.Load() == 0 {
			r.gone = true
			delete(s.rooms, roomID)
		}
		r.turn.leave()
	}
}

// errGone says that the room in hand left memory: look it up again.
var errGone = errors.New("room left memory")

// in runs fn with the room's exclusion: one goroutine at a time, and nothing in fn waits for the
// network. What fn submits is awaited after the exclusion ends, so the next event can be built
// while this one is committed. So is what others submitted and fn looked at: who gets an answer may take all of
// it for stored, and find it there.
func (s *Server) in(ctx context.Context, roomID id.RoomID, fn func(*room) error) error {
	return s.inAs(ctx, caller{rank: ours}, roomID, fn)
}

// inAs is in for somebody's work. That of other servers is also bounded over all rooms and divided among them,
// so that a flood leaves the processors to our users and to everybody else.
func (s *Server) inAs(ctx context.Context, who caller, roomID id.RoomID, fn func(*room) error) error {
	waits, err := s.begin(ctx, who, roomID, fn)
	if err != nil {
		return err
	}
	return await(ctx, waits)
}

// begin is inAs without the waiting: what fn submitted is given to be awaited.
func (s *Server) begin(ctx context.Context, who caller, roomID id.RoomID, fn func(*room) error) ([]waiter, error) {
	for {
		s.mu.Lock()
		r := s.rooms[roomID]
		if r == nil {
			r = newRoom(s, roomID)
			s.rooms[roomID] = r
		}
		s.mu.Unlock()
		waits, err := s.holding(ctx, who, r, fn)
		if !errors.Is(err, errGone) {
			return waits, err
		}
	}
}

func await(ctx context.Context, waits []waiter) error {
	for _, p := range waits {
		if err := p.Wait(ctx); err != nil {
			return commitFailed(err)
		}
	}
	return nil
}

func (s *Server) holding(ctx context.Context, who caller, r *room, fn func(*room) error) (waits []waiter, err error) {
	if who.rank != ours {
		leave, err := s.share.take(ctx, who, r.id)
		if err != nil {
			return nil, err
		}
		began := time.Now()
		defer func() { leave(time.Since(began)) }()
	}
	if err := r.turn.take(ctx, who.rank); err != nil {
		return nil, err
	}
	defer r.turn.leave()
	defer r.unclaim()
	defer func() {
		if p := recover(); p != nil {
			r.loaded, r.waits = false, nil // memory has half of something
			panic(p)
		}
	}()
	if r.gone {
		return nil, errGone
	}
	r.used = time.Now()
	// Reads of the room are not cut off half-way by a caller that left: they are short.
	r.ctx = context.WithoutCancel(ctx)
	if !r.loaded || r.broken.Load() != nil {
		if err := r.load(); err != nil {
			s.forgetHandle(r)
			return nil, err
		}
	}
	r.settle()
	r.leans = false
	if err = fn(r); r.leans && r.last != nil && len(r.waits) == 0 {
		r.waits = append(r.waits, leaning{r.last})
	}
	waits, r.waits = r.waits, nil
	return waits, err
}

// forgetHandle drops a room that could not be loaded, so that unknown IDs cost no memory.
func (s *Server) forgetHandle(r *room) {
	r.gone = true
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rooms[r.id] == r {
		delete(s.rooms, r.id)
	}
}

// waiter is something under way whose outcome is awaited outside the exclusion.
type waiter interface{ Wait(context.Context) error }

func commitFailed(err error) error {
	if e := (*chancery.Error)(nil); errors.As(err, &e) {
		return e
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("commit the event: %w", storageFailed(err))
}

var errUnknownRoom = chancery.NotFound("unknown room")

// IsLocal says whether a user is one of ours.
func (s *Server) IsLocal(user id.UserID) bool { return user.Homeserver() == s.ServerName }
