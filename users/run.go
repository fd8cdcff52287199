package users

import (
	"context"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"

	"chancery/storage"
)

const (
	trimEvery  = time.Hour
	leaveEvery = 5 * time.Minute // for what failed
)

// Run does what needs no request: it notes when devices were seen, trims tokens, takes deactivated
// users out of their rooms, tells rooms of changed profiles and fetches stale device lists. It ends with ctx, with everything written.
func (s *Server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.keepBooks(ctx) })
	g.Go(func() error { return s.watchLeaving(ctx) })
	g.Go(func() error { return s.spreadProfiles(ctx) })
	g.Go(func() error { return s.watchPresence(ctx) })
	g.Go(func() error { return s.watchDeviceLists(ctx) })
	return g.Wait()
}

func (s *Server) keepBooks(ctx context.Context) error {
	seen, trim := time.NewTicker(seenFlush), time.NewTicker(trimEvery)
	defer seen.Stop()
	defer trim.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			s.flushSeen(last)
			return nil
		case <-seen.C:
			s.flushSeen(ctx)
		case <-trim.C:
			s.trimTokens(ctx)
			s.trimToDevice(ctx)
		}
	}
}

func (s *Server) watchLeaving(ctx context.Context) error {
	again := time.NewTicker(leaveEvery)
	defer again.Stop()
	for {
		s.emptyRooms(ctx) // first what a crash left over
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-s.leave:
		}
	}
}

func (s *Server) trimTokens(ctx context.Context) {
	err := s.DB.Write(ctx, []string{"tokens"}, func(tx storage.Tx) error {
		tx.TrimTokens(now(), now()-expiredLifetime.Milliseconds())
		return nil
	})
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("trimming tokens failed", zap.Error(err))
	}
}

// emptyRooms takes deactivated users out of their rooms. A user is out when OnDeactivate says so.
func (s *Server) emptyRooms(ctx context.Context) {
	var list []string
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		list, err = tx.LeavingAccounts()
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("looking for deactivated users failed", zap.Error(err))
	}
	for _, user := range list {
		if err := s.emptyRoomsOf(ctx, user); err != nil && ctx.Err() == nil {
			s.Log.Warn("a deactivated user is not out of all rooms yet", zap.String("user", user), zap.Error(err))
		}
	}
}

func (s *Server) emptyRoomsOf(ctx context.Context, user string) error {
	// Devices go first: who shares a room is told of it.
	if err := s.deleteOtherDevices(ctx, id.UserID(user), ""); err != nil {
		return err
	}
	if s.OnDeactivate == nil {
		return nil
	}
	if err := s.OnDeactivate(ctx, id.UserID(user)); err != nil {
		return err
	}
	return s.DB.Write(ctx, []string{user}, func(tx storage.Tx) error {
		row, ok, err := tx.Account(user)
		if err != nil || !ok {
			return err
		}
		row.Leaving = false
		tx.UpdateAccount(row)
		return nil
	})
}
