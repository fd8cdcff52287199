package storage

import "chancery/storage/sql"

// NoteLoose counts nodes of a room's state that may be unused one day.
func (tx Tx) NoteLoose(room, nodes int64) {
	tx.Exec(`INSERT INTO state_upkeep (room, loose, kept) VALUES ($1, $2, 0)
		ON CONFLICT (room) DO UPDATE SET loose = state_upkeep.loose + excluded.loose`, room, nodes)
}

// Collected notes what a collection found; what became loose while it ran goes on being counted.
func (tx Tx) Collected(room, loose, kept int64) {
	tx.Exec(`UPDATE state_upkeep SET loose = loose - $2, kept = $3 WHERE room = $1`, room, loose, kept)
}

// Upkeep is a row of state_upkeep.
type Upkeep struct {
	Room        int64
	Loose, Kept int64
}

// Loose finds how much of a room's state may be unused.
func (tx Tx) Loose(room int64) (v Upkeep, err error) {
	v, _, err = found(scanUpkeep(tx.QueryRow(`SELECT room, loose, kept FROM state_upkeep WHERE room = $1`, room)))
	return v, err
}

// Untidy lists rooms in whose state more may be unused than is known to be in use.
func (tx Tx) Untidy(limit int) ([]Upkeep, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Upkeep, error) { return scanUpkeep(r) },
		`SELECT room, loose, kept FROM state_upkeep WHERE loose > 1000 AND loose > kept ORDER BY loose DESC LIMIT $1`, limit)
}

func scanUpkeep(r interface{ Scan(...any) error }) (Upkeep, error) {
	var v Upkeep
	err := r.Scan(&v.Room, &v.Loose, &v.Kept)
	return v, err
}

// EventRoots are the states before and after an event.
type EventRoots struct {
	NID, TS       int64
	Before, After int64
}

// EventRootsAfter lists the states of a room's events by time, from one event on.
func (tx Tx) EventRootsAfter(room, ts, nid int64, limit int) ([]EventRoots, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (EventRoots, error) {
		var v EventRoots
		err := r.Scan(&v.NID, &v.TS, &v.Before, &v.After)
		return v, err
	}, `SELECT nid, ts, root_before, root_after FROM events
		WHERE room = $1 AND ts >= $2 AND (ts > $2 OR nid > $3) ORDER BY ts, nid LIMIT $4`, room, ts, nid, limit)
}

// FactRoot is the state of a room that a fact tells.
type FactRoot struct{ Pos, Root int64 }

// FactRootsAfter lists the states that facts of a room tell, from a position on.
func (tx Tx) FactRootsAfter(room, pos int64, limit int) ([]FactRoot, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (FactRoot, error) {
		var v FactRoot
		err := r.Scan(&v.Pos, &v.Root)
		return v, err
	}, `SELECT pos, root FROM facts WHERE room = $1 AND room <> 0 AND pos > $2 ORDER BY pos LIMIT $3`, room, pos, limit)
}

// NodeNumbers lists the nodes of a room's state between two numbers, the second included.
func (tx Tx) NodeNumbers(room, after, upTo int64, limit int) ([]int64, error) {
	return sql.Collect(tx.Tx, scanInt, `SELECT node FROM state_nodes
		WHERE room = $1 AND node > $2 AND node <= $3 ORDER BY node LIMIT $4`, room, after, upTo, limit)
}

// DeleteNodes removes nodes of a room's state.
func (tx Tx) DeleteNodes(room int64, nodes []int64) {
	tx.Exec(`DELETE FROM state_nodes WHERE room = $1 AND node = ANY($2)`, room, nodes)
}
