package storage

import "chancery/storage/sql"

// ServerKey is a key of another server. Times are in milliseconds, 0 for none.
type ServerKey struct {
	Server     string
	ID         string
	Key        string // unpadded base64
	ValidUntil int64
	Expired    int64
}

// ServerKeys lists the keys we know of a server.
func (tx Tx) ServerKeys(server string) ([]ServerKey, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (ServerKey, error) {
		var k ServerKey
		err := r.Scan(&k.Server, &k.ID, &k.Key, &k.ValidUntil, &k.Expired)
		k.ID = sql.Untext(k.ID)
		return k, err
	}, `SELECT server, key_id, key, valid_until, expired FROM server_keys WHERE server = $1`, server)
}

// SetServerKey stores a key of another server.
func (tx Tx) SetServerKey(k ServerKey) {
	tx.Exec(`INSERT INTO server_keys (server, key_id, key, valid_until, expired) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (server, key_id) DO UPDATE SET key = excluded.key, valid_until = excluded.valid_until, expired = excluded.expired`,
		k.Server, sql.Text(k.ID), k.Key, k.ValidUntil, k.Expired)
}

// DeleteServerKey forgets a key of another server.
func (tx Tx) DeleteServerKey(server, keyID string) {
	tx.Exec(`DELETE FROM server_keys WHERE server = $1 AND key_id = $2`, server, sql.Text(keyID))
}
