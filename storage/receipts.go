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

// UnreadDepth is how many of a room's newest places are looked at for what is unread, and how many highlights
// further back: for somebody who never reads a busy room the count ends there, not the work begins.
const UnreadDepth = 1000

// readUpTo is up to where a user has read some rooms: to where they joined, and to their receipts for whole rooms.
const readUpTo = `SELECT room, max(ord) AS ord FROM (
		SELECT m.room, e.ord FROM members m JOIN events e ON e.nid = m.event
			WHERE m.user_id = $1 AND m.room = ANY($2) AND m.membership = 'join' AND e.ord IS NOT NULL
		UNION ALL
		SELECT r.room, r.ord FROM receipts r
			WHERE r.user_id = $1 AND r.room = ANY($2) AND r.thread = '' AND r.type IN ('m.read', 'm.read.private')
	) x GROUP BY room`

// Reading is how far a user has read in a room, or in one of its threads.
type Reading struct {
	Room   int64
	Thread string // "": in all of them; main; or the root's event ID
	Ord    int64
	// Where Thread is "": the position of the room's newest fact, 0 when it is trimmed; and whether some of what is
	// above means to the user something else than to others.
	Newest int64
	Own    bool
}

// Readings lists how far a user has read in some rooms and in their threads.
func (tx Tx) Readings(user string, rooms []int64) ([]Reading, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (v Reading, err error) {
		err = r.Scan(&v.Room, &v.Thread, &v.Ord, &v.Newest, &v.Own)
		v.Thread = sql.Untext(v.Thread)
		return v, err
	}, `WITH base AS (`+readUpTo+`)
		SELECT b.room, '', b.ord,
			COALESCE((SELECT f.pos FROM facts f WHERE f.room = b.room AND f.room <> 0 ORDER BY f.pos DESC LIMIT 1), 0),
			EXISTS (SELECT 1 FROM notifications n WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.ord)
		FROM base b
		UNION ALL
		SELECT r.room, r.thread, r.ord, 0, FALSE FROM receipts r
			WHERE r.user_id = $1 AND r.room = ANY($2) AND r.thread <> '' AND r.type IN ('m.read', 'm.read.private')`, sql.Text(user), rooms)
}

// OwnNotification is a notification of what a user has not read.
type OwnNotification struct {
	Notification
	Sender string
	Far    bool // a highlight that counts however far back it is
}

// OwnNotifications lists what is unread in some rooms and means to a user something else than to others: of as many
// events as count, and of as many highlights. SQLite takes a CROSS JOIN in the order in which it is written.
func (tx Tx) OwnNotifications(user string, rooms []int64, depth int) ([]OwnNotification, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (v OwnNotification, err error) {
		err = r.Scan(&v.Room, &v.Ord, &v.Thread, &v.Notify, &v.Highlight, &v.Sender, &v.Far)
		v.User, v.Thread, v.Sender = user, sql.Untext(v.Thread), sql.Untext(v.Sender)
		return v, err
	}, `WITH base AS (`+readUpTo+`), floors AS (
			SELECT b.room,
				COALESCE((SELECT n.ord FROM notifications n JOIN events e ON e.nid = n.event AND e.ord = n.ord
					WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.ord ORDER BY n.ord DESC LIMIT 1 OFFSET $3), b.ord) AS ord,
				COALESCE((SELECT n.ord FROM notifications n WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.ord AND n.highlight
					ORDER BY n.ord DESC LIMIT 1 OFFSET $3), b.ord) AS highlight
			FROM base b
		)
		SELECT n.room, n.ord, n.thread, n.notify, n.highlight, e.sender,
			n.highlight AND n.notify AND n.ord > b.highlight AND e.status = 0 AND e.redacted_by = ''
		FROM floors b CROSS JOIN notifications n JOIN events e ON e.nid = n.event
		WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.ord
		UNION ALL
		SELECT n.room, n.ord, n.thread, n.notify, n.highlight, e.sender, n.notify AND e.status = 0 AND e.redacted_by = ''
		FROM floors b CROSS JOIN notifications n JOIN events e ON e.nid = n.event
		WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.highlight AND n.ord <= b.ord AND n.highlight`,
		sql.Text(user), rooms, depth)
}

// PlacedEvent is what counting asks of an event that has its place.
type PlacedEvent struct {
	Ord      int64
	Sender   string
	Thread   string // main, or the root's event ID
	Notify   bool   // the default push rules notify of it
	Redacted bool
}

// PlacedEvents lists the newest accepted events with ord > above and < below, highest first.
func (tx Tx) PlacedEvents(room, above, below int64, limit int) ([]PlacedEvent, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (v PlacedEvent, err error) {
		var redactedBy string
		err = r.Scan(&v.Ord, &v.Sender, &v.Thread, &v.Notify, &redactedBy)
		v.Sender, v.Thread, v.Redacted = sql.Untext(v.Sender), sql.Untext(v.Thread), redactedBy != ""
		return v, err
	}, `SELECT e.ord, e.sender, COALESCE(t.target, 'main'), e.notify, e.redacted_by FROM events e
		LEFT JOIN relations t ON t.event = e.nid AND t.rel_type = 'm.thread'
		WHERE e.room = $1 AND e.ord > $2 AND e.ord < $3 AND e.status = 0 ORDER BY e.ord DESC LIMIT $4`, room, above, below, limit)
}
