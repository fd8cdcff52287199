package roomserver

import (
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// looker is who asks what rooms there are: one of our users, or another server.
type looker struct {
	user   id.UserID
	server string // of others, when user is empty
}

// seenRooms are rooms of ours with what the looker is in each.
type seenRooms struct {
	rooms       map[id.RoomID]storage.Room // those that we are in
	memberships map[int64]string
	barred      map[int64]bool // by an ACL
	inside      map[id.RoomID]bool
}

// look reads rooms in a few queries: those of them that we are in, and what the looker is there.
func (rd *Reader) look(tx storage.Tx, ours string, who looker, ids []id.RoomID) (*seenRooms, error) {
	seen := &seenRooms{rooms: map[id.RoomID]storage.Room{}, memberships: map[int64]string{}, barred: map[int64]bool{}, inside: map[id.RoomID]bool{}}
	rows, nids, err := roomsWith(tx, ours, ids)
	if err != nil || len(rows) == 0 {
		return seen, err
	}
	for _, row := range rows {
		seen.rooms[id.RoomID(row.ID)] = row
	}
	if err := seen.readMemberships(tx, who, nids); err != nil {
		return nil, err
	}
	if who.user == "" {
		for _, row := range rows {
			acl, err := rd.StateEvent(tx, row, rootOf(row), "m.room.server_acl", "")
			if err != nil {
				return nil, err
			}
			seen.barred[row.NID] = acl != nil && !ACLAllows(acl.Event, who.server)
		}
	}
	return seen, nil
}

// roomsWith finds those rooms that a server is in.
func roomsWith(tx storage.Tx, server string, ids []id.RoomID) (rows []storage.Room, nids []int64, err error) {
	texts := make([]string, len(ids))
	for i, v := range ids {
		texts[i] = string(v)
	}
	known, err := tx.RoomsByID(texts)
	if err != nil || len(known) == 0 {
		return nil, nil, err
	}
	for _, row := range known {
		nids = append(nids, row.NID)
	}
	if nids, err = tx.RoomsWith(server, nids, []string{"join"}); err != nil {
		return nil, nil, err
	}
	in := make(map[int64]bool, len(nids))
	for _, n := range nids {
		in[n] = true
	}
	for _, row := range known {
		if in[row.NID] {
			rows = append(rows, row)
		}
	}
	return rows, nids, nil
}

// readMemberships: a server is in a room, or invited, when one of its users is.
func (s *seenRooms) readMemberships(tx storage.Tx, who looker, nids []int64) error {
	if who.user != "" {
		members, err := tx.MembershipsIn(string(who.user), nids)
		for _, m := range members {
			s.memberships[m.Room] = m.Membership
		}
		return err
	}
	in, err := tx.RoomsWith(who.server, nids, []string{"join", "invite"})
	for _, n := range in {
		s.memberships[n] = "join"
	}
	return err
}

// noteInside notes which of some rooms the looker is in, as far as we can tell.
func (s *seenRooms) noteInside(tx storage.Tx, ours string, who looker, allowed []id.RoomID) error {
	if len(allowed) == 0 {
		return nil
	}
	rows, nids, err := roomsWith(tx, ours, allowed)
	if err != nil || len(rows) == 0 {
		return err
	}
	in := map[int64]bool{}
	if who.user == "" {
		nids, err = tx.RoomsWith(who.server, nids, []string{"join"})
		for _, n := range nids {
			in[n] = true
		}
	} else {
		var members []storage.Member
		members, err = tx.MembershipsIn(string(who.user), nids)
		for _, m := range members {
			in[m.Room] = m.Membership == "join"
		}
	}
	for _, row := range rows {
		s.inside[id.RoomID(row.ID)] = in[row.NID]
	}
	return err
}

func (s *seenRooms) isInside(rooms []id.RoomID) bool {
	for _, v := range rooms {
		if s.inside[v] {
			return true
		}
	}
	return false
}

// accessible gives those of the rooms that we know and that the looker may know of; shut lists those that we know
// and they may not.
func (rd *Reader) accessible(tx storage.Tx, ours string, who looker, ids []id.RoomID) (open map[id.RoomID]*SpaceRoom, shut map[id.RoomID]bool, err error) {
	open, shut = map[id.RoomID]*SpaceRoom{}, map[id.RoomID]bool{}
	seen, err := rd.look(tx, ours, who, ids)
	if err != nil {
		return nil, nil, err
	}
	all := map[id.RoomID]*SpaceRoom{}
	var allowed []id.RoomID
	for roomID, row := range seen.rooms {
		if all[roomID], err = rd.SpaceRoom(tx, row); err != nil {
			return nil, nil, err
		}
		if all[roomID].restricted() {
			allowed = append(allowed, all[roomID].Allowed...)
		}
	}
	if err := seen.noteInside(tx, ours, who, allowed); err != nil {
		return nil, nil, err
	}
	for roomID, room := range all {
		nid := seen.rooms[roomID].NID
		if !seen.barred[nid] && room.openTo(seen.memberships[nid], seen.isInside) {
			open[roomID] = room
		} else {
			shut[roomID] = true
		}
	}
	return open, shut, nil
}
