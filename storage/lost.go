package storage

import "chancery/storage/sql"

// RoomsNotAsked lists rooms that have not asked other servers, in this epoch, for events that were lost.
func (tx Tx) RoomsNotAsked(epoch, after int64, limit int) ([]Room, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Room, error) { return scanRoom(r) },
		`SELECT `+roomColumns+` FROM rooms WHERE asked < $1 AND nid > $2 ORDER BY nid LIMIT $3`, epoch, after, limit)
}

// HasAsked says whether a room has asked other servers, in this epoch, for events that were lost.
func (tx Tx) HasAsked(room, epoch int64) (bool, error) {
	var asked int64
	err := tx.QueryRow(`SELECT asked FROM rooms WHERE nid = $1`, room).Scan(&asked)
	return asked >= epoch, err
}

// SetAsked notes that a room has nothing to ask for in this epoch any more.
func (tx Tx) SetAsked(room, epoch int64) {
	tx.Exec(`UPDATE rooms SET asked = $2 WHERE nid = $1`, room, epoch)
}
