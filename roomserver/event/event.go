// Package event is the form of Matrix events: room versions as data, canonical JSON,
// building, hashing, signing, parsing and redacting. It knows nothing of authorisation,
// state, storage or the network.
package event

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"
)

// Event is one immutable event of a room. What the engine reads often is extracted once;
// all methods may be called from any number of goroutines. Slices that methods return
// belong to the event and must not be changed.
type Event struct {
	version *Version
	id      id.EventID
	json    []byte // canonical, with hashes and signatures, without unsigned
	content []byte // a part of json

	roomID     id.RoomID
	sender     id.UserID
	typ        string
	stateKey   string
	isState    bool
	redacted   bool
	redacts    id.EventID
	membership string
	depth      int64
	ts         int64
	prev       []id.EventID
	auth       []id.EventID
}

// ID is the event's ID: computed from its reference hash, or as written in it up to version 2.
func (e *Event) ID() id.EventID { return e.id }

// Version is the version of the event's room.
func (e *Event) Version() *Version { return e.version }

// JSON is the event in the federation format as canonical JSON, with hashes and
// signatures, without unsigned.
func (e *Event) JSON() []byte { return e.json }

// Size is the length of the canonical JSON.
func (e *Event) Size() int { return len(e.json) }

// RoomID is the room. The create event of a version 12 room has no room_id: its room ID
// is its own ID with another sigil.
//
// spec: rooms/v12#event-format
func (e *Event) RoomID() id.RoomID { return e.roomID }

func (e *Event) Sender() id.UserID { return e.sender }

func (e *Event) Type() string { return e.typ }

// StateKey is the state key, and whether there is one.
func (e *Event) StateKey() (string, bool) { return e.stateKey, e.isState }

// IsState says whether the event is the state of this type and key.
func (e *Event) IsState(typ, key string) bool {
	return e.isState && e.typ == typ && e.stateKey == key
}

// Content is the content as canonical JSON, always an object.
func (e *Event) Content() json.RawMessage { return e.content }

// PrevEvents are the events this one was built on.
func (e *Event) PrevEvents() []id.EventID { return e.prev }

// AuthEvents are the auth events as the event lists them. From version 12 on the create
// event is not among them.
func (e *Event) AuthEvents() []id.EventID { return e.auth }

func (e *Event) Depth() int64 { return e.depth }

// OriginServerTS is the time the sender's server gave, in milliseconds since 1970.
func (e *Event) OriginServerTS() int64 { return e.ts }

// Redacts is the event that this m.room.redaction is about: content.redacts from version
// 11 on, the top-level redacts before. Empty for other types.
//
// spec: rooms/v11#moving-the-redacts-property-of-mroomredaction-events-to-a-content-property
func (e *Event) Redacts() id.EventID { return e.redacts }

// Redacted says whether this is a redacted copy: made by Redact, or on receipt because the
// content hash did not match.
func (e *Event) Redacted() bool { return e.redacted }

// AsRedacted marks an event read from storage as the redacted copy it is.
func (e *Event) AsRedacted() *Event {
	c := *e
	c.redacted = true
	return &c
}

// Membership is content.membership of an m.room.member event that is state; empty
// otherwise, and where it is no string.
func (e *Event) Membership() string { return e.membership }
