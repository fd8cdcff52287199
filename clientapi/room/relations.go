package room

import (
	"context"
	"encoding/json"
	"slices"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/filter"
	"chancery/roomserver/page"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// GetRelationsIn is a question for the children of an event; the shorter paths leave the types open.
type GetRelationsIn struct {
	relationsOf
	RelType string `path:"relType"`
	Type    string `path:"eventType"`
}

type relationsOf struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID  `path:"roomId"`
	EventID id.EventID `path:"eventId"`
	From    string     `query:"from"`
	To      string     `query:"to"`
	Limit   *int       `query:"limit"`
	Dir     string     `query:"dir" default:"b"`
	Recurse bool       `query:"recurse"`
}

type GetRelationsOut struct {
	Chunk []json.RawMessage `json:"chunk"`
	Next  string            `json:"next_batch,omitempty"`
	Prev  string            `json:"prev_batch,omitempty"`
	Depth int               `json:"recursion_depth,omitempty"`
}

// GetRelatingEvents gives a page of the events that relate to one.
//
// spec: c2s/getRelatingEvents
func (a *API) GetRelatingEvents(ctx context.Context, in *struct{ relationsOf }) (*GetRelationsOut, error) {
	return a.relations(ctx, &in.relationsOf, "", "")
}

// GetRelatingEventsWithRelType is GetRelatingEvents for one type of relation.
//
// spec: c2s/getRelatingEventsWithRelType
func (a *API) GetRelatingEventsWithRelType(ctx context.Context, in *struct {
	relationsOf
	RelType string `path:"relType"`
}) (*GetRelationsOut, error) {
	return a.relations(ctx, &in.relationsOf, in.RelType, "")
}

// GetRelatingEventsWithTypes is GetRelatingEvents for one type of relation and of event.
//
// spec: c2s/getRelatingEventsWithRelTypeAndEventType
func (a *API) GetRelatingEventsWithTypes(ctx context.Context, in *GetRelationsIn) (*GetRelationsOut, error) {
	return a.relations(ctx, &in.relationsOf, in.RelType, in.Type)
}

const (
	// So far relations of relations are followed.
	maxDepth = 4
	// and so many of them.
	maxFollowed = 1000
)

func (a *API) relations(ctx context.Context, in *relationsOf, relType, typ string) (*GetRelationsOut, error) {
	back, err := backwards(in.Dir)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(in.Limit, nil)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		return nil, chancery.InvalidParam("limit must be greater than zero")
	}
	out := &GetRelationsOut{Prev: in.From}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, _, err := a.event(tx, in.RoomID, in.EventID, in.Caller)
		if err != nil {
			return err
		}
		from, to := int64(end), int64(begin)
		if !back {
			from, to = to, from
		}
		if from, err = place(tx, v.room, in.From, from); err != nil {
			return err
		}
		if to, err = place(tx, v.room, in.To, to); err != nil {
			return err
		}
		targets := []string{string(in.EventID)}
		if in.Recurse {
			if targets, out.Depth, err = follow(tx, v.room, targets); err != nil {
				return err
			}
		}
		below, above := from, to-1
		if !back {
			below, above = to, from-1
		}
		rows, err := tx.RelatedEventsOf(v.room.NID, targets, relType, typ, below, above, limit, back)
		if err != nil {
			return err
		}
		events, err := a.Reader.StoredRows(v.room, rows)
		if err != nil {
			return err
		}
		if len(events) == limit {
			last := events[len(events)-1].Ord
			out.Next = page.Before(last)
			if !back {
				out.Next = page.After(last)
			}
		}
		w := &walk{api: a, tx: tx, v: v, filter: &filter.Room{}}
		shown, err := w.shown(events)
		if err != nil {
			return err
		}
		events = slices.DeleteFunc(events, func(ev *roomserver.Stored) bool { return !shown[ev.NID] })
		out.Chunk, err = a.client(tx, v, in.Caller, events)
		return err
	})
}

// follow adds to some events those that relate to them, and so on. A peer may have made a circle.
func follow(tx storage.Tx, room storage.Room, targets []string) (all []string, depth int, err error) {
	seen := map[string]bool{}
	for _, t := range targets {
		seen[t] = true
	}
	all = slices.Clone(targets)
	depth = 1
	for ; depth < maxDepth && len(targets) > 0 && len(all) < maxFollowed; depth++ {
		children, err := tx.RelatedIDs(room.NID, targets, maxFollowed)
		if err != nil {
			return nil, 0, err
		}
		targets = nil
		for _, c := range children {
			if !seen[c] {
				seen[c] = true
				targets = append(targets, c)
			}
		}
		all = append(all, targets...)
	}
	return all, depth, nil
}

type GetThreadsIn struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID `path:"roomId"`
	Include string    `query:"include" default:"all"`
	Limit   *int      `query:"limit"`
	From    string    `query:"from"`
}

type GetThreadsOut struct {
	Chunk []json.RawMessage `json:"chunk"`
	Next  string            `json:"next_batch,omitempty"`
}

// GetThreads gives a page of the roots of a room's threads, those in which something was said last first.
//
// spec: c2s/getThreadRoots
func (a *API) GetThreads(ctx context.Context, in *GetThreadsIn) (*GetThreadsOut, error) {
	if in.Include != "all" && in.Include != "participated" {
		return nil, chancery.InvalidParam("include is all or participated")
	}
	limit, err := limitOf(in.Limit, nil)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		return nil, chancery.InvalidParam("limit must be greater than zero")
	}
	out := &GetThreadsOut{}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		below, err := place(tx, v.room, in.From, end)
		if err != nil {
			return err
		}
		participant := ""
		if in.Include == "participated" {
			participant = string(in.Caller.User)
		}
		threads, err := tx.ThreadsBelow(v.room.NID, below, participant, v.ignored, limit)
		if err != nil {
			return err
		}
		if len(threads) == limit {
			out.Next = page.Before(threads[len(threads)-1].Latest)
		}
		roots, err := a.threadRoots(tx, v, threads)
		if err != nil {
			return err
		}
		out.Chunk, err = a.client(tx, v, in.Caller, roots)
		return err
	})
}

// threadRoots reads the roots that the caller may see, in their order. One from somebody ignored is shown
// redacted.
func (a *API) threadRoots(tx storage.Tx, v *view, threads []storage.Thread) ([]*roomserver.Stored, error) {
	ids := make([]id.EventID, len(threads))
	for i, t := range threads {
		ids[i] = id.EventID(t.Root)
	}
	found, err := a.Reader.ByID(tx, v.room, ids)
	if err != nil {
		return nil, err
	}
	var roots []*roomserver.Stored
	for _, eventID := range ids {
		if ev := found[eventID]; ev != nil && ev.Placed {
			roots = append(roots, ev)
		}
	}
	if roots, err = a.visible(tx, v, roots); err != nil {
		return nil, err
	}
	for i, ev := range roots {
		if !v.ignores(ev) {
			continue
		}
		var redacted *event.Event
		if redacted, err = ev.Redact(); err != nil {
			return nil, err
		}
		hidden := *ev
		hidden.Event = redacted
		roots[i] = &hidden
	}
	return roots, nil
}
