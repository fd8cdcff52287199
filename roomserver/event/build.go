package event

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"strconv"
	"time"

	"chancery"

	"maunium.net/go/mautrix/id"
)

// Proto is what an event says before it is hashed and signed.
type Proto struct {
	RoomID     id.RoomID // empty for the create event of a version 12 room
	Sender     id.UserID
	Type       string
	StateKey   *string
	Content    json.RawMessage // an object; empty means {}
	PrevEvents []id.EventID
	AuthEvents []id.EventID
	Depth      int64
	// Redacts goes to the top level or into content, as the version wants it.
	Redacts id.EventID
	// ReferenceHashes has the hashes of the events named above; versions 1 and 2 need them.
	ReferenceHashes map[id.EventID]string
}

// Build makes an event: it fills in the time, hashes, and signs for server. An event that
// is too large is refused with M_TOO_LARGE, content that the version does not allow with
// M_BAD_JSON.
//
// spec: s2s#adding-hashes-and-signatures-to-outgoing-events
func Build(v *Version, p Proto, server string, keyID string, key ed25519.PrivateKey, now time.Time) (*Event, error) {
	content, err := v.buildContent(p)
	if err != nil {
		return nil, err
	}
	if len(content) > maxSize {
		return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
	}
	// All small values share one buffer, the members point into it; keys are in order.
	arena := make([]byte, 0, 1024)
	value := func(write func([]byte) []byte) []byte {
		start := len(arena)
		arena = write(arena)
		return arena[start:len(arena):len(arena)]
	}
	str := func(s string) []byte { return value(func(b []byte) []byte { return appendString(b, s) }) }
	num := func(n int64) []byte { return value(func(b []byte) []byte { return strconv.AppendInt(b, n, 10) }) }
	refs := func(ids []id.EventID) []byte {
		return value(func(b []byte) []byte { return v.appendReferences(b, ids, p.ReferenceHashes) })
	}
	top := make(object, 0, 14)
	add := func(key string, val []byte) { top = append(top, member{[]byte(key), val}) }

	add("auth_events", refs(p.AuthEvents))
	add("content", content)
	add("depth", num(p.Depth))
	if v.EventIDFormat == IDFromSender {
		add("event_id", str("$"+rand.Text()+":"+server))
	}
	add("hashes", []byte("{}"))
	add("origin_server_ts", num(now.UnixMilli()))
	add("prev_events", refs(p.PrevEvents))
	if p.Redacts != "" && !v.RedactsInContent {
		add("redacts", str(string(p.Redacts)))
	}
	if p.RoomID != "" {
		add("room_id", str(string(p.RoomID)))
	}
	add("sender", str(string(p.Sender)))
	add("signatures", []byte("{}"))
	if p.StateKey != nil {
		add("state_key", str(*p.StateKey))
	}
	add("type", str(p.Type))

	raw, reference := v.seal(top, p.Type, server, keyID, key)
	if len(raw) > maxSize {
		return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
	}
	e, err := newEvent(v, "", raw, false)
	if err != nil {
		return nil, err
	}
	if err := cmp.Or(e.limits(true), e.counts()); err != nil { // what we make keeps to the limits as they are written
		return nil, err
	}
	if v.EventIDFormat != IDFromSender {
		e.id = v.hashID(reference)
	}
	if e.roomID == "" {
		e.roomID = roomOfCreate(e.id)
	}
	return e, nil
}

// seal hashes and signs: it replaces the values of hashes and signatures in top and gives
// the whole event with its reference hash.
//
// spec: s2s#adding-hashes-and-signatures-to-outgoing-events
func (v *Version) seal(top object, typ, server, keyID string, key ed25519.PrivateKey) ([]byte, [32]byte) {
	buf := top.append(make([]byte, 0, 2048), "hashes", "signatures", "unsigned")
	sum := sha256.Sum256(buf)
	hashes := base64.RawStdEncoding.AppendEncode([]byte(`{"sha256":"`), sum[:])
	top.set("hashes", append(hashes, `"}`...))

	buf = v.redact(top, typ).append(buf[:0], "signatures", "unsigned")
	reference := sha256.Sum256(buf)
	signature := append(appendString([]byte{'{'}, server), ':', '{')
	signature = append(appendString(signature, keyID), `:"`...)
	signature = base64.RawStdEncoding.AppendEncode(signature, ed25519.Sign(key, buf))
	top.set("signatures", append(signature, `"}}`...))
	return bytes.Clone(top.append(buf[:0])), reference // buf is larger than the event
}

func (v *Version) buildContent(p Proto) ([]byte, error) {
	if len(p.Content) > maxRaw {
		return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
	}
	content := []byte("{}")
	if len(p.Content) > 0 {
		var err error
		if content, err = canonical(p.Content, !v.StrictCanonicalJSON); err != nil {
			return nil, err
		}
	}
	if !isObject(content) {
		return nil, chancery.BadJSON("the content of an event is a JSON object")
	}
	if p.Redacts == "" || !v.RedactsInContent {
		return content, nil
	}
	all, err := members(content, nil)
	if err != nil {
		return nil, chancery.Internal(err)
	}
	return all.with("redacts", appendString(nil, string(p.Redacts))).append(nil), nil
}

func (v *Version) appendReferences(out []byte, ids []id.EventID, hashes map[id.EventID]string) []byte {
	out = append(out, '[')
	for i, ref := range ids {
		if i > 0 {
			out = append(out, ',')
		}
		if v.EventFormat == FormatIDs {
			out = appendString(out, string(ref))
			continue
		}
		out = appendString(append(out, '['), string(ref))
		out = append(out, `,{"sha256":`...)
		out = append(appendString(out, hashes[ref]), `}]`...)
	}
	return append(out, ']')
}
