package event

import (
	"encoding/json"
	"strconv"
)

// ClientPieces is the event in the client format, made once and cut where what differs
// from receiver to receiver goes: before, `,"unsigned":`, the unsigned object, after.
// after holds the room ID; where there must be none, as in /sync, write `}` in its place.
//
// Redactions carry redacts both in content and at the top level, whatever the version.
//
// spec: c2s#room-event-format, rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
func (e *Event) ClientPieces() (before, after []byte) {
	content := e.content
	if e.redacts != "" && !e.version.RedactsInContent {
		if all, err := members(content, nil); err == nil {
			content = all.with("redacts", appendString(nil, string(e.redacts))).append(nil)
		}
	}
	out := make([]byte, 0, len(content)+len(e.typ)+len(e.stateKey)+len(e.sender)+len(e.id)+len(e.redacts)+128)
	out = append(append(out, `{"content":`...), content...)
	out = appendString(append(out, `,"event_id":`...), string(e.id))
	out = strconv.AppendInt(append(out, `,"origin_server_ts":`...), e.ts, 10)
	if e.redacts != "" {
		out = appendString(append(out, `,"redacts":`...), string(e.redacts))
	}
	out = appendString(append(out, `,"sender":`...), string(e.sender))
	if e.isState {
		out = appendString(append(out, `,"state_key":`...), e.stateKey)
	}
	before = appendString(append(out, `,"type":`...), e.typ)
	after = append(appendString([]byte(`,"room_id":`), string(e.roomID)), '}')
	return before, after
}

// Client is the event in the client format. Without unsigned the key is left out.
func Client(e *Event, unsigned []byte, withRoomID bool) json.RawMessage {
	out, after := e.ClientPieces()
	if len(unsigned) > 0 {
		out = append(append(out, `,"unsigned":`...), unsigned...)
	}
	if withRoomID {
		return append(out, after...)
	}
	return append(out, '}')
}

// Stripped is the event as stripped state, for those who are not in the room.
//
// spec: c2s#stripped-state
func (e *Event) Stripped() json.RawMessage {
	out := make([]byte, 0, len(e.content)+len(e.typ)+len(e.stateKey)+len(e.sender)+64)
	out = append(append(out, `{"content":`...), e.content...)
	out = appendString(append(out, `,"sender":`...), string(e.sender))
	out = appendString(append(out, `,"state_key":`...), e.stateKey)
	out = appendString(append(out, `,"type":`...), e.typ)
	return append(out, '}')
}
