package syncapi

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"chancery"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
)

// filter is what a client wants to see.
//
// spec: c2s#filtering
type filter struct {
	Format      string      `json:"event_format"`
	Presence    eventFilter `json:"presence"`
	AccountData eventFilter `json:"account_data"`
	Room        roomsFilter `json:"room"`
}

type roomsFilter struct {
	Rooms        []string    `json:"rooms"`
	NotRooms     []string    `json:"not_rooms"`
	IncludeLeave bool        `json:"include_leave"`
	State        eventFilter `json:"state"`
	Timeline     eventFilter `json:"timeline"`
	Ephemeral    eventFilter `json:"ephemeral"`
	AccountData  eventFilter `json:"account_data"`
}

// eventFilter takes in what is in every list that is there and in no not-list. An empty list takes in nothing.
type eventFilter struct {
	Limit       *int     `json:"limit"`
	Types       []string `json:"types"`
	NotTypes    []string `json:"not_types"`
	Senders     []string `json:"senders"`
	NotSenders  []string `json:"not_senders"`
	Rooms       []string `json:"rooms"`
	NotRooms    []string `json:"not_rooms"`
	ContainsURL *bool    `json:"contains_url"`

	LazyMembers      bool `json:"lazy_load_members"`
	RedundantMembers bool `json:"include_redundant_members"`
	ThreadCounts     bool `json:"unread_thread_notifications"`
}

const (
	defaultTimeline = 10
	maxTimeline     = 1000
	maxFilter       = 64 << 10
)

// filter reads the filter of a request: JSON when it begins with a brace, else the ID of a stored one.
//
// spec: c2s/sync
func (s *Server) filter(ctx context.Context, user, text string) (*filter, error) {
	f := &filter{}
	switch {
	case text == "":
		return f, nil
	case text[0] != '{':
		number, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, chancery.InvalidParam("there is no such filter")
		}
		return s.storedFilter(ctx, user, number)
	case len(text) > maxFilter:
		return nil, chancery.InvalidParam("the filter is too large")
	}
	return parseFilter(text)
}

func parseFilter(text string) (*filter, error) {
	f := &filter{}
	if err := json.Unmarshal([]byte(text), f); err != nil {
		return nil, chancery.InvalidParam("the filter is malformed").Because(err)
	}
	if f.Format != "" && f.Format != "client" && f.Format != "federation" {
		return nil, chancery.InvalidParam("the filter wants an unknown event format")
	}
	return f, nil
}

// storedFilter finds a filter that the user defined; they never change and are kept.
func (s *Server) storedFilter(ctx context.Context, user string, number int64) (*filter, error) {
	key := filterKey{user, number}
	if f, ok := s.shared.filters.Get(key); ok {
		return f, nil
	}
	var text json.RawMessage
	var ok bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		text, ok, err = tx.Filter(user, number)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, chancery.InvalidParam("there is no such filter")
	}
	f, err := parseFilter(string(text))
	if err == nil {
		s.shared.filters.Put(key, f, len(text)+300)
	}
	return f, err
}

// limit is how many events of a timeline are wanted.
func (f *eventFilter) limit() int {
	if f.Limit == nil {
		return defaultTimeline
	}
	return min(max(*f.Limit, 0), maxTimeline)
}

func listed(list, not []string, v string) bool {
	return (list == nil || slices.Contains(list, v)) && !slices.Contains(not, v)
}

func matched(list []string, typ string) bool {
	for _, pattern := range list {
		if wildcard(pattern, typ) {
			return true
		}
	}
	return false
}

// wildcard matches text with a pattern in which * stands for any characters.
func wildcard(pattern, text string) bool {
	before, rest, found := strings.Cut(pattern, "*")
	if !found {
		return pattern == text
	}
	if !strings.HasPrefix(text, before) {
		return false
	}
	text = text[len(before):]
	for {
		part, more, found := strings.Cut(rest, "*")
		if !found {
			return strings.HasSuffix(text, rest)
		}
		i := strings.Index(text, part)
		if i < 0 {
			return false
		}
		text, rest = text[i+len(part):], more
	}
}

// room says whether anything of a room is wanted.
func (f *roomsFilter) room(roomID string) bool { return listed(f.Rooms, f.NotRooms, roomID) }

func (f *eventFilter) inRoom(roomID string) bool { return listed(f.Rooms, f.NotRooms, roomID) }

// plain says whether the filter takes in every event of a room.
func (f *eventFilter) plain() bool {
	return f.Types == nil && f.NotTypes == nil && f.Senders == nil && f.NotSenders == nil && f.ContainsURL == nil
}

func (f *eventFilter) typed(typ string) bool {
	return (f.Types == nil || matched(f.Types, typ)) && !matched(f.NotTypes, typ)
}

func (f *eventFilter) from(typ, sender string) bool {
	return f.typed(typ) && listed(f.Senders, f.NotSenders, sender)
}

// event says whether an event of a room is wanted; of the room itself nothing is asked.
func (f *eventFilter) event(ev *event.Event) bool {
	if !f.from(ev.Type(), string(ev.Sender())) {
		return false
	}
	return f.ContainsURL == nil || *f.ContainsURL == (gjson.GetBytes(ev.Content(), "url").Type == gjson.String)
}
