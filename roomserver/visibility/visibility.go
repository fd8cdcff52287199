// Package visibility says whether a user, or another server, may see an event of a room. It is a
// pure function of the event and of what the room's state said at it; who looks that state up,
// and shapes what is shown, is the caller.
//
// spec: c2s#room-history-visibility
package visibility

import (
	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// The values of m.room.history_visibility.
const (
	WorldReadable = "world_readable"
	Shared        = "shared"
	Invited       = "invited"
	Joined        = "joined"
)

// Of is the history visibility that an m.room.history_visibility event sets. Without one, and
// where the value is not understood, history is shared.
//
// spec: c2s#room-history-visibility
func Of(ev *event.Event) string {
	if ev == nil {
		return Shared
	}
	return visibilityIn(ev)
}

func visibilityIn(ev *event.Event) string {
	value := ""
	gjson.ParseBytes(ev.Content()).ForEach(func(key, v gjson.Result) bool {
		if key.Str == "history_visibility" {
			value = v.Str
			return false
		}
		return true
	})
	switch value {
	case WorldReadable, Shared, Invited, Joined:
		return value
	}
	return Shared
}

// Viewer is a user with what the room's state before the event says of them.
type Viewer struct {
	User       id.UserID
	Membership string // before the event; empty is leave
	// JoinedLater says whether the user joined at any point after the event, also if they have
	// left again since.
	JoinedLater bool
}

// Event says whether the viewer may see the event. before is the room's history visibility
// before the event, as Of reads it. What the event itself changes of either is read from it:
// for a change of history visibility, and of the viewer's own membership, it is enough that the
// state before or after the event allows.
//
// spec: c2s#room-history-visibility
func Event(ev *event.Event, before string, viewer Viewer) bool {
	if visible(before, viewer.Membership, viewer.JoinedLater) {
		return true
	}
	if ev.IsState("m.room.history_visibility", "") {
		return visible(visibilityIn(ev), viewer.Membership, viewer.JoinedLater)
	}
	if ev.IsState("m.room.member", string(viewer.User)) {
		return visible(before, ev.Membership(), viewer.JoinedLater)
	}
	return false
}

// visible is the list of rules.
func visible(history, membership string, joinedLater bool) bool {
	switch {
	case history == WorldReadable: // 1
		return true
	case membership == "join": // 2
		return true
	case history == Shared && joinedLater: // 3
		return true
	case membership == "invite" && history == Invited: // 4
		return true
	}
	return false // 5
}

// Server says whether a server may see the event: whether any user of it may. viewers are the
// users whose membership before the event was not leave, or who joined later; those of other
// servers are passed over. The user of the event itself, if it is a member event, need not be
// among them.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func Server(ev *event.Event, before, server string, viewers []Viewer) bool {
	for _, viewer := range viewers {
		if of(viewer.User, server) && Event(ev, before, viewer) {
			return true
		}
	}
	target, _ := ev.StateKey()
	if ev.Type() == "m.room.member" && of(id.UserID(target), server) {
		return Event(ev, before, Viewer{User: id.UserID(target)})
	}
	return Event(ev, before, Viewer{}) // what is open to everybody
}

func of(user id.UserID, server string) bool {
	domain := event.Domain(string(user))
	return domain != "" && domain == server
}
