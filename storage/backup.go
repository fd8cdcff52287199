package storage

import (
	"encoding/json"

	"chancery/storage/sql"
)

// KeyBackup is one version of a user's backup of room keys.
type KeyBackup struct {
	User      string
	Version   int64
	Algorithm string
	AuthData  json.RawMessage
	ETag      int64
	Deleted   bool
	Count     int64 // sessions in it
}

// KeyBackup finds a version, a deleted one too.
func (tx Tx) KeyBackup(user string, version int64) (v KeyBackup, ok bool, err error) {
	return tx.keyBackup(`b.version = $2`, user, version)
}

// LatestKeyBackup finds the newest version that is not deleted.
func (tx Tx) LatestKeyBackup(user string) (v KeyBackup, ok bool, err error) {
	return tx.keyBackup(`b.version = (SELECT max(version) FROM key_backups WHERE user_id = $1 AND NOT deleted)`, user)
}

func (tx Tx) keyBackup(where, user string, more ...any) (KeyBackup, bool, error) {
	v := KeyBackup{User: user}
	var auth string
	err := tx.QueryRow(`SELECT b.version, b.algorithm, b.auth_data, b.etag, b.deleted,
			(SELECT count(*) FROM key_backup_sessions s WHERE s.user_id = b.user_id AND s.version = b.version)
		FROM key_backups b WHERE b.user_id = $1 AND `+where, append([]any{sql.Text(user)}, more...)...).
		Scan(&v.Version, &v.Algorithm, &auth, &v.ETag, &v.Deleted, &v.Count)
	v.Algorithm, v.AuthData = sql.Untext(v.Algorithm), textJSON(auth)
	return found(v, err)
}

// InsertKeyBackup makes the next version: no number is used twice, a deleted version keeps its own.
func (tx Tx) InsertKeyBackup(v KeyBackup) (version int64, err error) {
	err = tx.QueryRow(`INSERT INTO key_backups (user_id, version, algorithm, auth_data, etag, deleted)
		SELECT $1, COALESCE(max(version), 0) + 1, $2, $3, 0, FALSE FROM key_backups WHERE user_id = $1
		RETURNING version`, sql.Text(v.User), sql.Text(v.Algorithm), jsonText(v.AuthData)).Scan(&version)
	return version, err
}

// SetKeyBackupAuth stores other auth data for a version.
func (tx Tx) SetKeyBackupAuth(user string, version int64, auth json.RawMessage) {
	tx.Exec(`UPDATE key_backups SET auth_data = $3 WHERE user_id = $1 AND version = $2`, sql.Text(user), version, jsonText(auth))
}

// TouchKeyBackup says that the keys of a version changed.
func (tx Tx) TouchKeyBackup(user string, version int64) {
	tx.Exec(`UPDATE key_backups SET etag = etag + 1 WHERE user_id = $1 AND version = $2`, sql.Text(user), version)
}

// DeleteKeyBackup removes a version and its keys; its number stays.
func (tx Tx) DeleteKeyBackup(user string, version int64) {
	tx.Exec(`UPDATE key_backups SET deleted = TRUE, auth_data = '{}' WHERE user_id = $1 AND version = $2`, sql.Text(user), version)
	tx.Exec(`DELETE FROM key_backup_sessions WHERE user_id = $1 AND version = $2`, sql.Text(user), version)
}

// BackedUpSession is a room key in a backup.
type BackedUpSession struct {
	Room         string
	Session      string
	FirstIndex   int64
	Forwarded    int64
	Verified     bool
	EncryptedKey json.RawMessage
}

func scanSession(r *sql.Rows) (BackedUpSession, error) {
	var v BackedUpSession
	var text string
	err := r.Scan(&v.Room, &v.Session, &v.FirstIndex, &v.Forwarded, &v.Verified, &text)
	v.Room, v.Session, v.EncryptedKey = sql.Untext(v.Room), sql.Untext(v.Session), textJSON(text)
	return v, err
}

const sessionColumns = `room_id, session_id, first_message_index, forwarded_count, is_verified, session_data`

// BackedUpSessions lists keys of a version: all, those of a room, or one.
func (tx Tx) BackedUpSessions(user string, version int64, room, session string) ([]BackedUpSession, error) {
	where, args := sessionsWhere(user, version, room, session)
	return sql.Collect(tx.Tx, scanSession, `SELECT `+sessionColumns+` FROM key_backup_sessions WHERE `+where, args...)
}

// BackedUpSessionsByID lists keys of a version by session, of any room: whoever asks compares the rooms.
func (tx Tx) BackedUpSessionsByID(user string, version int64, sessions []string) ([]BackedUpSession, error) {
	return sql.Collect(tx.Tx, scanSession, `SELECT `+sessionColumns+` FROM key_backup_sessions
		WHERE user_id = $1 AND version = $2 AND session_id = ANY($3)`, sql.Text(user), version, texts(sessions))
}

// SetBackedUpSession stores a key in a version.
func (tx Tx) SetBackedUpSession(user string, version int64, v BackedUpSession) {
	tx.Exec(`INSERT INTO key_backup_sessions (user_id, version, `+sessionColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
		ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET first_message_index = excluded.first_message_index,
			forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified, session_data = excluded.session_data`,
		sql.Text(user), version, sql.Text(v.Room), sql.Text(v.Session), v.FirstIndex, v.Forwarded, v.Verified, jsonText(v.EncryptedKey))
}

// DeleteBackedUpSessions removes keys of a version: all, those of a room, or one.
func (tx Tx) DeleteBackedUpSessions(user string, version int64, room, session string) (int64, error) {
	where, args := sessionsWhere(user, version, room, session)
	return tx.ExecRows(`DELETE FROM key_backup_sessions WHERE `+where, args...)
}

// sessionsWhere selects the keys of a version: all, those of a room, or one of a room.
func sessionsWhere(user string, version int64, room, session string) (string, []any) {
	args := []any{sql.Text(user), version, sql.Text(room), sql.Text(session)}
	switch {
	case room == "":
		return `user_id = $1 AND version = $2`, args[:2]
	case session == "":
		return `user_id = $1 AND version = $2 AND room_id = $3`, args[:3]
	}
	return `user_id = $1 AND version = $2 AND room_id = $3 AND session_id = $4`, args
}
