package accountdata

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/endpoint"

	"maunium.net/go/mautrix/id"
)

type DefineFilterIn struct {
	Caller endpoint.Caller
	User   id.UserID       `path:"userId"`
	Filter json.RawMessage `body:"json"`
}

type DefineFilterOut struct {
	ID string `json:"filter_id"`
}

// DefineFilter keeps a filter.
//
// spec: c2s/defineFilter
func (a *API) DefineFilter(ctx context.Context, in *DefineFilterIn) (*DefineFilterOut, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	if err := checkFilter(in.Filter); err != nil {
		return nil, err
	}
	filterID, err := a.Users.DefineFilter(ctx, in.User, in.Filter)
	return &DefineFilterOut{filterID}, err
}

type FilterIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	ID     string    `path:"filterId"`
}

// Filter reads a filter.
//
// spec: c2s/getFilter
func (a *API) Filter(ctx context.Context, in *FilterIn) (*json.RawMessage, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	filter, err := a.Users.Filter(ctx, in.User, in.ID)
	return &filter, err
}

// What filters look like, to refuse at once what /sync could not read.
type (
	eventFilter struct {
		Limit      *int64   `json:"limit"`
		Senders    []string `json:"senders"`
		NotSenders []string `json:"not_senders"`
		Types      []string `json:"types"`
		NotTypes   []string `json:"not_types"`
	}
	roomEventFilter struct {
		eventFilter
		Rooms           []string `json:"rooms"`
		NotRooms        []string `json:"not_rooms"`
		LazyLoad        bool     `json:"lazy_load_members"`
		Redundant       bool     `json:"include_redundant_members"`
		ThreadNotices   bool     `json:"unread_thread_notifications"`
		ContainsURL     *bool    `json:"contains_url"`
		RelatedBy       []string `json:"related_by_rel_types"`
		RelatedBySender []string `json:"related_by_senders"`
	}
	syncFilter struct {
		EventFields []string    `json:"event_fields"`
		EventFormat string      `json:"event_format"`
		Presence    eventFilter `json:"presence"`
		AccountData eventFilter `json:"account_data"`
		Room        struct {
			Rooms        []string        `json:"rooms"`
			NotRooms     []string        `json:"not_rooms"`
			IncludeLeave bool            `json:"include_leave"`
			State        roomEventFilter `json:"state"`
			Timeline     roomEventFilter `json:"timeline"`
			Ephemeral    roomEventFilter `json:"ephemeral"`
			AccountData  roomEventFilter `json:"account_data"`
		} `json:"room"`
	}
)

func checkFilter(text json.RawMessage) error {
	var f syncFilter
	if err := json.Unmarshal(text, &f); err != nil {
		return chancery.BadJSON("the filter is malformed").Because(err)
	}
	if f.EventFormat != "" && f.EventFormat != "client" && f.EventFormat != "federation" {
		return chancery.BadJSON("event_format is client or federation")
	}
	for _, limit := range []*int64{f.Presence.Limit, f.AccountData.Limit, f.Room.State.Limit, f.Room.Timeline.Limit, f.Room.Ephemeral.Limit, f.Room.AccountData.Limit} {
		if limit != nil && *limit < 0 {
			return chancery.BadJSON("a limit is not negative")
		}
	}
	for _, r := range []roomEventFilter{f.Room.State, f.Room.Timeline, f.Room.Ephemeral, f.Room.AccountData} {
		for _, room := range append(r.Rooms, r.NotRooms...) {
			if err := filterID(room, '!'); err != nil {
				return err
			}
		}
		for _, user := range append(r.Senders, r.NotSenders...) {
			if err := filterID(user, '@'); err != nil {
				return err
			}
		}
	}
	for _, room := range append(f.Room.Rooms, f.Room.NotRooms...) {
		if err := filterID(room, '!'); err != nil {
			return err
		}
	}
	for _, user := range append(append(f.Presence.Senders, f.Presence.NotSenders...), append(f.AccountData.Senders, f.AccountData.NotSenders...)...) {
		if err := filterID(user, '@'); err != nil {
			return err
		}
	}
	return nil
}

func filterID(text string, sigil byte) error {
	if text == "" || text[0] != sigil {
		return chancery.BadJSON("the filter names %q, which is no such ID", text)
	}
	return nil
}
