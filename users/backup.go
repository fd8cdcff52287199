package users

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strconv"

	"chancery"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const (
	maxAuthData    = 64_000
	maxSessionData = 64_000
	maxSessionID   = 255
	backupPiece    = 500 // sessions stored in one transaction
)

// errNoBackup is the answer for a version that is not there.
var errNoBackup = chancery.NotFound("there is no such backup version")

// NewBackup makes a new version of a user's key backup, which is the current one from then on.
//
// spec: c2s/postRoomKeysVersion
func (s *Server) NewBackup(ctx context.Context, user id.UserID, algorithm string, auth json.RawMessage) (version string, err error) {
	if err := checkAuthData(algorithm, auth); err != nil {
		return "", err
	}
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		n, err := tx.InsertKeyBackup(storage.KeyBackup{User: string(user), Algorithm: algorithm, AuthData: auth})
		version = strconv.FormatInt(n, 10)
		return err
	})
	return version, err
}

func checkAuthData(algorithm string, auth json.RawMessage) error {
	if algorithm == "" || len(algorithm) > maxSessionID {
		return chancery.InvalidParam("algorithm is empty or too long")
	}
	if len(auth) == 0 || auth[0] != '{' {
		return chancery.BadJSON("auth_data is not an object")
	}
	if len(auth) > maxAuthData {
		return chancery.TooLarge("auth_data is too large")
	}
	return nil
}

// versionNumber reads a version as we write them: another text is no version of ours.
func versionNumber(version string) (int64, error) {
	n, err := strconv.ParseInt(version, 10, 64)
	if err != nil || n < 1 || strconv.FormatInt(n, 10) != version {
		return 0, errNoBackup
	}
	return n, nil
}

// Backup finds a version of a user's key backup; "" is the current one.
//
// spec: c2s/getRoomKeysVersion
func (s *Server) Backup(ctx context.Context, user id.UserID, version string) (b storage.KeyBackup, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		b, err = findBackup(tx, user, version)
		return err
	})
	return b, err
}

func findBackup(tx storage.Tx, user id.UserID, version string) (b storage.KeyBackup, err error) {
	var ok bool
	if version == "" {
		b, ok, err = tx.LatestKeyBackup(string(user))
	} else {
		n, notOurs := versionNumber(version)
		if notOurs != nil {
			return b, notOurs
		}
		b, ok, err = tx.KeyBackup(string(user), n)
	}
	if err == nil && (!ok || b.Deleted) {
		err = errNoBackup
	}
	return b, err
}

// UpdateBackup gives a version other auth data; its algorithm stays.
//
// spec: c2s/putRoomKeysVersion
func (s *Server) UpdateBackup(ctx context.Context, user id.UserID, version, algorithm string, auth json.RawMessage) error {
	if err := checkAuthData(algorithm, auth); err != nil {
		return err
	}
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		b, err := findBackup(tx, user, version)
		if err != nil {
			return err
		}
		if b.Algorithm != algorithm {
			return chancery.InvalidParam("the algorithm of the backup is another")
		}
		tx.SetKeyBackupAuth(string(user), b.Version, auth)
		return nil
	})
}

// DeleteBackup removes a version with its keys; a second time it has nothing to do.
//
// spec: c2s/deleteRoomKeysVersion
func (s *Server) DeleteBackup(ctx context.Context, user id.UserID, version string) error {
	n, err := versionNumber(version)
	if err != nil {
		return err
	}
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		b, ok, err := tx.KeyBackup(string(user), n)
		if err != nil {
			return err
		}
		if !ok {
			return errNoBackup
		}
		if !b.Deleted {
			tx.DeleteKeyBackup(string(user), n)
		}
		return nil
	})
}

// BackupState is what a change of a backup answers.
type BackupState struct {
	ETag  string `json:"etag"`
	Count int64  `json:"count"`
}

func stateOf(b storage.KeyBackup) BackupState {
	return BackupState{strconv.FormatInt(b.ETag, 10), b.Count}
}

// currentBackup finds the version that keys may be stored in: the current one.
func currentBackup(tx storage.Tx, user id.UserID, version string) (storage.KeyBackup, error) {
	b, ok, err := tx.LatestKeyBackup(string(user))
	if err != nil {
		return b, err
	}
	if !ok {
		return b, errNoBackup
	}
	if current := strconv.FormatInt(b.Version, 10); current != version {
		return b, chancery.Errorf(http.StatusForbidden, chancery.CodeWrongRoomKeysVersion, "this is not the current backup version").
			With("current_version", current)
	}
	return b, nil
}

// PutBackup stores keys in the current version. A key that is there is replaced by a better one only.
//
// spec: c2s/putRoomKeys
func (s *Server) PutBackup(ctx context.Context, user id.UserID, version string, sessions []storage.BackedUpSession) (state BackupState, err error) {
	for _, v := range sessions {
		if v.Room == "" || v.Session == "" || len(v.Session) > maxSessionID || len(v.Room) > maxSessionID {
			return state, chancery.InvalidParam("a key has no proper room or session ID")
		}
		if len(v.EncryptedKey) == 0 || v.EncryptedKey[0] != '{' {
			return state, chancery.BadJSON("session_data is not an object")
		}
		if len(v.EncryptedKey) > maxSessionData {
			return state, chancery.TooLarge("session_data is too large")
		}
		if v.FirstIndex < 0 || v.Forwarded < 0 {
			return state, chancery.InvalidParam("a count of a key is negative")
		}
	}
	if len(sessions) == 0 { // the version is checked all the same
		sessions = []storage.BackedUpSession{}
		return s.putBackupPiece(ctx, user, version, sessions)
	}
	for piece := range slices.Chunk(sessions, backupPiece) {
		if state, err = s.putBackupPiece(ctx, user, version, piece); err != nil {
			return state, err
		}
	}
	return state, nil
}

func (s *Server) putBackupPiece(ctx context.Context, user id.UserID, version string, sessions []storage.BackedUpSession) (state BackupState, err error) {
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		b, err := currentBackup(tx, user, version)
		if err != nil {
			return err
		}
		ids := make([]string, len(sessions))
		for i, v := range sessions {
			ids[i] = v.Session
		}
		rows, err := tx.BackedUpSessionsByID(string(user), b.Version, ids)
		if err != nil {
			return err
		}
		there := make(map[[2]string]storage.BackedUpSession, len(rows))
		for _, v := range rows {
			there[[2]string{v.Room, v.Session}] = v
		}
		changed := false
		for _, v := range sessions {
			at := [2]string{v.Room, v.Session}
			old, ok := there[at]
			if ok && !betterKey(v, old) {
				continue
			}
			tx.SetBackedUpSession(string(user), b.Version, v)
			there[at] = v
			changed = true
			if !ok {
				b.Count++
			}
		}
		if changed {
			tx.TouchKeyBackup(string(user), b.Version)
			b.ETag++
		}
		state = stateOf(b)
		return nil
	})
	return state, err
}

// betterKey says whether a key replaces the one that is there: a verified one an unverified one,
// then one that reads from an earlier message, then one that was forwarded less.
//
// spec: c2s/putRoomKeys
func betterKey(key, old storage.BackedUpSession) bool {
	switch {
	case key.Verified != old.Verified:
		return key.Verified
	case key.FirstIndex != old.FirstIndex:
		return key.FirstIndex < old.FirstIndex
	}
	return key.Forwarded < old.Forwarded
}

// BackedUp lists keys of a version: all, those of a room, or one.
//
// spec: c2s/getRoomKeys
func (s *Server) BackedUp(ctx context.Context, user id.UserID, version, room, session string) (list []storage.BackedUpSession, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		b, err := findBackup(tx, user, version)
		if err == nil {
			list, err = tx.BackedUpSessions(string(user), b.Version, room, session)
		}
		return err
	})
	return list, err
}

// DeleteBackedUp removes keys from a version: all, those of a room, or one.
//
// spec: c2s/deleteRoomKeys
func (s *Server) DeleteBackedUp(ctx context.Context, user id.UserID, version, room, session string) (state BackupState, err error) {
	err = s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		b, err := findBackup(tx, user, version)
		if err != nil {
			return err
		}
		n, err := tx.DeleteBackedUpSessions(string(user), b.Version, room, session)
		if err != nil {
			return err
		}
		if n > 0 {
			tx.TouchKeyBackup(string(user), b.Version)
			b.ETag, b.Count = b.ETag+1, b.Count-n
		}
		state = stateOf(b)
		return nil
	})
	return state, err
}
