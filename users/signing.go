package users

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"strings"

	"chancery"
	"chancery/federation/peer"

	"maunium.net/go/mautrix/id"
)

// signedKey is a key object that its owner, and others, sign.
type signedKey struct {
	members    map[string]json.RawMessage
	signatures map[id.UserID]map[string]string
}

// parseSigned takes an object apart. What no signature covers besides is dropped: it is not for
// the owner to say.
func parseSigned(object json.RawMessage) (signedKey, error) {
	var k signedKey
	if err := json.Unmarshal(object, &k.members); err != nil || k.members == nil {
		return k, chancery.BadJSON("a key is not an object")
	}
	if raw, ok := k.members["signatures"]; ok {
		if err := json.Unmarshal(raw, &k.signatures); err != nil {
			return k, chancery.BadJSON("the signatures of a key are malformed")
		}
	}
	delete(k.members, "signatures")
	delete(k.members, "unsigned")
	return k, nil
}

// payload is what is signed.
//
// spec: appendices#signing-json
func (k signedKey) payload() ([]byte, error) {
	raw, err := json.Marshal(k.members)
	if err == nil {
		raw, err = peer.CanonicalJSON(raw)
	}
	if err != nil {
		return nil, chancery.BadJSON("a key is not canonical JSON").Because(err)
	}
	return raw, nil
}

// encode gives the whole object, as canonical JSON: equal keys are equal bytes.
func (k signedKey) encode() (json.RawMessage, error) {
	if _, err := k.payload(); err != nil {
		return nil, err
	}
	if k.signatures != nil {
		raw, err := json.Marshal(k.signatures)
		if err != nil {
			return nil, err
		}
		k.members["signatures"] = raw
		defer delete(k.members, "signatures")
	}
	return k.payload()
}

// sign adds a signature that others made.
func (k *signedKey) sign(signer id.UserID, keyID, signature string) {
	if k.signatures == nil {
		k.signatures = map[id.UserID]map[string]string{}
	}
	if k.signatures[signer] == nil {
		k.signatures[signer] = map[string]string{}
	}
	k.signatures[signer][keyID] = signature
}

// sameKey says whether two objects differ in their signatures only.
func sameKey(a, b signedKey) bool {
	x, err := a.payload()
	y, err2 := b.payload()
	return err == nil && err2 == nil && bytes.Equal(x, y)
}

// signedBy says whether an ed25519 key, in unpadded base64, made the signature that stands under keyID.
func (k signedKey) signedBy(signer id.UserID, keyID, public string) bool {
	key, err := unbase64(public)
	if err != nil || len(key) != ed25519.PublicKeySize {
		return false
	}
	signature, err := unbase64(k.signatures[signer][keyID])
	if err != nil || len(signature) != ed25519.SignatureSize {
		return false
	}
	payload, err := k.payload()
	return err == nil && ed25519.Verify(key, payload, signature)
}

func unbase64(s string) ([]byte, error) {
	return base64.RawStdEncoding.DecodeString(strings.TrimRight(s, "="))
}
