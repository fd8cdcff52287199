package roomserver

import (
	"context"
	"sync"
	"time"

	"chancery"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Asked is a room as another server asks about it: it is one of those in the room, and not barred.
type Asked struct {
	r *room
}

// For runs fn for a server that asks about a room: refused unless it has a member there, or had one until what
// the question is about put them out. That server is told of this event, and must be able to place it.
//
// Of a room that we have left we answer what is asked about events by their IDs, to those who were in it with us: what our
// users did last may be had from us alone, and nothing is here that was kept from them then. How the room is now we do not
// know.
//
// spec: s2s#server-access-control-lists-acls
func (s *Server) For(ctx context.Context, origin string, roomID id.RoomID, fn func(Asked) error, about ...id.EventID) error {
	return s.inAs(ctx, caller{theirs, origin}, roomID, func(r *room) error {
		if err := r.checkACL(origin); err != nil {
			return err
		}
		if r.servers[s.ServerName] == 0 && len(about) == 0 {
			return chancery.NotFound("we are not in this room")
		}
		if r.servers[origin] == 0 {
			if was, err := r.putOutBy(origin, about); err != nil {
				return err
			} else if !was && r.partial != nil {
				return errPartial // it may have members whom we do not know
			} else if !was {
				return chancery.Forbidden("your server is not in this room")
			}
		}
		return fn(Asked{r})
	})
}

// putOutBy says whether each of some events ended the membership of a user of a server. Beside such an event nothing
// else may be asked about: what lies below another one may have come later.
func (r *room) putOutBy(server string, events []id.EventID) (bool, error) {
	found, err := r.eventsByID(events)
	if err != nil {
		return false, err
	}
	for _, v := range events {
		ev := found[v]
		if ev == nil {
			return false, nil
		}
		user, isState := ev.StateKey()
		if !isState || ev.Type() != "m.room.member" || ev.Membership() == "join" || id.UserID(user).Homeserver() != server || ev.Status != storage.Accepted {
			return false, nil
		}
		k := Key{"m.room.member", user}
		before, err := r.stateAt(ev.Before, []Key{k})
		if err != nil {
			return false, err
		}
		if was := before[k]; was == nil || was.Membership() != "join" {
			return false, nil
		}
	}
	return len(events) > 0, nil
}

// Version is the room's version.
func (a Asked) Version() *event.Version { return a.r.version }

// AnyEvent finds an event, also one that is known only as a part of states or auth chains: who is told of a state must
// be able to get its events.
func (a Asked) AnyEvent(eventID id.EventID) (*Stored, error) {
	found, err := a.r.eventsByID([]id.EventID{eventID})
	if err != nil {
		return nil, err
	}
	ev := found[eventID]
	if ev == nil || ev.Status == storage.Rejected {
		return nil, chancery.NotFound("we have no such event")
	}
	return ev, nil
}

// Event finds an event that has its place in the room.
func (a Asked) Event(eventID id.EventID) (*Stored, error) {
	found, err := a.r.eventsByID([]id.EventID{eventID})
	if err != nil {
		return nil, err
	}
	ev := found[eventID]
	if ev == nil || ev.Status == storage.Outlier || ev.Status == storage.Rejected {
		return nil, chancery.NotFound("we have no such event")
	}
	return ev, nil
}

// StateBefore gives the state before an event and the auth chain of that state, to a server that asks. Both can
// be large, so the room goes on meanwhile: only where to look is found in its turn. The caller closes it.
//
// spec: s2s/getRoomState
func (s *Server) StateBefore(ctx context.Context, origin string, roomID id.RoomID, eventID id.EventID) (*Snapshot, error) {
	return s.large(ctx, origin, func(leave func()) (*Snapshot, error) {
		var row storage.Room
		var ev *Stored
		err := s.For(ctx, origin, roomID, func(a Asked) (err error) {
			if ev, err = a.Event(eventID); err == nil {
				row, err = a.committed(ev)
			}
			if err == nil {
				err = a.r.knowsStateOf(ev)
			}
			return err
		}, eventID)
		if err != nil {
			return nil, err
		}
		return s.snapshot(ctx, row, ev.Before, nil, leave)
	})
}

// AuthChain gives the auth chain of an event, to a server that asks. The caller closes it.
//
// spec: s2s/getEventAuth
func (s *Server) AuthChain(ctx context.Context, origin string, roomID id.RoomID, eventID id.EventID) (*Snapshot, error) {
	return s.large(ctx, origin, func(leave func()) (*Snapshot, error) {
		var row storage.Room
		var ev *Stored
		err := s.For(ctx, origin, roomID, func(a Asked) error {
			found, err := a.r.eventsByID([]id.EventID{eventID})
			if err != nil {
				return err
			}
			if ev = found[eventID]; ev == nil {
				return chancery.NotFound("we have no such event")
			}
			row, err = a.committed(ev)
			return err
		}, eventID)
		if err != nil {
			return nil, err
		}
		auths, err := s.numbersOf(ctx, row, ev.AuthEvents())
		if err != nil {
			return nil, err
		}
		return s.snapshot(ctx, row, 0, auths, leave)
	})
}

// numbersOf gives the numbers of those events of a room that are here.
func (s *Server) numbersOf(ctx context.Context, room storage.Room, ids []id.EventID) (nids []int64, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		found, err := s.Reader.ByID(tx, room, ids)
		for _, e := range found {
			nids = append(nids, e.NID)
		}
		return err
	})
	return nids, err
}

// large answers a large question of another server, few at a time for each. Its place is free when the snapshot is
// closed, or when there is none.
func (s *Server) large(ctx context.Context, origin string, answer func(leave func()) (*Snapshot, error)) (*Snapshot, error) {
	leave, err := s.answering.enter(ctx, origin)
	if err != nil {
		return nil, err
	}
	v, err := answer(leave)
	if v == nil {
		leave()
	}
	return v, err
}

// knowsStateOf refuses a question about the state at an event that was judged by a part of it, or by a guess.
//
// spec: msc3902
func (r *room) knowsStateOf(ev *Stored) error {
	if r.seq == 0 {
		return nil
	}
	if r.partial != nil && r.pending[ev.NID] != nil {
		return errPartial // what is noted of it may not be stored yet
	}
	var unsure bool
	err := r.read(func(tx storage.Tx) (err error) {
		unsure, err = tx.IsPartialEvent(r.row.NID, ev.NID)
		return err
	})
	if err == nil && unsure {
		return errPartial
	}
	return err
}

// committed gives the room's row for reading what an event stands on; of one that is on its way to storage
// the commit is awaited, and with it those of everything before.
func (a Asked) committed(ev *Stored) (storage.Room, error) {
	if a.r.pending[ev.NID] != nil {
		for a.r.inFlight.Load() > 0 {
			select {
			case <-a.r.ctx.Done():
				return storage.Room{}, a.r.ctx.Err()
			case <-time.After(time.Millisecond):
			}
		}
	}
	return a.r.row, nil
}

// answering bounds the large questions that are being answered to each server: the others wait.
type answering struct {
	mu sync.Mutex // guards by; a leaf
	by map[string]*asking
}

type asking struct {
	slots chan struct{}
	users int // those in slots, and those who wait for one
}

// largeAtOnce is how many large questions of one server are answered at the same time.
const largeAtOnce = 2

func newAnswering() *answering { return &answering{by: map[string]*asking{}} }

func (a *answering) enter(ctx context.Context, origin string) (leave func(), err error) {
	a.mu.Lock()
	at := a.by[origin]
	if at == nil {
		at = &asking{slots: make(chan struct{}, largeAtOnce)}
		a.by[origin] = at
	}
	at.users++
	a.mu.Unlock()
	gone := func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if at.users--; at.users == 0 {
			delete(a.by, origin)
		}
	}
	select {
	case at.slots <- struct{}{}:
		return func() { <-at.slots; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, ctx.Err()
	}
}

// maxLooked is how many events are looked at for one walk: there is no end to what was rejected, and none of it is given.
const maxLooked = 1000

// Walk goes back from events by their prev events, breadth first, up to a limit. The events walked from are part of the
// result when withFrom; what stop names is not, nor anything below it.
//
// spec: s2s/backfillRoom, s2s/getMissingPreviousEvents
func (a Asked) Walk(from []id.EventID, withFrom bool, limit int, stop func(*Stored) bool) ([]*Stored, error) {
	var out []*Stored
	seen := map[id.EventID]bool{}
	level := from
	first := true
	for len(level) > 0 && len(out) < limit && len(seen) < maxLooked {
		found, err := a.r.eventsByID(level)
		if err != nil {
			return nil, err
		}
		var next []id.EventID
		for _, v := range level {
			ev := found[v]
			if ev == nil || seen[v] || ev.Status == storage.Outlier {
				continue
			}
			seen[v] = true
			if stop != nil && stop(ev) {
				continue
			}
			// What failed softly here may be accepted there, and what was accepted builds on it: it is given too. What
			// was rejected is not, but the way goes on below.
			if (withFrom || !first) && len(out) < limit && ev.Status != storage.Rejected {
				out = append(out, ev)
			}
			for _, p := range ev.PrevEvents() {
				if !seen[p] {
					next = append(next, p)
				}
			}
		}
		level, first = next, false
	}
	return out, nil
}
