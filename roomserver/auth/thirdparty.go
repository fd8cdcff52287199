package auth

import (
	"crypto/ed25519"
	"encoding/base64"
	"strings"

	"github.com/tidwall/gjson"

	"chancery/roomserver/event"
)

func hasThirdPartyInvite(q *question) bool { return q.content().invite.Exists() }

func (q *question) signed() gjson.Result { return entry(q.content().invite, "signed") }

func (q *question) thirdPartyEvent() *event.Event {
	return q.state.Get("m.room.third_party_invite", entry(q.signed(), "token").Str)
}

// spec: rooms/v11#authorisation-rules 4.4.1.1
func thirdPartyNotBanned(q *question) answer {
	if q.targetMembership() == "ban" {
		return reject("the invited user is banned")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.1.2
func thirdPartyIsSigned(q *question) answer {
	if !q.signed().Exists() {
		return reject("the third-party invite has no signed part")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.1.3
func thirdPartyIsComplete(q *question) answer {
	signed := q.signed()
	if entry(signed, "mxid").Type != gjson.String || entry(signed, "token").Type != gjson.String {
		return reject("the signed part has no mxid or no token")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.1.4
func thirdPartyIsTarget(q *question) answer {
	if entry(q.signed(), "mxid").Str != q.target() {
		return reject("another user was signed than the one who is invited")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.1.5
func thirdPartyIsInRoom(q *question) answer {
	if q.thirdPartyEvent() == nil {
		return reject("the room has no third-party invite with this token")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.1.6
func thirdPartySenderIsSame(q *question) answer {
	if q.thirdPartyEvent().Sender() != q.ev.Sender() {
		return reject("the third-party invite was sent by another user")
	}
	return next
}

// maxSignatureTries bounds the work that one event can ask for: 64 KB hold enough keys and
// signatures for minutes of it. A real invite has two keys and one signature.
const maxSignatureTries = 128

// spec: rooms/v11#authorisation-rules 4.4.1.7
func thirdPartySignatureHolds(q *question) answer {
	if _, ok := signedBy(q.thirdPartyEvent(), q.signed()); ok {
		return allow
	}
	return next
}

// InviteKey is a key of an m.room.third_party_invite event, and where to ask whether it is valid.
type InviteKey struct{ Key, URL string }

// SignedBy finds the key of an m.room.third_party_invite event with which a proof is signed; signed is an object in
// whatever form.
//
// spec: s2s#verifying-the-invite
func SignedBy(invite *event.Event, signed []byte) (InviteKey, bool) {
	canonical, err := event.CanonicalLenient(signed)
	if err != nil {
		return InviteKey{}, false
	}
	return signedBy(invite, gjson.ParseBytes(canonical))
}

func signedBy(invite *event.Event, signed gjson.Result) (by InviteKey, holds bool) {
	message := unsignedForm(signed)
	keys := publicKeys(invite)
	tries := 0
	entry(signed, "signatures").ForEach(func(_, byServer gjson.Result) bool {
		if !byServer.IsObject() {
			return true
		}
		byServer.ForEach(func(keyID, value gjson.Result) bool {
			signature, ok := decodeBase64(value, ed25519.SignatureSize)
			if !ok || !strings.HasPrefix(keyID.Str, "ed25519:") {
				return true
			}
			for _, key := range keys {
				if tries++; tries > maxSignatureTries {
					return false
				}
				if holds = ed25519.Verify(key.public, message, signature); holds {
					by = key.InviteKey
					return false
				}
			}
			return true
		})
		return !holds && tries <= maxSignatureTries
	})
	return by, holds
}

type publicKey struct {
	InviteKey
	public ed25519.PublicKey
}

// publicKeys are the keys in an m.room.third_party_invite event.
//
// spec: rooms/v11#authorisation-rules 4.4.1.7
func publicKeys(ev *event.Event) []publicKey {
	var keys []publicKey
	add := func(value, url gjson.Result) {
		if key, ok := decodeBase64(value, ed25519.PublicKeySize); ok && len(keys) < maxSignatureTries {
			keys = append(keys, publicKey{InviteKey{value.Str, url.Str}, key})
		}
	}
	single, _ := property(ev, "public_key")
	url, _ := property(ev, "key_validity_url")
	add(single, url)
	if several, _ := property(ev, "public_keys"); several.IsArray() {
		for _, key := range several.Array() {
			add(entry(key, "public_key"), entry(key, "key_validity_url"))
		}
	}
	return keys
}

// unsignedForm is what was signed: the object without signatures and unsigned. The event is
// canonical JSON, and so is an object in it when entries are left out.
//
// spec: appendices#checking-for-a-signature
func unsignedForm(signed gjson.Result) []byte {
	out := make([]byte, 0, len(signed.Raw))
	out = append(out, '{')
	signed.ForEach(func(key, value gjson.Result) bool {
		if key.Str == "signatures" || key.Str == "unsigned" {
			return true
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(out, key.Raw...)
		out = append(out, ':')
		out = append(out, value.Raw...)
		return true
	})
	return append(out, '}')
}

// decodeBase64 takes both alphabets, with and without padding.
//
// spec: c2s#mroomthird_party_invite
func decodeBase64(value gjson.Result, size int) ([]byte, bool) {
	if value.Type != gjson.String {
		return nil, false
	}
	text := strings.TrimRight(value.Str, "=")
	if base64.RawStdEncoding.DecodedLen(len(text)) != size {
		return nil, false
	}
	text = strings.NewReplacer("-", "+", "_", "/").Replace(text)
	out, err := base64.RawStdEncoding.DecodeString(text)
	return out, err == nil && len(out) == size
}
