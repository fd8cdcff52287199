package storage

import "chancery/storage/sql"

const factColumns = `pos, kind, room, event, ord, root, user_id, device_id, extra`

func scanFact(r *sql.Rows) (Fact, error) {
	var f Fact
	err := r.Scan(&f.Pos, &f.Kind, &f.Room, &f.Event, &f.Ord, &f.Root, &f.User, &f.Device, &f.Extra)
	f.User, f.Device, f.Extra = sql.Untext(f.User), sql.Untext(f.Device), sql.Untext(f.Extra)
	return f, err
}

// The indexes of facts by room and by user are for those facts that have one, and a statement must say so to use them.

// FactsOfRooms lists what happened in some rooms after a position and up to another, in order.
func (tx Tx) FactsOfRooms(rooms []int64, after, upTo int64) ([]Fact, error) {
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE room = ANY($1) AND room <> 0 AND pos > $2 AND pos <= $3 ORDER BY pos`, rooms, after, upTo)
}

// FactsOfRoom lists the first facts of a room from a position on, in order.
func (tx Tx) FactsOfRoom(room, from int64, limit int) ([]Fact, error) {
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE room = $1 AND room <> 0 AND pos >= $2 ORDER BY pos LIMIT $3`, room, from, limit)
}

// FactsOfUsers lists what happened about some users after a position and up to another, in order.
func (tx Tx) FactsOfUsers(users []string, after, upTo int64) ([]Fact, error) {
	escaped := make([]string, len(users))
	for i, u := range users {
		escaped[i] = sql.Text(u)
	}
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE user_id = ANY($1) AND user_id <> '' AND pos > $2 AND pos <= $3 ORDER BY pos`, escaped, after, upTo)
}

// FactsOfDeviceLists lists whose device lists changed after a position and up to another, in order.
func (tx Tx) FactsOfDeviceLists(after, upTo int64) ([]Fact, error) {
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE kind = 10 AND pos > $1 AND pos <= $2 ORDER BY pos`, after, upTo)
}

// RootAt gives the root of the room's state at a position; ok is false below the trim.
func (tx Tx) RootAt(room, pos int64) (root int64, ok bool, err error) {
	err = tx.QueryRow(`SELECT root FROM facts WHERE room = $1 AND room <> 0 AND pos <= $2 AND kind IN (2, 3, 6)
		ORDER BY pos DESC LIMIT 1`, room, pos).Scan(&root)
	return found(root, err)
}

// BecameWholeAfter says whether a position is from when a part of the room's state was missing.
func (tx Tx) BecameWholeAfter(room, pos int64) (bool, error) {
	var n int64
	err := tx.QueryRow(`SELECT count(*) FROM (SELECT 1 FROM facts WHERE room = $1 AND room <> 0 AND pos > $2 AND kind = 6 LIMIT 1) x`, room, pos).Scan(&n)
	return n > 0, err
}

// Cursor says how far a reader of the log has come; 0 when it never moved.
func (tx Tx) Cursor(name string) (int64, error) {
	var pos int64
	err := tx.QueryRow(`SELECT pos FROM cursors WHERE name = $1`, name).Scan(&pos)
	pos, _, err = found(pos, err)
	return pos, err
}

// SetCursor moves a reader's cursor.
func (tx Tx) SetCursor(name string, pos int64) {
	tx.Exec(`INSERT INTO cursors (name, pos) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET pos = excluded.pos`, name, pos)
}

// StateMoves lists the latest times that the room's state moved without an event, the newest first.
func (tx Tx) StateMoves(room int64, limit int) ([]Fact, error) {
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE room = $1 AND room <> 0 AND kind = 3 ORDER BY pos DESC LIMIT $2`, room, limit)
}
