package room

import (
	"context"
	"encoding/json"
	"math"
	"slices"
	"strconv"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/auth"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/event"
	"chancery/roomserver/filter"
	"chancery/storage"
	"chancery/users/pushrules"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

type GetNotificationsIn struct {
	Caller endpoint.Caller
	From   string `query:"from"`
	Limit  *int   `query:"limit"`
	Only   string `query:"only"`
}

type GetNotificationsOut struct {
	Next          string         `json:"next_token,omitempty"`
	Notifications []notification `json:"notifications"`
}

type notification struct {
	Actions []json.RawMessage `json:"actions"`
	Event   json.RawMessage   `json:"event"`
	Read    bool              `json:"read"`
	RoomID  id.RoomID         `json:"room_id"`
	TS      int64             `json:"ts"` // ms
}

// GetNotifications lists of what the caller was notified in the rooms that they are in, the newest first.
//
// spec: c2s/getNotifications
func (a *API) GetNotifications(ctx context.Context, in *GetNotificationsIn) (*GetNotificationsOut, error) {
	limit, err := limitOf(in.Limit, nil)
	if err != nil {
		return nil, err
	}
	if limit == 0 {
		return nil, chancery.InvalidParam("limit must be greater than zero")
	}
	before := int64(math.MaxInt64)
	if in.From != "" {
		if before, err = strconv.ParseInt(in.From, 10, 64); err != nil || before < 0 {
			return nil, chancery.InvalidParam("from is no token of ours")
		}
	}
	out := &GetNotificationsOut{Notifications: []notification{}}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		ignored, err := ignoredBy(tx, in.Caller.User)
		if err != nil {
			return err
		}
		list, next, err := tx.NotifiedBefore(string(in.Caller.User), ignored, before, in.Only == "highlight", limit)
		if err != nil {
			return err
		}
		if next > 0 {
			out.Next = strconv.FormatInt(next, 10)
		}
		told := map[int64]notification{}
		inRoom := map[int64][]int64{}
		for _, n := range list {
			inRoom[n.Room] = append(inRoom[n.Room], n.Event)
		}
		text, err := tx.PushRules(string(in.Caller.User))
		if err != nil {
			return err
		}
		rules, err := pushrules.Parse(text)
		if err != nil {
			return err
		}
		for room, events := range inRoom {
			if err := a.notified(tx, in.Caller, rules, room, events, told); err != nil {
				return err
			}
		}
		for _, n := range list {
			if v, ok := told[n.Event]; ok {
				v.Read = n.Read
				if v.Actions == nil { // the rules are others now
					v.Actions = []json.RawMessage{json.RawMessage(`"notify"`)}
					if n.Highlight {
						v.Actions = append(v.Actions, json.RawMessage(`{"set_tweak":"highlight"}`))
					}
				}
				out.Notifications = append(out.Notifications, v)
			}
		}
		return nil
	})
}

// notified tells of events of one room, as far as the caller sees them and was in the room at the time.
func (a *API) notified(tx storage.Tx, caller endpoint.Caller, rules *pushrules.Changes, room int64, nids []int64, told map[int64]notification) error {
	row, ok, err := tx.RoomByNumber(room)
	if err != nil || !ok {
		return err
	}
	v, err := a.view(tx, id.RoomID(row.ID), caller.User)
	if err != nil {
		return err
	}
	found, err := a.Reader.ByNumber(tx, row, nids)
	if err != nil {
		return err
	}
	var events []*roomserver.Stored
	for _, ev := range found {
		events = append(events, ev)
	}
	w := &walk{api: a, tx: tx, v: v, filter: &filter.Room{}}
	shown, err := w.shown(events)
	if err != nil {
		return err
	}
	state, err := a.Reader.Lookup(tx, row, []roomserver.Lookup{{Root: v.root, Key: roomserver.Key{Type: "m.room.create"}},
		{Root: v.root, Key: roomserver.Key{Type: "m.room.power_levels"}}})
	if err != nil || state[0] == nil {
		return err
	}
	var listed *event.Event
	if state[1] != nil {
		listed = state[1].Event
	}
	levels := auth.PowerLevelsOf(state[0].Event, listed)
	me, _, err := tx.Member(room, string(caller.User))
	if err != nil {
		return err
	}
	place := pushrules.Place{Members: row.Joined}
	reader := pushrules.Reader{User: caller.User, DisplayName: me.DisplayName, Rules: rules.Ruleset(caller.User)}
	events = slices.DeleteFunc(events, func(ev *roomserver.Stored) bool { return !shown[ev.NID] })
	texts, err := a.format(tx, v, caller, events, clientevent.Form{})
	if err != nil {
		return err
	}
	for i, ev := range events {
		if gjson.GetBytes(texts[i], "unsigned.membership").Str != "join" {
			continue
		}
		n := notification{Event: texts[i], RoomID: id.RoomID(row.ID), TS: ev.OriginServerTS()}
		place.MayNotify = func(key string) bool { return levels.Of(ev.Sender()).AtLeast(levels.Notification(key)) }
		if o := pushrules.For(ev.Event, place, reader); o.Notify {
			n.Actions = o.Actions
		}
		told[ev.NID] = n
	}
	return nil
}
