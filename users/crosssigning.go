package users

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"strings"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// What a cross-signing key is for.
//
// spec: c2s#cross-signing
const (
	master      = "master"
	selfSigning = "self_signing"
	userSigning = "user_signing"
)

// CrossSigningUpload are keys that a user publishes; those that are nil stay as they are.
type CrossSigningUpload struct {
	Master      json.RawMessage `json:"master_key"`
	SelfSigning json.RawMessage `json:"self_signing_key"`
	UserSigning json.RawMessage `json:"user_signing_key"`
}

// parseCrossSigning checks the form of a cross-signing key; there may be none.
func parseCrossSigning(user id.UserID, usage string, raw json.RawMessage) (*storage.CrossSigningKey, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if len(raw) > maxKeySize {
		return nil, chancery.TooLarge("a cross-signing key is too large")
	}
	var form struct {
		User  id.UserID         `json:"user_id"`
		Usage []string          `json:"usage"`
		Keys  map[string]string `json:"keys"`
	}
	if err := peer.Decode(raw, &form); err != nil {
		return nil, chancery.BadJSON("a cross-signing key is malformed").Because(err)
	}
	if form.User != user {
		return nil, chancery.InvalidParam("a cross-signing key belongs to another user")
	}
	if !slices.Contains(form.Usage, usage) {
		return nil, chancery.InvalidParam("a key is not for the use %s", usage)
	}
	if len(form.Keys) != 1 {
		return nil, chancery.InvalidParam("a cross-signing key holds exactly one public key")
	}
	key, err := parseSigned(raw)
	if err != nil {
		return nil, err
	}
	v := &storage.CrossSigningKey{User: string(user), Usage: usage}
	for keyID, public := range form.Keys {
		if _, of, ok := strings.Cut(keyID, ":"); !ok || of != public || public == "" {
			return nil, chancery.InvalidParam("a cross-signing key is not called <algorithm>:<public key>")
		}
		v.Public = public
	}
	v.Key, err = key.encode()
	return v, err
}

// CrossSigningChange is an upload that was checked against what is stored.
type CrossSigningChange struct {
	user    id.UserID
	changed []storage.CrossSigningKey
	Confirm bool // the user must prove who they are before it is made
}

// CheckCrossSigning checks keys that a user wants to publish.
//
// spec: c2s/uploadCrossSigningKeys
func (s *Server) CheckCrossSigning(ctx context.Context, user id.UserID, up CrossSigningUpload) (*CrossSigningChange, error) {
	var keys []*storage.CrossSigningKey
	for _, v := range []struct {
		usage string
		raw   json.RawMessage
	}{{master, up.Master}, {selfSigning, up.SelfSigning}, {userSigning, up.UserSigning}} {
		k, err := parseCrossSigning(user, v.usage, v.raw)
		if err != nil {
			return nil, err
		}
		if k != nil {
			keys = append(keys, k)
		}
	}
	stored := map[string]storage.CrossSigningKey{}
	devices := map[string]bool{}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		rows, err := tx.CrossSigningKeys([]string{string(user)})
		if err != nil {
			return err
		}
		for _, k := range rows {
			stored[k.Usage] = k
		}
		own, err := tx.DevicesOf(string(user))
		for _, d := range own {
			devices[d.ID] = true
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	masterKey, hadMaster := stored[master], stored[master].Public != ""
	if len(keys) > 0 && keys[0].Usage == master {
		masterKey = *keys[0]
	}
	change := &CrossSigningChange{user: user}
	for _, k := range keys {
		if masterKey.Public == "" {
			return nil, chancery.MissingParam("there is no master key to sign the others")
		}
		if devices[k.Public] {
			return nil, chancery.Forbidden("the key has the name of one of your devices")
		}
		if k.Usage != master {
			object, err := parseSigned(k.Key)
			if err != nil {
				return nil, err
			}
			if !object.signedBy(user, "ed25519:"+masterKey.Public, masterKey.Public) {
				return nil, chancery.Errorf(400, chancery.CodeInvalidSignature, "the %s key is not signed by the master key", k.Usage)
			}
		}
		if !bytes.Equal(stored[k.Usage].Key, k.Key) {
			change.changed = append(change.changed, *k)
		}
		change.Confirm = change.Confirm || hadMaster && stored[k.Usage].Public != k.Public
	}
	return change, nil
}

// MakeCrossSigning publishes keys that were checked.
func (s *Server) MakeCrossSigning(ctx context.Context, change *CrossSigningChange) error {
	if len(change.changed) == 0 {
		return nil
	}
	user := change.user
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		rows, err := tx.CrossSigningKeys([]string{string(user)})
		if err != nil {
			return err
		}
		for _, k := range change.changed {
			for _, old := range rows {
				if old.Usage == master && k.Usage == master && !change.Confirm && old.Public != k.Public {
					// Another request was first; this one was let through because there was no key.
					return chancery.Forbidden("there is a master key by now")
				}
				if old.Usage == k.Usage && old.Public != k.Public {
					tx.DeleteKeySignatures(string(user), old.Public)
				}
			}
			tx.SetCrossSigningKey(k)
		}
		return signingKeysChanged(tx, user)
	})
}

// signingKeysChanged announces a user's cross-signing keys, here and to other servers.
func signingKeysChanged(tx storage.Tx, user id.UserID) error {
	tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: string(user)})
	servers, err := serversSharing(tx, user)
	if err != nil || len(servers) == 0 {
		return err
	}
	return tellSigningKeys(tx, user, servers)
}

func tellSigningKeys(tx storage.Tx, user id.UserID, servers []string) error {
	u, err := publicSigningKeys(tx, user)
	if err != nil || u.Master == nil {
		return err
	}
	content, err := json.Marshal(u)
	if err != nil {
		return err
	}
	for _, server := range servers {
		tx.QueueEDU(server, storage.EDU{Type: "m.signing_key_update", Content: content, Subject: "m.signing_key_update " + string(user)})
	}
	return nil
}

// publicSigningKeys gives the cross-signing keys of one of our users that everybody may see.
func publicSigningKeys(tx storage.Tx, user id.UserID) (u signingKeyUpdate, err error) {
	u.User = user
	keys, err := tx.CrossSigningKeys([]string{string(user)})
	if err != nil || len(keys) == 0 {
		return u, err
	}
	signed, err := readSignatures(tx, []string{string(user)}, "")
	if err != nil {
		return u, err
	}
	for _, k := range keys {
		object, err := withSignatures(k.Key, signed.on(k.User, k.Public), "")
		if err != nil {
			return u, err
		}
		switch k.Usage {
		case master:
			u.Master = object
		case selfSigning:
			u.SelfSigning = object
		}
	}
	return u, nil
}

// SignedKeys are key objects with new signatures, by owner and by device ID or public key.
type SignedKeys map[id.UserID]map[string]json.RawMessage

// UploadSignatures publishes signatures that a user made: on own devices by the self-signing key, on
// the own master key by a device, on others' master keys by the user-signing key. What is no such
// signature comes back as a failure and holds up nothing else.
//
// spec: c2s/uploadCrossSigningSignatures
func (s *Server) UploadSignatures(ctx context.Context, user id.UserID, up SignedKeys) (map[id.UserID]map[string]Failure, error) {
	asked := KeyQuery{user: nil}
	for owner := range up {
		asked[owner] = nil
	}
	keys, err := s.QueryKeys(ctx, user, asked, defaultAsk)
	if err != nil {
		return nil, err
	}
	failures := map[id.UserID]map[string]Failure{}
	var good []storage.KeySignature
	for owner, objects := range up {
		for target, object := range objects {
			found, err := newSignatures(keys, user, owner, target, object)
			if err != nil {
				if failures[owner] == nil {
					failures[owner] = map[string]Failure{}
				}
				failures[owner][target] = failureOf(err)
			}
			good = append(good, found...)
		}
	}
	if len(good) == 0 {
		return failures, nil
	}
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		var devices []id.DeviceID
		signedMaster := false
		others := map[string]bool{}
		for _, v := range good {
			tx.SetKeySignature(v)
			switch {
			case v.User != string(user):
				others[v.User] = true
			case keys.Devices[user][id.DeviceID(v.Target)] != nil:
				devices = append(devices, id.DeviceID(v.Target))
			default:
				signedMaster = true
			}
		}
		for other := range others {
			// Only the signer sees it; Extra says so.
			tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: other, Extra: string(user)})
		}
		if len(devices) > 0 {
			if err := deviceListChanged(tx, user, devices...); err != nil {
				return err
			}
		}
		if signedMaster {
			return signingKeysChanged(tx, user)
		}
		return nil
	})
	return failures, err
}

// newSignatures checks what user signed of one key and gives the signatures that are good.
func newSignatures(keys *Keys, user, owner id.UserID, target string, object json.RawMessage) ([]storage.KeySignature, error) {
	invalid := chancery.Errorf(400, chancery.CodeInvalidSignature, "there is no valid signature of yours by the right key")
	given, err := parseSigned(object)
	if err != nil {
		return nil, err
	}
	signer := func(keyID, public string) ([]storage.KeySignature, error) {
		if public == "" || !given.signedBy(user, keyID, public) {
			return nil, invalid
		}
		return []storage.KeySignature{{User: string(owner), Target: target, Signer: string(user), SignerKey: keyID, Signature: given.signatures[user][keyID]}}, nil
	}
	if device, ok := keys.Devices[owner][id.DeviceID(target)]; ok && owner == user {
		if stored, err := parseSigned(device); err != nil || !sameKey(stored, given) {
			return nil, chancery.InvalidParam("the key is not the one that was published")
		}
		public := publicKeyOf(keys.SelfSigning[user])
		return signer("ed25519:"+public, public)
	}
	if publicKeyOf(keys.Master[owner]) != target || target == "" {
		return nil, chancery.NotFound("there is no such key")
	}
	if stored, err := parseSigned(keys.Master[owner]); err != nil || !sameKey(stored, given) {
		return nil, chancery.InvalidParam("the key is not the one that was published")
	}
	if owner != user {
		public := publicKeyOf(keys.UserSigning[user])
		return signer("ed25519:"+public, public)
	}
	var all []storage.KeySignature
	for keyID := range given.signatures[user] {
		_, device, _ := strings.Cut(keyID, ":")
		var of struct {
			Keys map[string]string `json:"keys"`
		}
		if peer.Decode(keys.Devices[user][id.DeviceID(device)], &of) != nil {
			continue
		}
		found, err := signer(keyID, of.Keys["ed25519:"+device])
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	if len(all) == 0 {
		return nil, invalid
	}
	return all, nil
}

// publicKeyOf gives the one public key of a cross-signing key, or "".
func publicKeyOf(object json.RawMessage) string {
	var form struct {
		Keys map[string]string `json:"keys"`
	}
	if peer.Decode(object, &form) == nil {
		for _, public := range form.Keys {
			return public
		}
	}
	return ""
}
