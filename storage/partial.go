package storage

import "chancery/storage/sql"

// PartialJoin is a join of which a part of the room's state is still to come.
type PartialJoin struct {
	Room   int64
	Join   int64 // the event
	Server string
}

func scanPartialJoin(r interface{ Scan(...any) error }) (PartialJoin, error) {
	var v PartialJoin
	err := r.Scan(&v.Room, &v.Join, &v.Server)
	return v, err
}

// PartialJoins lists the rooms that are not whole.
func (tx Tx) PartialJoins() ([]PartialJoin, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (PartialJoin, error) { return scanPartialJoin(r) },
		`SELECT room, join_event, server FROM partial_joins`)
}

// PartialJoin finds out what is missing of a room; ok is false when it is whole, or nobody fetches the rest.
func (tx Tx) PartialJoin(room int64) (v PartialJoin, ok bool, err error) {
	return found(scanPartialJoin(tx.QueryRow(`SELECT room, join_event, server FROM partial_joins WHERE room = $1`, room)))
}

// BeginPartial notes a join in part, in place of an earlier one. servers are in the room.
func (tx Tx) BeginPartial(v PartialJoin, servers []string) error {
	tx.EndPartial(v.Room)
	tx.Exec(`INSERT INTO partial_joins (room, join_event, server) VALUES ($1, $2, $3)`, v.Room, v.Join, v.Server)
	rows := make([][]any, len(servers))
	for i, s := range servers {
		rows[i] = []any{v.Room, s}
	}
	return tx.CopyIn("partial_servers", []string{"room", "server"}, rows)
}

// EndPartial forgets that a room was not whole. What is noted of its events stays.
func (tx Tx) EndPartial(room int64) {
	tx.Exec(`DELETE FROM partial_joins WHERE room = $1`, room)
	tx.Exec(`DELETE FROM partial_servers WHERE room = $1`, room)
}

// PartialEvent is an event that was judged by a part of the state, or by a guess of it. It stays until the state is learned,
// which in a room that we have left may be never.
type PartialEvent struct {
	Event   int64
	Seq     int64
	History bool
}

// InsertPartialEvent notes one.
func (tx Tx) InsertPartialEvent(room int64, v PartialEvent) {
	tx.Exec(`INSERT INTO partial_events (room, event, seq, history) VALUES ($1, $2, $3, $4)
		ON CONFLICT (room, event) DO NOTHING`, room, v.Event, v.Seq, v.History)
}

// PartialEvents lists them in the order in which they came.
func (tx Tx) PartialEvents(room int64) ([]PartialEvent, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (PartialEvent, error) {
		var v PartialEvent
		err := r.Scan(&v.Event, &v.Seq, &v.History)
		return v, err
	}, `SELECT event, seq, history FROM partial_events WHERE room = $1 ORDER BY seq`, room)
}

// HeldPartialEvents lists those of them that are not judged yet, by ID.
func (tx Tx) HeldPartialEvents(room int64) ([]string, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (string, error) {
		var v string
		err := r.Scan(&v)
		return sql.Untext(v), err
	}, `SELECT e.event_id FROM partial_events p JOIN events e ON e.nid = p.event WHERE p.room = $1 AND e.status = $2`, room, int16(Outlier))
}

// KeepPartialEvents forgets what is noted of the events of a room but some.
func (tx Tx) KeepPartialEvents(room int64, events []int64) {
	tx.Exec(`DELETE FROM partial_events WHERE room = $1 AND event <> ALL($2)`, room, events)
}

// ForgetPartialEvents forgets what is noted of some events of a room.
func (tx Tx) ForgetPartialEvents(room int64, events []int64) {
	tx.Exec(`DELETE FROM partial_events WHERE room = $1 AND event = ANY($2)`, room, events)
}

// RoomsWithPartialEvents lists the rooms in which events are noted.
func (tx Tx) RoomsWithPartialEvents(limit int) ([]string, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (string, error) {
		var v string
		err := r.Scan(&v)
		return sql.Untext(v), err
	}, `SELECT room_id FROM rooms WHERE nid IN (SELECT room FROM partial_events) LIMIT $1`, limit)
}

// LastPartialEvent is the highest number of the order, 0 when there is none.
func (tx Tx) LastPartialEvent(room int64) (seq int64, err error) {
	err = tx.QueryRow(`SELECT COALESCE(max(seq), 0) FROM partial_events WHERE room = $1`, room).Scan(&seq)
	return seq, err
}

// IsPartialEvent says whether the state before an event is not yet known.
func (tx Tx) IsPartialEvent(room, event int64) (bool, error) {
	var n int64
	err := tx.QueryRow(`SELECT count(*) FROM partial_events WHERE room = $1 AND event = $2`, room, event).Scan(&n)
	return n > 0, err
}

// StateRow is what a state is made of: an event and what it is the state of.
type StateRow struct {
	NID      int64
	ID       string
	Type     string
	StateKey string
	Status   EventStatus
}

// StateRows finds state events of a room by ID, in no order. The plus has SQLite go by the IDs: it takes an index by the
// room for better, and would read all of the room for each piece of its state.
func (tx Tx) StateRows(room int64, ids []string) ([]StateRow, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (StateRow, error) {
		var v StateRow
		err := r.Scan(&v.NID, &v.ID, &v.Type, &v.StateKey, &v.Status)
		v.ID, v.Type, v.StateKey = sql.Untext(v.ID), sql.Untext(v.Type), sql.Untext(v.StateKey)
		return v, err
	}, `SELECT nid, event_id, type, state_key, status FROM events
		WHERE event_id = ANY($2) AND +room = $1 AND state_key IS NOT NULL`, room, escaped(ids))
}

// MemberEvents lists every member of a room with the event that made them so.
func (tx Tx) MemberEvents(room int64) (map[string]int64, error) {
	events := map[string]int64{}
	rows, err := tx.Query(`SELECT user_id, event FROM members WHERE room = $1`, room)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var user string
		var event int64
		if err := rows.Scan(&user, &event); err != nil {
			return nil, err
		}
		events[sql.Untext(user)] = event
	}
	return events, rows.Err()
}

// CopyMembers stores many members of a room at once; those who are there stay as they are.
func (tx Tx) CopyMembers(room int64, members []Member) error {
	if len(members) == 0 {
		return nil
	}
	users := make([]string, len(members))
	rows := make([][]any, len(members))
	for i, m := range members {
		users[i] = m.User
		rows[i] = []any{room, sql.Text(m.User), m.Server, m.Membership, m.Event, sql.Text(m.DisplayName), sql.Text(m.AvatarURL), false, m.Event}
	}
	there, err := tx.MembersOf(room, users)
	if err != nil {
		return err
	}
	counted := make(map[string]bool, len(members))
	for _, m := range there {
		counted[m.User] = true
	}
	joined, invited, servers := 0, 0, map[string]int{}
	for _, m := range members {
		switch {
		case counted[m.User]:
		case m.Membership == "join":
			joined++
			servers[m.Server]++
		case m.Membership == "invite":
			invited++
		}
		counted[m.User] = true
	}
	tx.Exec(`UPDATE rooms SET joined = joined + $2, invited = invited + $3 WHERE nid = $1`, room, joined, invited)
	for server, n := range servers {
		tx.Exec(`INSERT INTO member_servers (room, server, joined) VALUES ($1, $2, $3)
			ON CONFLICT (room, server) DO UPDATE SET joined = member_servers.joined + excluded.joined`, room, server, n)
	}
	return tx.CopyIn("members", []string{"room", "user_id", "server", "membership", "event", "displayname", "avatar_url", "forgotten", "first_event"}, rows)
}

// CopySlots gives many pieces of state their numbers.
func (tx Tx) CopySlots(room int64, slots []Slot) error {
	rows := make([][]any, len(slots))
	for i, s := range slots {
		rows[i] = []any{room, s.Slot, sql.Text(s.Type), sql.Text(s.StateKey)}
	}
	return tx.CopyIn("state_slots", []string{"room", "slot", "type", "state_key"}, rows)
}

// CopyStateNodes stores many nodes at once.
func (tx Tx) CopyStateNodes(room int64, ids []int64, data [][]byte) error {
	rows := make([][]any, len(ids))
	for i, n := range ids {
		rows[i] = []any{room, n, data[i]}
	}
	return tx.CopyIn("state_nodes", []string{"room", "node", "data"}, rows)
}
