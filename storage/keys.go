package storage

import (
	"encoding/json"
	"errors"

	"chancery/storage/sql"
)

// DeviceKeys are the identity keys of a device with what its user calls it.
type DeviceKeys struct {
	User   string
	Device string
	Keys   json.RawMessage // nil: the device has none
	Name   string
}

// texts escapes a list for a query.
func texts[S ~string](list []S) []string {
	escaped := make([]string, len(list))
	for i, s := range list {
		escaped[i] = sql.Text(string(s))
	}
	return escaped
}

func jsonText(v json.RawMessage) string { return sql.Text(string(v)) }

func textJSON(s string) json.RawMessage {
	if s == "" {
		return nil
	}
	return json.RawMessage(sql.Untext(s))
}

// DeviceKeys gives the identity keys of one of our devices, nil when it has none.
func (tx Tx) DeviceKeys(user, device string) (json.RawMessage, error) {
	var text string
	err := tx.QueryRow(`SELECT json FROM device_keys WHERE user_id = $1 AND device_id = $2`, sql.Text(user), sql.Text(device)).Scan(&text)
	text, _, err = found(text, err)
	return textJSON(text), err
}

// SetDeviceKeys stores the identity keys of one of our devices.
func (tx Tx) SetDeviceKeys(user, device string, keys json.RawMessage) {
	tx.Exec(`INSERT INTO device_keys (user_id, device_id, json) VALUES ($1, $2, $3)
		ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json`, sql.Text(user), sql.Text(device), jsonText(keys))
}

// DeviceKeysOf lists all devices of some of our users, those without keys too, in no order.
func (tx Tx) DeviceKeysOf(users []string) ([]DeviceKeys, error) {
	return sql.Collect(tx.Tx, scanDeviceKeys, `SELECT d.user_id, d.device_id, COALESCE(k.json, ''), d.display_name FROM devices d
		LEFT JOIN device_keys k ON k.user_id = d.user_id AND k.device_id = d.device_id
		WHERE d.user_id = ANY($1)`, texts(users))
}

// RemoteDevicesOf lists the devices in the cached lists of other servers' users.
func (tx Tx) RemoteDevicesOf(users []string) ([]DeviceKeys, error) {
	return sql.Collect(tx.Tx, scanDeviceKeys,
		`SELECT user_id, device_id, json, display_name FROM remote_devices WHERE user_id = ANY($1)`, texts(users))
}

func scanDeviceKeys(r *sql.Rows) (DeviceKeys, error) {
	var v DeviceKeys
	var text string
	err := r.Scan(&v.User, &v.Device, &text, &v.Name)
	v.User, v.Device, v.Name, v.Keys = sql.Untext(v.User), sql.Untext(v.Device), sql.Untext(v.Name), textJSON(text)
	return v, err
}

// OneTimeKey is a one-time key, or a fallback key, of one of our devices.
type OneTimeKey struct {
	Algorithm string
	ID        string
	Key       json.RawMessage
}

func scanOneTimeKey(r interface{ Scan(...any) error }) (OneTimeKey, error) {
	var v OneTimeKey
	var text string
	err := r.Scan(&v.Algorithm, &v.ID, &text)
	v.Algorithm, v.ID, v.Key = sql.Untext(v.Algorithm), sql.Untext(v.ID), textJSON(text)
	return v, err
}

// OneTimeKeysByID finds some of a device's one-time keys, of any algorithm: those that are there, and those lately
// given out.
func (tx Tx) OneTimeKeysByID(user, device string, ids []string) (there, given []OneTimeKey, err error) {
	scan := func(r *sql.Rows) (OneTimeKey, error) { return scanOneTimeKey(r) }
	there, err = sql.Collect(tx.Tx, scan,
		`SELECT algorithm, key_id, json FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND key_id = ANY($3)`,
		sql.Text(user), sql.Text(device), texts(ids))
	if err != nil {
		return nil, nil, err
	}
	given, err = sql.Collect(tx.Tx, scan,
		`SELECT algorithm, key_id, json FROM claimed_keys WHERE user_id = $1 AND device_id = $2 AND key_id = ANY($3)`,
		sql.Text(user), sql.Text(device), texts(ids))
	return there, given, err
}

// AddOneTimeKeys stores the keys of one upload behind those of all uploads before.
func (tx Tx) AddOneTimeKeys(user, device string, keys []OneTimeKey) error {
	var last int64
	err := tx.QueryRow(`SELECT COALESCE(max(upload), 0) FROM one_time_keys WHERE user_id = $1 AND device_id = $2`,
		sql.Text(user), sql.Text(device)).Scan(&last)
	if err != nil {
		return err
	}
	rows := make([][]any, len(keys))
	for i, k := range keys {
		rows[i] = []any{sql.Text(user), sql.Text(device), sql.Text(k.Algorithm), sql.Text(k.ID), last + 1, jsonText(k.Key)}
	}
	return tx.CopyIn("one_time_keys", []string{"user_id", "device_id", "algorithm", "key_id", "upload", "json"}, rows)
}

// ClaimOneTimeKey takes the key of the earliest upload out of what the device has. Two processes
// may reach for the same row: the later one finds it gone and takes the next.
func (tx Tx) ClaimOneTimeKey(user, device, algorithm string, ts int64) (key OneTimeKey, ok bool, err error) {
	for range 1000 {
		key, err = scanOneTimeKey(tx.QueryRow(`DELETE FROM one_time_keys
			WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = (
				SELECT key_id FROM one_time_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3
				ORDER BY upload, key_id LIMIT 1)
			RETURNING algorithm, key_id, json`, sql.Text(user), sql.Text(device), sql.Text(algorithm)))
		if key, ok, err = found(key, err); err != nil {
			return key, false, err
		}
		if ok {
			tx.Exec(`INSERT INTO claimed_keys (user_id, device_id, algorithm, key_id, json, ts) VALUES ($1, $2, $3, $4, $5, $6)
				ON CONFLICT (user_id, device_id, algorithm, key_id) DO UPDATE SET json = excluded.json, ts = excluded.ts`,
				sql.Text(user), sql.Text(device), sql.Text(algorithm), sql.Text(key.ID), jsonText(key.Key), ts)
			return key, true, nil
		}
		var left int64
		err = tx.QueryRow(`SELECT count(*) FROM (SELECT 1 FROM one_time_keys
			WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 LIMIT 1) x`, sql.Text(user), sql.Text(device), sql.Text(algorithm)).Scan(&left)
		if err != nil || left == 0 {
			return OneTimeKey{}, false, err
		}
	}
	return OneTimeKey{}, false, errors.New("others always came first to the one-time keys")
}

// TrimClaimedKeys forgets keys that were given out before a time, some at once.
func (tx Tx) TrimClaimedKeys(before int64, limit int) (int64, error) {
	return tx.ExecRows(`DELETE FROM claimed_keys WHERE ts < $1 AND ts <= (SELECT max(ts) FROM
		(SELECT ts FROM claimed_keys WHERE ts < $1 ORDER BY ts LIMIT $2) x)`, before, limit)
}

// UseFallbackKey gives the device's fallback key; first says that it was not used before.
func (tx Tx) UseFallbackKey(user, device, algorithm string) (key OneTimeKey, first, ok bool, err error) {
	var text string
	var used bool
	err = tx.QueryRow(`SELECT algorithm, key_id, json, used FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND algorithm = $3`,
		sql.Text(user), sql.Text(device), sql.Text(algorithm)).Scan(&key.Algorithm, &key.ID, &text, &used)
	key.Algorithm, key.ID, key.Key = sql.Untext(key.Algorithm), sql.Untext(key.ID), textJSON(text)
	if key, ok, err = found(key, err); err != nil || !ok || used {
		return key, false, ok, err
	}
	tx.Exec(`UPDATE fallback_keys SET used = TRUE WHERE user_id = $1 AND device_id = $2 AND algorithm = $3 AND key_id = $4`,
		sql.Text(user), sql.Text(device), sql.Text(algorithm), sql.Text(key.ID))
	return key, true, true, nil
}

// SetFallbackKey stores a device's fallback key. The same key uploaded again stays used if it was.
func (tx Tx) SetFallbackKey(user, device string, key OneTimeKey) {
	tx.Exec(`INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, json, used) VALUES ($1, $2, $3, $4, $5, FALSE)
		ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET
			used = fallback_keys.used AND fallback_keys.key_id = excluded.key_id AND fallback_keys.json = excluded.json,
			key_id = excluded.key_id, json = excluded.json`,
		sql.Text(user), sql.Text(device), sql.Text(key.Algorithm), sql.Text(key.ID), jsonText(key.Key))
}

// KeyCounts is what a device has to be told of its keys.
type KeyCounts struct {
	OneTime        map[string]int64 // unclaimed keys by algorithm
	UnusedFallback []string         // algorithms, sorted
}

// KeyCounts counts a device's one-time keys and lists its unused fallback keys.
func (tx Tx) KeyCounts(user, device string) (v KeyCounts, err error) {
	v = KeyCounts{OneTime: map[string]int64{}, UnusedFallback: []string{}}
	rows, err := tx.Query(`SELECT 0, algorithm, count(*) FROM one_time_keys WHERE user_id = $1 AND device_id = $2 GROUP BY algorithm
		UNION ALL SELECT 1, algorithm, 0 FROM fallback_keys WHERE user_id = $1 AND device_id = $2 AND NOT used
		ORDER BY 1, 2`, sql.Text(user), sql.Text(device))
	if err != nil {
		return v, err
	}
	defer rows.Close()
	for rows.Next() {
		var fallback, n int64
		var algorithm string
		if err := rows.Scan(&fallback, &algorithm, &n); err != nil {
			return v, err
		}
		if fallback == 1 {
			v.UnusedFallback = append(v.UnusedFallback, sql.Untext(algorithm))
		} else {
			v.OneTime[sql.Untext(algorithm)] = n
		}
	}
	return v, rows.Err()
}

// DevicesWithOneTimeKeys lists devices that have one-time keys, some at a time.
func (tx Tx) DevicesWithOneTimeKeys(limit int) ([]DeviceKeys, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (DeviceKeys, error) {
		var v DeviceKeys
		err := r.Scan(&v.User, &v.Device)
		v.User, v.Device = sql.Untext(v.User), sql.Untext(v.Device)
		return v, err
	}, `SELECT DISTINCT user_id, device_id FROM one_time_keys ORDER BY user_id, device_id LIMIT $1`, limit)
}

// DropOneTimeKeys removes all one-time keys of a device.
func (tx Tx) DropOneTimeKeys(user, device string) {
	tx.Exec(`DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2`, sql.Text(user), sql.Text(device))
}

// DeleteDeviceKeys removes the keys and messages that go with a device.
func (tx Tx) DeleteDeviceKeys(user, device string) {
	u, d := sql.Text(user), sql.Text(device)
	tx.Exec(`DELETE FROM device_keys WHERE user_id = $1 AND device_id = $2`, u, d)
	tx.Exec(`DELETE FROM one_time_keys WHERE user_id = $1 AND device_id = $2`, u, d)
	tx.Exec(`DELETE FROM claimed_keys WHERE user_id = $1 AND device_id = $2`, u, d)
	tx.Exec(`DELETE FROM fallback_keys WHERE user_id = $1 AND device_id = $2`, u, d)
	tx.Exec(`DELETE FROM key_signatures WHERE user_id = $1 AND target = $2`, u, d)
	tx.Exec(`DELETE FROM to_device WHERE user_id = $1 AND device_id = $2`, u, d)
	tx.Exec(`DELETE FROM to_device_inboxes WHERE user_id = $1 AND device_id = $2`, u, d)
}

// CrossSigningKey is a key by which a user says which devices, and which users, are who they are.
type CrossSigningKey struct {
	User   string
	Usage  string // master, self_signing, user_signing
	Public string
	Key    json.RawMessage
}

// CrossSigningKeys lists the cross-signing keys of users, ours and others'.
func (tx Tx) CrossSigningKeys(users []string) ([]CrossSigningKey, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (CrossSigningKey, error) {
		var v CrossSigningKey
		var text string
		err := r.Scan(&v.User, &v.Usage, &v.Public, &text)
		v.User, v.Public, v.Key = sql.Untext(v.User), sql.Untext(v.Public), textJSON(text)
		return v, err
	}, `SELECT user_id, usage, public_key, json FROM cross_signing_keys WHERE user_id = ANY($1)`, texts(users))
}

// SetCrossSigningKey stores a cross-signing key in place of the one for the same use.
func (tx Tx) SetCrossSigningKey(v CrossSigningKey) {
	tx.Exec(`INSERT INTO cross_signing_keys (user_id, usage, public_key, json) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, usage) DO UPDATE SET public_key = excluded.public_key, json = excluded.json`,
		sql.Text(v.User), v.Usage, sql.Text(v.Public), jsonText(v.Key))
}

// DeleteCrossSigningKey removes a cross-signing key.
func (tx Tx) DeleteCrossSigningKey(user, usage string) {
	tx.Exec(`DELETE FROM cross_signing_keys WHERE user_id = $1 AND usage = $2`, sql.Text(user), usage)
}

// KeySignature is a signature that one of our users put on a key.
type KeySignature struct {
	User      string // whose key
	Target    string // device ID, or public key of a cross-signing key
	Signer    string
	SignerKey string // with its algorithm
	Signature string
}

// KeySignatures lists the signatures on keys of users that those users put there, and those by viewer.
func (tx Tx) KeySignatures(users []string, viewer string) ([]KeySignature, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (KeySignature, error) {
		var v KeySignature
		err := r.Scan(&v.User, &v.Target, &v.Signer, &v.SignerKey, &v.Signature)
		v.User, v.Target, v.Signer = sql.Untext(v.User), sql.Untext(v.Target), sql.Untext(v.Signer)
		v.SignerKey, v.Signature = sql.Untext(v.SignerKey), sql.Untext(v.Signature)
		return v, err
	}, `SELECT user_id, target, signer, signer_key, signature FROM key_signatures
		WHERE user_id = ANY($1) AND (signer = user_id OR signer = $2)`, texts(users), sql.Text(viewer))
}

// SetKeySignature stores a signature on a key.
func (tx Tx) SetKeySignature(v KeySignature) {
	tx.Exec(`INSERT INTO key_signatures (user_id, target, signer, signer_key, signature) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (user_id, target, signer, signer_key) DO UPDATE SET signature = excluded.signature`,
		sql.Text(v.User), sql.Text(v.Target), sql.Text(v.Signer), sql.Text(v.SignerKey), sql.Text(v.Signature))
}

// DeleteKeySignatures removes the signatures on a key that is no more, or is another.
func (tx Tx) DeleteKeySignatures(user, target string) {
	tx.Exec(`DELETE FROM key_signatures WHERE user_id = $1 AND target = $2`, sql.Text(user), sql.Text(target))
}
