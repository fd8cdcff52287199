package users

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

const (
	maxUploadKeys  = 2_000  // one-time keys in one upload
	maxOneTimeKeys = 5_000  // that a device may have waiting
	maxKeySize     = 64_000 // bytes of one key object
	claimPiece     = 200    // devices whose keys are claimed in one transaction

	claimedLifetime = 24 * time.Hour // for which a key that was given out is known
)

// KeyUpload is what a device publishes.
type KeyUpload struct {
	DeviceKeys   json.RawMessage            `json:"device_keys"`
	OneTimeKeys  map[string]json.RawMessage `json:"one_time_keys"`
	FallbackKeys map[string]json.RawMessage `json:"fallback_keys"`
}

// UploadKeys publishes keys of a device and counts the one-time keys it has then. Uploading a key
// again changes nothing; another key under an ID that is taken is refused, with all that came along.
//
// spec: c2s/uploadKeys
func (s *Server) UploadKeys(ctx context.Context, user id.UserID, device id.DeviceID, up KeyUpload) (map[string]int64, error) {
	if device == "" {
		return nil, chancery.InvalidParam("keys belong to a device, and this access token has none")
	}
	deviceKeys, err := checkDeviceKeys(user, device, up.DeviceKeys)
	if err != nil {
		return nil, err
	}
	if len(up.OneTimeKeys) > maxUploadKeys {
		return nil, chancery.TooLarge("more than %d one-time keys at once", maxUploadKeys)
	}
	oneTime, err := checkOneTimeKeys(up.OneTimeKeys)
	if err != nil {
		return nil, err
	}
	fallback, err := checkOneTimeKeys(up.FallbackKeys)
	if err != nil {
		return nil, err
	}
	var counts storage.KeyCounts
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		if _, ok, err := tx.Device(string(user), string(device)); err != nil || !ok {
			if err == nil {
				err = chancery.NotFound("there is no such device")
			}
			return err
		}
		// First what may be refused: a function that fails has changed nothing.
		fresh, err := freshOneTimeKeys(tx, user, device, oneTime)
		if err != nil {
			return err
		}
		if counts, err = tx.KeyCounts(string(user), string(device)); err != nil {
			return err
		}
		if total(counts.OneTime)+int64(len(fresh)) > maxOneTimeKeys {
			return chancery.TooLarge("a device can have %d one-time keys", maxOneTimeKeys)
		}
		if deviceKeys != nil {
			if err := setDeviceKeys(tx, user, device, deviceKeys); err != nil {
				return err
			}
		}
		if len(fresh) == 0 && len(fallback) == 0 {
			return nil
		}
		if err := tx.AddOneTimeKeys(string(user), string(device), fresh); err != nil {
			return err
		}
		for _, k := range fallback {
			tx.SetFallbackKey(string(user), string(device), k)
		}
		tx.Announce(storage.Fact{Kind: sql.FactOneTimeKeys, User: string(user), Device: string(device)})
		counts, err = tx.KeyCounts(string(user), string(device))
		return err
	})
	return counts.OneTime, err
}

func total(counts map[string]int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// checkDeviceKeys checks the form of identity keys and whose they are.
func checkDeviceKeys(user id.UserID, device id.DeviceID, raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if len(raw) > maxKeySize {
		return nil, chancery.TooLarge("the device keys are too large")
	}
	var form struct {
		User       *string                      `json:"user_id"`
		Device     *string                      `json:"device_id"`
		Algorithms []string                     `json:"algorithms"`
		Keys       map[string]string            `json:"keys"`
		Signatures map[string]map[string]string `json:"signatures"`
	}
	if err := peer.Decode(raw, &form); err != nil {
		return nil, chancery.BadJSON("device_keys is malformed").Because(err)
	}
	if form.User == nil || form.Device == nil || form.Algorithms == nil || form.Keys == nil || form.Signatures == nil {
		return nil, chancery.BadJSON("device_keys needs user_id, device_id, algorithms, keys and signatures")
	}
	if *form.User != string(user) || *form.Device != string(device) {
		return nil, chancery.BadJSON("device_keys name another user or device than the access token")
	}
	for keyID := range form.Keys {
		if algorithm, of, ok := strings.Cut(keyID, ":"); !ok || algorithm == "" || of != string(device) {
			return nil, chancery.BadJSON("a device key is not called <algorithm>:<device_id>")
		}
	}
	key, err := parseSigned(raw)
	if err != nil {
		return nil, err
	}
	return key.encode()
}

// checkOneTimeKeys checks the form of one-time or fallback keys and sorts them.
func checkOneTimeKeys(keys map[string]json.RawMessage) ([]storage.OneTimeKey, error) {
	list := make([]storage.OneTimeKey, 0, len(keys))
	for _, name := range slices.Sorted(maps.Keys(keys)) {
		algorithm, keyID, ok := strings.Cut(name, ":")
		if !ok || algorithm == "" || keyID == "" || len(name) > 255 {
			return nil, chancery.BadJSON("a one-time key is not called <algorithm>:<key_id>")
		}
		raw := keys[name]
		if len(raw) > maxKeySize {
			return nil, chancery.TooLarge("a one-time key is too large")
		}
		var plain string
		var object struct {
			Key        *string                      `json:"key"`
			Signatures map[string]map[string]string `json:"signatures"`
		}
		if json.Unmarshal(raw, &plain) != nil && (peer.Decode(raw, &object) != nil || object.Key == nil) {
			return nil, chancery.BadJSON("a one-time key is neither text nor an object with a key")
		}
		canonical, err := peer.CanonicalJSON(raw)
		if err != nil {
			return nil, chancery.BadJSON("a one-time key is not canonical JSON").Because(err)
		}
		list = append(list, storage.OneTimeKey{Algorithm: algorithm, ID: keyID, Key: canonical})
	}
	return list, nil
}

// freshOneTimeKeys leaves out the keys that are there already, and those that somebody was given already: a device
// that heard no answer uploads the same keys again, and each is for one.
func freshOneTimeKeys(tx storage.Tx, user id.UserID, device id.DeviceID, keys []storage.OneTimeKey) ([]storage.OneTimeKey, error) {
	if len(keys) == 0 {
		return nil, nil
	}
	ids := make([]string, len(keys))
	for i, k := range keys {
		ids[i] = k.ID
	}
	rows, given, err := tx.OneTimeKeysByID(string(user), string(device), ids)
	if err != nil {
		return nil, err
	}
	there := make(map[[2]string]json.RawMessage, len(rows))
	for _, k := range rows {
		there[[2]string{k.Algorithm, k.ID}] = k.Key
	}
	fresh := make([]storage.OneTimeKey, 0, len(keys))
	for _, k := range keys {
		old, ok := there[[2]string{k.Algorithm, k.ID}]
		switch {
		case !ok && slices.ContainsFunc(given, func(g storage.OneTimeKey) bool {
			return g.Algorithm == k.Algorithm && g.ID == k.ID && bytes.Equal(g.Key, k.Key)
		}):
		case !ok:
			fresh = append(fresh, k)
		case !bytes.Equal(old, k.Key):
			return nil, chancery.Errorf(400, chancery.CodeUnknown, "there is another one-time key %s:%s already", k.Algorithm, k.ID)
		}
	}
	return fresh, nil
}

func setDeviceKeys(tx storage.Tx, user id.UserID, device id.DeviceID, keys json.RawMessage) error {
	old, err := tx.DeviceKeys(string(user), string(device))
	if err != nil || bytes.Equal(old, keys) {
		return err
	}
	tx.SetDeviceKeys(string(user), string(device), keys)
	if old != nil {
		tx.DeleteKeySignatures(string(user), string(device)) // they were for other keys
	}
	return deviceListChanged(tx, user, device)
}

// KeyCounts is what /sync tells a device of its own keys.
func (s *Server) KeyCounts(tx storage.Tx, user id.UserID, device id.DeviceID) (storage.KeyCounts, error) {
	return tx.KeyCounts(string(user), string(device))
}

// KeyClaims are devices, and the algorithm of which each is to give a one-time key.
type KeyClaims map[id.UserID]map[id.DeviceID]string

// ClaimLocalKeys takes one-time keys of our users' devices, or where there is none a fallback
// key. Nobody else ever gets a one-time key that was given out.
//
// spec: s2s/claimUserEncryptionKeys
func (s *Server) ClaimLocalKeys(ctx context.Context, claims KeyClaims) (peer.OneTimeKeys, error) {
	if err := s.OnEpoch(ctx); err != nil { // a restored database has keys that were given out
		return nil, err
	}
	type claim struct {
		user      id.UserID
		device    id.DeviceID
		algorithm string
	}
	var all []claim
	for _, user := range slices.Sorted(maps.Keys(claims)) {
		for _, device := range slices.Sorted(maps.Keys(claims[user])) {
			if s.IsLocal(user) {
				all = append(all, claim{user, device, claims[user][device]})
			}
		}
	}
	out := peer.OneTimeKeys{}
	for piece := range slices.Chunk(all, claimPiece) {
		var users []string
		for _, c := range piece {
			users = append(users, string(c.user))
		}
		var got map[claim]storage.OneTimeKey
		err := s.DB.Write(ctx, slices.Compact(users), func(tx storage.Tx) error {
			got = map[claim]storage.OneTimeKey{}
			for _, c := range piece {
				key, ok, err := tx.ClaimOneTimeKey(string(c.user), string(c.device), c.algorithm, now())
				told := ok
				if err == nil && !ok {
					key, told, ok, err = tx.UseFallbackKey(string(c.user), string(c.device), c.algorithm)
				}
				if err != nil {
					return err
				}
				if ok {
					got[c] = key
				}
				if told {
					tx.Announce(storage.Fact{Kind: sql.FactOneTimeKeys, User: string(c.user), Device: string(c.device)})
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for c, key := range got {
			if out[c.user] == nil {
				out[c.user] = map[id.DeviceID]map[string]json.RawMessage{}
			}
			out[c.user][c.device] = map[string]json.RawMessage{key.Algorithm + ":" + key.ID: key.Key}
		}
	}
	return out, nil
}
