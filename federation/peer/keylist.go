package peer

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ServerKey is a key that a server signs with, or signed with.
type ServerKey struct {
	Server     string
	ID         string // with its algorithm: "ed25519:a_abcd"
	Public     ed25519.PublicKey
	ValidUntil time.Time // until then the key list that named it may be relied on; zero for an old key
	Expired    time.Time // when the server stopped using it; zero while it is in use
}

// maxValidity bounds valid_until_ts, so that a stolen key dies with its owner's next key list.
//
// spec: rooms/v5#signing-key-validity-period
const maxValidity = 7 * 24 * time.Hour

// validAt says whether an event signed at that time may carry the key's signature.
//
// spec: rooms/v5#signing-key-validity-period
func (k ServerKey) validAt(at time.Time) bool {
	if !k.Expired.IsZero() {
		return !at.After(k.Expired)
	}
	return !at.After(k.ValidUntil)
}

// signsRequests says whether the key may sign a request now: old keys may sign only events.
//
// spec: s2s#publishing-keys
func (k ServerKey) signsRequests(now time.Time) bool {
	return k.Expired.IsZero() && !now.After(k.ValidUntil)
}

// maxKeys bounds what one list can make us remember. Of a server that changes its keys without end, twice as many are
// kept in all.
const maxKeys = 100

// readKeyList checks a key list that server is said to have published: that it is server's, that it
// is signed by a key it names, and that no signature of such a key is false.
//
// spec: s2s/getServerKey
func readKeyList(server string, published json.RawMessage, now time.Time) ([]ServerKey, time.Time, error) {
	var list serverKeys
	if err := Decode(published, &list); err != nil {
		return nil, time.Time{}, fmt.Errorf("key list of %s: %w", server, err)
	}
	if list.ServerName != server {
		return nil, time.Time{}, fmt.Errorf("key list of %s says that it is of %.100q", server, list.ServerName)
	}
	if len(list.VerifyKeys)+len(list.OldVerifyKeys) > maxKeys {
		return nil, time.Time{}, fmt.Errorf("key list of %s has more than %d keys", server, maxKeys)
	}
	payload, signatures, _, err := signedPart(published)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("key list of %s: %w", server, err)
	}
	until := time.UnixMilli(list.ValidUntil)
	if latest := now.Add(maxValidity); until.After(latest) {
		until = latest
	}
	var keys []ServerKey
	signed := false
	for id, key := range list.VerifyKeys {
		public, ok := readPublic(id, key.Key)
		if !ok {
			continue // an algorithm of the future
		}
		if signature, found := signatures[server][id]; found {
			if !verify(public, payload, signature) {
				return nil, time.Time{}, fmt.Errorf("key list of %s has a false signature of %s", server, id)
			}
			signed = true
		}
		keys = append(keys, ServerKey{Server: server, ID: id, Public: public, ValidUntil: until})
	}
	if !signed {
		return nil, time.Time{}, fmt.Errorf("key list of %s is not signed by a key that it names", server)
	}
	for id, old := range list.OldVerifyKeys {
		if _, current := list.VerifyKeys[id]; current {
			continue
		}
		if public, ok := readPublic(id, old.Key); ok && old.Expired > 0 {
			keys = append(keys, ServerKey{Server: server, ID: id, Public: public, Expired: time.UnixMilli(old.Expired)})
		}
	}
	return keys, until, nil
}

func readPublic(id, text string) (ed25519.PublicKey, bool) {
	version, ok := strings.CutPrefix(id, "ed25519:")
	if !ok || len(version) == 0 || len(version) > 255 {
		return nil, false
	}
	public, err := decodeBase64(text)
	return public, err == nil && len(public) == ed25519.PublicKeySize
}

// errNoKey is the cause when a signature's key is not to be had.
var errNoKey = errors.New("no key that could check the signature")

// mergeKeys adds what a key list says to what was known. The server itself may say anything of
// its own keys; a notary may add and prolong, but neither swap a key nor bring an expired one
// back, because its copy may be older than ours.
func mergeKeys(known map[string]ServerKey, found []ServerKey, fromNotary bool) map[string]ServerKey {
	merged := make(map[string]ServerKey, len(known)+len(found))
	if len(known)+len(found) <= 2*maxKeys {
		for id, key := range known {
			merged[id] = key
		}
	}
	for _, key := range found {
		old, ok := known[key.ID]
		if ok && fromNotary {
			if !old.Public.Equal(key.Public) || !old.Expired.IsZero() {
				continue
			}
		}
		if ok && old.Public.Equal(key.Public) && key.Expired.IsZero() && old.Expired.IsZero() && old.ValidUntil.After(key.ValidUntil) {
			key.ValidUntil = old.ValidUntil
		}
		merged[key.ID] = key
	}
	return merged
}
