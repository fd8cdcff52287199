package roomserver

import (
	"context"
	"maps"
	"runtime"
	"slices"
	"sync"
	"time"

	"maunium.net/go/mautrix/id"
)

// caller is for whom a room works.
type caller struct {
	rank
	origin string // the server whose work it is; empty for ours
}

// share divides what other servers may use of this one among them. A place is held while a room works for a
// server, and charged to it: of those who wait, the server goes first that has used the least. So one that sends
// without end waits for itself, and 100 rooms that are flooded leave places for the others, since a room holds
// one. Only moderation does not wait for its room's other work here: turn lets it go ahead.
type share struct {
	mu      sync.Mutex // guards the rest; a leaf
	free    int
	busy    map[id.RoomID]int        // places held
	waiting map[string][]*claim      // by server, in the order in which they came
	used    map[string]time.Duration // by server; it begins where the least of those at work stands
	least   time.Duration
}

type claim struct {
	caller
	room  id.RoomID
	given chan struct{}
}

func newShare() *share {
	return &share{
		// More than there are processors, since some of them wait for SQL.
		free: 2 * runtime.GOMAXPROCS(0), busy: map[id.RoomID]int{},
		waiting: map[string][]*claim{}, used: map[string]time.Duration{},
	}
}

// take waits for a place. What is given back says how long it was held.
func (s *share) take(ctx context.Context, who caller, room id.RoomID) (leave func(held time.Duration), err error) {
	c := &claim{who, room, make(chan struct{})}
	s.mu.Lock()
	if len(s.waiting[who.origin]) == 0 {
		s.used[who.origin] = max(s.used[who.origin], s.least)
	}
	s.waiting[who.origin] = append(s.waiting[who.origin], c)
	s.give()
	s.mu.Unlock()
	leave = func(held time.Duration) { s.leave(c, held) }
	select {
	case <-c.given:
		return leave, nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	left := s.remove(c)
	s.mu.Unlock()
	if !left { // it was given at the same moment
		leave(0)
	}
	return nil, ctx.Err()
}

func (s *share) leave(c *claim, held time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free++
	if s.busy[c.room]--; s.busy[c.room] == 0 {
		delete(s.busy, c.room)
	}
	s.used[c.origin] += held
	// Time goes on for all: however many servers come for the first time, those that were here have their turn.
	s.least += held / time.Duration(len(s.waiting)+1)
	s.give()
	if len(s.used) > maxUsed {
		// Those that were idle for long stand below the least and begin there again.
		maps.DeleteFunc(s.used, func(origin string, used time.Duration) bool { return used <= s.least && len(s.waiting[origin]) == 0 })
	}
}

// maxUsed is how many servers are remembered before those are forgotten of which nothing need be known.
const maxUsed = 10_000

// wanted says that other servers wait for a place to work on a room.
func (s *share) wanted(room id.RoomID, but string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for origin, claims := range s.waiting {
		if origin != but && slices.ContainsFunc(claims, func(c *claim) bool { return c.room == room }) {
			return true
		}
	}
	return false
}

// give hands out what is free.
func (s *share) give() {
	for s.free > 0 {
		next := s.next()
		if next == nil {
			return
		}
		s.remove(next)
		s.free--
		s.busy[next.room]++
		s.least = max(s.least, s.used[next.origin])
		close(next.given)
	}
}

// next finds the claim to serve: of the server that has used the least, the one that came first whose room is
// not at work for another.
func (s *share) next() (next *claim) {
	for origin, claims := range s.waiting {
		i := slices.IndexFunc(claims, func(c *claim) bool { return c.rank == moderation || s.busy[c.room] == 0 })
		if i >= 0 && (next == nil || s.used[origin] < s.used[next.origin]) {
			next = claims[i]
		}
	}
	return next
}

func (s *share) remove(c *claim) bool {
	claims := s.waiting[c.origin]
	i := slices.Index(claims, c)
	if i < 0 {
		return false
	}
	if claims = slices.Delete(claims, i, i+1); len(claims) == 0 {
		delete(s.waiting, c.origin)
	} else {
		s.waiting[c.origin] = claims
	}
	return true
}
