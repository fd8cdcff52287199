package auth

import (
	"slices"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// Key names one entry of the room's state.
type Key struct{ Type, StateKey string }

// Needed lists the state that authorises an event: what its auth_events must be taken from.
// From version 12 on the create event is not in the list, though Check wants it in its State:
// there it is the event whose ID is the room ID with "$" for "!". stateKey is nil where the
// event is no state event.
//
// spec: s2s#auth-events-selection
func Needed(v *event.Version, typ string, stateKey *string, sender id.UserID, content []byte) []Key {
	if typ == "m.room.create" {
		return nil
	}
	keys := make([]Key, 0, 6)
	if !v.CreateNotInAuthEvents {
		keys = append(keys, Key{"m.room.create", ""})
	}
	keys = append(keys, Key{"m.room.power_levels", ""}, Key{"m.room.member", string(sender)})
	if typ != "m.room.member" || stateKey == nil {
		return keys
	}
	add := func(typ, stateKey string) {
		if k := (Key{typ, stateKey}); !slices.Contains(keys, k) {
			keys = append(keys, k)
		}
	}
	add("m.room.member", *stateKey)
	m := parseMember(content)
	switch m.membership {
	case "join", "invite", "knock":
		add("m.room.join_rules", "")
	}
	if m.membership == "invite" && m.invite.Exists() {
		if token := entry(entry(m.invite, "signed"), "token"); token.Type == gjson.String {
			add("m.room.third_party_invite", token.Str)
		}
	}
	if m.membership == "join" && v.Restricted && m.authoriser.Type == gjson.String {
		add("m.room.member", m.authoriser.Str)
	}
	return keys
}

// NeededBy lists the state that authorises an event that is built already.
func NeededBy(ev *event.Event) []Key {
	var stateKey *string
	if key, ok := ev.StateKey(); ok {
		stateKey = &key
	}
	return Needed(ev.Version(), ev.Type(), stateKey, ev.Sender(), ev.Content())
}

// considering are the rules on the list of auth events. With a state instead of a list, only
// the event that has to be there is looked for: the other rules could not be asked without it.
func considering(required string, rules ...rule) rule {
	return func(q *question) answer {
		if q.citing {
			if a := list(rules).ask(q); a.verdict == rejects {
				return a
			}
			return allow
		}
		if required != "" && q.create == nil {
			return rejectAt("4", "there is no create event")
		}
		return next
	}
}

// spec: rooms/v11#authorisation-rules 2.1
func noneTwice(q *question) answer {
	seen := make(map[Key]bool, len(q.cited))
	for _, ev := range q.cited {
		if ev == nil {
			return reject("an auth event is missing")
		}
		key, _ := ev.StateKey()
		k := Key{ev.Type(), key}
		if seen[k] {
			return reject("two auth events have the same type and state key: " + k.Type)
		}
		seen[k] = true
	}
	return next
}

// spec: rooms/v11#authorisation-rules 2.2
func onlySelected(q *question) answer {
	needed := NeededBy(q.ev)
	for _, ev := range q.cited {
		key, isState := ev.StateKey()
		if !isState || !slices.Contains(needed, Key{ev.Type(), key}) {
			return reject("an auth event has no part in authorising this event: " + ev.Type())
		}
	}
	return next
}

// spec: rooms/v11#authorisation-rules 2.3
func noneRejected(q *question) answer {
	if slices.ContainsFunc(q.cited, q.rejected) {
		return reject("an auth event was rejected")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 2.4
func createIsAmong(q *question) answer {
	if Events(q.cited).Get("m.room.create", "") == nil {
		return reject("the create event is not among the auth events")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 2.5
// spec: rooms/v12#authorisation-rules 3.4
func allOfThisRoom(q *question) answer {
	for _, ev := range q.cited {
		if ev.RoomID() != q.ev.RoomID() {
			return reject("an auth event is of another room")
		}
	}
	return next
}
