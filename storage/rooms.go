package storage

import (
	"encoding/json"
	"errors"
	"strings"
	"time"

	"chancery/storage/sql"
)

// Room is a row of rooms.
type Room struct {
	NID      int64
	ID       string
	Version  string
	Root     int64
	NextSlot int64
	NextNode int64
	Partial  bool
	Joined   int64 // members when the row was read; who sets members counts them
	Invited  int64
}

// NewRoomNumber gives a number no room has had.
func (db *DB) NewRoomNumber() (int64, error) { return db.rooms.Next() }

// NewEventNumber gives a number no event has had. Numbers are identities, never an order.
func (db *DB) NewEventNumber() (int64, error) { return db.events.Next() }

// NewServerSetNumber gives a number no set of servers has had.
func (db *DB) NewServerSetNumber() (int64, error) { return db.sets.Next() }

const roomColumns = `nid, room_id, version, root, next_slot, next_node, partial, joined, invited`

func scanRoom(r interface{ Scan(...any) error }) (Room, error) {
	var v Room
	err := r.Scan(&v.NID, &v.ID, &v.Version, &v.Root, &v.NextSlot, &v.NextNode, &v.Partial, &v.Joined, &v.Invited)
	return v, err
}

// Room finds a room by its ID; ok is false when we do not have it.
func (tx Tx) Room(roomID string) (v Room, ok bool, err error) {
	return found(scanRoom(tx.QueryRow(`SELECT `+roomColumns+` FROM rooms WHERE room_id = $1`, sql.Text(roomID))))
}

// RoomByNumber finds a room by its number.
func (tx Tx) RoomByNumber(nid int64) (v Room, ok bool, err error) {
	return found(scanRoom(tx.QueryRow(`SELECT `+roomColumns+` FROM rooms WHERE nid = $1`, nid)))
}

// Rooms finds rooms by number, in no order.
func (tx Tx) Rooms(nids []int64) ([]Room, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Room, error) { return scanRoom(r) },
		`SELECT `+roomColumns+` FROM rooms WHERE nid = ANY($1)`, nids)
}

// RoomsByID finds rooms by ID, in no order.
func (tx Tx) RoomsByID(ids []string) ([]Room, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Room, error) { return scanRoom(r) },
		`SELECT `+roomColumns+` FROM rooms WHERE room_id = ANY($1)`, escapedTexts(ids))
}

// InsertRoom makes a room, without members.
func (tx Tx) InsertRoom(v Room) {
	tx.Exec(`INSERT INTO rooms (nid, room_id, version, root, next_slot, next_node, partial) VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		v.NID, sql.Text(v.ID), v.Version, v.Root, v.NextSlot, v.NextNode, v.Partial)
}

// UpdateRoom moves the room's state and its counters.
func (tx Tx) UpdateRoom(v Room) {
	tx.Exec(`UPDATE rooms SET root = $2, next_slot = $3, next_node = $4, partial = $5 WHERE nid = $1`,
		v.NID, v.Root, v.NextSlot, v.NextNode, v.Partial)
}

// Extremities lists the room's open ends by event number; order is never left to a collation.
func (tx Tx) Extremities(room int64) ([]int64, error) {
	return sql.Collect(tx.Tx, scanInt, `SELECT event FROM extremities WHERE room = $1`, room)
}

// AddExtremity and RemoveExtremity move the room's open ends.
func (tx Tx) AddExtremity(room, event int64) {
	tx.Exec(`INSERT INTO extremities (room, event) VALUES ($1, $2)`, room, event)
}

// RemoveExtremity ends an open end.
func (tx Tx) RemoveExtremity(room, event int64) {
	tx.Exec(`DELETE FROM extremities WHERE room = $1 AND event = $2`, room, event)
}

// OrdBounds gives the lowest and the highest place in the room's history (0, 0 when it has none). Asked for both at once,
// SQLite would read all of the history.
func (tx Tx) OrdBounds(room int64) (low, high int64, err error) {
	var l, h *int64
	if err := tx.QueryRow(`SELECT (SELECT min(ord) FROM events WHERE room = $1), (SELECT max(ord) FROM events WHERE room = $1)`, room).Scan(&l, &h); err != nil {
		return 0, 0, err
	}
	if l == nil || h == nil {
		return 0, 0, nil
	}
	return *l, *h, nil
}

// Slot is the number of a (type, state key) in a room.
type Slot struct {
	Slot     int64
	Type     string
	StateKey string
}

// SlotsByKey finds the slots of state keys of one type.
func (tx Tx) SlotsByKey(room int64, typ string, keys []string) ([]Slot, error) {
	escaped := make([]string, len(keys))
	for i, k := range keys {
		escaped[i] = sql.Text(k)
	}
	return sql.Collect(tx.Tx, scanSlot,
		`SELECT slot, type, state_key FROM state_slots WHERE room = $1 AND type = $2 AND state_key = ANY($3)`,
		room, sql.Text(typ), escaped)
}

// SlotsByKeys finds the slots of every pair of some types and some state keys.
func (tx Tx) SlotsByKeys(room int64, types, keys []string) ([]Slot, error) {
	return sql.Collect(tx.Tx, scanSlot,
		`SELECT slot, type, state_key FROM state_slots WHERE room = $1 AND type = ANY($2) AND state_key = ANY($3)`,
		room, escaped(types), escaped(keys))
}

// SlotsByType finds all slots of a type.
func (tx Tx) SlotsByType(room int64, typ string) ([]Slot, error) {
	return sql.Collect(tx.Tx, scanSlot,
		`SELECT slot, type, state_key FROM state_slots WHERE room = $1 AND type = $2`, room, sql.Text(typ))
}

// SlotsExcept finds all slots but those of a type. Those are not even read: the others lie in two ranges of the index.
func (tx Tx) SlotsExcept(room int64, typ string) ([]Slot, error) {
	return sql.Collect(tx.Tx, scanSlot,
		`SELECT slot, type, state_key FROM state_slots WHERE room = $1 AND type < $2
			UNION ALL SELECT slot, type, state_key FROM state_slots WHERE room = $1 AND type > $2`, room, sql.Text(typ))
}

// AllSlots finds all slots of a room.
func (tx Tx) AllSlots(room int64) ([]Slot, error) {
	return sql.Collect(tx.Tx, scanSlot, `SELECT slot, type, state_key FROM state_slots WHERE room = $1`, room)
}

// SlotsByNumber finds slots by number.
func (tx Tx) SlotsByNumber(room int64, slots []int64) ([]Slot, error) {
	return sql.Collect(tx.Tx, scanSlot,
		`SELECT slot, type, state_key FROM state_slots WHERE room = $1 AND slot = ANY($2)`, room, slots)
}

func scanSlot(r *sql.Rows) (Slot, error) {
	var s Slot
	err := r.Scan(&s.Slot, &s.Type, &s.StateKey)
	s.Type, s.StateKey = sql.Untext(s.Type), sql.Untext(s.StateKey)
	return s, err
}

// InsertSlot gives a (type, state key) its number.
func (tx Tx) InsertSlot(room int64, s Slot) {
	tx.Exec(`INSERT INTO state_slots (room, slot, type, state_key) VALUES ($1, $2, $3, $4)`,
		room, s.Slot, sql.Text(s.Type), sql.Text(s.StateKey))
}

// StateNodes reads nodes of a room's state; a missing one is left out.
func (tx Tx) StateNodes(room int64, nodes []int64) (map[int64][]byte, error) {
	found := make(map[int64][]byte, len(nodes))
	rows, err := tx.Query(`SELECT node, data FROM state_nodes WHERE room = $1 AND node = ANY($2)`, room, nodes)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var n int64
		var data []byte
		if err := rows.Scan(&n, &data); err != nil {
			return nil, err
		}
		found[n] = data
	}
	return found, rows.Err()
}

// InsertStateNode stores a node; nodes never change.
func (tx Tx) InsertStateNode(room, node int64, data []byte) {
	tx.Exec(`INSERT INTO state_nodes (room, node, data) VALUES ($1, $2, $3)`, room, node, data)
}

// Member is a row of members.
type Member struct {
	Room        int64
	User        string
	Server      string
	Membership  string
	Event       int64
	DisplayName string
	AvatarURL   string
	Forgotten   bool
	Stays       bool // the user has this membership already: nobody is counted. Not read.
}

const memberColumns = `room, user_id, server, membership, event, displayname, avatar_url, forgotten`

func scanMember(r interface{ Scan(...any) error }) (Member, error) {
	var m Member
	err := r.Scan(&m.Room, &m.User, &m.Server, &m.Membership, &m.Event, &m.DisplayName, &m.AvatarURL, &m.Forgotten)
	m.User, m.DisplayName, m.AvatarURL = sql.Untext(m.User), sql.Untext(m.DisplayName), sql.Untext(m.AvatarURL)
	return m, err
}

// SetMember makes m the room's member row of its user. Who comes back has not forgotten.
func (tx Tx) SetMember(m Member) {
	if !m.Stays {
		tx.countMember(m.Room, m.User, m.Membership)
		if m.Membership == "join" {
			tx.Exec(`INSERT INTO member_servers (room, server, joined) SELECT $1, $2, 1
				WHERE NOT EXISTS (SELECT 1 FROM members WHERE room = $1 AND user_id = $3 AND membership = 'join')
				ON CONFLICT (room, server) DO UPDATE SET joined = member_servers.joined + 1`, m.Room, m.Server, sql.Text(m.User))
		} else {
			tx.uncountServer(m.Room, m.User)
		}
	}
	tx.Exec(`INSERT INTO members (`+memberColumns+`, first_event) VALUES ($1, $2, $3, $4, $5, $6, $7, FALSE, $5)
		ON CONFLICT (room, user_id) DO UPDATE SET membership = excluded.membership, event = excluded.event,
			displayname = excluded.displayname, avatar_url = excluded.avatar_url,
			forgotten = members.forgotten AND excluded.membership IN ('leave', 'ban')`,
		m.Room, sql.Text(m.User), m.Server, m.Membership, m.Event, sql.Text(m.DisplayName), sql.Text(m.AvatarURL))
}

// DeleteMember removes a row whose state is gone.
func (tx Tx) DeleteMember(room int64, user string) {
	tx.countMember(room, user, "")
	tx.uncountServer(room, user)
	tx.Exec(`DELETE FROM members WHERE room = $1 AND user_id = $2`, room, sql.Text(user))
}

// countMember counts a user by their new membership, before the row has it.
func (tx Tx) countMember(room int64, user, membership string) {
	joins, invited := 0, 0
	switch membership {
	case "join":
		joins = 1
	case "invite":
		invited = 1
	}
	tx.Exec(`UPDATE rooms SET
		joined = joined + $3 - (SELECT count(*) FROM members WHERE room = $1 AND user_id = $2 AND membership = 'join'),
		invited = invited + $4 - (SELECT count(*) FROM members WHERE room = $1 AND user_id = $2 AND membership = 'invite')
		WHERE nid = $1`, room, sql.Text(user), joins, invited)
}

// uncountServer takes a user who joins no more from the members of their server.
func (tx Tx) uncountServer(room int64, user string) {
	tx.Exec(`UPDATE member_servers SET joined = joined - 1 WHERE room = $1
		AND server = (SELECT server FROM members WHERE room = $1 AND user_id = $2 AND membership = 'join')`, room, sql.Text(user))
	tx.Exec(`DELETE FROM member_servers WHERE room = $1 AND joined <= 0
		AND server = (SELECT server FROM members WHERE room = $1 AND user_id = $2)`, room, sql.Text(user))
}

// Forget hides a room that the user has left.
func (tx Tx) Forget(room int64, user string) (bool, error) {
	n, err := tx.ExecRows(`UPDATE members SET forgotten = TRUE
		WHERE room = $1 AND user_id = $2 AND membership IN ('leave', 'ban')`, room, sql.Text(user))
	return n > 0, err
}

// Member finds a user in a room's current state.
func (tx Tx) Member(room int64, user string) (m Member, ok bool, err error) {
	return found(scanMember(tx.QueryRow(`SELECT `+memberColumns+` FROM members WHERE room = $1 AND user_id = $2`,
		room, sql.Text(user))))
}

// MembersOf finds some users in a room's current state.
func (tx Tx) MembersOf(room int64, users []string) ([]Member, error) {
	escaped := make([]string, len(users))
	for i, u := range users {
		escaped[i] = sql.Text(u)
	}
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Member, error) { return scanMember(r) },
		`SELECT `+memberColumns+` FROM members WHERE room = $1 AND user_id = ANY($2)`, room, escaped)
}

// Members lists the room's members with one of the memberships.
func (tx Tx) Members(room int64, memberships []string) ([]Member, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Member, error) { return scanMember(r) },
		`SELECT `+memberColumns+` FROM members WHERE room = $1 AND membership = ANY($2)`, room, memberships)
}

// LocalMembers lists the room's members of one server with one of the memberships.
func (tx Tx) LocalMembers(room int64, server string, memberships []string) ([]Member, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Member, error) { return scanMember(r) },
		`SELECT `+memberColumns+` FROM members WHERE room = $1 AND server = $2 AND membership = ANY($3)`, room, server, memberships)
}

// RoomsOf lists the rooms in which the user has one of the memberships.
func (tx Tx) RoomsOf(user string, memberships []string) ([]Member, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Member, error) { return scanMember(r) },
		`SELECT `+memberColumns+` FROM members WHERE user_id = $1 AND membership = ANY($2)`, sql.Text(user), memberships)
}

// MembershipsIn lists what a user is in some rooms.
func (tx Tx) MembershipsIn(user string, rooms []int64) ([]Member, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Member, error) { return scanMember(r) },
		`SELECT `+memberColumns+` FROM members WHERE user_id = $1 AND room = ANY($2)`, sql.Text(user), rooms)
}

// RoomsWith lists those of some rooms in which a server has a member with one of the memberships.
func (tx Tx) RoomsWith(server string, rooms []int64, memberships []string) ([]int64, error) {
	return sql.Collect(tx.Tx, scanInt, `SELECT r.nid FROM rooms r WHERE r.nid = ANY($1) AND EXISTS (SELECT 1 FROM members m
		WHERE m.room = r.nid AND m.membership = ANY($2) AND m.server = $3)`, rooms, memberships, server)
}

// MemberCount is how many members of a server a room has.
type MemberCount struct {
	Server string
	Count  int64
}

// ServersIn counts the joined members of each server in a room. Where not all members are known yet, a server that
// is said to be in the room counts for one more.
func (tx Tx) ServersIn(room int64) ([]MemberCount, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (MemberCount, error) {
		var c MemberCount
		err := r.Scan(&c.Server, &c.Count)
		return c, err
	}, `SELECT server, CAST(sum(joined) AS BIGINT) FROM (SELECT server, joined FROM member_servers WHERE room = $1
		UNION ALL SELECT server, 1 FROM partial_servers WHERE room = $1) x GROUP BY server`, room)
}

// SharingAmong lists those of some users that share a room with the user: both joined.
func (tx Tx) SharingAmong(user string, among []string) ([]string, error) {
	escaped := make([]string, len(among))
	for i, u := range among {
		escaped[i] = sql.Text(u)
	}
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT b.user_id FROM members b
		JOIN members a ON a.room = b.room AND a.user_id = $1 AND a.membership = 'join'
		WHERE b.user_id = ANY($2) AND b.membership = 'join'`, sql.Text(user), escaped)
}

// ServersSharing lists the servers that have a member in a room the user is in.
func (tx Tx) ServersSharing(user string) ([]string, error) {
	return sql.Collect(tx.Tx, scanText, `SELECT s.server FROM members a JOIN member_servers s ON s.room = a.room
		WHERE a.user_id = $1 AND a.membership = 'join'
		UNION SELECT p.server FROM members a JOIN partial_servers p ON p.room = a.room
		WHERE a.user_id = $1 AND a.membership = 'join'`, sql.Text(user))
}

// ServerIsIn says whether a server has a joined member in the room.
func (tx Tx) ServerIsIn(room int64, server string) (bool, error) {
	var n int64
	err := tx.QueryRow(`SELECT count(*) FROM (SELECT 1 FROM member_servers WHERE room = $1 AND server = $2
		UNION ALL SELECT 1 FROM partial_servers WHERE room = $1 AND server = $2) x`, room, server).Scan(&n)
	return n > 0, err
}

// InsertServerSet stores a set of servers, which takes the place of those its room had.
func (tx Tx) InsertServerSet(nid, room int64, servers []string) error {
	text, err := json.Marshal(servers)
	if err != nil {
		return err
	}
	tx.Exec(`UPDATE server_sets SET superseded = $2 WHERE room = $1 AND superseded = 0`, room, time.Now().UnixMilli())
	tx.Exec(`INSERT INTO server_sets (nid, room, servers) VALUES ($1, $2, $3)`, nid, room, string(text))
	return nil
}

// trimServerSets removes sets whose place another took before a time.
func (tx Tx) trimServerSets(before int64, limit int) (int64, error) {
	return tx.ExecRows(`DELETE FROM server_sets WHERE nid IN (SELECT nid FROM server_sets
		WHERE superseded > 0 AND superseded < $1 ORDER BY superseded LIMIT $2)`, before, limit)
}

// ServerSet reads a set of servers.
func (tx Tx) ServerSet(nid int64) ([]string, error) {
	var text string
	if err := tx.QueryRow(`SELECT servers FROM server_sets WHERE nid = $1`, nid).Scan(&text); err != nil {
		return nil, err
	}
	var servers []string
	return servers, json.Unmarshal([]byte(text), &servers)
}

// Invite is an invite or a knock of one of our users in a room we are not in.
type Invite struct {
	User       string
	RoomID     string
	Version    string
	Membership string
	Sender     string
	EventID    string
	Event      json.RawMessage
	Stripped   json.RawMessage
	Inviters   []string // other servers whose invites this one stood on
	Beneath    []Invite // what else is pending, the newest first
}

const inviteColumns = `user_id, room_id, version, membership, sender, event_id, event, stripped, inviters, beneath`

func scanInvite(r interface{ Scan(...any) error }) (Invite, error) {
	var v Invite
	var inviters, beneath string
	if err := r.Scan(&v.User, &v.RoomID, &v.Version, &v.Membership, &v.Sender, &v.EventID, &v.Event, &v.Stripped, &inviters, &beneath); err != nil {
		return v, err
	}
	v.User, v.RoomID, v.Sender = sql.Untext(v.User), sql.Untext(v.RoomID), sql.Untext(v.Sender)
	if err := json.Unmarshal([]byte(inviters), &v.Inviters); err != nil {
		return v, err
	}
	return v, json.Unmarshal([]byte(beneath), &v.Beneath)
}

// asJSON keeps the bytes of events as they are.
func asJSON(v any) string {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic("storage: " + err.Error()) // strings, and JSON that was read before
	}
	return b.String()
}

// SetInvite stores an invite, a knock, or the end of one.
func (tx Tx) SetInvite(v Invite) {
	tx.Exec(`INSERT INTO invites (`+inviteColumns+`) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
		ON CONFLICT (user_id, room_id) DO UPDATE SET version = excluded.version, membership = excluded.membership,
			sender = excluded.sender, event_id = excluded.event_id, event = excluded.event, stripped = excluded.stripped,
			inviters = excluded.inviters, beneath = excluded.beneath`,
		sql.Text(v.User), sql.Text(v.RoomID), v.Version, v.Membership, sql.Text(v.Sender), v.EventID, string(v.Event), string(v.Stripped),
		asJSON(v.Inviters), asJSON(v.Beneath))
}

// Invite finds the user's invite to a room we are not in.
func (tx Tx) Invite(user, roomID string) (v Invite, ok bool, err error) {
	return found(scanInvite(tx.QueryRow(`SELECT `+inviteColumns+` FROM invites WHERE user_id = $1 AND room_id = $2`,
		sql.Text(user), sql.Text(roomID))))
}

// InvitesOf lists the user's rows, ended ones too.
func (tx Tx) InvitesOf(user string) ([]Invite, error) {
	return sql.Collect(tx.Tx, func(r *sql.Rows) (Invite, error) { return scanInvite(r) },
		`SELECT `+inviteColumns+` FROM invites WHERE user_id = $1`, sql.Text(user))
}

// DeleteInvite removes the row: the user joined, or forgot.
func (tx Tx) DeleteInvite(user, roomID string) {
	tx.Exec(`DELETE FROM invites WHERE user_id = $1 AND room_id = $2`, sql.Text(user), sql.Text(roomID))
}

// EndInvites removes what we held of invites and knocks from elsewhere of a server's users of whom the room itself
// tells now.
func (tx Tx) EndInvites(room int64, roomID, server string) {
	tx.Exec(`DELETE FROM invites WHERE room_id = $1 AND user_id IN (SELECT user_id FROM members WHERE room = $2 AND server = $3)`,
		sql.Text(roomID), room, server)
}

func scanInt(r *sql.Rows) (int64, error) {
	var n int64
	err := r.Scan(&n)
	return n, err
}

func scanText(r *sql.Rows) (string, error) {
	var s string
	err := r.Scan(&s)
	return s, err
}

func scanUser(r *sql.Rows) (string, error) {
	s, err := scanText(r)
	return sql.Untext(s), err
}

// found turns "no rows" into ok = false.
func found[T any](v T, err error) (T, bool, error) {
	if errors.Is(err, sql.ErrNoRows) {
		return v, false, nil
	}
	return v, err == nil, err
}
