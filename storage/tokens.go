package storage

import "chancery/storage/sql"

// Token is a row of access_tokens or refresh_tokens. Hash is what users makes of a token;
// the token itself is known to its client alone.
type Token struct {
	Hash     string
	User     string
	Device   string
	Created  int64  // milliseconds
	Expires  int64  // milliseconds, 0 never; access tokens only
	Replaces string // hash of the refresh token that is revoked when this one is first used, or ""
}

// Session is an access token with what must be known of its owner on every request.
type Session struct {
	Token
	Account
}

// Session finds an access token.
func (tx Tx) Session(hash string) (v Session, ok bool, err error) {
	err = tx.QueryRow(`SELECT t.hash, t.user_id, t.device_id, t.created, t.expires, t.replaces,
			a.admin, a.guest, a.deactivated, a.locked, a.suspended
		FROM access_tokens t JOIN accounts a ON a.user_id = t.user_id WHERE t.hash = $1`, hash).Scan(
		&v.Hash, &v.Token.User, &v.Device, &v.Token.Created, &v.Expires, &v.Replaces,
		&v.Admin, &v.Guest, &v.Deactivated, &v.Locked, &v.Suspended)
	v.Token.User, v.Device = sql.Untext(v.Token.User), sql.Untext(v.Device)
	v.Account.User = v.Token.User
	return found(v, err)
}

// RefreshToken finds a refresh token.
func (tx Tx) RefreshToken(hash string) (v Token, ok bool, err error) {
	err = tx.QueryRow(`SELECT hash, user_id, device_id, created, replaces FROM refresh_tokens WHERE hash = $1`, hash).
		Scan(&v.Hash, &v.User, &v.Device, &v.Created, &v.Replaces)
	v.User, v.Device = sql.Untext(v.User), sql.Untext(v.Device)
	return found(v, err)
}

// InsertAccessToken keeps an access token.
func (tx Tx) InsertAccessToken(v Token) {
	tx.Exec(`INSERT INTO access_tokens (hash, user_id, device_id, created, expires, replaces) VALUES ($1, $2, $3, $4, $5, $6)`,
		v.Hash, sql.Text(v.User), sql.Text(v.Device), v.Created, v.Expires, v.Replaces)
}

// InsertRefreshToken keeps a refresh token.
func (tx Tx) InsertRefreshToken(v Token) {
	tx.Exec(`INSERT INTO refresh_tokens (hash, user_id, device_id, created, replaces) VALUES ($1, $2, $3, $4, $5)`,
		v.Hash, sql.Text(v.User), sql.Text(v.Device), v.Created, v.Replaces)
}

// Supersede ends a refresh token, and what the device had from it, because its successor was
// used: the access tokens of the device but those that came with the successor.
func (tx Tx) Supersede(user, device, old string) {
	tx.Exec(`DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2 AND replaces <> $3`, sql.Text(user), sql.Text(device), old)
	tx.Exec(`DELETE FROM refresh_tokens WHERE hash = $1`, old)
	tx.Exec(`UPDATE access_tokens SET replaces = '' WHERE replaces = $1`, old)
	tx.Exec(`UPDATE refresh_tokens SET replaces = '' WHERE replaces = $1`, old)
}

// DropSuccessors ends what was given for a refresh token and never used.
func (tx Tx) DropSuccessors(old string) {
	tx.Exec(`DELETE FROM access_tokens WHERE replaces = $1`, old)
	tx.Exec(`DELETE FROM refresh_tokens WHERE replaces = $1`, old)
}

// DeleteTokens ends all tokens of a device.
func (tx Tx) DeleteTokens(user, device string) {
	tx.Exec(`DELETE FROM access_tokens WHERE user_id = $1 AND device_id = $2`, sql.Text(user), sql.Text(device))
	tx.Exec(`DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id = $2`, sql.Text(user), sql.Text(device))
}

// DeleteTokensOfOthers ends all tokens of a user's devices but one.
func (tx Tx) DeleteTokensOfOthers(user, device string) {
	tx.Exec(`DELETE FROM access_tokens WHERE user_id = $1 AND device_id <> $2`, sql.Text(user), sql.Text(device))
	tx.Exec(`DELETE FROM refresh_tokens WHERE user_id = $1 AND device_id <> $2`, sql.Text(user), sql.Text(device))
}

// InsertLoginToken keeps a token for one login.
func (tx Tx) InsertLoginToken(hash, user string, expires int64) {
	tx.Exec(`INSERT INTO login_tokens (hash, user_id, expires) VALUES ($1, $2, $3)`, hash, sql.Text(user), expires)
}

// TakeLoginToken uses up a login token that is still good at now and says whose it was.
func (tx Tx) TakeLoginToken(hash string, now int64) (user string, ok bool, err error) {
	err = tx.QueryRow(`DELETE FROM login_tokens WHERE hash = $1 AND expires > $2 RETURNING user_id`, hash, now).Scan(&user)
	return found(sql.Untext(user), err)
}

// InsertOpenIDToken keeps a token by which a user proves who they are.
func (tx Tx) InsertOpenIDToken(hash, user string, expires int64) {
	tx.Exec(`INSERT INTO openid_tokens (hash, user_id, expires) VALUES ($1, $2, $3)`, hash, sql.Text(user), expires)
}

// OpenIDUser says whose an OpenID token is that is still good at now.
func (tx Tx) OpenIDUser(hash string, now int64) (user string, ok bool, err error) {
	err = tx.QueryRow(`SELECT user_id FROM openid_tokens WHERE hash = $1 AND expires > $2`, hash, now).Scan(&user)
	return found(sql.Untext(user), err)
}

// DeleteShortTokens ends the login and OpenID tokens of a user.
func (tx Tx) DeleteShortTokens(user string) {
	tx.Exec(`DELETE FROM login_tokens WHERE user_id = $1`, sql.Text(user))
	tx.Exec(`DELETE FROM openid_tokens WHERE user_id = $1`, sql.Text(user))
}

// TrimTokens drops what expired: login and OpenID tokens before now, access tokens before old.
func (tx Tx) TrimTokens(now, old int64) {
	tx.Exec(`DELETE FROM login_tokens WHERE expires < $1`, now)
	tx.Exec(`DELETE FROM openid_tokens WHERE expires < $1`, now)
	tx.Exec(`DELETE FROM access_tokens WHERE expires > 0 AND expires < $1`, old)
}
