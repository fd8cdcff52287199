// Package filter is the filters with which clients say what they want to see. It is pure: it
// judges events one by one.
package filter

import (
	"encoding/json"
	"slices"
	"strings"

	"chancery"
	"chancery/roomserver/event"

	"github.com/tidwall/gjson"
)

// Event is an EventFilter. A list that is nil lets everything pass.
//
// spec: c2s#filtering
type Event struct {
	Limit      *int     `json:"limit,omitempty"`
	Types      []string `json:"types,omitempty"`
	NotTypes   []string `json:"not_types,omitempty"`
	Senders    []string `json:"senders,omitempty"`
	NotSenders []string `json:"not_senders,omitempty"`
}

// Room is a RoomEventFilter.
type Room struct {
	Event
	Rooms            []string `json:"rooms,omitempty"`
	NotRooms         []string `json:"not_rooms,omitempty"`
	ContainsURL      *bool    `json:"contains_url,omitempty"`
	LazyLoadMembers  bool     `json:"lazy_load_members,omitempty"`
	IncludeRedundant bool     `json:"include_redundant_members,omitempty"`
	UnreadThreads    bool     `json:"unread_thread_notifications,omitempty"`
	RelatedByTypes   []string `json:"related_by_rel_types,omitempty"`
	RelatedBySenders []string `json:"related_by_senders,omitempty"`
}

// ParseRoom reads a RoomEventFilter from a query; an empty one filters nothing.
func ParseRoom(text string) (*Room, error) {
	f := &Room{}
	if text == "" {
		return f, nil
	}
	if err := json.Unmarshal([]byte(text), f); err != nil {
		return nil, chancery.InvalidParam("the filter is not a RoomEventFilter").Because(err)
	}
	return f, nil
}

// Type judges a type.
func (f *Event) Type(typ string) bool {
	return (f.Types == nil || slices.ContainsFunc(f.Types, func(p string) bool { return matches(p, typ) })) &&
		!slices.ContainsFunc(f.NotTypes, func(p string) bool { return matches(p, typ) })
}

// Sender judges a sender.
func (f *Event) Sender(user string) bool {
	return (f.Senders == nil || slices.Contains(f.Senders, user)) && !slices.Contains(f.NotSenders, user)
}

// Room judges a room.
func (f *Room) Room(roomID string) bool {
	return (f.Rooms == nil || slices.Contains(f.Rooms, roomID)) && !slices.Contains(f.NotRooms, roomID)
}

// Passes judges an event of a room that passes.
func (f *Room) Passes(ev *event.Event) bool {
	if !f.Type(ev.Type()) || !f.Sender(string(ev.Sender())) {
		return false
	}
	return f.ContainsURL == nil || *f.ContainsURL == (gjson.GetBytes(ev.Content(), "url").Type == gjson.String)
}

// Everything says that the filter lets every event of a room pass.
func (f *Room) Everything() bool {
	return f.Types == nil && len(f.NotTypes) == 0 && f.Senders == nil && len(f.NotSenders) == 0 && f.ContainsURL == nil
}

// matches compares with a pattern in which * is any run of characters.
func matches(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	if !strings.HasPrefix(s, parts[0]) {
		return false
	}
	s = s[len(parts[0]):]
	last := len(parts) - 1
	for _, part := range parts[1:last] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, parts[last])
}
