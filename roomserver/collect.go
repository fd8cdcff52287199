package roomserver

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// A collection of a room's unused state nodes: what can be reached is marked in small steps while the room is in
// use, then what is not marked is removed. Marked is from every event that is kept, from the room's current state
// and its open ends, and from the facts that are not trimmed. A state that is made meanwhile is made from one of
// those, so it needs no old node that they do not reach; it is marked too.
//
// Only nodes up to the number at the beginning are removed.
type collection struct {
	room  storage.Room
	loose int64        // as counted when it began
	marks bits         // nodes that can be reached
	kept  int64        // how many they are
	todo  []int64      // marked, and not looked into
	noted []state.Root // made since it began; belongs to the room's exclusion

	events []*Stored // added since it began, where somebody wants to know: not nil
}

// bits is a set of the numbers of a room's nodes, which have few gaps.
type bits []uint64

func (b bits) has(n int64) bool { return n/64 < int64(len(b)) && b[n/64]&(1<<(n%64)) != 0 }

func (b *bits) add(n int64) {
	if missing := n/64 + 1 - int64(len(*b)); missing > 0 {
		*b = append(*b, make([]uint64, missing)...)
	}
	(*b)[n/64] |= 1 << (n % 64)
}

const (
	collectEvery = time.Minute
	collectPiece = 1000
	walkPiece    = 500
)

var errDisturbed = errors.New("the room was read again while its state was marked")

// collectNodes looks for rooms with much unused state until ctx ends.
func (s *Server) collectNodes(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		rooms, err := s.untidyRooms(ctx)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("could not look for unused state", zap.Error(err))
		}
		for _, roomID := range rooms {
			if _, err := s.Collect(ctx, roomID); err != nil && ctx.Err() == nil {
				s.Log.Warn("could not collect the unused state of a room", zap.String("room", string(roomID)), zap.Error(err))
			}
		}
	}
}

func (s *Server) untidyRooms(ctx context.Context) (rooms []id.RoomID, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		list, err := tx.Untidy(10)
		if err != nil || len(list) == 0 {
			return err
		}
		nids := make([]int64, len(list))
		for i, v := range list {
			nids[i] = v.Room
		}
		rows, err := tx.Rooms(nids)
		for _, row := range rows {
			rooms = append(rooms, id.RoomID(row.ID))
		}
		return err
	})
	return rooms, err
}

// Collect removes the nodes of a room's state that nothing leads to any more, and says how many they were.
func (s *Server) Collect(ctx context.Context, roomID id.RoomID) (removed int64, err error) {
	c := &collection{}
	if err := s.in(ctx, roomID, func(r *room) error { return r.beginCollection(c) }); err != nil {
		return 0, err
	}
	defer func() {
		if err == nil {
			return
		}
		_ = s.in(context.WithoutCancel(ctx), roomID, func(r *room) error { // a room that cannot be read has no collection
			if r.collection == c {
				r.collection = nil
			}
			return nil
		})
	}()
	if err := s.markRoots(ctx, c); err != nil {
		return 0, err
	}
	for marked := false; !marked; {
		if err := s.walkMarks(ctx, c); err != nil {
			return 0, err
		}
		err := s.in(ctx, roomID, func(r *room) error {
			if r.collection != c {
				return errDisturbed
			}
			for _, root := range c.noted {
				c.mark(int64(root))
			}
			c.noted = nil
			marked = len(c.todo) == 0
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	if removed, err = s.sweep(ctx, roomID, c); err != nil {
		return removed, err
	}
	err = s.in(ctx, roomID, func(r *room) error {
		if r.collection != c {
			return errDisturbed
		}
		r.collection = nil
		r.commit(&additions{}, func(tx storage.Tx) error {
			tx.Collected(c.room.NID, c.loose, c.kept)
			return nil
		})
		return nil
	})
	if removed > 0 && err == nil {
		s.Log.Info("collected unused state", zap.String("room", string(roomID)), zap.Int64("nodes removed", removed), zap.Int64("kept", c.kept))
	}
	return removed, err
}

// beginCollection takes the states that are known to memory alone. What was resolved before is resolved again when it
// is needed: nothing in storage leads to it.
func (r *room) beginCollection(c *collection) error {
	if r.collection != nil {
		return errors.New("the state of the room is being collected")
	}
	// What storage says is committed; memory is ahead of it.
	err := r.read(func(tx storage.Tx) error {
		row, ok, err := tx.RoomByNumber(r.row.NID)
		if err == nil && !ok {
			err = errUnknownRoom
		}
		if err != nil {
			return err
		}
		c.room = row
		upkeep, err := tx.Loose(row.NID)
		c.loose = upkeep.Loose
		return err
	})
	if err != nil {
		return err
	}
	clear(r.memo)
	c.noted = append(c.noted, state.Root(c.room.Root), state.Root(r.row.Root))
	for _, ev := range r.exts {
		c.noted = append(c.noted, ev.Before, ev.After)
	}
	for _, ev := range r.pending {
		c.noted = append(c.noted, ev.Before, ev.After)
	}
	r.collection = c
	return nil
}

// note has states marked that came into being while marking goes on.
func (c *collection) note(roots ...state.Root) {
	if c != nil {
		c.noted = append(c.noted, roots...)
	}
}

// noteEvent tells of an event that was added.
func (c *collection) noteEvent(ev *Stored) {
	if c != nil && c.events != nil {
		c.events = append(c.events, ev)
	}
}

func (c *collection) mark(node int64) {
	if node != 0 && !c.marks.has(node) {
		c.marks.add(node)
		c.kept++
		c.todo = append(c.todo, node)
	}
}

// markRoots marks the states of all events and facts of the room, a piece at a time.
func (s *Server) markRoots(ctx context.Context, c *collection) error {
	ts, nid := int64(math.MinInt64), int64(0)
	for more := true; more; {
		err := s.DB.Read(ctx, func(tx storage.Tx) error {
			list, err := tx.EventRootsAfter(c.room.NID, ts, nid, collectPiece)
			for _, v := range list {
				ts, nid = v.TS, v.NID
				c.mark(v.Before)
				c.mark(v.After)
			}
			more = len(list) == collectPiece
			return err
		})
		if err != nil {
			return fmt.Errorf("read the states of a room's events: %w", err)
		}
	}
	var pos int64
	for more := true; more; {
		err := s.DB.Read(ctx, func(tx storage.Tx) error {
			list, err := tx.FactRootsAfter(c.room.NID, pos, collectPiece)
			for _, v := range list {
				pos = v.Pos
				c.mark(v.Root)
			}
			more = len(list) == collectPiece
			return err
		})
		if err != nil {
			return fmt.Errorf("read the states of a room's facts: %w", err)
		}
	}
	return nil
}

// walkMarks marks what the marked nodes lead to.
func (s *Server) walkMarks(ctx context.Context, c *collection) error {
	for len(c.todo) > 0 {
		n := len(c.todo) - min(len(c.todo), walkPiece)
		piece := slices.Clone(c.todo[n:])
		c.todo = c.todo[:n]
		var nodes map[int64][]byte
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			nodes, err = tx.StateNodes(c.room.NID, piece)
			return err
		})
		if err != nil {
			return fmt.Errorf("read state nodes: %w", err)
		}
		for _, v := range piece {
			data, ok := nodes[v]
			switch {
			case !ok && v > c.room.NextNode:
				continue // not committed yet; what it is made from is marked
			case !ok:
				return fmt.Errorf("%w: node %d of room %s is in use and is not there", state.ErrMissing, v, c.room.ID)
			}
			below, err := state.References(data)
			if err != nil {
				return fmt.Errorf("node %d of room %s: %w", v, c.room.ID, err)
			}
			for _, b := range below {
				c.mark(b)
			}
		}
	}
	return nil
}

// sweep removes, a piece at a time, the nodes that are not marked.
func (s *Server) sweep(ctx context.Context, roomID id.RoomID, c *collection) (removed int64, err error) {
	var at int64
	for {
		var list []int64
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			list, err = tx.NodeNumbers(c.room.NID, at, c.room.NextNode, collectPiece)
			return err
		})
		if err != nil || len(list) == 0 {
			return removed, err
		}
		at = list[len(list)-1]
		unused := slices.DeleteFunc(list, func(n int64) bool { return c.marks.has(n) })
		if len(unused) == 0 {
			continue
		}
		err = s.in(ctx, roomID, func(r *room) error {
			if r.collection != c {
				return errDisturbed
			}
			r.commit(&additions{}, func(tx storage.Tx) error {
				tx.DeleteNodes(c.room.NID, unused)
				return nil
			})
			return nil
		})
		if err != nil {
			return removed, err
		}
		removed += int64(len(unused))
		s.metrics.collected.Add(float64(len(unused)))
	}
}
