package storage

import (
	"encoding/json"

	"chancery/storage/sql"
)

// EventStatus says what became of an event.
type EventStatus int16

const (
	Accepted   EventStatus = 0
	SoftFailed EventStatus = 1 // passed by its own state, not by the room's at receipt: never shown, never built on
	Rejected   EventStatus = 2
	Outlier    EventStatus = 3 // known from state or auth chains, its place in the room is not
)

// Event is a row of events with its JSON.
type Event struct {
	NID        int64
	Room       int64
	ID         string
	Type       string
	StateKey   *string
	Sender     string
	Depth      int64
	TS         int64
	Ord        *int64 // nil: not part of the room's history
	Status     EventStatus
	RootBefore int64
	RootAfter  int64
	Notify     bool
	RedactedBy string
	JSON       []byte
}

const eventColumns = `e.nid, e.room, e.event_id, e.type, e.state_key, e.sender, e.depth, e.ts, e.ord, e.status,
	e.root_before, e.root_after, e.notify, e.redacted_by`

func scanEvent(r interface{ Scan(...any) error }) (Event, error) {
	var v Event
	err := r.Scan(&v.NID, &v.Room, &v.ID, &v.Type, &v.StateKey, &v.Sender, &v.Depth, &v.TS, &v.Ord, &v.Status,
		&v.RootBefore, &v.RootAfter, &v.Notify, &v.RedactedBy, &v.JSON)
	v.ID, v.Type, v.Sender, v.RedactedBy = sql.Untext(v.ID), sql.Untext(v.Type), sql.Untext(v.Sender), sql.Untext(v.RedactedBy)
	if v.StateKey != nil {
		key := sql.Untext(*v.StateKey)
		v.StateKey = &key
	}
	return v, err
}

func (tx Tx) selectEvents(tail string, args ...any) ([]Event, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Event, error) { return scanEvent(r) },
		`SELECT `+eventColumns+`, j.json FROM events e JOIN event_json j ON j.nid = e.nid `+tail, args...)
}

// InsertEvent stores an event and its JSON.
func (tx Tx) InsertEvent(v *Event) {
	var key *string
	if v.StateKey != nil {
		k := sql.Text(*v.StateKey)
		key = &k
	}
	tx.Exec(`INSERT INTO events (nid, room, event_id, type, state_key, sender, depth, ts, ord, status,
		root_before, root_after, notify, redacted_by) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)`,
		v.NID, v.Room, sql.Text(v.ID), sql.Text(v.Type), key, sql.Text(v.Sender), v.Depth, v.TS, v.Ord, int16(v.Status),
		v.RootBefore, v.RootAfter, v.Notify, sql.Text(v.RedactedBy))
	tx.Exec(`INSERT INTO event_json (nid, json) VALUES ($1, $2)`, v.NID, string(v.JSON))
}

// CopyEvents stores many events at once. None may be there: what is built on an event counts on its number.
func (tx Tx) CopyEvents(events []*Event) error {
	rows := make([][]any, 0, len(events))
	texts := make([][]any, 0, len(events))
	for _, v := range events {
		var key *string
		if v.StateKey != nil {
			k := sql.Text(*v.StateKey)
			key = &k
		}
		rows = append(rows, []any{v.NID, v.Room, sql.Text(v.ID), sql.Text(v.Type), key, sql.Text(v.Sender), v.Depth, v.TS,
			v.Ord, int16(v.Status), v.RootBefore, v.RootAfter, v.Notify, sql.Text(v.RedactedBy)})
		texts = append(texts, []any{v.NID, string(v.JSON)})
	}
	if err := tx.CopyNew("events", []string{"nid", "room", "event_id", "type", "state_key", "sender", "depth", "ts",
		"ord", "status", "root_before", "root_after", "notify", "redacted_by"}, rows); err != nil {
		return err
	}
	return tx.CopyNew("event_json", []string{"nid", "json"}, texts)
}

// PlaceEvent gives a known event (an outlier, or one that failed softly) its place.
func (tx Tx) PlaceEvent(v *Event) {
	tx.Exec(`UPDATE events SET ord = $2, status = $3, root_before = $4, root_after = $5, notify = $6 WHERE nid = $1`,
		v.NID, v.Ord, int16(v.Status), v.RootBefore, v.RootAfter, v.Notify)
	tx.placeGaps(v)
}

// RestateEvent gives an event that was judged again its state. Whether it notifies stands since it got its place, but of
// one that gets it only now.
func (tx Tx) RestateEvent(v *Event) {
	tx.Exec(`UPDATE events SET ord = $2, status = $3, root_before = $4, root_after = $5, notify = (notify OR $6) WHERE nid = $1`,
		v.NID, v.Ord, int16(v.Status), v.RootBefore, v.RootAfter, v.Notify)
	tx.placeGaps(v)
}

func (tx Tx) placeGaps(v *Event) {
	tx.Exec(`UPDATE missing_prev SET ord = $3 WHERE room = $1 AND event = $2`, v.Room, v.NID, v.Ord)
}

// RedactEvent puts the redacted form in place of the event and names the redaction.
func (tx Tx) RedactEvent(nid int64, redactedBy string, text []byte) {
	tx.Exec(`UPDATE events SET redacted_by = $2, notify = FALSE WHERE nid = $1`, nid, sql.Text(redactedBy))
	tx.Exec(`UPDATE event_json SET json = $2 WHERE nid = $1`, nid, string(text))
}

// Event finds an event by its ID.
func (tx Tx) Event(eventID string) (v Event, ok bool, err error) {
	events, err := tx.selectEvents(`WHERE e.event_id = $1`, sql.Text(eventID))
	if err != nil || len(events) == 0 {
		return Event{}, false, err
	}
	return events[0], true, nil
}

// EventsByID finds events by ID, in no order.
func (tx Tx) EventsByID(ids []string) ([]Event, error) {
	escaped := make([]string, len(ids))
	for i, v := range ids {
		escaped[i] = sql.Text(v)
	}
	return tx.selectEvents(`WHERE e.event_id = ANY($1)`, escaped)
}

// Events finds events by number, in no order.
func (tx Tx) Events(nids []int64) ([]Event, error) {
	return tx.selectEvents(`WHERE e.nid = ANY($1)`, nids)
}

// EncryptedEvent is a message that only its readers can read.
type EncryptedEvent struct {
	Sender string
	JSON   json.RawMessage
}

// EncryptedEvents gives of some events those that are encrypted, in no order.
func (tx Tx) EncryptedEvents(nids []int64) ([]EncryptedEvent, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (v EncryptedEvent, err error) {
		err = r.Scan(&v.Sender, &v.JSON)
		v.Sender = sql.Untext(v.Sender)
		return v, err
	}, `SELECT e.sender, j.json FROM events e JOIN event_json j ON j.nid = e.nid
		WHERE e.nid = ANY($1) AND e.type = 'm.room.encrypted' AND e.state_key IS NULL`, nids)
}

// EventTexts reads the JSON of events, in no order.
func (tx Tx) EventTexts(nids []int64) ([]json.RawMessage, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (text json.RawMessage, err error) {
		err = r.Scan(&text)
		return text, err
	}, `SELECT json FROM event_json WHERE nid = ANY($1)`, nids)
}

// EventIDs reads the IDs of events, in no order.
func (tx Tx) EventIDs(nids []int64) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT event_id FROM events WHERE nid = ANY($1)`, nids)
}

// EventsBelow lists accepted events with ord < below (and > above), highest first.
func (tx Tx) EventsBelow(room, below, above int64, limit int) ([]Event, error) {
	return tx.selectEvents(`WHERE e.room = $1 AND e.ord < $2 AND e.ord > $3 AND e.status = 0 ORDER BY e.ord DESC LIMIT $4`,
		room, below, above, limit)
}

// EventsAbove lists accepted events with ord > above (and < below), lowest first.
func (tx Tx) EventsAbove(room, above, below int64, limit int) ([]Event, error) {
	return tx.selectEvents(`WHERE e.room = $1 AND e.ord > $2 AND e.ord < $3 AND e.status = 0 ORDER BY e.ord LIMIT $4`,
		room, above, below, limit)
}

// EventsNear lists the accepted events closest to a time, the closest first: at or after it, or at or before it.
func (tx Tx) EventsNear(room, ts int64, forwards bool, limit int) ([]Event, error) {
	tail := `WHERE e.room = $1 AND e.ts <= $2 AND e.status = 0 AND e.ord IS NOT NULL ORDER BY e.ts DESC, e.ord DESC LIMIT $3`
	if forwards {
		tail = `WHERE e.room = $1 AND e.ts >= $2 AND e.status = 0 AND e.ord IS NOT NULL ORDER BY e.ts, e.ord LIMIT $3`
	}
	return tx.selectEvents(tail, room, ts, limit)
}

// OrdAt gives the highest place that the room's events had at a position; below the trim it is ok = false.
func (tx Tx) OrdAt(room, pos int64) (ord int64, ok bool, err error) {
	err = tx.QueryRow(`SELECT ord FROM facts WHERE room = $1 AND room <> 0 AND pos <= $2 AND kind = $3
		ORDER BY pos DESC LIMIT 1`, room, pos, int16(sql.FactEvent)).Scan(&ord)
	return found(ord, err)
}

// EventNumbers maps event IDs to numbers; unknown ones are left out.
func (tx Tx) EventNumbers(ids []string) (map[string]int64, error) {
	escaped := make([]string, len(ids))
	for i, v := range ids {
		escaped[i] = sql.Text(v)
	}
	numbers := make(map[string]int64, len(ids))
	rows, err := tx.Query(`SELECT event_id, nid FROM events WHERE event_id = ANY($1)`, escaped)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var eventID string
		var nid int64
		if err := rows.Scan(&eventID, &nid); err != nil {
			return nil, err
		}
		numbers[sql.Untext(eventID)] = nid
	}
	return numbers, rows.Err()
}

// InsertAuth stores the auth events of a state event.
func (tx Tx) InsertAuth(event int64, auth []int64) {
	for _, a := range auth {
		tx.Exec(`INSERT INTO event_auth (event, auth) VALUES ($1, $2) ON CONFLICT (event, auth) DO NOTHING`, event, a)
	}
}

// AuthEdge says that Auth is among the auth events of Event.
type AuthEdge struct{ Event, Auth int64 }

// AuthEdges reads the auth events of state events.
func (tx Tx) AuthEdges(events []int64) ([]AuthEdge, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (AuthEdge, error) {
		var e AuthEdge
		err := r.Scan(&e.Event, &e.Auth)
		return e, err
	}, `SELECT event, auth FROM event_auth WHERE event = ANY($1)`, events)
}

// AddMissing notes a prev event of a stored event that is not here; RemoveMissing says that it came.
func (tx Tx) AddMissing(room, event int64, prevID string) {
	tx.Exec(`INSERT INTO missing_prev (room, event, prev_id, ord) VALUES ($1, $2, $3, (SELECT ord FROM events WHERE nid = $2))
		ON CONFLICT (room, event, prev_id) DO NOTHING`, room, event, sql.Text(prevID))
}

// RemoveMissing closes the gaps that waited for an event. The plus is explained at StateRows.
func (tx Tx) RemoveMissing(room int64, prevID string) {
	tx.Exec(`DELETE FROM missing_prev WHERE +room = $1 AND prev_id = $2`, room, sql.Text(prevID))
}

// Gap is an event with a prev event that is not here.
type Gap struct {
	Event  int64
	Ord    int64
	ID     string
	PrevID string
}

// Gaps lists the room's open gaps at or under a place, highest first.
func (tx Tx) Gaps(room, upTo int64, limit int) ([]Gap, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Gap, error) {
		var g Gap
		err := r.Scan(&g.Event, &g.Ord, &g.ID, &g.PrevID)
		g.ID, g.PrevID = sql.Untext(g.ID), sql.Untext(g.PrevID)
		return g, err
	}, `SELECT m.event, m.ord, e.event_id, m.prev_id FROM missing_prev m JOIN events e ON e.nid = m.event
		WHERE m.room = $1 AND m.ord <= $2 ORDER BY m.ord DESC LIMIT $3`, room, upTo, limit)
}

// Transaction is a transaction ID that a device used in a room.
type Transaction struct {
	Room     int64
	User     string
	Device   string
	Endpoint string // send or redact
	Txn      string
	EventID  string
	Event    int64
	TS       int64
}

// InsertTransaction remembers which event a transaction ID made.
func (tx Tx) InsertTransaction(t Transaction) {
	tx.Exec(`INSERT INTO transactions (room, user_id, device_id, endpoint, txn_id, event_id, event, ts)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (room, user_id, device_id, endpoint, txn_id) DO NOTHING`,
		t.Room, sql.Text(t.User), sql.Text(t.Device), t.Endpoint, sql.Text(t.Txn), t.EventID, t.Event, t.TS)
}

// TransactionsOf lists the transaction IDs a device used in a room.
func (tx Tx) TransactionsOf(room int64, user, device string) ([]Transaction, error) {
	return sql.Collect(tx.Tx, scanTransaction, `SELECT room, user_id, device_id, endpoint, txn_id, event_id, event, ts
		FROM transactions WHERE room = $1 AND user_id = $2 AND device_id = $3 ORDER BY ts`, room, sql.Text(user), sql.Text(device))
}

// TransactionsFor finds by which transaction IDs a device made some events.
func (tx Tx) TransactionsFor(user, device string, events []int64) ([]Transaction, error) {
	return sql.Collect(tx.Tx, scanTransaction, `SELECT room, user_id, device_id, endpoint, txn_id, event_id, event, ts
		FROM transactions WHERE event = ANY($1) AND user_id = $2 AND device_id = $3`, events, sql.Text(user), sql.Text(device))
}

func scanTransaction(r *sql.Rows) (Transaction, error) {
	var t Transaction
	err := r.Scan(&t.Room, &t.User, &t.Device, &t.Endpoint, &t.Txn, &t.EventID, &t.Event, &t.TS)
	t.User, t.Device, t.Txn = sql.Untext(t.User), sql.Untext(t.Device), sql.Untext(t.Txn)
	return t, err
}

// InsertRedaction remembers that an event redacts another, whether we have that one or not.
func (tx Tx) InsertRedaction(room int64, redacts, eventID string, event int64) {
	tx.Exec(`INSERT INTO redactions (redacts, event_id, room, event) VALUES ($1, $2, $3, $4)
		ON CONFLICT (redacts, event_id) DO NOTHING`, sql.Text(redacts), sql.Text(eventID), room, event)
}

// RedactionsOf lists the numbers of the events that redact one.
func (tx Tx) RedactionsOf(room int64, redacts string, limit int) ([]int64, error) {
	return sql.Collect(tx.Tx, scanInt, `SELECT event FROM redactions WHERE redacts = $1 AND room = $2 ORDER BY event LIMIT $3`, sql.Text(redacts), room, limit)
}

// Waiting is a redaction that was here before the event it redacts.
type Waiting struct {
	Redacts string
	Event   int64
}

// RedactionsOfEach lists the redactions of some events of a room.
func (tx Tx) RedactionsOfEach(room int64, ids []string, limit int) ([]Waiting, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Waiting, error) {
		var w Waiting
		err := r.Scan(&w.Redacts, &w.Event)
		w.Redacts = sql.Untext(w.Redacts)
		return w, err
	}, `SELECT redacts, event FROM redactions WHERE redacts = ANY($1) AND room = $2 LIMIT $3`, escapedTexts(ids), room, limit)
}

// Awaiting is an event that waits for one of its prev events, or for one below a prev event that was not accepted.
type Awaiting struct {
	PrevID string
	Event  int64
	Status EventStatus
}

// Awaiting lists for some events those of the room that wait for them. The plus is explained at StateRows.
func (tx Tx) Awaiting(room int64, ids []string) ([]Awaiting, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Awaiting, error) {
		var a Awaiting
		var status int16
		err := r.Scan(&a.PrevID, &a.Event, &status)
		a.PrevID, a.Status = sql.Untext(a.PrevID), EventStatus(status)
		return a, err
	}, `SELECT m.prev_id, e.nid, e.status FROM missing_prev m JOIN events e ON e.nid = m.event
		WHERE +m.room = $1 AND m.prev_id = ANY($2)`, room, escapedTexts(ids))
}

// Bearing is how an event stands, without the event.
type Bearing struct {
	NID      int64
	Room     int64
	ID       string
	Type     string
	StateKey *string
	Status   EventStatus
}

// Bearings tells of some events, in whatever room, how they stand.
func (tx Tx) Bearings(ids []string) ([]Bearing, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Bearing, error) {
		var b Bearing
		var status int16
		err := r.Scan(&b.NID, &b.Room, &b.ID, &b.Type, &b.StateKey, &status)
		b.ID, b.Type, b.Status = sql.Untext(b.ID), sql.Untext(b.Type), EventStatus(status)
		if b.StateKey != nil {
			key := sql.Untext(*b.StateKey)
			b.StateKey = &key
		}
		return b, err
	}, `SELECT nid, room, event_id, type, state_key, status FROM events WHERE event_id = ANY($1)`, escapedTexts(ids))
}

func escapedTexts(list []string) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = sql.Text(v)
	}
	return out
}

// Relation says how an event relates to another.
type Relation struct {
	Room    int64
	Event   int64
	Target  string
	RelType string
	Type    string
	Sender  string
	Key     string
}

// InsertRelation stores an event's relation.
func (tx Tx) InsertRelation(v Relation) {
	tx.Exec(`INSERT INTO relations (room, event, target, rel_type, type, sender, agg_key)
		VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (event) DO NOTHING`,
		v.Room, v.Event, sql.Text(v.Target), sql.Text(v.RelType), sql.Text(v.Type), sql.Text(v.Sender), sql.Text(v.Key))
}

// DeleteRelation removes the relation of an event that was redacted.
func (tx Tx) DeleteRelation(event int64) {
	tx.Exec(`DELETE FROM relations WHERE event = $1`, event)
}

// RelationsTo lists how other events relate to some events of a room.
func (tx Tx) RelationsTo(room int64, targets []string) ([]Relation, error) {
	escaped := make([]string, len(targets))
	for i, v := range targets {
		escaped[i] = sql.Text(v)
	}
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Relation, error) {
		var v Relation
		err := r.Scan(&v.Room, &v.Event, &v.Target, &v.RelType, &v.Type, &v.Sender, &v.Key)
		v.Target, v.RelType, v.Type, v.Sender, v.Key = sql.Untext(v.Target), sql.Untext(v.RelType), sql.Untext(v.Type), sql.Untext(v.Sender), sql.Untext(v.Key)
		return v, err
	}, `SELECT room, event, target, rel_type, type, sender, agg_key FROM relations WHERE room = $1 AND target = ANY($2)`,
		room, escaped)
}

// RelatedEvents lists accepted events related to one event, by place; relType and typ may be empty.
func (tx Tx) RelatedEvents(room int64, target, relType, typ string, below, above int64, limit int, newestFirst bool) ([]Event, error) {
	order := `ORDER BY e.ord`
	if newestFirst {
		order = `ORDER BY e.ord DESC`
	}
	return tx.selectEvents(`JOIN relations r ON r.event = e.nid
		WHERE r.room = $1 AND r.target = $2 AND (r.rel_type = $3 OR $3 = '') AND (r.type = $4 OR $4 = '')
		AND e.status = 0 AND e.ord < $5 AND e.ord > $6 `+order+` LIMIT $7`,
		room, sql.Text(target), sql.Text(relType), sql.Text(typ), below, above, limit)
}

// EventsByTime lists a room's events, of whatever status, by time from one event on.
func (tx Tx) EventsByTime(room, ts, nid int64, limit int) ([]Event, error) {
	return tx.selectEvents(`WHERE e.room = $1 AND e.ts >= $2 AND (e.ts > $2 OR e.nid > $3) ORDER BY e.ts, e.nid LIMIT $4`, room, ts, nid, limit)
}

// MoveEvent gives an event other states before and after it.
func (tx Tx) MoveEvent(nid, before, after int64) {
	tx.Exec(`UPDATE events SET root_before = $2, root_after = $3 WHERE nid = $1`, nid, before, after)
}
