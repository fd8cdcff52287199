package syncapi

import (
	"encoding/json"
	"fmt"

	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// writeInvited tells of an invite to, or a knock on, a room that we are in.
//
// spec: c2s#stripped-state
func (a *answer) writeInvited(room storage.Room, m storage.Member) error {
	found, err := a.s.Reader.ByNumber(a.tx, room, []int64{m.Event})
	if err != nil {
		return fmt.Errorf("read an invite: %w", err)
	}
	ev := found[m.Event]
	if ev == nil || a.isIgnored(ev.Sender()) && m.Membership == "invite" {
		return nil
	}
	stripped, err := a.s.Reader.Stripped(a.tx, room, ev)
	if err != nil {
		return fmt.Errorf("strip the state of an invite: %w", err)
	}
	a.invite(room.ID, m.Membership, stripped)
	return nil
}

func (a *answer) invite(roomID, membership string, stripped []json.RawMessage) {
	in := &writer{}
	if membership == "knock" {
		in.events("knock_state", stripped)
		a.knocked.inside(roomID, in)
		return
	}
	in.events("invite_state", stripped)
	a.invited.inside(roomID, in)
}

// writeElsewhere tells of invites to, and knocks on, rooms that we are not in. It gives the rooms whose
// rows of members are of the past.
func (a *answer) writeElsewhere() (map[string]bool, error) {
	rooms := map[string]bool{}
	joined := map[string]bool{}
	for _, row := range a.rooms {
		if a.members[row.NID].Membership == "join" {
			joined[row.ID] = true
		}
	}
	for _, v := range a.invites {
		if joined[v.RoomID] {
			continue
		}
		if a.news.elsewhere[v.RoomID] || v.Membership != "leave" {
			rooms[v.RoomID] = true
		}
		if v.Membership == "leave" || !a.news.all && !a.news.elsewhere[v.RoomID] || !a.q.filter.Room.room(v.RoomID) {
			continue
		}
		if v.Membership == "invite" && a.isIgnored(id.UserID(v.Sender)) {
			continue
		}
		var stripped []json.RawMessage
		if err := json.Unmarshal(v.Stripped, &stripped); err != nil {
			return nil, fmt.Errorf("read the stripped state of %s: %w", v.RoomID, err)
		}
		if own := strip(v.Event); own != nil && !hasMember(stripped, v.User) {
			stripped = append(stripped, own)
		}
		a.invite(v.RoomID, v.Membership, stripped)
	}
	return rooms, nil
}

// strip makes stripped state of an event as another server wrote it.
func strip(raw json.RawMessage) json.RawMessage {
	in := gjson.ParseBytes(raw)
	if !in.Get("content").IsObject() || in.Get("state_key").Type != gjson.String {
		return nil
	}
	w := &writer{}
	for _, name := range []string{"content", "sender", "state_key", "type"} {
		w.raw(name, []byte(in.Get(name).Raw))
	}
	return w.object()
}

func hasMember(stripped []json.RawMessage, user string) bool {
	for _, raw := range stripped {
		in := gjson.ParseBytes(raw)
		if in.Get("type").Str == "m.room.member" && in.Get("state_key").Str == user {
			return true
		}
	}
	return false
}
