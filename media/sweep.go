package media

import (
	"context"
	"fmt"
	"slices"
	"time"

	"chancery/storage"

	"go.uber.org/zap"
)

const (
	sweepEvery = time.Hour
	// forgetAfter is how long another server's file stays that nobody asks for: it can be fetched again.
	forgetAfter = 30 * 24 * time.Hour
	sweepAtOnce = 200
)

// Run drops what is no longer wanted, until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		if err := s.sweep(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("media were not swept", zap.Error(err))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// sweep gives up reserved IDs and forgets files of other servers. The bytes go after the rows: a
// process killed in between leaves bytes that nobody names, and never a row without bytes.
func (s *Server) sweep(ctx context.Context) error {
	now := s.now()
	for {
		var forgotten, contents []string
		err := s.DB.Write(ctx, nil, func(tx storage.Tx) (err error) {
			tx.DropExpiredMedia(now.UnixMilli())
			if forgotten, err = tx.DropForgottenMedia(now.Add(-forgetAfter).UnixMilli(), sweepAtOnce); err != nil {
				return err
			}
			thumbnails, err := tx.DropThumbnails(forgotten)
			contents = slices.Concat(forgotten, thumbnails)
			return err
		})
		if err != nil {
			return fmt.Errorf("forget media: %w", err)
		}
		for _, hash := range contents {
			if err := s.dropContent(ctx, hash); err != nil {
				return fmt.Errorf("delete forgotten media: %w", err)
			}
		}
		if len(forgotten) < sweepAtOnce {
			return nil
		}
	}
}

// dropContent deletes a content if no row names it.
func (s *Server) dropContent(ctx context.Context, hash string) error {
	s.content.Lock()
	defer s.content.Unlock()
	var used bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		used, err = tx.ContentInUse(hash)
		return err
	})
	if err != nil || used {
		return err
	}
	return s.Blobs.Delete(ctx, hash)
}
