package storage

import (
	"context"
	"math"
	"time"

	"chancery/storage/sql"
)

const (
	notificationsEvery = 24 * time.Hour      // what counts for nothing is looked for
	notificationsKept  = 30 * 24 * time.Hour // after their event, when they are read
)

// trimNotifications removes, once a day and one user after the other, the notifications that no count takes in any
// more and nobody looks back for.
func (db *DB) trimNotifications(ctx context.Context, now time.Time) error {
	last := db.notified.Load()
	if now.Sub(time.UnixMilli(last)) < notificationsEvery {
		return nil
	}
	deep := map[int64]int64{} // by room: up to where only highlights count
	for user := ""; ; {
		var rooms []notifiedRoom
		var ok bool
		err := db.Read(ctx, func(tx Tx) (err error) {
			if user, ok, err = tx.nextNotified(user); err != nil || !ok {
				return err
			}
			if rooms, err = tx.notifiedRooms(user); err != nil {
				return err
			}
			for _, r := range rooms {
				if _, known := deep[r.room]; !known {
					if deep[r.room], err = tx.ordAtDepth(r.room, UnreadDepth); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if !ok {
			db.notified.Store(now.UnixMilli())
			return nil
		}
		for _, r := range rooms {
			before := now.Add(-notificationsKept).UnixMilli()
			if !r.joined {
				r.read, before = math.MaxInt64, math.MaxInt64
			}
			if err := db.trimPieces(ctx, func(tx Tx) (int64, error) {
				return tx.trimNotified(user, r.room, r.read, before, deep[r.room], UnreadDepth)
			}); err != nil {
				return err
			}
		}
	}
}

// nextNotified gives the next user after one who has notifications.
func (tx Tx) nextNotified(user string) (next string, ok bool, err error) {
	err = tx.QueryRow(`SELECT user_id FROM notifications WHERE user_id > $1 ORDER BY user_id LIMIT 1`, sql.Text(user)).Scan(&next)
	next, ok, err = found(next, err)
	return sql.Untext(next), ok, err
}

// notifiedRoom is a room in which a user has notifications: is the user in it, and up to where has the user read.
type notifiedRoom struct {
	room, read int64
	joined     bool
}

func (tx Tx) notifiedRooms(user string) ([]notifiedRoom, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (v notifiedRoom, err error) {
		var membership string
		err = r.Scan(&v.room, &membership, &v.read)
		v.joined = membership == "join"
		return v, err
	}, `SELECT n.room, COALESCE(m.membership, ''), COALESCE((SELECT max(r.ord) FROM receipts r WHERE r.user_id = $1 AND r.room = n.room
			AND r.thread = '' AND r.type IN ('m.read', 'm.read.private') AND r.ord <> 0), $2)
		FROM (SELECT DISTINCT room FROM notifications WHERE user_id = $1) n
		LEFT JOIN members m ON m.room = n.room AND m.user_id = $1`, sql.Text(user), int64(math.MinInt64))
}

// ordAtDepth gives the place of the event of a room that so many newer ones follow.
func (tx Tx) ordAtDepth(room int64, depth int) (ord int64, err error) {
	err = tx.QueryRow(`SELECT ord FROM events WHERE room = $1 AND ord IS NOT NULL ORDER BY ord DESC LIMIT 1 OFFSET $2`, room, depth).Scan(&ord)
	ord, ok, err := found(ord, err)
	if !ok {
		ord = math.MinInt64
	}
	return ord, err
}

// trimNotified removes some of a user's notifications in a room: what is read and of events before a time, what
// lies so deep that only highlights count, and highlights of which so many newer ones come first. No count takes them in.
func (tx Tx) trimNotified(user string, room, read, before, deep int64, highlights int) (int64, error) {
	return tx.ExecRows(`DELETE FROM notifications WHERE user_id = $1 AND room = $2 AND ord IN (
		SELECT n.ord FROM notifications n LEFT JOIN events e ON e.nid = n.event
		WHERE n.user_id = $1 AND n.room = $2 AND (e.nid IS NULL OR n.ord <= $3 AND e.ts < $4 OR n.ord <= $5 AND NOT n.highlight
			OR n.ord <= (SELECT h.ord FROM notifications h WHERE h.user_id = $1 AND h.room = $2 AND h.highlight
				ORDER BY h.ord DESC LIMIT 1 OFFSET $6))
		LIMIT $7)`, sql.Text(user), room, read, before, deep, highlights, trimPiece)
}

// Notified is an event of which a user is, or would have been, notified.
type Notified struct {
	Pos       int64 // of its fact
	Room      int64
	Event     int64
	Highlight bool
	Read      bool
}

// notifiedWindow is how many facts a page of notifications looks through at most.
const notifiedWindow = 20_000

// NotifiedBefore lists, the newest first, events in the rooms that a user is in of which the user is notified, of facts below
// a position and without those of ignored users. More may lie below next, unless that is 0. What is older than the facts is
// not listed.
//
// spec: c2s/getNotifications
func (tx Tx) NotifiedBefore(user string, ignored []string, before int64, highlights bool, limit int) (list []Notified, next int64, err error) {
	var from int64
	err = tx.QueryRow(`SELECT pos FROM facts WHERE pos < $1 ORDER BY pos DESC LIMIT 1 OFFSET $2`, before, notifiedWindow).Scan(&from)
	if from, _, err = found(from, err); err != nil {
		return nil, 0, err
	}
	list, err = sql.Collect(tx.Tx, func(r *sql.Rows) (v Notified, err error) {
		err = r.Scan(&v.Pos, &v.Room, &v.Event, &v.Highlight, &v.Read)
		return v, err
	}, `SELECT f.pos, f.room, f.event, COALESCE(n.highlight, FALSE), e.ord <= COALESCE((
			SELECT max(r.ord) FROM receipts r WHERE r.user_id = $1 AND r.room = f.room AND r.type IN ('m.read', 'm.read.private')
				AND (r.thread = '' OR r.thread = COALESCE(t.target, 'main'))), 0)
		FROM members m CROSS JOIN facts f
		JOIN events e ON e.nid = f.event
		LEFT JOIN relations t ON t.event = e.nid AND t.rel_type = 'm.thread'
		LEFT JOIN notifications n ON n.user_id = $1 AND n.room = f.room AND n.ord = e.ord
		WHERE m.user_id = $1 AND m.membership = 'join' AND f.room = m.room AND f.room <> 0
			AND f.pos < $2 AND f.pos >= $3 AND f.kind = $4 AND e.status = 0 AND e.ord IS NOT NULL AND e.sender <> $1
			AND COALESCE(n.notify, e.notify) AND (COALESCE(n.highlight, FALSE) OR NOT $5)
			AND e.sender <> ALL($7)
		ORDER BY f.pos DESC LIMIT $6`, sql.Text(user), before, from, int64(sql.FactEvent), highlights, limit, escaped(ignored))
	if len(list) == limit {
		from = list[limit-1].Pos
	}
	return list, from, err
}
