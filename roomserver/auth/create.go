package auth

import (
	"slices"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// room is what the create event says about its room.
type room struct {
	creators map[id.UserID]bool
	federate bool
}

var rooms = cache[room]{parse: parseRoom, budget: 4 << 20}

func parseRoom(create *event.Event) *room {
	r := &room{creators: make(map[id.UserID]bool, 1), federate: true}
	for _, user := range Creators(create) {
		r.creators[user] = true
	}
	if f, ok := property(create, "m.federate"); ok && f.Type == gjson.False {
		r.federate = false
	}
	return r
}

// Creators lists the room's creators, the sender of the create event first: in version 12 with
// the additional ones, up to version 10 the one that content.creator names.
//
// spec: rooms/v12#authorisation-rules
// spec: rooms/v11#remove-the-creator-property-of-mroomcreate-events
func Creators(create *event.Event) []id.UserID {
	if create == nil {
		return nil
	}
	v := create.Version()
	if !v.CreatorFromSender {
		creator, _ := property(create, "creator")
		return []id.UserID{id.UserID(creator.Str)}
	}
	creators := []id.UserID{create.Sender()}
	if v.PrivilegedCreators {
		additional, _ := property(create, "additional_creators")
		for _, user := range additional.Array() {
			if user.Type == gjson.String {
				creators = append(creators, id.UserID(user.Str))
			}
		}
	}
	return creators
}

// RoomVersion is the version that a create event names; without one it is version 1.
//
// spec: c2s#mroomcreate
func RoomVersion(create *event.Event) string {
	version, ok := property(create, "room_version")
	if !ok {
		return "1"
	}
	return version.Str
}

// spec: rooms/v11#authorisation-rules 1.1
func createIsFirst(q *question) answer {
	if len(q.ev.PrevEvents()) > 0 {
		return reject("a create event has no prev_events")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 1.2
func createIsInSendersRoom(q *question) answer {
	domain := event.Domain(string(q.ev.RoomID()))
	if domain == "" || domain != server(q.ev.Sender()) {
		return reject("the room ID is not of the sender's server")
	}
	return next
}

// spec: rooms/v12#authorisation-rules 1.2
func createHasNoRoomID(q *question) answer {
	if gjson.GetBytes(q.ev.JSON(), "room_id").Exists() {
		return reject("the create event has a room_id")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 1.3
func createVersionIsKnown(q *question) answer {
	version, ok := property(q.ev, "room_version")
	if !ok {
		return next
	}
	if _, known := event.Lookup(version.Str); !known || version.Type != gjson.String {
		return reject("the room version is not recognised")
	}
	return next
}

// spec: rooms/v10#authorisation-rules 1.4
func createHasCreator(q *question) answer {
	if _, ok := property(q.ev, "creator"); !ok {
		return reject("the create event has no creator")
	}
	return next
}

// spec: rooms/v12#authorisation-rules 1.4
func additionalCreatorsAreUsers(q *question) answer {
	additional, ok := property(q.ev, "additional_creators")
	if !ok {
		return next
	}
	isUser := func(u gjson.Result) bool { return u.Type == gjson.String && event.ValidUserID(u.Str) }
	if !additional.IsArray() || !all(additional.Array(), isUser) {
		return reject("additional_creators is not an array of user IDs")
	}
	return next
}

func all[T any](list []T, holds func(T) bool) bool {
	return !slices.ContainsFunc(list, func(x T) bool { return !holds(x) })
}

// spec: rooms/v12#authorisation-rules 2
func roomIsCreated(q *question) answer {
	if q.create == nil || q.create.Type() != "m.room.create" {
		return reject("the room's create event is not known")
	}
	room := q.ev.RoomID()
	create := q.create.ID()
	if len(room) < 2 || len(create) != len(room) || room[0] != '!' || string(room[1:]) != string(create[1:]) {
		return reject("the room ID is not that of the create event")
	}
	if q.citing && q.rejected(q.create) {
		return reject("the create event was rejected")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 3
func federate(q *question) answer {
	if !rooms.of(q.create).federate && server(q.ev.Sender()) != server(q.create.Sender()) {
		return reject("the room does not federate")
	}
	return next
}
