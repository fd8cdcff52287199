package room

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/filter"
	"chancery/roomserver/page"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

var errNoEvent = chancery.NotFound("there is no such event, or it is not for you")

func asUnknownEvent(err error) error {
	if chancery.IsCode(err, chancery.CodeForbidden) {
		return errNoEvent
	}
	return err
}

type GetContextIn struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID  `path:"roomId"`
	EventID id.EventID `path:"eventId"`
	Limit   *int       `query:"limit"`
	Filter  string     `query:"filter"`
}

type GetContextOut struct {
	Start  string            `json:"start"`
	End    string            `json:"end"`
	Before []json.RawMessage `json:"events_before"`
	Event  json.RawMessage   `json:"event"`
	After  []json.RawMessage `json:"events_after"`
	State  []json.RawMessage `json:"state"`
}

// GetContext gives an event with what stands around it.
//
// spec: c2s/getEventContext
func (a *API) GetContext(ctx context.Context, in *GetContextIn) (*GetContextOut, error) {
	f, err := filter.ParseRoom(in.Filter)
	if err != nil {
		return nil, err
	}
	limit, err := limitOf(in.Limit, f)
	if err != nil {
		return nil, err
	}
	out := &GetContextOut{}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, ev, err := a.event(tx, in.RoomID, in.EventID, in.Caller)
		if err != nil {
			return err
		}
		down := &walk{api: a, tx: tx, v: v, filter: f, back: true, at: ev.Ord, stop: begin}
		up := &walk{api: a, tx: tx, v: v, filter: f, at: ev.Ord + 1, stop: end}
		v.bound(up)
		// A list does not span an open gap: what lies beyond is for /messages, which asks for it.
		if down.stop, err = gapBelow(tx, v, down.at); err != nil {
			return err
		}
		if down.stop == 0 {
			down.stop = begin
		}
		before, err := down.events(limit / 2)
		if err != nil {
			return err
		}
		after, err := up.events(limit - limit/2)
		if err != nil {
			return err
		}
		all := append(append([]*roomserver.Stored{ev}, before...), after...)
		texts, err := a.client(tx, v, in.Caller, all)
		if err != nil {
			return err
		}
		out.Event, out.Before, out.After = texts[0], texts[1:1+len(before)], texts[1+len(before):]
		out.Start, out.End = page.Before(down.at), page.Before(up.at)
		last := ev
		if len(after) > 0 {
			last = after[len(after)-1]
		}
		out.State, err = a.stateAround(tx, v, in.Caller, f, last, all)
		return err
	})
}

// stateAround is the state at the last event: with lazy loading only those members who spoke.
func (a *API) stateAround(tx storage.Tx, v *view, caller endpoint.Caller, f *filter.Room, last *roomserver.Stored, shown []*roomserver.Stored) ([]json.RawMessage, error) {
	var events []*roomserver.Stored
	var err error
	if f.LazyLoadMembers {
		events, err = a.Reader.StateExcept(tx, v.room, last.After, "m.room.member")
	} else {
		events, err = a.Reader.State(tx, v.room, last.After)
	}
	if err != nil {
		return nil, err
	}
	wanted := make([]*roomserver.Stored, 0, len(events))
	for _, ev := range events {
		if f.Passes(ev.Event) {
			wanted = append(wanted, ev)
		}
	}
	out, err := a.format(tx, v, caller, wanted, clientevent.Form{RoomID: true, Brief: true})
	if err != nil || !f.LazyLoadMembers {
		return out, err
	}
	members, err := a.senders(tx, v, caller, shown)
	return append(out, members...), err
}

type TimestampIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	TS     int64     `query:"ts" required:"true"`
	Dir    string    `query:"dir" required:"true"`
}

type TimestampOut struct {
	EventID id.EventID `json:"event_id"`
	TS      int64      `json:"origin_server_ts"`
}

// maxNear is how many events near a time are tried: the nearest may be hidden.
const maxNear = 20

// maxJump is how many pieces of history are asked for to reach an event that another server names.
const maxJump = 20

// GetEventByTimestamp finds the event that is closest to a time. Where history is missing just there, other servers are
// asked whether they have a closer one, and if so for the history down to it: then it can be read around it too.
//
// spec: c2s/getEventByTimestamp, s2s/getEventByTimestamp
func (a *API) GetEventByTimestamp(ctx context.Context, in *TimestampIn) (*TimestampOut, error) {
	back, err := backwards(in.Dir)
	if err != nil {
		return nil, err
	}
	out, gap, err := a.eventByTimestamp(ctx, in, back)
	if gap == 0 {
		return out, err
	}
	within := int64(0)
	if err == nil {
		if within = abs(out.TS - in.TS); within == 0 {
			return out, nil
		}
	}
	most := maxJump
	distance, found, heard, failed := a.Rooms.Nearest(ctx, in.RoomID, in.TS, !back, within)
	switch {
	case failed != nil:
		a.Log.Info("could not ask for an event by its time", zap.String("room", string(in.RoomID)), zap.Error(failed))
		fallthrough
	case !heard:
		most = maxBackfills
	case !found:
		return out, err
	}
	for range most {
		came, failed := a.Rooms.Backfill(ctx, in.RoomID, gap, maxLimit)
		if failed != nil {
			a.Log.Info("could not ask for history", zap.String("room", string(in.RoomID)), zap.Error(failed))
		}
		if !came {
			break
		}
		if out, gap, err = a.eventByTimestamp(ctx, in, back); gap == 0 || err == nil && found && abs(out.TS-in.TS) <= distance {
			break
		}
	}
	return out, err
}

func abs(n int64) int64 { return max(n, -n) }

// eventByTimestamp looks among the events that we have. gap is the place of an open gap that may hide a
// closer one, 0: none.
func (a *API) eventByTimestamp(ctx context.Context, in *TimestampIn, back bool) (out *TimestampOut, gap int64, err error) {
	out = &TimestampOut{}
	err = a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		rows, err := tx.EventsNear(v.room.NID, in.TS, !back, maxNear)
		if err != nil {
			return err
		}
		var closest storage.Event
		if len(rows) > 0 {
			closest = rows[0]
		}
		if gap, err = gapBeside(tx, v, closest, len(rows) > 0, back); err != nil {
			return err
		}
		events, err := a.Reader.StoredRows(v.room, rows)
		if err != nil {
			return err
		}
		seen, err := a.visible(tx, v, events)
		if err != nil {
			return err
		}
		if len(seen) == 0 {
			return chancery.NotFound("there is no event for you in that direction")
		}
		out.EventID, out.TS = seen[0].ID(), seen[0].OriginServerTS()
		return nil
	})
	return out, gap, err
}

// gapBeside finds the open gap between an event and the next on the other side of the time asked for.
func gapBeside(tx storage.Tx, v *view, row storage.Event, found, back bool) (int64, error) {
	if !v.joined || !found && !back {
		return 0, nil // what is newer than all is not missing
	}
	if !found {
		return tx.HighestGap(v.room.NID, end)
	}
	edge := *row.Ord
	if back {
		above, err := tx.EventsAbove(v.room.NID, edge, end, 1)
		if err != nil || len(above) == 0 {
			return 0, err
		}
		edge = *above[0].Ord
	}
	gap, err := tx.HighestGap(v.room.NID, edge)
	if gap != edge {
		return 0, err
	}
	return gap, err
}
