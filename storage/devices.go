package storage

import "chancery/storage/sql"

// Device is a row of devices.
type Device struct {
	User       string
	ID         string
	Name       string
	Created    int64 // milliseconds
	LastSeen   int64 // milliseconds, 0 never
	LastSeenIP string
	UserAgent  string
}

const deviceColumns = `user_id, device_id, display_name, created, last_seen_ts, last_seen_ip, user_agent`

func scanDevice(r interface{ Scan(...any) error }) (Device, error) {
	var v Device
	err := r.Scan(&v.User, &v.ID, &v.Name, &v.Created, &v.LastSeen, &v.LastSeenIP, &v.UserAgent)
	v.User, v.ID, v.Name = sql.Untext(v.User), sql.Untext(v.ID), sql.Untext(v.Name)
	v.LastSeenIP, v.UserAgent = sql.Untext(v.LastSeenIP), sql.Untext(v.UserAgent)
	return v, err
}

// Device finds a device of one of our users.
func (tx Tx) Device(user, device string) (v Device, ok bool, err error) {
	v, err = scanDevice(tx.QueryRow(`SELECT `+deviceColumns+` FROM devices WHERE user_id = $1 AND device_id = $2`,
		sql.Text(user), sql.Text(device)))
	return found(v, err)
}

// DevicesOf lists the devices of one of our users, in no order.
func (tx Tx) DevicesOf(user string) ([]Device, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Device, error) { return scanDevice(r) },
		`SELECT `+deviceColumns+` FROM devices WHERE user_id = $1`, sql.Text(user))
}

// InsertDevice makes a device; ok is false when the user has one of that ID.
func (tx Tx) InsertDevice(v Device) (ok bool, err error) {
	n, err := tx.ExecRows(`INSERT INTO devices (`+deviceColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (user_id, device_id) DO NOTHING`,
		sql.Text(v.User), sql.Text(v.ID), sql.Text(v.Name), v.Created, v.LastSeen, sql.Text(v.LastSeenIP), sql.Text(v.UserAgent))
	return n > 0, err
}

// RenameDevice gives a device another name; ok is false when there is no such device.
func (tx Tx) RenameDevice(user, device, name string) (ok bool, err error) {
	n, err := tx.ExecRows(`UPDATE devices SET display_name = $3 WHERE user_id = $1 AND device_id = $2`,
		sql.Text(user), sql.Text(device), sql.Text(name))
	return n > 0, err
}

// SeeDevice notes when and from where a device was last here.
func (tx Tx) SeeDevice(v Device) {
	tx.Exec(`UPDATE devices SET last_seen_ts = $3, last_seen_ip = $4, user_agent = $5
		WHERE user_id = $1 AND device_id = $2 AND last_seen_ts < $3`,
		sql.Text(v.User), sql.Text(v.ID), v.LastSeen, sql.Text(v.LastSeenIP), sql.Text(v.UserAgent))
}

// DeleteDevice removes a device with everything that goes with it: each subject that keeps
// something of a device adds its line here. ok is false when there was no such device.
func (tx Tx) DeleteDevice(user, device string) (ok bool, err error) {
	tx.DeleteTokens(user, device)
	tx.DeletePushers(user, device)
	tx.DeleteDeviceKeys(user, device)
	n, err := tx.ExecRows(`DELETE FROM devices WHERE user_id = $1 AND device_id = $2`, sql.Text(user), sql.Text(device))
	return n > 0, err
}
