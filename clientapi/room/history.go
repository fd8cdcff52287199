package room

import (
	"encoding/json"
	"math"
	"slices"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/filter"
	"chancery/roomserver/page"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const (
	maxLimit     = 1000
	defaultLimit = 10
	// A page looks at this many events at most: who filters nearly everything out gets a token to go on.
	maxScanned = 5000
)

// limitOf is how many events a request wants.
func limitOf(asked *int, f *filter.Room) (int, error) {
	limit := defaultLimit
	switch {
	case asked != nil:
		limit = *asked
	case f != nil && f.Limit != nil:
		limit = *f.Limit
	}
	if limit < 0 {
		return 0, chancery.InvalidParam("limit must not be negative")
	}
	return min(limit, maxLimit), nil
}

func backwards(dir string) (bool, error) {
	if dir != "b" && dir != "f" {
		return false, chancery.InvalidParam("dir is b or f")
	}
	return dir == "b", nil
}

// Ends of every room's history.
const (
	begin = math.MinInt64 + 1
	end   = math.MaxInt64 - 1
)

// place finds the place in the room's history that a token means: that below the event at ord.
func place(tx storage.Tx, room storage.Room, token string, absent int64) (ord int64, err error) {
	if token == "" {
		return absent, nil
	}
	t, err := page.Parse(token)
	if err != nil {
		return 0, err
	}
	if t.Room {
		return min(max(t.Ord, begin), end), nil
	}
	at, ok, err := tx.OrdAt(room.NID, t.Pos)
	if err != nil {
		return 0, err
	}
	if ok {
		return at + 1, nil
	}
	// Nothing had happened in the room by then, or we have forgotten what had.
	kept, err := tx.FactsBegin()
	if err != nil {
		return 0, err
	}
	if t.Pos >= kept {
		return begin, nil
	}
	_, high, err := tx.OrdBounds(room.NID)
	return high + 1, err
}

// walk goes through a room's history in one direction.
type walk struct {
	api    *API
	tx     storage.Tx
	v      *view
	filter *filter.Room
	back   bool
	at     int64 // the place that it has come to
	stop   int64 // the place not to go beyond
	done   bool  // there is nothing beyond
	seen   int   // events looked at
}

// events collects up to limit events that the user may see and wants.
func (w *walk) events(limit int) ([]*roomserver.Stored, error) {
	var chunk []*roomserver.Stored
	for len(chunk) < limit && !w.done && w.seen < maxScanned {
		want := limit - len(chunk)
		if !w.filter.Everything() || w.seen > 0 {
			want = min(max(4*want, 100), maxLimit)
		}
		rows, err := w.rows(want)
		if err != nil {
			return nil, err
		}
		w.done = len(rows) < want
		w.seen += len(rows)
		events, err := w.api.Reader.StoredRows(w.v.room, rows)
		if err != nil {
			return nil, err
		}
		shown, err := w.shown(events)
		if err != nil {
			return nil, err
		}
		for _, ev := range events {
			if len(chunk) == limit {
				w.done = false
				break
			}
			if err := w.pass(ev); err != nil {
				return nil, err
			}
			if shown[ev.NID] {
				chunk = append(chunk, ev)
			}
		}
	}
	return chunk, nil
}

func (w *walk) rows(want int) ([]storage.Event, error) {
	if w.back {
		return w.tx.EventsBelow(w.v.room.NID, w.at, w.stop-1, want)
	}
	return w.tx.EventsAbove(w.v.room.NID, w.at-1, w.stop, want)
}

// pass goes beyond an event. Below m.room.create there is nothing, but where a server's word for the depth of an event
// was not true.
func (w *walk) pass(ev *roomserver.Stored) error {
	if !w.back {
		w.at = ev.Ord + 1
		return nil
	}
	w.at = ev.Ord
	if w.done || !ev.IsState("m.room.create", "") {
		return nil
	}
	below, err := w.rows(1)
	w.done = err == nil && len(below) == 0
	return err
}

// shown says which events the user may see and wants.
func (w *walk) shown(events []*roomserver.Stored) (map[int64]bool, error) {
	wanted := make([]*roomserver.Stored, 0, len(events))
	for _, ev := range events {
		if w.filter.Passes(ev.Event) && !w.v.ignores(ev) {
			wanted = append(wanted, ev)
		}
	}
	seen, err := w.api.visible(w.tx, w.v, wanted)
	if err != nil {
		return nil, err
	}
	shown := make(map[int64]bool, len(seen))
	for _, ev := range seen {
		shown[ev.NID] = true
	}
	return shown, nil
}

func (a *API) visible(tx storage.Tx, v *view, events []*roomserver.Stored) ([]*roomserver.Stored, error) {
	return a.Reader.Visible(tx, v.room, roomserver.Viewer{User: v.user, Until: v.until}, events)
}

// ignores says that the event comes from somebody the user does not want to hear. State is shown all the same.
//
// spec: c2s#ignoring-users
func (v *view) ignores(ev *roomserver.Stored) bool {
	if _, isState := ev.StateKey(); isState {
		return false
	}
	return slices.Contains(v.ignored, string(ev.Sender()))
}

// senders gives the member events of those who sent some events, as they were then.
//
// spec: c2s#lazy-loading-room-members
func (a *API) senders(tx storage.Tx, v *view, caller endpoint.Caller, chunks ...[]*roomserver.Stored) ([]json.RawMessage, error) {
	var asked []roomserver.Lookup
	seen := map[id.UserID]bool{}
	for _, chunk := range chunks {
		for _, ev := range chunk {
			if seen[ev.Sender()] {
				continue
			}
			seen[ev.Sender()] = true
			asked = append(asked, roomserver.Lookup{Root: ev.After, Key: roomserver.Key{Type: "m.room.member", StateKey: string(ev.Sender())}})
		}
	}
	members, err := a.Reader.Lookup(tx, v.room, asked)
	if err != nil {
		return nil, err
	}
	members = slices.DeleteFunc(members, func(m *roomserver.Stored) bool { return m == nil })
	return a.format(tx, v, caller, members, clientevent.Form{RoomID: true, Brief: true})
}
