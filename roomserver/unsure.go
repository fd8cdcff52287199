package roomserver

import (
	"context"
	"fmt"
	"math/rand/v2"

	"chancery"
	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Of an event whose prev events are missing, and the state before which nobody tells when we need it, we make one of what
// we know: that may lack somebody. It is noted, nobody is told that state, and it is asked for again as long as we are in
// the room. So is that of events which were judged by a part of the state, when we have come back into their room.

// learnAllStates visits the rooms in which such events are noted, those from before the start too.
func (s *Server) learnAllStates(ctx context.Context) error {
	var rooms []string
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		rooms, err = tx.RoomsWithPartialEvents(maxReminders)
		return err
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("read in which rooms events have no known state: %w", err)
	}
	for _, roomID := range rooms {
		s.unsure.note(id.RoomID(roomID))
	}
	return s.visit(ctx, s.unsure, "learn the states before a room's events", s.learnStates)
}

// learnStates asks for the states before the events of a room that are noted, and gives it and what builds on it the
// states that follow from them.
func (s *Server) learnStates(ctx context.Context, roomID id.RoomID) (whole bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lateTime)
	defer cancel()
	var list []noted
	err = s.in(ctx, roomID, func(r *room) (err error) {
		if r.row.Partial || r.servers[s.ServerName] == 0 {
			return nil // its completion sees to it; or whoever comes back
		}
		list, err = r.partialEvents()
		return err
	})
	if chancery.IsCode(err, chancery.CodeNotFound) {
		return true, nil
	}
	if err != nil || len(list) == 0 {
		return err == nil, err
	}
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] }) // none is in another's way
	var learned []int64
	var last error
	failures := 0
	for _, p := range list {
		if !p.isJudged() { // held in a room that we have left since
			learned = append(learned, p.NID)
			continue
		}
		err := s.learnState(ctx, roomID, p.Stored)
		if err == nil {
			learned = append(learned, p.NID)
			continue
		}
		if last = err; !knowsNot(err) {
			if failures++; failures >= lateFailures || ctx.Err() != nil {
				break
			}
		}
	}
	if len(learned) == 0 {
		return false, last
	}
	found, err := s.Rebuild(ctx, roomID, true)
	if err != nil {
		return false, err
	}
	s.Log.Info("learned the states before events of a room", zap.String("room", string(roomID)), zap.Int("events", len(learned)),
		zap.Int("left", len(list)-len(learned)), zap.Int("changes", len(found.Changes)))
	return last == nil, s.in(ctx, roomID, func(r *room) error {
		r.commit(&additions{}, func(tx storage.Tx) error {
			tx.ForgetPartialEvents(r.row.NID, learned)
			return nil
		})
		return nil
	})
}

// learnState gives an event the state before it that another server tells. Where all that it builds on has come
// meanwhile, its state follows from that.
func (s *Server) learnState(ctx context.Context, roomID id.RoomID, ev *Stored) error {
	n := &needs{}
	if err := s.in(ctx, roomID, func(r *room) error {
		_, err := r.prevOf(ev.Event, n)
		return err
	}); err != nil || len(n.prev) == 0 {
		return err
	}
	g, err := s.stateBefore(ctx, &errand{origin: ev.Sender().Homeserver(), room: roomID}, ev.Event)
	if err != nil {
		return err
	}
	return s.in(ctx, roomID, func(r *room) (err error) {
		defer r.distrust(&err)
		if r.row.Partial {
			return errPartial // left, and joined anew
		}
		if err := r.settled(); err != nil {
			return err
		}
		prev, err := r.prevOf(ev.Event, n)
		if err != nil {
			return err
		}
		root, err := r.rootTold(prev, g.told)
		if err != nil {
			return err
		}
		changes, err := r.array.Diff(root, ev.Before)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			r.array.Drop()
			return nil
		}
		return r.moveTo(ev, root)
	})
}

// moveTo gives an event another state before it. What builds on it, and the room, have what followed from the old one
// until they are rebuilt.
func (r *room) moveTo(ev *Stored, before state.Root) (err error) {
	after := before
	if key, isState := ev.StateKey(); isState && ev.Status != storage.Rejected {
		if after, err = r.withKeys(before, map[Key]int64{{ev.Type(), key}: ev.NID}); err != nil {
			return err
		}
	}
	nodes, slots, row := r.array.Take(), r.newSlots, r.row
	r.newSlots = nil
	r.commit(&additions{changed: []int64{ev.NID}}, func(tx storage.Tx) error {
		tx.UpdateRoom(row)
		if err := copyNodes(tx, row.NID, nodes); err != nil {
			return err
		}
		if err := tx.CopySlots(row.NID, slots); err != nil {
			return err
		}
		tx.MoveEvent(ev.NID, int64(before), int64(after))
		return nil
	})
	r.loaded = false // memory has the state of before
	return nil
}
