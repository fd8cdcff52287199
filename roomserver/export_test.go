package roomserver

import (
	"context"
	"errors"
	"slices"
	"time"

	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// ReceiveFor takes an event as if a server in the room had sent it.
func (s *Server) ReceiveFor(ctx context.Context, room id.RoomID, ev *event.Event) error {
	return s.take(ctx, "test", room, ev, nil)
}

// ReadAtMost bounds the events that a resolution may read.
func (s *Server) ReadAtMost(n int) { s.maxRead = n }

// Outside stores events as parts of a state that another server gave.
func (s *Server) Outside(ctx context.Context, room id.RoomID, events ...*event.Event) error {
	return s.addOutside(ctx, caller{theirs, "test"}, room, events)
}

// Grow sends many events, of whatever server's users, at the end of a room: as they come, only faster.
func (s *Server) Grow(ctx context.Context, roomID id.RoomID, events []NewEvent) error {
	for piece := range slices.Chunk(events, 500) {
		err := s.in(ctx, roomID, func(r *room) error {
			for _, n := range piece {
				a, err := r.make(n, how{})
				if err != nil {
					return err
				}
				r.submit(a)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Branch adds a chain of events that builds on an older one beside the room's end, and gives the state after it.
func (s *Server) Branch(ctx context.Context, roomID id.RoomID, from id.EventID, events []NewEvent) (root state.Root, err error) {
	for piece := range slices.Chunk(events, 500) {
		err := s.in(ctx, roomID, func(r *room) error {
			found, err := r.eventsByID([]id.EventID{from})
			if err != nil {
				return err
			}
			last := found[from]
			for _, n := range piece {
				p, _, err := r.proto(n, last.After)
				if err != nil {
					return err
				}
				p.PrevEvents, p.Depth = []id.EventID{last.ID()}, last.Depth()+1
				ev, err := event.Build(r.version, p, s.ServerName, s.KeyID, s.Key, time.Now())
				if err != nil {
					return err
				}
				a, err := r.add(ev, how{before: last.After, status: storage.SoftFailed})
				if err != nil {
					return err
				}
				r.submit(a)
				last = a.Stored
			}
			from, root = last.ID(), last.After
			return nil
		})
		if err != nil {
			return 0, err
		}
	}
	return root, nil
}

// Merge resolves a state with the room's current one, and says how long that took and how many events were in conflict.
// begin is called when the room is in memory.
func (s *Server) Merge(ctx context.Context, roomID id.RoomID, with state.Root, begin func()) (conflicted int, err error) {
	err = s.in(ctx, roomID, func(r *room) error {
		begin()
		_, err := r.resolveAnew([]state.Root{state.Root(r.row.Root), with}, func(_ []int64, sets [][]int64) {
			for _, set := range sets {
				conflicted += len(set)
			}
		}, nil)
		return err
	})
	return conflicted, err
}

// FailUnder has a commit of the room fail when others have been submitted after it; begun says that it is under way.
func (s *Server) FailUnder(ctx context.Context, roomID id.RoomID, others int64, begun func()) error {
	return s.in(ctx, roomID, func(r *room) error {
		r.commit(&additions{}, func(storage.Tx) error {
			begun()
			for r.inFlight.Load() <= others {
				time.Sleep(time.Millisecond)
			}
			return errors.New("this commit fails")
		})
		return nil
	})
}

// LimitSlots bounds the pieces of state of a room.
func (s *Server) LimitSlots(n int64) { s.maxSlots = n }

// KeepShards renews the leases of an engine that does not run.
func (s *Server) KeepShards(ctx context.Context) error { return s.keepShards(ctx) }

// LearnStates asks now for the states that were guessed.
func (s *Server) LearnStates(ctx context.Context, roomID id.RoomID) (whole bool, err error) {
	return s.learnStates(ctx, roomID)
}
