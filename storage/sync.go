package storage

import "chancery/storage/sql"

// FirstPos is the lowest position that is not trimmed.
func (tx Tx) FirstPos() (int64, error) {
	var pos int64
	err := tx.QueryRow(`SELECT COALESCE(min(pos), 0) FROM facts`).Scan(&pos)
	return pos, err
}

// Activity sums up the facts of one kind in a room.
type Activity struct {
	Room        int64
	Kind        sql.FactKind
	First, Last int64 // positions
	Ord         int64 // the highest
	Users       int64 // how many of them name a user
}

// ActivityIn sums up what happened in some rooms after a position and up to another: what is told to who
// was away for long, without reading every fact.
func (tx Tx) ActivityIn(rooms []int64, after, upTo int64) ([]Activity, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Activity, error) {
		var v Activity
		err := r.Scan(&v.Room, &v.Kind, &v.First, &v.Last, &v.Ord, &v.Users)
		return v, err
	}, `SELECT room, kind, min(pos), max(pos), max(ord), sum(CASE WHEN user_id <> '' THEN 1 ELSE 0 END) FROM facts
		WHERE room = ANY($1) AND room <> 0 AND pos > $2 AND pos <= $3 GROUP BY room, kind`, rooms, after, upTo)
}

// DeviceListFacts lists the users whose devices changed after a position and up to another.
func (tx Tx) DeviceListFacts(after, upTo int64) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT user_id FROM facts
		WHERE kind = 10 AND pos > $1 AND pos <= $2`, after, upTo)
}

// RootsDown lists the newest changes of a room's state up to a position, newest first.
func (tx Tx) RootsDown(room, upTo int64, limit int) ([]Fact, error) {
	return sql.Collect(tx.Tx, scanFact, `SELECT `+factColumns+` FROM facts
		WHERE room = $1 AND room <> 0 AND pos <= $2 AND kind IN (2, 3, 6) ORDER BY pos DESC LIMIT $3`, room, upTo, limit)
}

// Standing is where an event stands in its room.
type Standing struct{ NID, Ord int64 }

// PlacesBelow lists the places of accepted events, highest first: from one place down to above another.
func (tx Tx) PlacesBelow(room, from, above int64, limit int) ([]Standing, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Standing, error) {
		var p Standing
		err := r.Scan(&p.NID, &p.Ord)
		return p, err
	}, `SELECT nid, ord FROM events WHERE room = $1 AND ord <= $2 AND ord > $3 AND status = 0
		ORDER BY ord DESC LIMIT $4`, room, from, above, limit)
}

// HighestGap gives the place of the highest event, up to one place, below which something is missing; 0
// when nothing is.
func (tx Tx) HighestGap(room, upTo int64) (ord int64, err error) {
	err = tx.QueryRow(`SELECT ord FROM missing_prev WHERE room = $1 AND ord <= $2 ORDER BY ord DESC LIMIT 1`, room, upTo).Scan(&ord)
	ord, _, err = found(ord, err)
	return ord, err
}

// FirstMembers lists the users who came first among those with one of two memberships, but one.
func (tx Tx) FirstMembers(room int64, one, other, but string, limit int) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT user_id FROM (
		SELECT * FROM (SELECT user_id, first_event FROM members WHERE room = $1 AND membership = $2 AND user_id <> $4 ORDER BY first_event LIMIT $5) a
		UNION ALL
		SELECT * FROM (SELECT user_id, first_event FROM members WHERE room = $1 AND membership = $3 AND user_id <> $4 ORDER BY first_event LIMIT $5) b) x
		ORDER BY first_event LIMIT $5`, room, one, other, sql.Text(but), limit)
}

// JoinedBy lists the rooms that some users are in, each once.
func (tx Tx) JoinedBy(users []string) ([]int64, error) {
	return sql.Collect(tx.Tx, scanInt, `SELECT DISTINCT room FROM members
		WHERE user_id = ANY($1) AND membership = 'join'`, escaped(users))
}
