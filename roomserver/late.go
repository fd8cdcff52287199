package roomserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// An event whose prev events, or whose signers' keys, we cannot get now from anybody is not lost: its sender takes it for
// delivered, and may say nothing more for a day. It is kept, and judged when somebody answers. Whether its signatures hold
// is looked at then: so nothing that is kept is believed.

const (
	lateFirstPause = 2 * time.Second // as long as we leave a server alone that failed and speaks to us
	lateMaxPause   = time.Hour
	lateTries      = 40
	lateFor        = 24 * time.Hour
	lateTime       = 5 * time.Minute // for a visit to a room
	lateFailures   = 5               // and then we leave it

	maxLateHere = 100  // events of a room that wait; the newest bring the others
	maxLate     = 5000 // in all rooms
)

// orLater keeps an event for later that could not be judged because what it builds on could not be had. It gives the
// error that it is given: the sender may know.
func (s *Server) orLater(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event, err error) error {
	if err == nil {
		return nil
	}
	var n *needs
	if again := s.take(ctx, origin, roomID, ev, nil); !errors.As(again, &n) {
		return again
	}
	if keep := s.keepLate(ctx, origin, roomID, ev, true); keep != nil {
		s.Log.Warn("could not keep an event for later", zap.String("event", string(ev.ID())), zap.Error(keep))
	}
	return err
}

// keepLate keeps an event. A copy that waits already, of which nobody knows whether it is signed, makes place for one that
// is, or that the sender's own server brings: whoever falsifies copies of others' events must not have them dropped.
func (s *Server) keepLate(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event, signed bool) error {
	var row storage.Room
	if err := s.in(ctx, roomID, func(r *room) error { row = r.row; return nil }); err != nil {
		return err
	}
	err := s.DB.Write(ctx, []string{fmt.Sprint("room:", row.NID), "unjudged"}, func(tx storage.Tx) error {
		waits, err := tx.UnjudgedAmong(row.NID, []string{string(ev.ID())})
		if err != nil || len(waits) > 0 && !signed && origin != ev.Sender().Homeserver() {
			return err
		}
		tx.DeleteUnjudged(waits)
		here, all, err := tx.CountUnjudged(row.NID)
		switch {
		case err != nil:
			return err
		case here >= maxLateHere:
			err = tx.DropOldestUnjudged(row.NID)
		case all >= maxLate:
			err = tx.DropOldestUnjudged(0)
		}
		if err != nil {
			return err
		}
		tx.AddUnjudged(storage.Unjudged{Room: row.NID, ID: string(ev.ID()), Origin: origin, Since: time.Now().UnixMilli(), JSON: ev.JSON()})
		return nil
	})
	if err == nil {
		s.late.noteSoon(roomID)
	}
	return err
}

// judgeLate visits the rooms in which events wait, those from before the start too.
func (s *Server) judgeLate(ctx context.Context) error {
	var rooms []string
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		rooms, err = tx.RoomsWithUnjudged(maxReminders)
		return err
	})
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("read in which rooms events wait: %w", err)
	}
	for _, roomID := range rooms {
		s.late.note(id.RoomID(roomID))
	}
	return s.visit(ctx, s.late, "judge the late events of a room", s.judgeLateIn)
}

// judgeLateIn tries again to judge events of a room, the newest first: what is missing below it is mostly the others.
func (s *Server) judgeLateIn(ctx context.Context, roomID id.RoomID) (whole bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, lateTime)
	defer cancel()
	version, err := s.versionOf(ctx, roomID)
	if err != nil {
		return false, err
	}
	var row storage.Room
	if err := s.in(ctx, roomID, func(r *room) error { row = r.row; return nil }); err != nil {
		return false, err
	}
	var list []storage.Unjudged
	if err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		list, err = tx.UnjudgedIn(row.NID, maxLateHere)
		return err
	}); err != nil {
		return false, err
	}
	events := make(map[string]*event.Event, len(list))
	copies := make(map[string]storage.Unjudged, len(list))
	var done []storage.Unjudged
	var all []*event.Event
	for _, u := range list {
		copies[u.ID] = u
		ev, err := event.ParseStored(version, id.EventID(u.ID), u.JSON)
		if err != nil {
			done = append(done, u)
			continue
		}
		all = append(all, ev)
	}
	var last error
	for i, err := range s.verify(ctx, all) {
		switch {
		case err == nil:
			events[string(all[i].ID())] = all[i]
		case errors.Is(err, peer.ErrBadSignature):
			done = append(done, copies[string(all[i].ID())])
		default:
			last = err // still no keys
		}
	}
	slices.SortStableFunc(list, func(x, y storage.Unjudged) int {
		if events[x.ID] == nil || events[y.ID] == nil {
			return 0
		}
		return cmp.Compare(events[y.ID].Depth(), events[x.ID].Depth())
	})
	failures := 0
	for _, u := range list {
		ev := events[u.ID]
		if ev == nil {
			continue
		}
		err := s.receiveOne(ctx, u.Origin, roomID, ev)
		var n *needs
		if err != nil && errors.As(s.take(ctx, u.Origin, roomID, ev, nil), &n) {
			last = err // still nobody helps
			if failures++; failures >= lateFailures {
				break
			}
			continue
		}
		done = append(done, u)
	}
	err = s.DB.Write(ctx, []string{fmt.Sprint("room:", row.NID)}, func(tx storage.Tx) error {
		tx.DeleteUnjudged(done)
		tx.TrimUnjudged(time.Now().Add(-lateFor).UnixMilli())
		return nil
	})
	return last == nil, cmp.Or(last, err)
}
