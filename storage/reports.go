package storage

import "chancery/storage/sql"

// Report is what a user reported: a room, an event of it, or a user.
type Report struct {
	ID       int64
	Reporter string
	RoomID   string
	EventID  string
	User     string
	Reason   string
	Score    int64
	TS       int64
}

// InsertReport keeps a report.
func (tx Tx) InsertReport(r Report) error {
	var last int64
	if err := tx.QueryRow(`SELECT COALESCE(max(id), 0) FROM reports`).Scan(&last); err != nil {
		return err
	}
	tx.Exec(`INSERT INTO reports (id, reporter, room_id, event_id, user_id, reason, score, ts) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		last+1, sql.Text(r.Reporter), sql.Text(r.RoomID), sql.Text(r.EventID), sql.Text(r.User), sql.Text(r.Reason), r.Score, r.TS)
	tx.Exec(`DELETE FROM reports WHERE id <= $1`, last+1-keptReports)
	return nil
}

const keptReports = 100_000

// Reports lists reports below an ID, newest first.
func (tx Tx) Reports(below int64, limit int) ([]Report, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Report, error) {
		var v Report
		err := r.Scan(&v.ID, &v.Reporter, &v.RoomID, &v.EventID, &v.User, &v.Reason, &v.Score, &v.TS)
		v.Reporter, v.RoomID, v.EventID, v.User, v.Reason = sql.Untext(v.Reporter), sql.Untext(v.RoomID), sql.Untext(v.EventID),
			sql.Untext(v.User), sql.Untext(v.Reason)
		return v, err
	}, `SELECT id, reporter, room_id, event_id, user_id, reason, score, ts FROM reports WHERE id < $1 ORDER BY id DESC LIMIT $2`, below, limit)
}
