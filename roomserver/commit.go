package roomserver

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
)

// submit hands the additions to storage: together or not at all, in order with the room's other commits.
func (r *room) submit(list ...*addition) {
	r.commit(&additions{list: list}, func(tx storage.Tx) error { return writeAll(tx, list) })
}

func writeAll(tx storage.Tx, list []*addition) error {
	for _, a := range list {
		if err := a.write(tx); err != nil {
			return err
		}
	}
	return nil
}

// commit submits one function of the room, and of what else it names by keys. When it fails, everything submitted after
// it fails too and the room is read again before it is used.
func (r *room) commit(all *additions, write func(storage.Tx) error, keys ...string) {
	for _, nid := range all.changed {
		r.s.outliers.Drop(nid)
	}
	for _, a := range all.list {
		if a.known {
			r.s.outliers.Drop(a.NID)
		}
		if a.redacts != nil {
			r.s.outliers.Drop(a.redacts.target)
		}
	}
	r.inFlight.Add(1)
	p := r.s.DB.Submit(append(r.key(), keys...), func(tx storage.Tx) error {
		if failed := r.broken.Load(); failed != nil {
			return fmt.Errorf("%w: %w", errEarlier, *failed)
		}
		if err := r.checkFence(tx); err != nil {
			return err
		}
		return write(tx)
	}, func(err error) {
		if errors.Is(err, sql.ErrUnknownOutcome) {
			r.s.doubt(r.shard)
		}
		r.broken.CompareAndSwap(nil, &err)
	})
	c, named, nid := &committed{done: make(chan struct{})}, r.named(all), r.row.NID
	r.waits, r.last = append(r.waits, c), c
	go func() {
		defer close(c.done)
		defer r.inFlight.Add(-1)
		defer r.s.names.release(named, nid)
		if c.err = p.Wait(context.Background()); c.err != nil {
			return
		}
		for _, n := range all.changed {
			r.s.Reader.Forget(nid, n)
		}
		r.doneMu.Lock()
		r.done = append(r.done, all)
		r.doneMu.Unlock()
		for _, a := range all.list {
			r.tellMoves(a.moves, zap.String("event", string(a.ID())))
			if a.moves != nil && a.moves.shut {
				r.s.putGuestsOutLater(r.id)
			}
			if a.redacts != nil {
				r.s.Reader.Forget(a.Room, a.redacts.target)
			}
			if a.left {
				r.s.partials.stir(r.id)
			}
			if a.restated {
				r.s.Reader.Forget(a.Room, a.NID)
			}
			if len(a.missing) > 0 {
				r.s.gaps.note(r.id)
			}
			if a.partial != nil && !a.room.Partial {
				r.s.unsure.noteSoon(r.id)
			}
		}
	}()
}

// committed is a commit of which the room has taken note: who waited for it finds it in memory.
type committed struct {
	done chan struct{}
	err  error
}

// Wait returns the outcome; a caller that gives up leaves early.
func (c *committed) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *room) key() []string { return []string{"room:" + strconv.FormatInt(r.row.NID, 10)} }

// write is the event's part of the transaction. It only queues statements.
func (a *addition) write(tx storage.Tx) error {
	if a.first {
		tx.InsertRoom(a.room)
	} else if a.moved {
		tx.UpdateRoom(a.room)
	}
	row := a.Stored.row(a.notify)
	if a.known {
		tx.PlaceEvent(row)
	} else {
		tx.InsertEvent(row)
		tx.InsertAuth(a.NID, a.auth)
		for i := range a.places {
			places, links := placeRows(a.places[i : i+1])
			tx.InsertPlace(a.Room, places[0], links)
		}
	}
	if a.partial != nil {
		tx.InsertPartialEvent(a.Room, *a.partial)
	}
	for _, s := range a.slots {
		tx.InsertSlot(a.Room, s)
	}
	for _, n := range a.nodes {
		tx.InsertStateNode(a.Room, n.ID, n.Data)
	}
	if a.loose > 0 {
		tx.NoteLoose(a.Room, a.loose)
	}
	for _, n := range a.lost {
		tx.RemoveExtremity(a.Room, n)
	}
	for _, n := range a.gained {
		tx.AddExtremity(a.Room, n)
	}
	if a.awaited {
		tx.RemoveMissing(a.Room, string(a.ID()))
	}
	for _, v := range a.missing {
		tx.AddMissing(a.Room, a.NID, string(v))
		for _, above := range a.waiting {
			tx.AddMissing(a.Room, above, string(v))
		}
	}
	if a.moves != nil {
		a.moves.write(tx, a.Room, a.room.ID)
	}
	if a.txn != nil {
		tx.InsertTransaction(*a.txn)
	}
	if err := a.writeBearing(tx); err != nil {
		return err
	}
	if a.set != nil {
		if err := tx.InsertServerSet(a.set.nid, a.Room, a.set.servers); err != nil {
			return err
		}
	}
	for _, f := range a.facts {
		tx.Announce(f)
	}
	if a.also != nil {
		return a.also(tx)
	}
	return nil
}

// writeBearing writes what the event means to people and to other events.
func (a *addition) writeBearing(tx storage.Tx) error {
	if len(a.notifications) > 0 {
		if err := tx.InsertNotifications(a.notifications); err != nil {
			return err
		}
	}
	if a.relation != nil {
		tx.InsertRelation(*a.relation)
	}
	if a.redacts != nil {
		tx.RedactEvent(a.redacts.target, string(a.redacts.by), a.redacts.text)
		tx.DeleteRelation(a.redacts.target)
	}
	if a.Placed && a.Redacts() != "" {
		tx.InsertRedaction(a.Room, string(a.Redacts()), string(a.ID()), a.NID)
	}
	return nil
}

// row gives the event as storage keeps it.
func (s *Stored) row(notify bool) *storage.Event {
	v := &storage.Event{NID: s.NID, Room: s.Room, ID: string(s.ID()), Type: s.Type(), Sender: string(s.Sender()),
		Depth: s.Depth(), TS: s.OriginServerTS(), Status: s.Status, RootBefore: int64(s.Before), RootAfter: int64(s.After),
		Notify: notify, RedactedBy: string(s.RedactedBy), JSON: s.JSON()}
	if key, ok := s.StateKey(); ok {
		v.StateKey = &key
	}
	if s.Placed {
		ord := s.Ord
		v.Ord = &ord
	}
	return v
}
