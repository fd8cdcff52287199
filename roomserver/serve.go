package roomserver

import (
	"context"
	"slices"
	"time"

	"chancery"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

func now() time.Time { return time.Now() }

// Asked is a room as another server asks about it: it is one of those in the room, and not barred.
type Asked struct {
	r *room
}

// For runs fn for a server that asks about a room: refused unless it has a member there.
//
// spec: s2s#server-access-control-lists-acls
func (s *Server) For(ctx context.Context, origin string, roomID id.RoomID, fn func(Asked) error) error {
	return s.in(ctx, roomID, func(r *room) error {
		if err := r.checkACL(origin); err != nil {
			return err
		}
		if r.servers[origin] == 0 {
			return chancery.Forbidden("your server is not in this room")
		}
		return fn(Asked{r})
	})
}

// Version is the room's version.
func (a Asked) Version() *event.Version { return a.r.version }

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

// StateBefore gives the state before an event and the auth chain of that state.
//
// spec: s2s/getRoomState
func (a Asked) StateBefore(eventID id.EventID) (events, chain []*Stored, err error) {
	ev, err := a.Event(eventID)
	if err != nil {
		return nil, nil, err
	}
	entries, err := a.r.array.All(ev.Before)
	if err != nil {
		return nil, nil, err
	}
	nids := make([]int64, len(entries))
	for i, e := range entries {
		nids[i] = e.NID
	}
	found, err := a.r.events(nids)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range nids {
		if e := found[n]; e != nil {
			events = append(events, e)
		}
	}
	chain, err = a.chainOf(nids)
	return events, chain, err
}

func (a Asked) chainOf(nids []int64) ([]*Stored, error) {
	found, err := a.r.authChain(nids)
	if err != nil {
		return nil, err
	}
	chain := make([]*Stored, 0, len(found))
	for _, e := range found {
		chain = append(chain, e)
	}
	slices.SortFunc(chain, func(x, y *Stored) int { return int(min(max(x.Depth()-y.Depth(), -1), 1)) })
	return chain, nil
}

// AuthChain gives the auth chain of an event.
//
// spec: s2s/getEventAuth
func (a Asked) AuthChain(eventID id.EventID) ([]*Stored, error) {
	found, err := a.r.eventsByID([]id.EventID{eventID})
	if err != nil {
		return nil, err
	}
	ev := found[eventID]
	if ev == nil {
		return nil, chancery.NotFound("we have no such event")
	}
	auths, err := a.r.eventsByID(ev.AuthEvents())
	if err != nil {
		return nil, err
	}
	nids := make([]int64, 0, len(auths))
	for _, e := range auths {
		nids = append(nids, e.NID)
	}
	chain, err := a.chainOf(nids)
	if err != nil {
		return nil, err
	}
	in := map[int64]bool{}
	for _, e := range chain {
		in[e.NID] = true
	}
	for _, e := range auths {
		if !in[e.NID] {
			chain = append(chain, e)
		}
	}
	return chain, nil
}

// Walk goes back from events by their prev events, breadth first, up to a limit; stop says where not to
// go on. The events walked from are part of the result when withFrom.
//
// spec: s2s/backfillRoom, s2s/getMissingPreviousEvents
func (a Asked) Walk(from []id.EventID, withFrom bool, limit int, stop func(id.EventID) bool) ([]*Stored, error) {
	var out []*Stored
	seen := map[id.EventID]bool{}
	level := from
	first := true
	for len(level) > 0 && len(out) < limit {
		found, err := a.r.eventsByID(level)
		if err != nil {
			return nil, err
		}
		var next []id.EventID
		for _, v := range level {
			ev := found[v]
			if ev == nil || seen[v] || ev.Status != storage.Accepted || !ev.Placed {
				continue
			}
			seen[v] = true
			if (withFrom || !first) && len(out) < limit {
				out = append(out, ev)
			}
			for _, p := range ev.PrevEvents() {
				if !seen[p] && (stop == nil || !stop(p)) {
					next = append(next, p)
				}
			}
		}
		level, first = next, false
	}
	return out, nil
}
