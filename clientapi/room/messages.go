package room

import (
	"context"
	"encoding/json"
	"fmt"

	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/filter"
	"chancery/roomserver/page"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

type GetMessagesIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	From   string    `query:"from"`
	To     string    `query:"to"`
	Dir    string    `query:"dir" required:"true"`
	Limit  *int      `query:"limit"`
	Filter string    `query:"filter"`
}

type GetMessagesOut struct {
	Start string            `json:"start"`
	End   string            `json:"end,omitempty"`
	Chunk []json.RawMessage `json:"chunk"`
	State []json.RawMessage `json:"state"`
}

// GetMessages gives a page of a room's history. Where the page would go beyond what is here, other servers
// are asked for more first.
//
// spec: c2s/getRoomEvents
func (a *API) GetMessages(ctx context.Context, in *GetMessagesIn) (*GetMessagesOut, error) {
	f, err := filter.ParseRoom(in.Filter)
	if err != nil {
		return nil, err
	}
	p := &messages{api: a, in: in, filter: f, crossed: end}
	if p.back, err = backwards(in.Dir); err != nil {
		return nil, err
	}
	if p.limit, err = limitOf(in.Limit, f); err != nil {
		return nil, err
	}
	for asked := 0; ; asked++ {
		if err := a.DB.Read(ctx, p.read); err != nil {
			return nil, err
		}
		if p.gap == 0 {
			return p.out, nil
		}
		came := false
		if asked < maxBackfills {
			if came, err = a.Rooms.Backfill(ctx, in.RoomID, p.gap, max(p.limit, 100)); err != nil {
				a.Log.Info("could not ask for history", zap.String("room", string(in.RoomID)), zap.Error(err))
			}
		}
		switch {
		case came:
		case len(p.out.Chunk) > 0, asked >= maxBackfills && p.out.End != p.out.Start:
			return p.out, nil // the token is at the gap's edge: the next request asks again
		default:
			// Nobody can tell us, or it has its place at a gap below. What we have beyond this one is better than no
			// answer for ever.
			p.crossed = p.gap
		}
	}
}

// A request asks other servers for history so often.
const maxBackfills = 3

// messages is one page on its way.
type messages struct {
	api     *API
	in      *GetMessagesIn
	filter  *filter.Room
	back    bool
	limit   int
	crossed int64 // go over the gaps down to this one
	gap     int64 // the place of the open gap at which the page ended early, 0: none
	out     *GetMessagesOut
}

func (p *messages) read(tx storage.Tx) error {
	v, err := p.api.view(tx, p.in.RoomID, p.in.Caller.User)
	if err != nil {
		return err
	}
	w := &walk{api: p.api, tx: tx, v: v, filter: p.filter, back: p.back}
	from, to := int64(end), int64(begin)
	if !p.back {
		from, to = to, from
	}
	if w.at, err = place(tx, v.room, p.in.From, from); err != nil {
		return err
	}
	if w.stop, err = place(tx, v.room, p.in.To, to); err != nil {
		return err
	}
	v.bound(w)
	p.out = &GetMessagesOut{Start: p.in.From, Chunk: []json.RawMessage{}, State: []json.RawMessage{}}
	if p.out.Start == "" {
		if p.out.Start, err = startOf(tx, v.room, w); err != nil {
			return err
		}
	}
	if p.gap = 0; p.back {
		if p.gap, err = gapBelow(tx, v, min(w.at, p.crossed-1)); err != nil {
			return err
		}
	}
	stop := w.stop
	if p.gap != 0 {
		w.stop = max(w.stop, p.gap)
	}
	if !p.filter.Room(v.room.ID) {
		return nil
	}
	if p.limit == 0 { // the next page begins where this one did
		p.out.End, p.gap = p.out.Start, 0
		return nil
	}
	chunk, err := w.events(p.limit)
	if err != nil {
		return err
	}
	switch {
	case p.gap == 0:
	case stop >= p.gap: // the request does not want to go so far
		p.gap = 0
	case len(chunk) == p.limit || !w.done: // this page does not come so far
		p.gap, w.done = 0, false
	default:
		w.at, w.done = p.gap, false
	}
	if !w.done || !p.back && len(chunk) > 0 {
		p.out.End = page.Before(w.at)
	}
	if p.out.Chunk, err = p.api.client(tx, v, p.in.Caller, chunk); err != nil {
		return err
	}
	if p.filter.LazyLoadMembers {
		p.out.State, err = p.api.senders(tx, v, p.in.Caller, chunk)
	}
	return err
}

// bound keeps who has left from walking through what came after: none of it is for them.
func (v *view) bound(w *walk) {
	if v.joined || v.root == rootOf(v.room) {
		return
	}
	if w.back {
		w.at = min(w.at, v.until+1)
	} else {
		w.stop = min(w.stop, v.until+1)
	}
}

// startOf is the token of where a walk begins that was given none.
func startOf(tx storage.Tx, room storage.Room, w *walk) (string, error) {
	low, high, err := tx.OrdBounds(room.NID)
	if err != nil {
		return "", fmt.Errorf("find the ends of the history: %w", err)
	}
	if w.back {
		return page.Before(min(w.at, high+1)), nil
	}
	return page.Before(max(w.at, low)), nil
}

// gapBelow finds the highest open gap on the way down from a place, as the place of the event above it. Those who are
// not in the room do not make us ask for what they could hardly see.
func gapBelow(tx storage.Tx, v *view, at int64) (int64, error) {
	if !v.joined {
		return 0, nil
	}
	return tx.HighestGap(v.room.NID, at)
}

type GetEventIn struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID  `path:"roomId"`
	EventID id.EventID `path:"eventId"`
}

// GetEvent gives one event.
//
// spec: c2s/getOneRoomEvent
func (a *API) GetEvent(ctx context.Context, in *GetEventIn) (*json.RawMessage, error) {
	var out json.RawMessage
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		v, ev, err := a.event(tx, in.RoomID, in.EventID, in.Caller)
		if err != nil {
			return err
		}
		events, err := a.client(tx, v, in.Caller, []*roomserver.Stored{ev})
		if err != nil {
			return err
		}
		out = events[0]
		return nil
	})
	return &out, err
}

// event finds an event that the caller may see. That there is no such event, and that it is not for them,
// is the same to them.
func (a *API) event(tx storage.Tx, roomID id.RoomID, eventID id.EventID, caller endpoint.Caller) (*view, *roomserver.Stored, error) {
	v, err := a.view(tx, roomID, caller.User)
	if err != nil {
		return nil, nil, asUnknownEvent(err)
	}
	ev, ok, err := a.Reader.One(tx, v.room, eventID)
	if err != nil {
		return nil, nil, err
	}
	if !ok || !ev.Placed || ev.Status != storage.Accepted {
		return nil, nil, errNoEvent
	}
	seen, err := a.visible(tx, v, []*roomserver.Stored{ev})
	if err != nil {
		return nil, nil, err
	}
	if len(seen) == 0 {
		return nil, nil, errNoEvent
	}
	return v, ev, nil
}
