package storage

import "chancery/storage/sql"

// NextDeviceListUpdate numbers an update of the device list of one of our users and names the
// one before it (0: there was none). floor is the highest position (MaxPos) that the transaction sees:
// a number is never below it, so that a restored database gives no number again.
func (tx Tx) NextDeviceListUpdate(user string, floor int64) (stream, prev int64, err error) {
	err = tx.QueryRow(`INSERT INTO device_list_streams (user_id, stream_id, prev_id) VALUES ($1, $2, 0)
		ON CONFLICT (user_id) DO UPDATE SET prev_id = device_list_streams.stream_id,
			stream_id = CASE WHEN device_list_streams.stream_id < excluded.stream_id THEN excluded.stream_id
				ELSE device_list_streams.stream_id + 1 END
		RETURNING stream_id, prev_id`, sql.Text(user), floor+1).Scan(&stream, &prev)
	return stream, prev, err
}

// DeviceListUpdate gives the number of the newest update of the user's device list, and of the one before it, each
// 0 when there was none.
func (tx Tx) DeviceListUpdate(user string) (stream, prev int64, err error) {
	err = tx.QueryRow(`SELECT stream_id, prev_id FROM device_list_streams WHERE user_id = $1`, sql.Text(user)).Scan(&stream, &prev)
	stream, _, err = found(stream, err)
	return stream, prev, err
}

// UsersTold lists our users with keys, above a user, in order, that share a room with somebody of a server.
func (tx Tx) UsersTold(server, above string, limit int) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT k.user_id FROM device_keys k WHERE k.user_id > $1
		AND (EXISTS (SELECT 1 FROM members a JOIN members b ON b.room = a.room AND b.membership = 'join' AND b.server = $2
				WHERE a.user_id = k.user_id AND a.membership = 'join')
			OR EXISTS (SELECT 1 FROM members a JOIN partial_servers p ON p.room = a.room AND p.server = $2
				WHERE a.user_id = k.user_id AND a.membership = 'join')) ORDER BY k.user_id LIMIT $3`, sql.Text(above), server, limit)
}

// RemoteDeviceList is what we know of the device list of another server's user.
type RemoteDeviceList struct {
	User     string
	Server   string
	Stream   int64 // of the newest update in it
	Stale    bool
	Failures int64
	RetryAt  int64 // milliseconds
}

const remoteListColumns = `user_id, server, stream_id, stale, failures, retry_at`

func scanRemoteList(r *sql.Rows) (RemoteDeviceList, error) {
	var v RemoteDeviceList
	err := r.Scan(&v.User, &v.Server, &v.Stream, &v.Stale, &v.Failures, &v.RetryAt)
	v.User = sql.Untext(v.User)
	return v, err
}

// RemoteDeviceLists finds the cached device lists of users.
func (tx Tx) RemoteDeviceLists(users []string) ([]RemoteDeviceList, error) {
	return sql.Collect(tx.Tx, scanRemoteList,
		`SELECT `+remoteListColumns+` FROM remote_device_lists WHERE user_id = ANY($1)`, texts(users))
}

// StaleDeviceLists lists those that are due to be fetched, the longest overdue first, but not of some servers.
func (tx Tx) StaleDeviceLists(now int64, but []string, limit int) ([]RemoteDeviceList, error) {
	return sql.Collect(tx.Tx, scanRemoteList, `SELECT `+remoteListColumns+` FROM remote_device_lists
		WHERE stale AND retry_at <= $1 AND server <> ALL($2) ORDER BY retry_at LIMIT $3`, now, texts(but), limit)
}

// NextStaleDeviceList says when the next after now is due, but not of some servers; ok is false when there is none.
func (tx Tx) NextStaleDeviceList(now int64, but []string) (at int64, ok bool, err error) {
	err = tx.QueryRow(`SELECT retry_at FROM remote_device_lists
		WHERE stale AND retry_at > $1 AND server <> ALL($2) ORDER BY retry_at LIMIT 1`, now, texts(but)).Scan(&at)
	return found(at, err)
}

// PostponeDeviceListsOf has the stale lists of a server fetched not before then.
func (tx Tx) PostponeDeviceListsOf(server string, then int64) {
	tx.Exec(`UPDATE remote_device_lists SET retry_at = $2 WHERE server = $1 AND stale AND retry_at < $2`, sql.Text(server), then)
}

// MarkDeviceListStale has a list fetched, as soon as a time; one that waits after a failure waits on.
func (tx Tx) MarkDeviceListStale(user, server string, at int64) {
	tx.Exec(`INSERT INTO remote_device_lists (`+remoteListColumns+`) VALUES ($1, $2, 0, TRUE, 0, $3)
		ON CONFLICT (user_id) DO UPDATE SET stale = TRUE,
			retry_at = CASE WHEN remote_device_lists.stale THEN remote_device_lists.retry_at ELSE excluded.retry_at END`,
		sql.Text(user), sql.Text(server), at)
}

// RetryDeviceListsOf has the stale lists of a server fetched as soon as now.
func (tx Tx) RetryDeviceListsOf(server string, now int64) {
	tx.Exec(`UPDATE remote_device_lists SET retry_at = $2 WHERE server = $1 AND stale AND retry_at > $2`, sql.Text(server), now)
}

// SetRemoteDeviceList stores what is known of a list.
func (tx Tx) SetRemoteDeviceList(v RemoteDeviceList) {
	tx.Exec(`INSERT INTO remote_device_lists (`+remoteListColumns+`) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id, stale = excluded.stale,
			failures = excluded.failures, retry_at = excluded.retry_at`,
		sql.Text(v.User), sql.Text(v.Server), v.Stream, v.Stale, v.Failures, v.RetryAt)
}

// SetRemoteDeviceListStream notes the newest update that was heard of.
func (tx Tx) SetRemoteDeviceListStream(user string, stream int64) {
	tx.Exec(`UPDATE remote_device_lists SET stream_id = $2 WHERE user_id = $1`, sql.Text(user), stream)
}

// SetRemoteDevice stores a device of another server's user.
func (tx Tx) SetRemoteDevice(v DeviceKeys) {
	tx.Exec(`INSERT INTO remote_devices (user_id, device_id, json, display_name) VALUES ($1, $2, $3, $4)
		ON CONFLICT (user_id, device_id) DO UPDATE SET json = excluded.json, display_name = excluded.display_name`,
		sql.Text(v.User), sql.Text(v.Device), jsonText(v.Keys), sql.Text(v.Name))
}

// DeleteRemoteDevice removes a device of another server's user.
func (tx Tx) DeleteRemoteDevice(user, device string) {
	tx.Exec(`DELETE FROM remote_devices WHERE user_id = $1 AND device_id = $2`, sql.Text(user), sql.Text(device))
	tx.DeleteKeySignatures(user, device)
}

// DeleteRemoteDevices empties the cached list of a user.
func (tx Tx) DeleteRemoteDevices(user string) {
	tx.Exec(`DELETE FROM remote_devices WHERE user_id = $1`, sql.Text(user))
}

// ForgetRemoteDeviceList drops everything cached of a user. Signatures that our users put on
// the user's keys stay: whom one has verified is not to be lost.
func (tx Tx) ForgetRemoteDeviceList(user string) {
	tx.DeleteRemoteDevices(user)
	tx.Exec(`DELETE FROM remote_device_lists WHERE user_id = $1`, sql.Text(user))
	tx.Exec(`DELETE FROM cross_signing_keys WHERE user_id = $1`, sql.Text(user))
}

// UsersMetBy lists users of other servers that are in a room with one of ours, of some given.
func (tx Tx) UsersMetBy(server string, users []string) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT a.user_id FROM members a
		WHERE a.user_id = ANY($1) AND a.membership = 'join' AND EXISTS (SELECT 1 FROM members b
			WHERE b.room = a.room AND b.membership = 'join' AND b.server = $2)`, texts(users), sql.Text(server))
}

// ListsUnmetIn lists the members, also former ones, of a room of whom a device list is kept though no
// user of the server is in a room with them.
func (tx Tx) ListsUnmetIn(room int64, server string) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT l.user_id FROM members m JOIN remote_device_lists l ON l.user_id = m.user_id
		WHERE m.room = $1 AND NOT EXISTS (SELECT 1 FROM members a JOIN members b ON b.room = a.room
			WHERE a.user_id = l.user_id AND a.membership = 'join' AND b.membership = 'join' AND b.server = $2)`, room, server)
}

// ServersTold lists the servers that were told of a user's devices.
func (tx Tx) ServersTold(user string) ([]string, error) {
	return sql.Collect(tx.Tx, scanText, `SELECT server FROM device_list_told WHERE user_id = $1`, sql.Text(user))
}

// SetServersTold notes that servers were told of a user's devices.
func (tx Tx) SetServersTold(user string, servers []string) error {
	rows := make([][]any, len(servers))
	for i, v := range servers {
		rows[i] = []any{sql.Text(user), v}
	}
	return tx.CopyIn("device_list_told", []string{"user_id", "server"}, rows)
}

// ForgetServersTold drops servers that were told of a user's devices, but for some.
func (tx Tx) ForgetServersTold(user string, but []string) {
	tx.Exec(`DELETE FROM device_list_told WHERE user_id = $1 AND server <> ALL($2)`, sql.Text(user), but)
}

// UsersWithDeviceKeys lists our users that have devices with keys, above a user, in order.
func (tx Tx) UsersWithDeviceKeys(above string, limit int) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT user_id FROM device_keys WHERE user_id > $1 ORDER BY user_id LIMIT $2`,
		sql.Text(above), limit)
}
