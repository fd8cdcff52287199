package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"strings"

	"chancery"

	"maunium.net/go/mautrix/id"
)

// maxRaw bounds what Parse reads at all: an event of the largest size with everything beyond
// ASCII escaped, and some unsigned.
const maxRaw = 4 * maxSize

// transportKeys are top-level keys that travel beside an event and are no part of it:
// unsigned by the spec, the others by the habit of older servers to send them by accident.
// They are read, so that what is no JSON is refused, and left out of hashes and storage.
//
// spec: s2s#calculating-the-content-hash-for-an-event
var transportKeys = []string{"unsigned", "age", "age_ts", "outlier", "destinations"}

// Parse reads an event that somebody else made. It checks everything that can be checked
// without keys or other events: JSON, sizes, required fields and their types, IDs. When the
// content hash does not match, the result is the redacted copy. What it returns still has to
// be checked for signatures. Its error is a *chancery.Error.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu, s2s#validating-hashes-and-signatures-on-received-events
func Parse(v *Version, raw []byte) (*Event, error) {
	e, err := ParsePast(v, raw)
	if err == nil {
		err = e.counts()
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// ParsePast is Parse for history, where events may name more others than is allowed by now.
//
// spec: s2s/backfillRoom
func ParsePast(v *Version, raw []byte) (*Event, error) {
	if len(raw) > maxRaw {
		return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
	}
	enc := newEncoder(raw, !v.StrictCanonicalJSON)
	defer enc.free()
	if err := enc.document(transportKeys); err != nil {
		return nil, err
	}
	if !isObject(enc.out) {
		return nil, chancery.BadJSON("an event is a JSON object")
	}
	e := &Event{version: v, json: bytes.Clone(enc.out)}
	var few [20]member
	top := few[:0]
	for _, s := range enc.members {
		top = append(top, member{e.json[s.key:s.keyEnd], e.json[s.val:s.end]})
	}
	if err := e.read(top, false); err != nil {
		return nil, err
	}
	if contentHashMatches(top, enc) {
		if len(e.json) > maxSize {
			return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
		}
		return e.identify(top, enc)
	}
	var err error
	if e, err = newEvent(v, "", v.redact(top, e.typ).append(nil), false); err != nil {
		return nil, err
	}
	if len(e.json) > maxSize {
		return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
	}
	e.redacted = true
	if top, err = members(e.json, few[:0]); err != nil {
		return nil, chancery.BadJSON("the event is no JSON object")
	}
	return e.identify(top, enc)
}

// ParseStored reads an event that was checked before and stored as JSON wrote it. raw
// belongs to the event from now on.
func ParseStored(v *Version, eventID id.EventID, raw []byte) (*Event, error) {
	return newEvent(v, eventID, raw, true)
}

func newEvent(v *Version, eventID id.EventID, json []byte, trusted bool) (*Event, error) {
	var few [20]member
	top, err := members(json, few[:0])
	if err != nil {
		return nil, chancery.BadJSON("the event is no JSON object").Because(err)
	}
	e := &Event{version: v, id: eventID, json: json}
	if err := e.read(top, trusted); err != nil {
		return nil, err
	}
	if eventID != "" {
		e.id = eventID
		if e.roomID == "" {
			e.roomID = roomOfCreate(eventID)
		}
	}
	return e, nil
}

// contentHashMatches compares the hash in the event with that of everything but unsigned,
// signatures and hashes.
//
// spec: s2s#calculating-the-content-hash-for-an-event
func contentHashMatches(top object, enc *encoder) bool {
	enc.scratch = top.append(enc.scratch[:0], "hashes", "signatures")
	sum := sha256.Sum256(enc.scratch)
	stated, _ := text(lookup(top.get("hashes"), "sha256"))
	got, err := decodeBase64(stated)
	return err == nil && bytes.Equal(got, sum[:])
}

// decodeBase64 reads unpadded base64 and forgives padding, which some servers send.
//
// spec: appendices#unpadded-base64
func decodeBase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}

// identify computes the event's ID where it is a hash, and the room's where it is the event's.
//
// spec: s2s#calculating-the-reference-hash-for-an-event
func (e *Event) identify(top object, enc *encoder) (*Event, error) {
	if e.version.EventIDFormat != IDFromSender {
		enc.scratch = e.version.redact(top, e.typ).append(enc.scratch[:0], "signatures")
		e.id = e.version.hashID(sha256.Sum256(enc.scratch))
	}
	if e.roomID == "" {
		e.roomID = roomOfCreate(e.id)
	}
	return e, nil
}

// hashID writes a reference hash as an event ID.
//
// spec: rooms/v3#event-ids, rooms/v4#event-ids
func (v *Version) hashID(sum [32]byte) id.EventID {
	var out [44]byte
	out[0] = '$'
	if v.EventIDFormat == IDBase64 {
		base64.RawStdEncoding.Encode(out[1:], sum[:])
	} else {
		base64.RawURLEncoding.Encode(out[1:], sum[:])
	}
	return id.EventID(out[:])
}
