package event

import (
	"unicode/utf8"

	"chancery"

	"maunium.net/go/mautrix/id"
)

const (
	maxSize       = 65536 // bytes of a whole event, spec: c2s#size-limits
	maxPrevEvents = 20    // spec: rooms/v4#event-format
	maxAuthEvents = 10
	typeCreate    = "m.room.create"
	typeMember    = "m.room.member"
	typeRedaction = "m.room.redaction"
)

// read extracts the fields. The forms of all fields are always checked; IDs, lengths and
// counts only of events that are not trusted yet. The ID of the event may still be unknown.
func (e *Event) read(top object, trusted bool) error {
	v := e.version
	var hasKey, hasRoom, hasDepth, hasTime, hasPrev, hasAuth, hasType, hasHashes, hasSignatures bool
	for _, m := range top {
		ok := true
		switch string(m.key) {
		case "type":
			e.typ, ok = text(m.val)
			hasType = true
		case "state_key":
			e.stateKey, ok = text(m.val)
			hasKey = true
		case "room_id":
			var s string
			s, ok = text(m.val)
			e.roomID, hasRoom = id.RoomID(s), true
		case "sender":
			var s string
			s, ok = text(m.val)
			e.sender = id.UserID(s)
		case "content":
			e.content, ok = m.val, isObject(m.val)
		case "depth":
			e.depth, ok = integer(m.val, v.StrictCanonicalJSON)
			ok, hasDepth = ok && e.depth >= 0, true
		case "origin_server_ts":
			e.ts, ok = integer(m.val, v.StrictCanonicalJSON)
			hasTime = true
		case "prev_events":
			e.prev, ok = v.references(m.val)
			hasPrev = true
		case "auth_events":
			e.auth, ok = v.references(m.val)
			hasAuth = true
		case "event_id":
			if v.EventIDFormat == IDFromSender {
				var s string
				s, ok = text(m.val)
				e.id = id.EventID(s)
			}
		case "redacts":
			if !v.RedactsInContent {
				var s string
				s, ok = text(m.val)
				e.redacts = id.EventID(s)
			}
		case "hashes":
			hasHashes, ok = true, trusted || isString(lookup(m.val, "sha256"))
		case "signatures":
			hasSignatures, ok = true, trusted || validSignatures(m.val)
		}
		if !ok {
			return chancery.BadJSON("%s of the event has the wrong form", m.key)
		}
	}
	e.isState = hasKey
	for _, field := range []struct {
		name string
		has  bool
	}{
		{"type", hasType}, {"sender", e.sender != ""}, {"content", e.content != nil}, {"depth", hasDepth},
		{"origin_server_ts", hasTime}, {"prev_events", hasPrev}, {"auth_events", hasAuth},
		{"hashes", hasHashes}, {"signatures", hasSignatures},
		{"event_id", e.id != "" || v.EventIDFormat != IDFromSender},
		{"room_id", hasRoom || v.RoomIDIsCreateHash && e.typ == typeCreate},
	} {
		if !field.has {
			return chancery.BadJSON("the event has no %s", field.name)
		}
	}
	e.readContent()
	if trusted {
		return nil
	}
	return e.check(hasRoom)
}

// readContent extracts what the engine reads from content.
func (e *Event) readContent() {
	if e.typ == typeMember && e.isState {
		e.membership, _ = text(lookup(e.content, "membership"))
	}
	switch {
	case e.typ != typeRedaction:
		e.redacts = ""
	case e.version.RedactsInContent:
		s, _ := text(lookup(e.content, "redacts"))
		e.redacts = id.EventID(s)
	}
}

// check refuses what is too long or no valid ID.
//
// spec: c2s#size-limits, s2s#checks-performed-on-receipt-of-a-pdu 1
func (e *Event) check(hasRoom bool) error {
	v := e.version
	if err := e.limits(v.ByteLimits); err != nil {
		return err
	}
	switch {
	case !validUser(string(e.sender)):
		return chancery.InvalidParam("sender of the event is no user ID")
	case v.RoomIDIsCreateHash && e.typ == typeCreate && hasRoom:
		// spec: rooms/v12#authorisation-rules 1.2
		return chancery.InvalidParam("a create event of this room version must not have a room_id")
	case hasRoom && !v.ValidRoomID(string(e.roomID)):
		return chancery.InvalidParam("room_id of the event is no room ID of its version")
	case e.id != "" && !v.validEventID(string(e.id)):
		return chancery.InvalidParam("event_id of the event is no event ID of its version")
	}
	for _, refs := range [][]id.EventID{e.prev, e.auth} {
		for _, ref := range refs {
			if len(ref) > maxID {
				return chancery.TooLarge("the event names an event ID longer than %d bytes", maxID)
			}
			if !v.validEventID(string(ref)) {
				return chancery.InvalidParam("the event names an event with an ID that is none")
			}
		}
	}
	return nil
}

// counts refuses an event that names too many others.
//
// spec: rooms/v4#event-format
func (e *Event) counts() error {
	switch {
	case len(e.prev) > maxPrevEvents:
		return chancery.InvalidParam("the event has more than %d prev_events", maxPrevEvents)
	case len(e.auth) > maxAuthEvents:
		return chancery.InvalidParam("the event has more than %d auth_events", maxAuthEvents)
	}
	return nil
}

// limits refuses fields that are too long, in bytes or in code points.
//
// spec: c2s#size-limits
func (e *Event) limits(inBytes bool) error {
	for _, field := range []struct{ name, value string }{
		{"type", e.typ}, {"state_key", e.stateKey}, {"sender", string(e.sender)},
		{"room_id", string(e.roomID)}, {"event_id", string(e.id)},
	} {
		if len(field.value) > maxID && (inBytes || utf8.RuneCountInString(field.value) > maxID) {
			return chancery.TooLarge("%s of the event is longer than %d bytes", field.name, maxID)
		}
	}
	return nil
}

// references reads prev_events or auth_events in the form of the version.
func (v *Version) references(val []byte) ([]id.EventID, bool) {
	var ids []id.EventID
	ok := isArray(val) && elements(val, func(ref []byte) bool {
		if v.EventFormat == FormatReferences {
			n := 0
			if !isArray(ref) {
				return false
			}
			whole := ref
			ref = nil
			if !elements(whole, func(part []byte) bool {
				if n++; n == 1 {
					ref = part
					return true
				}
				return n == 2 && isObject(part)
			}) || n != 2 {
				return false
			}
		}
		s, ok := text(ref)
		ids = append(ids, id.EventID(s))
		return ok
	})
	return ids, ok
}
