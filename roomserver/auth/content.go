package auth

import (
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// Contents are read property by property and byte for byte: decoding into a struct would take
// "Membership" for "membership". No object of an event has a key twice: canonical JSON refuses it.

// property is one property of an event's content.
func property(ev *event.Event, name string) (gjson.Result, bool) {
	value := entry(gjson.ParseBytes(ev.Content()), name)
	return value, value.Exists()
}

// entry is one entry of a JSON object; of anything else it is absent.
func entry(object gjson.Result, name string) (value gjson.Result) {
	if !object.IsObject() {
		return gjson.Result{}
	}
	object.ForEach(func(key, v gjson.Result) bool {
		if key.Str == name {
			value = v
			return false
		}
		return true
	})
	return value
}

// memberContent is what the rules read in the content of m.room.member.
type memberContent struct {
	membership string
	has        bool         // membership is there
	authoriser gjson.Result // join_authorised_via_users_server
	invite     gjson.Result // third_party_invite
}

func parseMember(content []byte) *memberContent {
	m := &memberContent{}
	object := gjson.ParseBytes(content)
	if !object.IsObject() {
		return m
	}
	object.ForEach(func(key, v gjson.Result) bool {
		switch key.Str {
		case "membership":
			m.membership, m.has = v.Str, true
		case "join_authorised_via_users_server":
			m.authoriser = v
		case "third_party_invite":
			m.invite = v
		}
		return true
	})
	return m
}

// JoinRule is the join rule that an m.room.join_rules event sets. A room without one is joined
// by invitation; a rule that is no string lets nobody in.
//
// spec: c2s#mroomjoin_rules
func JoinRule(ev *event.Event) string {
	if ev == nil {
		return "invite"
	}
	rule, ok := property(ev, "join_rule")
	if !ok {
		return "invite"
	}
	return rule.Str
}

// AllowRooms lists the rooms whose members may join by the rule restricted or knock_restricted.
//
// spec: c2s#mroomjoin_rules
func AllowRooms(ev *event.Event) []id.RoomID {
	if ev == nil {
		return nil
	}
	conditions, _ := property(ev, "allow")
	if !conditions.IsArray() {
		return nil
	}
	var rooms []id.RoomID
	for _, c := range conditions.Array() {
		room := entry(c, "room_id")
		if entry(c, "type").Str == "m.room_membership" && room.Type == gjson.String {
			rooms = append(rooms, id.RoomID(room.Str))
		}
	}
	return rooms
}

// Membership is the membership that an m.room.member event sets; without an event it is leave.
func Membership(ev *event.Event) string {
	if ev == nil {
		return "leave"
	}
	return ev.Membership()
}

// JoinAuthorisedVia is the user in whose name their server let the member in by a restricted
// join rule; empty if none. That server must have signed the event too.
//
// spec: rooms/v8#authorisation-rules 4.2
func JoinAuthorisedVia(ev *event.Event) id.UserID {
	if ev.Type() != "m.room.member" || !ev.Version().Restricted {
		return ""
	}
	user, _ := property(ev, "join_authorised_via_users_server")
	return id.UserID(user.Str)
}

func server(user id.UserID) string { return event.Domain(string(user)) }
