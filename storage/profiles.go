package storage

import (
	"encoding/json"

	"chancery/storage/sql"
)

// Profile is the profile of one of our users.
type Profile struct {
	User        string
	Fields      json.RawMessage // object
	DisplayName string
	AvatarURL   string
	Folded      string
	Spreading   int64 // not 0: rooms are still to be told
}

const profileColumns = `user_id, fields, displayname, avatar_url, folded, spreading`

func scanProfile(r interface{ Scan(...any) error }) (Profile, error) {
	var v Profile
	var fields string
	err := r.Scan(&v.User, &fields, &v.DisplayName, &v.AvatarURL, &v.Folded, &v.Spreading)
	v.User, v.DisplayName, v.AvatarURL, v.Folded = sql.Untext(v.User), sql.Untext(v.DisplayName), sql.Untext(v.AvatarURL), sql.Untext(v.Folded)
	v.Fields = json.RawMessage(sql.Untext(fields))
	return v, err
}

// Profile finds the profile of one of our users; ok is false when it never had one.
func (tx Tx) Profile(user string) (v Profile, ok bool, err error) {
	v, err = scanProfile(tx.QueryRow(`SELECT `+profileColumns+` FROM profiles WHERE user_id = $1`, sql.Text(user)))
	return found(v, err)
}

// Profiles finds the profiles of some of our users, in no order.
func (tx Tx) Profiles(users []string) ([]Profile, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Profile, error) { return scanProfile(r) },
		`SELECT `+profileColumns+` FROM profiles WHERE user_id = ANY($1)`, escaped(users))
}

// SetProfile stores a profile.
func (tx Tx) SetProfile(v Profile) {
	tx.Exec(`INSERT INTO profiles (`+profileColumns+`) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (user_id) DO UPDATE SET fields = excluded.fields, displayname = excluded.displayname,
			avatar_url = excluded.avatar_url, folded = excluded.folded, spreading = excluded.spreading`,
		sql.Text(v.User), sql.Text(string(v.Fields)), sql.Text(v.DisplayName), sql.Text(v.AvatarURL), sql.Text(v.Folded), v.Spreading)
}

// SpreadingProfiles lists profiles that rooms are still to be told of, in no order.
func (tx Tx) SpreadingProfiles() ([]Profile, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Profile, error) { return scanProfile(r) },
		`SELECT `+profileColumns+` FROM profiles WHERE spreading > 0`)
}

// ProfileSpread notes that all rooms know the profile, unless it changed again since.
func (tx Tx) ProfileSpread(user string, spreading int64) {
	tx.Exec(`UPDATE profiles SET spreading = 0 WHERE user_id = $1 AND spreading = $2`, sql.Text(user), spreading)
}

// DeleteProfile removes a profile.
func (tx Tx) DeleteProfile(user string) {
	tx.Exec(`DELETE FROM profiles WHERE user_id = $1`, sql.Text(user))
}
