package roomserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// lost is what a restored database asks of other servers. They have events, ours too, that came after the copy:
// until a room has asked, an event of ours would build on yesterday and fork it.
type lost struct {
	epoch atomic.Int64 // whose rooms are still to ask; 0: none

	mu    sync.Mutex // guards tried; a leaf
	tried map[id.RoomID]bool
	wake  chan struct{}
}

const (
	lostWait    = 5 * time.Second // what a sender waits at most while the room asks
	lostPiece   = 100
	lostAtOnce  = 4
	lostAnswers = 3 // servers whose answers are enough
	lostUsers   = 3 // of ours who ask
	lostRounds  = 30
	lostPause   = 30 * time.Second
)

func newLost() *lost { return &lost{tried: map[id.RoomID]bool{}, wake: make(chan struct{}, 1)} }

// first says whether nobody has waited for the room yet: one attempt is waited for, not each.
func (l *lost) first(roomID id.RoomID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.tried[roomID]
}

func (l *lost) attempted(roomID id.RoomID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tried[roomID] = true
}

// findLost looks whether we are in an epoch that began with a restore and whose rooms have not all asked.
func (s *Server) findLost(ctx context.Context) error {
	epoch := s.DB.Epoch()
	return s.DB.Read(ctx, func(tx storage.Tx) error {
		epochs, err := tx.Epochs()
		if err != nil {
			return fmt.Errorf("read the epochs: %w", err)
		}
		done, err := tx.Cursor(storage.RoomsEpochCursor)
		if err == nil && len(epochs) > 1 && done < epoch {
			s.lost.epoch.Store(epoch)
		}
		return err
	})
}

// findAllLost has every room ask, after a restore, until ctx ends.
func (s *Server) findAllLost(ctx context.Context) error {
	for {
		if epoch := s.lost.epoch.Load(); epoch != 0 {
			if err := s.askRound(ctx, epoch); err != nil {
				return nil // ctx has ended
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.lost.wake:
			if err := s.findLost(ctx); err != nil && ctx.Err() == nil {
				s.Log.Warn("could not look for a new epoch", zap.Error(err))
			}
		}
	}
}

// askRound asks for all rooms until each had an answer, or for about a day. The error is that of ctx.
func (s *Server) askRound(ctx context.Context, epoch int64) error {
	pause := lostPause
	for round := 1; ; round++ {
		left, err := s.askRooms(ctx, epoch)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err == nil && (left == 0 || round == lostRounds) {
			if left > 0 {
				s.Log.Warn("no other server answered for some rooms, whose lost events stay lost", zap.Int("rooms", left))
			}
			err = s.DB.Write(ctx, []string{storage.RoomsEpochCursor}, func(tx storage.Tx) error {
				tx.SetCursor(storage.RoomsEpochCursor, epoch)
				return nil
			})
			if err == nil {
				s.lost.epoch.CompareAndSwap(epoch, 0)
				return nil
			}
		}
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("could not ask for lost events", zap.Error(err))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Hour)
	}
}

// askRooms asks once for each room that has not asked, and says how many are left.
func (s *Server) askRooms(ctx context.Context, epoch int64) (left int, err error) {
	var failed atomic.Int64
	var after int64
	for {
		var rooms []storage.Room
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			rooms, err = tx.RoomsNotAsked(epoch, after, lostPiece)
			return err
		})
		if err != nil || len(rooms) == 0 {
			return int(failed.Load()), err
		}
		after = rooms[len(rooms)-1].NID
		var g errgroup.Group
		g.SetLimit(lostAtOnce)
		for _, row := range rooms {
			g.Go(func() error {
				if err := s.guarded("ask for lost events", func() error { return s.findLostOf(ctx, id.RoomID(row.ID), epoch) }); err != nil {
					failed.Add(1)
					s.Log.Info("could not ask for the lost events of a room", zap.String("room", row.ID), zap.Error(err))
				}
				return nil
			})
		}
		g.Wait() // no function fails: each room is asked again by itself
	}
}

// awaitLost lets a room ask before an event of ours is built. Whoever comes first waits, for a bounded time; it goes
// on in any case.
func (s *Server) awaitLost(ctx context.Context, roomID id.RoomID) {
	epoch := s.lost.epoch.Load()
	if epoch == 0 || !s.lost.first(roomID) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, lostWait)
	defer cancel()
	if err := s.findLostOf(ctx, roomID, epoch); err != nil && !chancery.IsCode(err, chancery.CodeNotFound) {
		s.Log.Info("an event is sent before the room has its lost events back", zap.String("room", string(roomID)), zap.Error(err))
	}
}

// findLostOf asks the servers in a room for its latest events, and takes what we lost.
func (s *Server) findLostOf(ctx context.Context, roomID id.RoomID, epoch int64) error {
	return s.fills.once(ctx, "lost "+string(roomID), func() error {
		defer s.lost.attempted(roomID)
		return s.askForLost(ctx, roomID, epoch)
	})
}

var errNoAnswer = errors.New("no other server in the room has answered")

func (s *Server) askForLost(ctx context.Context, roomID id.RoomID, epoch int64) error {
	var users []id.UserID
	var asked bool
	err := s.in(ctx, roomID, func(r *room) error {
		return r.read(func(tx storage.Tx) (err error) {
			if asked, err = tx.HasAsked(r.row.NID, epoch); err != nil || asked {
				return err
			}
			members, err := tx.LocalMembers(r.row.NID, s.ServerName, []string{"join"})
			for _, m := range members[:min(len(members), lostUsers)] {
				users = append(users, id.UserID(m.User))
			}
			return err
		})
	})
	if err != nil || asked {
		return err
	}
	servers, err := s.otherServers(ctx, roomID)
	if err != nil {
		return err
	}
	answers := 0
	if len(users) > 0 {
		for _, server := range servers[:min(len(servers), maxAsked)] {
			found, err := s.takeLatest(ctx, server, roomID, users)
			if err != nil {
				s.Log.Debug("could not ask for lost events", zap.String("server", server), zap.Error(err))
				continue
			}
			if found > 0 {
				s.Log.Info("got events back that were lost", zap.String("room", string(roomID)), zap.String("server", server), zap.Int("latest", found))
			}
			if answers++; answers == lostAnswers {
				break
			}
		}
		if answers == 0 && len(servers) > 0 {
			return errNoAnswer
		}
	}
	return s.in(ctx, roomID, func(r *room) error {
		r.commit(&additions{}, func(tx storage.Tx) error {
			tx.SetAsked(r.row.NID, epoch)
			return nil
		})
		return nil
	})
}

// takeLatest asks a server for the room's open ends and takes those that we do not have, as if it had sent them:
// what lies between is fetched, and further back a gap is left that is filled later. There is no question for open ends; but the leave that
// a server would propose to one of our users builds on them. It is never sent.
//
// spec: s2s/makeLeave, s2s/getEvent
func (s *Server) takeLatest(ctx context.Context, server string, roomID id.RoomID, users []id.UserID) (found int, err error) {
	version, err := s.versionOf(ctx, roomID)
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	proposal, err := s.proposal(ctx, server, roomID, version, users)
	if err != nil {
		return 0, err
	}
	var ends []id.EventID
	for _, v := range gjson.GetBytes(proposal.Event, "prev_events").Array() {
		if v.IsArray() { // versions 1 and 2 name hashes beside
			v = v.Get("0")
		}
		if v.Str != "" && len(ends) < maxPrev {
			ends = append(ends, id.EventID(v.Str))
		}
	}
	have, err := s.haveEvents(ctx, roomID, ends)
	if err != nil {
		return 0, err
	}
	ends = slices.DeleteFunc(ends, func(v id.EventID) bool { return have[v] != nil && have[v].isJudged() })
	if len(ends) == 0 {
		return 0, nil
	}
	results := &pduResults{of: map[id.EventID]error{}}
	s.receiveInRoom(ctx, server, roomID, oldestFirst(s.fetchEvents(ctx, server, version, roomID, ends)), results)
	for _, v := range ends {
		if failed, tried := results.of[v]; !tried || failed != nil {
			err = errors.Join(err, fmt.Errorf("take %s: %w", v, failedOr(failed)))
			continue
		}
		found++
	}
	if found > 0 {
		return found, nil
	}
	return 0, err
}

// proposal gets any event that a server would have one of our users send. By the state there some may be in the
// room no more.
func (s *Server) proposal(ctx context.Context, server string, roomID id.RoomID, version *event.Version, users []id.UserID) (t *peer.Template, err error) {
	for _, user := range users {
		if t, err = s.Peer.MakeLeave(ctx, server, roomID, user); err == nil {
			return t, nil
		}
	}
	return s.Peer.MakeJoin(ctx, server, roomID, users[0], []id.RoomVersion{id.RoomVersion(version.Name)})
}

var errDidNotCome = errors.New("it did not come")

func failedOr(err error) error {
	if err == nil {
		return errDidNotCome
	}
	return err
}

func oldestFirst(events []*event.Event) []*event.Event {
	slices.SortStableFunc(events, func(x, y *event.Event) int { return int(min(max(x.Depth()-y.Depth(), -1), 1)) })
	return events
}
