package roomserver

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"sync"
	"sync/atomic"
	"time"

	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Rooms are spread over this many shards. Each has one owner, whose commits check the shard's fence.
const shardCount = 64

// A lease is renewed three times in its life.
const (
	leaseTime  = 12 * time.Second
	renewEvery = 4 * time.Second
)

// ownership is the shards of this process. Owner is the same after a restart on the same data directory, so
// that a process that was killed need not wait for its own lease.
type ownership struct {
	owner  string
	fences [shardCount]atomic.Int64

	doubts  [shardCount]atomic.Int64 // commits of unknown outcome
	settled [shardCount]atomic.Int64 // of these, how many can no longer happen, or have
	raising sync.Mutex               // held by who settles them
}

func shardOf(roomID id.RoomID) int64 {
	h := fnv.New32a()
	h.Write([]byte(roomID))
	return int64(h.Sum32() % shardCount)
}

// Own takes all shards, waiting for the leases of an owner that went away. It returns before rooms are served.
func (s *Server) Own(ctx context.Context, owner string) error {
	s.shards.owner = owner
	if err := s.findLost(ctx); err != nil {
		return err
	}
	deadline := time.Now().Add(leaseTime + time.Second)
	for shard := range int64(shardCount) {
		for {
			fence, err := s.DB.TakeShard(ctx, shard, owner, leaseTime)
			if err == nil {
				s.shards.fences[shard].Store(fence)
				break
			}
			if !errors.Is(err, sql.ErrHeld) {
				return fmt.Errorf("take shard %d: %w", shard, err)
			}
			if time.Now().After(deadline) {
				return errors.New("another process owns the rooms of this database")
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	return nil
}

// keepShards renews the leases until ctx ends, then gives the shards back.
func (s *Server) keepShards(ctx context.Context) error {
	if !s.DB.OnPostgreSQL() {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			return s.DB.ReleaseShards(last, s.shards.owner)
		case <-tick.C:
		}
		err := s.DB.RenewLeases(ctx, s.shards.owner, shardCount, leaseTime)
		switch {
		case err == nil:
		case errors.Is(err, sql.ErrHeld):
			return errors.New("another process has taken over the rooms of this database")
		default:
			s.Log.Warn("could not renew the leases of the shards", zap.Error(err))
		}
	}
}

// doubt notes that a commit of the shard was sent and never answered: it may still happen.
func (s *Server) doubt(shard int64) { s.shards.doubts[shard].Add(1) }

// settleDoubts makes sure that no commit of unknown outcome happens from now on: our own fence is raised, which
// waits for a transaction that is under way and ends one that comes later. Rooms are read only after that.
func (s *Server) settleDoubts(ctx context.Context, shard int64) error {
	if s.shards.settled[shard].Load() == s.shards.doubts[shard].Load() {
		return nil
	}
	s.shards.raising.Lock()
	defer s.shards.raising.Unlock()
	doubts := s.shards.doubts[shard].Load()
	if s.shards.settled[shard].Load() == doubts {
		return nil
	}
	fence, err := s.DB.TakeShard(ctx, shard, s.shards.owner, leaseTime)
	if err != nil {
		return fmt.Errorf("raise the fence of shard %d: %w", shard, err)
	}
	s.shards.fences[shard].Store(fence)
	s.shards.settled[shard].Store(doubts)
	s.Log.Info("raised a fence after a commit of unknown outcome", zap.Int64("shard", shard))
	return nil
}

// checkFence makes the room's commits fail once its shard has another owner.
func (r *room) checkFence(tx storage.Tx) error {
	fence := r.s.shards.fences[r.shard].Load()
	if fence == 0 {
		return errors.New("this room engine owns no shards: Own comes before the first event")
	}
	tx.CheckFence(r.shard, fence)
	return nil
}
