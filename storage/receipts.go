package storage

import "chancery/storage/sql"

// Receipt says how far a user has read in a room, or in one thread of it.
type Receipt struct {
	Room    int64
	User    string
	Type    string // m.read or m.read.private
	Thread  string // "": unthreaded; main; or the root's event ID
	EventID string
	Ord     int64 // the event's place in the room; 0: not known here
	TS      int64
}

const receiptColumns = `room, user_id, type, thread, event_id, ord, ts`

func scanReceipt(r interface{ Scan(...any) error }) (Receipt, error) {
	var v Receipt
	err := r.Scan(&v.Room, &v.User, &v.Type, &v.Thread, &v.EventID, &v.Ord, &v.TS)
	v.User, v.Type, v.Thread, v.EventID = sql.Untext(v.User), sql.Untext(v.Type), sql.Untext(v.Thread), sql.Untext(v.EventID)
	return v, err
}

// Receipt finds one receipt.
func (tx Tx) Receipt(room int64, user, typ, thread string) (v Receipt, ok bool, err error) {
	v, err = scanReceipt(tx.QueryRow(`SELECT `+receiptColumns+` FROM receipts
		WHERE room = $1 AND user_id = $2 AND type = $3 AND thread = $4`, room, sql.Text(user), sql.Text(typ), sql.Text(thread)))
	return found(v, err)
}

// ReceiptsIn lists the receipts of some rooms that a user may see: all public ones, and their own private ones.
func (tx Tx) ReceiptsIn(rooms []int64, user string) ([]Receipt, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Receipt, error) { return scanReceipt(r) },
		`SELECT `+receiptColumns+` FROM receipts WHERE room = ANY($1) AND (type = 'm.read' OR user_id = $2)`, rooms, sql.Text(user))
}

// ReceiptsBy lists the receipts of some users in some rooms, private ones too: the caller filters.
func (tx Tx) ReceiptsBy(rooms []int64, users []string) ([]Receipt, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Receipt, error) { return scanReceipt(r) },
		`SELECT `+receiptColumns+` FROM receipts WHERE user_id = ANY($2) AND room = ANY($1)`, rooms, escaped(users))
}

// SetReceipt stores a receipt.
func (tx Tx) SetReceipt(v Receipt) {
	tx.Exec(`INSERT INTO receipts (`+receiptColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (room, user_id, type, thread) DO UPDATE SET event_id = excluded.event_id, ord = excluded.ord, ts = excluded.ts`,
		v.Room, sql.Text(v.User), sql.Text(v.Type), sql.Text(v.Thread), sql.Text(v.EventID), v.Ord, v.TS)
}

// Notification is the outcome of an event for a member whose outcome is not the event's default one.
type Notification struct {
	User      string
	Room      int64
	Ord       int64
	Event     int64
	Notify    bool
	Highlight bool
	Thread    string // main, or the root's event ID
}

// InsertNotifications stores what an event means for members other than the default.
func (tx Tx) InsertNotifications(list []Notification) error {
	rows := make([][]any, len(list))
	for i, n := range list {
		rows[i] = []any{sql.Text(n.User), n.Room, n.Ord, n.Event, n.Notify, n.Highlight, sql.Text(n.Thread)}
	}
	return tx.CopyIn("notifications", []string{"user_id", "room", "ord", "event", "notify", "highlight", "thread"}, rows)
}

// Unread is how many events in a room, or in one of its threads, a user has been notified of and not read.
type Unread struct {
	Room         int64
	Thread       string // main, or the root's event ID
	Notification int64
	Highlight    int64
}

// unreadDepth is how many of a room's newest places are looked at for what is unread, and how many highlights
// further back: for somebody who never reads a busy room the count ends there, not the work begins.
const unreadDepth = 1000

// UnreadCounts counts what a user has not read in some rooms, by thread, without the messages of ignored users.
// Nothing is counted when a message arrives: the count is what lies above the user's receipt, their own latest
// event and their joining, by each event's default outcome and what the notifications say otherwise. It is
// bounded: of what lies deeper than the room's newest unreadDepth events only highlights count. SQLite takes a CROSS JOIN
// in the order in which it is written: else it reads all events there are, to look at the rooms of each.
//
// spec: c2s#receiving-notifications, c2s#marking-notifications-as-read
func (tx Tx) UnreadCounts(user string, rooms []int64, ignored []string) ([]Unread, error) {
	return tx.unreadCounts(user, rooms, ignored, unreadDepth)
}

func (tx Tx) unreadCounts(user string, rooms []int64, ignored []string, depth int64) ([]Unread, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Unread, error) {
		var v Unread
		err := r.Scan(&v.Room, &v.Thread, &v.Notification, &v.Highlight)
		v.Thread = sql.Untext(v.Thread)
		return v, err
	}, `WITH base AS (
			SELECT room, max(ord) AS ord FROM (
				SELECT m.room, e.ord FROM members m JOIN events e ON e.nid = m.event
					WHERE m.user_id = $1 AND m.room = ANY($2) AND m.membership = 'join' AND e.ord IS NOT NULL
				UNION ALL
				SELECT r.room, r.ord FROM receipts r
					WHERE r.user_id = $1 AND r.room = ANY($2) AND r.thread = '' AND r.type IN ('m.read', 'm.read.private')
			) x GROUP BY room
		), floors AS (
			SELECT b.room,
				COALESCE((SELECT e.ord FROM events e WHERE e.room = b.room AND e.ord > b.ord
					ORDER BY e.ord DESC LIMIT 1 OFFSET $4), b.ord) AS ord,
				COALESCE((SELECT n.ord FROM notifications n WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.ord AND n.highlight
					ORDER BY n.ord DESC LIMIT 1 OFFSET $4), b.ord) AS highlight
			FROM base b
		), seen AS (
			SELECT e.room, e.ord, e.sender, e.notify, e.redacted_by, COALESCE(t.target, 'main') AS thread
			FROM floors b CROSS JOIN events e
			LEFT JOIN relations t ON t.event = e.nid AND t.rel_type = 'm.thread'
			WHERE e.room = b.room AND e.ord > b.ord AND e.status = 0
		), marks AS (
			SELECT room, thread, max(ord) AS ord FROM (
				SELECT room, thread, ord FROM seen WHERE sender = $1
				UNION ALL
				SELECT r.room, r.thread, r.ord FROM receipts r
					WHERE r.user_id = $1 AND r.room = ANY($2) AND r.thread <> '' AND r.type IN ('m.read', 'm.read.private')
			) y GROUP BY room, thread
		), unread AS (
			SELECT s.room, s.thread, CASE WHEN n.highlight THEN 1 ELSE 0 END AS highlight
			FROM seen s
			LEFT JOIN marks k ON k.room = s.room AND k.thread = s.thread
			LEFT JOIN notifications n ON n.user_id = $1 AND n.room = s.room AND n.ord = s.ord
			WHERE s.sender <> $1 AND COALESCE(n.notify, s.notify) AND s.redacted_by = ''
				AND s.ord > COALESCE(k.ord, 0) AND s.sender <> ALL($3)
			UNION ALL
			SELECT n.room, n.thread, 1
			FROM floors b CROSS JOIN notifications n
			JOIN events e ON e.nid = n.event
			LEFT JOIN marks k ON k.room = n.room AND k.thread = n.thread
			WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.highlight AND n.ord <= b.ord AND n.highlight AND e.status = 0 AND e.redacted_by = '' AND n.notify AND n.ord > COALESCE(k.ord, 0) AND e.sender <> ALL($3)
		)
		SELECT room, thread, count(*), sum(highlight) FROM unread GROUP BY room, thread`,
		sql.Text(user), rooms, escaped(ignored), depth)
}
