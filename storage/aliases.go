package storage

import "chancery/storage/sql"

// Alias is a name of a room on this server.
type Alias struct {
	Alias   string
	RoomID  string
	Creator string
}

func scanAlias(r interface{ Scan(...any) error }) (Alias, error) {
	var v Alias
	err := r.Scan(&v.Alias, &v.RoomID, &v.Creator)
	v.Alias, v.RoomID, v.Creator = sql.Untext(v.Alias), sql.Untext(v.RoomID), sql.Untext(v.Creator)
	return v, err
}

// Alias finds an alias of ours.
func (tx Tx) Alias(alias string) (v Alias, ok bool, err error) {
	v, err = scanAlias(tx.QueryRow(`SELECT alias, room_id, creator FROM aliases WHERE alias = $1`, sql.Text(alias)))
	return found(v, err)
}

// AliasesOf lists our aliases of a room.
func (tx Tx) AliasesOf(roomID string) ([]Alias, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Alias, error) { return scanAlias(r) },
		`SELECT alias, room_id, creator FROM aliases WHERE room_id = $1 ORDER BY alias`, sql.Text(roomID))
}

// InsertAlias makes an alias; false when it is taken.
func (tx Tx) InsertAlias(v Alias) (bool, error) {
	n, err := tx.ExecRows(`INSERT INTO aliases (alias, room_id, creator) VALUES ($1, $2, $3) ON CONFLICT (alias) DO NOTHING`,
		sql.Text(v.Alias), sql.Text(v.RoomID), sql.Text(v.Creator))
	return n > 0, err
}

// DeleteAlias removes an alias; false when there was none.
func (tx Tx) DeleteAlias(alias string) (bool, error) {
	n, err := tx.ExecRows(`DELETE FROM aliases WHERE alias = $1`, sql.Text(alias))
	return n > 0, err
}

// MoveAliases gives the aliases of a room to another.
func (tx Tx) MoveAliases(from, to string) {
	tx.Exec(`UPDATE aliases SET room_id = $2 WHERE room_id = $1`, sql.Text(from), sql.Text(to))
}

// Publish puts a room into the directory or takes it out.
func (tx Tx) Publish(roomID string, public bool) {
	if public {
		tx.Exec(`INSERT INTO published (room_id) VALUES ($1) ON CONFLICT (room_id) DO NOTHING`, sql.Text(roomID))
	} else {
		tx.Exec(`DELETE FROM published WHERE room_id = $1`, sql.Text(roomID))
	}
}

// IsPublished says whether the room is in the directory.
func (tx Tx) IsPublished(roomID string) (bool, error) {
	var n int64
	err := tx.QueryRow(`SELECT count(*) FROM published WHERE room_id = $1`, sql.Text(roomID)).Scan(&n)
	return n > 0, err
}

// PublishedRooms lists the rooms in the directory that have members: largest first, then by ID.
func (tx Tx) PublishedRooms() ([]Room, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Room, error) { return scanRoom(r) },
		`SELECT `+roomColumns+` FROM rooms WHERE joined > 0 AND room_id IN (SELECT room_id FROM published) ORDER BY joined DESC, room_id`)
}
