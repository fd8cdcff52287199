package storage

import "chancery/storage/sql"

// Unjudged is an event that waits to be judged until what it builds on, or the keys it is signed with, can be had.
type Unjudged struct {
	Room   int64
	ID     string
	Origin string
	Since  int64 // milliseconds
	JSON   []byte
}

// AddUnjudged keeps an event to be judged later.
func (tx Tx) AddUnjudged(u Unjudged) {
	tx.Exec(`INSERT INTO unjudged (room, event_id, origin, since, json) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (room, event_id) DO NOTHING`, u.Room, sql.Text(u.ID), u.Origin, u.Since, string(u.JSON))
}

// UnjudgedIn lists events of a room that wait, those first that came last.
func (tx Tx) UnjudgedIn(room int64, limit int) ([]Unjudged, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Unjudged, error) {
		u := Unjudged{Room: room}
		var text string
		err := r.Scan(&u.ID, &u.Origin, &u.Since, &text)
		u.ID, u.JSON = sql.Untext(u.ID), []byte(text)
		return u, err
	}, `SELECT event_id, origin, since, json FROM unjudged WHERE room = $1 ORDER BY since DESC LIMIT $2`, room, limit)
}

// UnjudgedAmong finds which of some events wait in a room.
func (tx Tx) UnjudgedAmong(room int64, ids []string) ([]Unjudged, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Unjudged, error) {
		u := Unjudged{Room: room}
		var text string
		err := r.Scan(&u.ID, &text)
		u.ID, u.JSON = sql.Untext(u.ID), []byte(text)
		return u, err
	}, `SELECT event_id, json FROM unjudged WHERE room = $1 AND event_id = ANY($2)`, room, escaped(ids))
}

// CountUnjudged counts the events that wait in a room, and in all.
func (tx Tx) CountUnjudged(room int64) (here, all int64, err error) {
	err = tx.QueryRow(`SELECT (SELECT count(*) FROM unjudged WHERE room = $1), (SELECT count(*) FROM unjudged)`, room).Scan(&here, &all)
	return here, all, err
}

// DeleteUnjudged lets events wait no more, as they were read: not other copies that wait in their place by now.
func (tx Tx) DeleteUnjudged(list []Unjudged) {
	for _, u := range list {
		tx.Exec(`DELETE FROM unjudged WHERE room = $1 AND event_id = $2 AND json = $3`, u.Room, sql.Text(u.ID), string(u.JSON))
	}
}

// DropOldestUnjudged makes place in a room, or where the room is 0 in all: of the server that has the most events there,
// what came first goes. So one server's events make place for another's, and never the other way round.
func (tx Tx) DropOldestUnjudged(room int64) error {
	var origin string
	err := tx.QueryRow(`SELECT origin FROM unjudged WHERE room = $1 OR $1 = 0 GROUP BY origin ORDER BY count(*) DESC, origin LIMIT 1`, room).Scan(&origin)
	if err != nil {
		return err
	}
	tx.Exec(`DELETE FROM unjudged WHERE origin = $2 AND (room = $1 OR $1 = 0)
		AND since = (SELECT min(since) FROM unjudged WHERE origin = $2 AND (room = $1 OR $1 = 0))`, room, origin)
	return nil
}

// TrimUnjudged drops what has waited since before a time.
func (tx Tx) TrimUnjudged(before int64) {
	tx.Exec(`DELETE FROM unjudged WHERE since < $1`, before)
}

// RoomsWithUnjudged lists the rooms in which events wait.
func (tx Tx) RoomsWithUnjudged(limit int) ([]string, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (string, error) {
		var v string
		err := r.Scan(&v)
		return sql.Untext(v), err
	}, `SELECT room_id FROM rooms WHERE nid IN (SELECT room FROM unjudged) LIMIT $1`, limit)
}
