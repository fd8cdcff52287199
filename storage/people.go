package storage

import (
	"cmp"
	"slices"

	"chancery/storage/sql"
)

// SharedRooms lists the IDs of the rooms in which two users are, in order.
func (tx Tx) SharedRooms(a, b string) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT r.room_id FROM members a
		JOIN members b ON b.room = a.room AND b.user_id = $2 AND b.membership = 'join'
		JOIN rooms r ON r.nid = a.room
		WHERE a.user_id = $1 AND a.membership = 'join' ORDER BY r.room_id`, sql.Text(a), sql.Text(b))
}

// Person is somebody whom the user directory may show.
type Person struct {
	User        string
	DisplayName string // of one of our users the profile's, of others that in a room
	AvatarURL   string
}

// Bounds of a walk through people: it must cost the same on a server with millions of members.
const (
	maxPeopleRooms = 1000  // open rooms, and as many in the room directory
	maxPeople      = 50000 // members looked at, somebody who is in two rooms twice
	peopleRooms    = 20    // rooms looked into at a time
)

// People walks the users that a user may find, each once: those with whom they share a room, then those in rooms that are
// open to all or in the room directory, in either the newest rooms first, some at a time. Where there are more members than
// the bounds let it see, the rest is not found but by the whole user ID, which named may be, and all is false. Of our own
// users it gives the profile and never what they call themselves in a room, of others what they call themselves in the
// newest room.
func (tx Tx) People(user, server, named string, each func(Person)) (all bool, err error) {
	return tx.people(user, server, named, maxPeople, each)
}

func (tx Tx) people(user, server, named string, most int, each func(Person)) (all bool, err error) {
	shared, open, err := tx.roomsToFindPeopleIn(user)
	if err != nil {
		return false, err
	}
	told := map[string]bool{user: true}
	tell := func(members []roomPerson) {
		slices.SortFunc(members, func(x, y roomPerson) int { return cmp.Compare(y.room, x.room) })
		for _, v := range members {
			if !told[v.User] {
				told[v.User] = true
				each(v.Person)
			}
		}
	}
	them, err := sql.Collect(tx.Tx, roomPeople(server), `SELECT m.room, `+personColumns+`
		WHERE m.user_id = $1 AND m.membership = 'join' AND (m.room = ANY($2)
			OR EXISTS (SELECT 1 FROM open_rooms o WHERE o.room = m.room AND o.looked_at)
			OR EXISTS (SELECT 1 FROM rooms r JOIN published d ON d.room_id = r.room_id WHERE r.nid = m.room))`, sql.Text(named), shared)
	if err != nil {
		return false, err
	}
	tell(them)
	for _, rooms := range slices.Concat(slices.Collect(slices.Chunk(shared, peopleRooms)), slices.Collect(slices.Chunk(open, peopleRooms))) {
		members, err := sql.Collect(tx.Tx, roomPeople(server), `SELECT m.room, `+personColumns+`
			WHERE m.membership = 'join' AND m.room = ANY($1) LIMIT $2`, rooms, most)
		if err != nil {
			return false, err
		}
		tell(members)
		if most -= len(members); most == 0 {
			break
		}
	}
	return most > 0 && len(open) < maxPeopleRooms, nil
}

// roomsToFindPeopleIn lists the rooms of a user, and others that everybody may find people in, each once and newest first.
func (tx Tx) roomsToFindPeopleIn(user string) (shared, open []int64, err error) {
	if shared, err = sql.Collect(tx.Tx, scanInt, `SELECT room FROM members WHERE user_id = $1 AND membership = 'join'`, sql.Text(user)); err != nil {
		return nil, nil, err
	}
	if open, err = sql.Collect(tx.Tx, scanInt, `SELECT room FROM open_rooms WHERE looked_at ORDER BY room DESC LIMIT $1`, maxPeopleRooms); err != nil {
		return nil, nil, err
	}
	published, err := sql.Collect(tx.Tx, scanInt, `SELECT r.nid FROM published p CROSS JOIN rooms r WHERE r.room_id = p.room_id ORDER BY r.nid DESC LIMIT $1`, maxPeopleRooms)
	isShared := map[int64]bool{}
	for _, v := range shared {
		isShared[v] = true
	}
	open = slices.DeleteFunc(append(open, published...), func(v int64) bool { return isShared[v] })
	newest := func(x, y int64) int { return cmp.Compare(y, x) }
	slices.SortFunc(shared, newest)
	slices.SortFunc(open, newest)
	return shared, slices.Compact(open), err
}

type roomPerson struct {
	Person
	room int64
}

const personColumns = `m.user_id, m.server, m.displayname, m.avatar_url, COALESCE(p.displayname, ''), COALESCE(p.avatar_url, '')
	FROM members m LEFT JOIN profiles p ON p.user_id = m.user_id`

// roomPeople scans members of rooms; server is ours.
func roomPeople(server string) func(*sql.Rows) (roomPerson, error) {
	return func(r *sql.Rows) (v roomPerson, err error) {
		var home, name, avatar string
		err = r.Scan(&v.room, &v.User, &home, &v.DisplayName, &v.AvatarURL, &name, &avatar)
		if home == server {
			v.DisplayName, v.AvatarURL = name, avatar
		}
		v.User, v.DisplayName, v.AvatarURL = sql.Untext(v.User), sql.Untext(v.DisplayName), sql.Untext(v.AvatarURL)
		return v, err
	}
}

// SetOpen notes whether a room is open to all.
func (tx Tx) SetOpen(room int64, open bool) {
	if open {
		tx.Exec(`INSERT INTO open_rooms (room, looked_at) VALUES ($1, TRUE)
			ON CONFLICT (room) DO UPDATE SET looked_at = excluded.looked_at`, room)
	} else {
		tx.Exec(`DELETE FROM open_rooms WHERE room = $1`, room)
	}
}

// RoomsNotLookedAt lists some rooms of which it is not known whether they are open, those with IDs above one.
func (tx Tx) RoomsNotLookedAt(after string) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT r.room_id FROM open_rooms o JOIN rooms r ON r.nid = o.room
		WHERE NOT o.looked_at AND r.room_id > $1 ORDER BY r.room_id LIMIT 100`, sql.Text(after))
}

// GuestsIn lists our guests who are in a room.
func (tx Tx) GuestsIn(room int64) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT m.user_id FROM members m JOIN accounts a ON a.user_id = m.user_id
		WHERE m.room = $1 AND m.membership = 'join' AND a.guest ORDER BY m.user_id`, room)
}

// RoomsWithGuests lists the rooms in which guests of ours are.
func (tx Tx) RoomsWithGuests() ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT r.room_id FROM accounts a CROSS JOIN members m
		JOIN rooms r ON r.nid = m.room WHERE a.guest AND m.user_id = a.user_id AND m.membership = 'join'`)
}
