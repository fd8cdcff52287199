package storage

import "chancery/storage/sql"

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

// People walks the users that a user may find: those with whom they share a room, and those in rooms that are open to
// all or in the room directory. Of our own users it gives the profile and never what they call themselves in a room.
func (tx Tx) People(user, server string, each func(Person)) error {
	rows, err := tx.Query(`SELECT c.user_id, c.server, c.displayname, c.avatar_url, COALESCE(p.displayname, ''), COALESCE(p.avatar_url, '')
		FROM (
			SELECT user_id, server, max(displayname) AS displayname, max(avatar_url) AS avatar_url FROM members
			WHERE membership = 'join' AND user_id <> $1 AND room IN (
				SELECT room FROM members WHERE user_id = $1 AND membership = 'join'
				UNION
				SELECT r.nid FROM published p JOIN rooms r ON r.room_id = p.room_id
				UNION
				SELECT room FROM open_rooms WHERE looked_at
			) GROUP BY user_id, server
		) c LEFT JOIN profiles p ON p.user_id = c.user_id`, sql.Text(user))
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var v Person
		var home, name, avatar string
		if err := rows.Scan(&v.User, &home, &v.DisplayName, &v.AvatarURL, &name, &avatar); err != nil {
			return err
		}
		if home == server {
			v.DisplayName, v.AvatarURL = name, avatar
		}
		v.User, v.DisplayName, v.AvatarURL = sql.Untext(v.User), sql.Untext(v.DisplayName), sql.Untext(v.AvatarURL)
		each(v)
	}
	return rows.Err()
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

// RoomsNotLookedAt lists some rooms of which it is not known whether they are open.
func (tx Tx) RoomsNotLookedAt() ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT r.room_id FROM open_rooms o JOIN rooms r ON r.nid = o.room
		WHERE NOT o.looked_at LIMIT 100`)
}

// GuestsIn lists our guests who are in a room.
func (tx Tx) GuestsIn(room int64) ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT m.user_id FROM members m JOIN accounts a ON a.user_id = m.user_id
		WHERE m.room = $1 AND m.membership = 'join' AND a.guest ORDER BY m.user_id`, room)
}

// RoomsWithGuests lists the rooms in which guests of ours are.
func (tx Tx) RoomsWithGuests() ([]string, error) {
	return sql.Collect(tx.Tx, scanUser, `SELECT DISTINCT r.room_id FROM accounts a
		JOIN members m ON m.user_id = a.user_id AND m.membership = 'join'
		JOIN rooms r ON r.nid = m.room WHERE a.guest`)
}
