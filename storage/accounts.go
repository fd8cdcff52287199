package storage

import "chancery/storage/sql"

// Account is a row of accounts.
type Account struct {
	User        string
	Password    string // PHC string; empty: no password opens it
	Created     int64  // milliseconds
	Admin       bool
	Guest       bool
	Deactivated bool
	Erased      bool
	Leaving     bool // deactivated, and not out of all rooms yet
	Locked      bool
	Suspended   bool
	AppService  string
}

const accountColumns = `user_id, password, created, admin, guest, deactivated, erased, leaving, locked, suspended, appservice`

func scanAccount(r interface{ Scan(...any) error }) (Account, error) {
	var v Account
	err := r.Scan(&v.User, &v.Password, &v.Created, &v.Admin, &v.Guest, &v.Deactivated, &v.Erased, &v.Leaving, &v.Locked, &v.Suspended, &v.AppService)
	v.User, v.AppService = sql.Untext(v.User), sql.Untext(v.AppService)
	return v, err
}

// Account finds the account of one of our users.
func (tx Tx) Account(user string) (v Account, ok bool, err error) {
	v, err = scanAccount(tx.QueryRow(`SELECT `+accountColumns+` FROM accounts WHERE user_id = $1`, sql.Text(user)))
	return found(v, err)
}

// LeavingAccounts lists deactivated accounts that are not out of all rooms yet.
func (tx Tx) LeavingAccounts() ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT user_id FROM accounts WHERE leaving`)
}

// InsertAccount makes an account; ok is false when there is one of that name.
func (tx Tx) InsertAccount(v Account) (ok bool, err error) {
	n, err := tx.ExecRows(`INSERT INTO accounts (`+accountColumns+`)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) ON CONFLICT (user_id) DO NOTHING`,
		sql.Text(v.User), v.Password, v.Created, v.Admin, v.Guest, v.Deactivated, v.Erased, v.Leaving, v.Locked, v.Suspended, sql.Text(v.AppService))
	return n > 0, err
}

// UpdateAccount writes everything of an account that may change.
func (tx Tx) UpdateAccount(v Account) {
	tx.Exec(`UPDATE accounts SET password = $2, admin = $3, deactivated = $4, erased = $5, leaving = $6, locked = $7, suspended = $8
		WHERE user_id = $1`, sql.Text(v.User), v.Password, v.Admin, v.Deactivated, v.Erased, v.Leaving, v.Locked, v.Suspended)
}

// EraseAccount removes what a person kept here: each subject that keeps something of a user
// and not of a device adds its line. The account stays, so that its name is never given again.
func (tx Tx) EraseAccount(user string) {
	u := sql.Text(user)
	tx.DeleteProfile(user)
	tx.Exec(`DELETE FROM account_data WHERE user_id = $1`, u)
	tx.Exec(`DELETE FROM push_rules WHERE user_id = $1`, u)
	tx.Exec(`DELETE FROM filters WHERE user_id = $1`, u)
	tx.Exec(`DELETE FROM pushers WHERE user_id = $1`, u)
	tx.Exec(`DELETE FROM key_backup_sessions WHERE user_id = $1`, u)
	tx.Exec(`DELETE FROM key_backups WHERE user_id = $1`, u)
	tx.Exec(`DELETE FROM cross_signing_keys WHERE user_id = $1`, u)
}
