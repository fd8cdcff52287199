package federation

import (
	"cmp"
	"context"
	"encoding/json"
	"io"
	"slices"
	"time"

	"chancery"
	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// pdusOut is how events are told that somebody asked for.
type pdusOut struct {
	Origin string            `json:"origin"`
	TS     int64             `json:"origin_server_ts"`
	PDUs   []json.RawMessage `json:"pdus"`
}

func (s *Server) pdus(events []json.RawMessage) *pdusOut {
	return &pdusOut{s.Config.ServerName, time.Now().UnixMilli(), events}
}

type stateIn struct {
	Origin  string     `origin:""`
	Room    id.RoomID  `path:"roomId"`
	EventID id.EventID `query:"event_id" required:"true"`
}

// stateOut is a state with its auth chain. The chain comes first: who reads the answer as it arrives can judge each
// event of the state at once.
type stateOut struct {
	ctx  context.Context // of the request, while the answer is written
	what *roomserver.Snapshot
	ids  bool
}

func (o *stateOut) WriteJSON(w io.Writer) error {
	defer o.what.Close()
	out := &jsonOut{w: w}
	chain, state := "auth_chain", "pdus"
	if o.ids {
		chain, state = "auth_chain_ids", "pdu_ids"
	}
	out.list(chain, func() error { return o.each(out, o.what.Chain) })
	out.list(state, func() error { return o.each(out, o.what.State) })
	return out.close()
}

func (o *stateOut) each(out *jsonOut, nids []int64) error {
	if o.ids {
		return o.what.EachID(o.ctx, nids, func(v id.EventID) error { return out.value(v) })
	}
	return o.what.Each(o.ctx, nids, out.element)
}

// spec: s2s/getRoomState
func (s *Server) state(ctx context.Context, in *stateIn) (*stateOut, error) {
	what, err := s.Rooms.StateBefore(ctx, in.Origin, in.Room, in.EventID)
	return &stateOut{ctx: ctx, what: what}, err
}

// spec: s2s/getRoomStateIds
func (s *Server) stateIDs(ctx context.Context, in *stateIn) (*stateOut, error) {
	what, err := s.Rooms.StateBefore(ctx, in.Origin, in.Room, in.EventID)
	return &stateOut{ctx: ctx, what: what, ids: true}, err
}

type eventIn struct {
	Origin  string     `origin:""`
	Room    id.RoomID  `path:"roomId"`
	EventID id.EventID `path:"eventId"`
}

type eventAuthOut struct {
	ctx  context.Context // of the request, while the answer is written
	what *roomserver.Snapshot
}

func (o *eventAuthOut) WriteJSON(w io.Writer) error {
	defer o.what.Close()
	out := &jsonOut{w: w}
	out.list("auth_chain", func() error { return o.what.Each(o.ctx, o.what.Chain, out.element) })
	return out.close()
}

// spec: s2s/getEventAuth
func (s *Server) eventAuth(ctx context.Context, in *eventIn) (*eventAuthOut, error) {
	what, err := s.Rooms.AuthChain(ctx, in.Origin, in.Room, in.EventID)
	return &eventAuthOut{ctx, what}, err
}

type oneEventIn struct {
	Origin  string     `origin:""`
	EventID id.EventID `path:"eventId"`
}

// spec: s2s/getEvent
func (s *Server) event(ctx context.Context, in *oneEventIn) (*pdusOut, error) {
	var room storage.Room
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		ev, ok, err := tx.Event(string(in.EventID))
		if err == nil && ok {
			room, ok, err = tx.RoomByNumber(ev.Room)
		}
		if err == nil && !ok {
			return chancery.NotFound("we have no such event")
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	var ev *roomserver.Stored
	err = s.Rooms.For(ctx, in.Origin, id.RoomID(room.ID), func(a roomserver.Asked) (err error) {
		ev, err = a.AnyEvent(in.EventID)
		return err
	}, in.EventID)
	if err != nil {
		return nil, err
	}
	if _, isState := ev.StateKey(); isState { // as it is in answers to /state: without its content it would say nothing
		return s.pdus([]json.RawMessage{ev.JSON()}), nil
	}
	shown, err := s.shown(ctx, in.Origin, room.ID, []*roomserver.Stored{ev})
	if err != nil {
		return nil, err
	}
	return s.pdus(shown), nil
}

// maxWalked bounds the events that one question gets.
const maxWalked = 100

type backfillIn struct {
	Origin string       `origin:""`
	Room   id.RoomID    `path:"roomId"`
	From   []id.EventID `query:"v" required:"true"`
	Limit  int          `query:"limit" required:"true"`
}

// spec: s2s/backfillRoom
func (s *Server) backfill(ctx context.Context, in *backfillIn) (*pdusOut, error) {
	if in.Limit < 0 || len(in.From) > maxWalked {
		return nil, chancery.InvalidParam("limit must not be negative, and at most %d events can be named", maxWalked)
	}
	found, err := s.walk(ctx, in.Origin, in.Room, in.From, true, min(in.Limit, maxWalked), nil)
	if err != nil {
		return nil, err
	}
	shown, err := s.shown(ctx, in.Origin, string(in.Room), found)
	if err != nil {
		return nil, err
	}
	return s.pdus(shown), nil
}

type missingIn struct {
	Origin string    `origin:""`
	Room   id.RoomID `path:"roomId"`
	Body   struct {
		Limit    *int         `json:"limit"`
		MinDepth int64        `json:"min_depth"`
		Earliest []id.EventID `json:"earliest_events" required:"true"`
		Latest   []id.EventID `json:"latest_events" required:"true"`
	} `body:"json"`
}

type missingOut struct {
	Events []json.RawMessage `json:"events"`
}

const (
	defaultMissing = 10 // spec: s2s/getMissingPreviousEvents, the default of limit
	maxMissing     = 50
)

// missingEvents tells what lies between events, the oldest first.
//
// spec: s2s/getMissingPreviousEvents
func (s *Server) missingEvents(ctx context.Context, in *missingIn) (*missingOut, error) {
	limit := defaultMissing
	if in.Body.Limit != nil {
		limit = min(*in.Body.Limit, maxMissing)
	}
	if limit < 0 || len(in.Body.Latest) > maxWalked || len(in.Body.Earliest) > 10*maxWalked {
		return nil, chancery.InvalidParam("limit must not be negative, and at most %d events can be named", maxWalked)
	}
	have := make(map[id.EventID]bool, len(in.Body.Earliest))
	for _, v := range in.Body.Earliest {
		have[v] = true
	}
	found, err := s.walk(ctx, in.Origin, in.Room, in.Body.Latest, false, limit, func(ev *roomserver.Stored) bool {
		return have[ev.ID()] || ev.Depth() < in.Body.MinDepth
	})
	if err != nil {
		return nil, err
	}
	slices.SortStableFunc(found, func(a, b *roomserver.Stored) int { return cmp.Compare(a.Depth(), b.Depth()) })
	shown, err := s.shown(ctx, in.Origin, string(in.Room), found)
	if err != nil {
		return nil, err
	}
	return &missingOut{shown}, nil
}

// walk goes back from events.
func (s *Server) walk(ctx context.Context, origin string, room id.RoomID, from []id.EventID, withFrom bool, limit int, stop func(*roomserver.Stored) bool) (found []*roomserver.Stored, err error) {
	err = s.Rooms.For(ctx, origin, room, func(a roomserver.Asked) (err error) {
		found, err = a.Walk(from, withFrom, limit, stop)
		return err
	}, from...)
	return found, err
}

type timestampIn struct {
	Origin    string    `origin:""`
	Room      id.RoomID `path:"roomId"`
	TS        int64     `query:"ts" required:"true"`
	Direction string    `query:"dir" required:"true"`
}

type timestampOut struct {
	EventID id.EventID `json:"event_id"`
	TS      int64      `json:"origin_server_ts"`
}

// maxNear is how many events near a time are tried: the nearest may be for none of the server's users.
const maxNear = 20

var errNoEventThere = chancery.NotFound("no event is there")

// spec: s2s/getEventByTimestamp
func (s *Server) eventByTimestamp(ctx context.Context, in *timestampIn) (*timestampOut, error) {
	if in.Direction != "f" && in.Direction != "b" {
		return nil, chancery.InvalidParam("dir must be f or b")
	}
	if err := s.Rooms.For(ctx, in.Origin, in.Room, func(roomserver.Asked) error { return nil }); err != nil {
		return nil, err
	}
	out := &timestampOut{}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(in.Room))
		if err != nil {
			return err
		}
		if !ok {
			return errNoEventThere
		}
		rows, err := tx.EventsNear(room.NID, in.TS, in.Direction == "f", maxNear)
		if err != nil {
			return err
		}
		events, err := s.Reader.StoredRows(room, rows)
		if err != nil {
			return err
		}
		look := newLook(s, tx, room, in.Origin)
		for _, ev := range events {
			if sees, err := look.sees(ev); err != nil {
				return err
			} else if sees {
				out.EventID, out.TS = ev.ID(), ev.OriginServerTS()
				return nil
			}
		}
		return errNoEventThere
	})
	return out, err
}
