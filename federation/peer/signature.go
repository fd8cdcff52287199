package peer

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"unicode/utf8"
)

// Signatures of one JSON object: by server, by key ID.
type Signatures map[string]map[string]string

// decodeBase64 reads unpadded base64; padding and the URL alphabet are forgiven.
//
// spec: appendices#unpadded-base64
func decodeBase64(s string) ([]byte, error) {
	s = strings.TrimRight(s, "=")
	if strings.ContainsAny(s, "-_") {
		return base64.RawURLEncoding.DecodeString(s)
	}
	return base64.RawStdEncoding.DecodeString(s)
}

func encodeBase64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// signedPart gives the bytes of a JSON object that its signatures cover, and the signatures.
//
// spec: appendices#checking-for-a-signature
func signedPart(object []byte) (payload []byte, signatures Signatures, members map[string]json.RawMessage, err error) {
	if err := json.Unmarshal(object, &members); err != nil || members == nil || !utf8.Valid(object) {
		return nil, nil, nil, errors.New("not a JSON object")
	}
	if raw, ok := members["signatures"]; ok {
		// An entity's entry of another shape is not ours to judge: leave it out.
		var entities map[string]json.RawMessage
		if err := json.Unmarshal(raw, &entities); err != nil {
			return nil, nil, nil, errors.New("signatures is no object")
		}
		signatures = make(Signatures, len(entities))
		for entity, raw := range entities {
			var keys map[string]string
			if json.Unmarshal(raw, &keys) == nil {
				signatures[entity] = keys
			}
		}
	}
	covered := maps.Clone(members)
	delete(covered, "signatures")
	delete(covered, "unsigned")
	plain, err := json.Marshal(covered)
	if err != nil {
		return nil, nil, nil, err
	}
	payload, err = CanonicalJSON(plain)
	return payload, signatures, members, err
}

// SignJSON adds server's signature to a JSON object; signatures already there stay.
//
// spec: appendices#signing-details
func SignJSON(server string, key SigningKey, object []byte) ([]byte, error) {
	payload, signatures, members, err := signedPart(object)
	if err != nil {
		return nil, fmt.Errorf("sign: %w", err)
	}
	if signatures == nil {
		signatures = Signatures{}
	}
	if signatures[server] == nil {
		signatures[server] = map[string]string{}
	}
	signatures[server][key.ID] = encodeBase64(ed25519.Sign(key.Private, payload))
	if members["signatures"], err = json.Marshal(signatures); err != nil {
		return nil, err
	}
	whole, err := json.Marshal(members)
	if err != nil {
		return nil, err
	}
	return CanonicalJSON(whole)
}

// verify checks one signature over payload.
func verify(key ed25519.PublicKey, payload []byte, signature string) bool {
	sig, err := decodeBase64(signature)
	return err == nil && len(sig) == ed25519.SignatureSize && len(key) == ed25519.PublicKeySize &&
		ed25519.Verify(key, payload, sig)
}
