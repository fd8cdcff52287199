package event

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"sort"

	"chancery"
)

// SignedBytes is what signatures cover: the redacted event without signatures and unsigned.
// Its SHA-256 is the reference hash.
//
// spec: s2s#signing-events, s2s#calculating-the-reference-hash-for-an-event
func (e *Event) SignedBytes() []byte {
	var few [20]member
	top, _ := members(e.json, few[:0]) // what an Event holds is canonical
	return e.version.redact(top, e.typ).append(make([]byte, 0, 1024), "signatures")
}

// ReferenceHash is the unpadded base64 that names the event in the prev_events and
// auth_events of versions 1 and 2.
func (e *Event) ReferenceHash() string {
	sum := sha256.Sum256(e.SignedBytes())
	return base64.RawStdEncoding.EncodeToString(sum[:])
}

// Signatures are the event's signatures by server name and key ID.
func (e *Event) Signatures() map[string]map[string]string {
	return readSignatures(lookup(e.json, "signatures"))
}

func readSignatures(raw []byte) map[string]map[string]string {
	out := map[string]map[string]string{}
	servers, _ := members(raw, nil)
	for _, s := range servers {
		byKey := map[string]string{}
		keys, _ := members(s.val, nil)
		for _, k := range keys {
			byKey[unescape(k.key)], _ = text(k.val)
		}
		out[unescape(s.key)] = byKey
	}
	return out
}

// validSignatures says whether val is an object of objects of strings.
func validSignatures(val []byte) bool {
	servers, err := members(val, nil)
	if err != nil {
		return false
	}
	for _, s := range servers {
		var few [4]member
		keys, err := members(s.val, few[:0])
		if err != nil {
			return false
		}
		for _, k := range keys {
			if !isString(k.val) {
				return false
			}
		}
	}
	return true
}

func appendSignatures(out []byte, all map[string]map[string]string) []byte {
	out = append(out, '{')
	for i, server := range sortedKeys(all) {
		if i > 0 {
			out = append(out, ',')
		}
		out = append(appendString(out, server), ':', '{')
		for j, key := range sortedKeys(all[server]) {
			if j > 0 {
				out = append(out, ',')
			}
			out = append(appendString(out, key), ':')
			out = appendString(out, all[server][key])
		}
		out = append(out, '}')
	}
	return append(out, '}')
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// Sign returns a copy with one more signature, as invites and restricted joins need it.
// ID and everything signed stay the same.
func (e *Event) Sign(server, keyID string, key ed25519.PrivateKey) (*Event, error) {
	return e.AddSignature(server, keyID, base64.RawStdEncoding.EncodeToString(ed25519.Sign(key, e.SignedBytes())))
}

// AddSignature is Sign with a signature that somebody else made; whether it holds is for the caller to check.
func (e *Event) AddSignature(server, keyID, signature string) (*Event, error) {
	all := e.Signatures()
	if all[server] == nil {
		all[server] = map[string]string{}
	}
	all[server][keyID] = signature
	top, err := members(e.json, nil)
	if err != nil {
		return nil, chancery.Internal(err)
	}
	raw := top.with("signatures", appendSignatures(nil, all)).append(make([]byte, 0, len(e.json)+256))
	if len(raw) > maxSize {
		return nil, chancery.TooLarge("the event is larger than %d bytes", maxSize)
	}
	signed, err := newEvent(e.version, e.id, raw, true)
	if err != nil {
		return nil, err
	}
	signed.redacted = e.redacted
	return signed, nil
}

// VerifySignature checks the signature of one server with one of its keys. Whether the key
// was valid at the time of the event is for the caller to know.
//
// spec: appendices#checking-for-a-signature
func VerifySignature(e *Event, server string, keyID string, pub ed25519.PublicKey) error {
	signature, ok := signatureOf(lookup(e.json, "signatures"), server, keyID)
	if !ok {
		return invalidSignature("%s is not signed by %s with %s", e.id, server, keyID)
	}
	raw, err := decodeBase64(signature)
	if err != nil || len(raw) != ed25519.SignatureSize || len(pub) != ed25519.PublicKeySize {
		return invalidSignature("the signature of %s with %s on %s is malformed", server, keyID, e.id)
	}
	if !ed25519.Verify(pub, e.SignedBytes(), raw) {
		return invalidSignature("the signature of %s with %s on %s does not match", server, keyID, e.id)
	}
	return nil
}

func invalidSignature(format string, args ...any) error {
	return chancery.Errorf(403, chancery.CodeForbidden, "the event is not validly signed").
		Because(fmt.Errorf(format, args...))
}

func signatureOf(raw []byte, server, keyID string) (string, bool) {
	servers, _ := members(raw, nil)
	for _, s := range servers {
		if unescape(s.key) != server {
			continue
		}
		keys, _ := members(s.val, nil)
		for _, k := range keys {
			if unescape(k.key) == keyID {
				return text(k.val)
			}
		}
	}
	return "", false
}

// NeedsSignaturesOf lists the servers that must have signed the event. An empty name among
// them stands for a server that cannot exist: such an event is never validly signed.
//
// spec: s2s#validating-hashes-and-signatures-on-received-events
func (e *Event) NeedsSignaturesOf() []string {
	var servers []string
	add := func(server string) {
		if !slices.Contains(servers, server) {
			servers = append(servers, server)
		}
	}
	// An invite by a third-party identifier may be sent by another server than that of its
	// sender, who only made the m.room.third_party_invite it answers.
	if e.membership != "invite" || lookup(e.content, "third_party_invite") == nil {
		add(Domain(string(e.sender)))
	}
	if e.version.EventIDFormat == IDFromSender {
		add(Domain(string(e.id)))
	}
	// spec: rooms/v8#authorisation-rules 4.2
	if e.version.Restricted && e.typ == typeMember {
		if via := lookup(e.content, "join_authorised_via_users_server"); via != nil {
			user, _ := text(via)
			if !ValidUserID(user) {
				user = ""
			}
			add(Domain(user))
		}
	}
	return servers
}
