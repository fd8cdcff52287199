package syncapi

import (
	"fmt"
	"math"

	"chancery/roomserver"
	"chancery/roomserver/state"
	"chancery/storage"
)

// writeRooms writes the member "rooms": each room in the section that the user's membership gives it.
//
// spec: c2s/sync
func (a *answer) writeRooms(body *writer) error {
	if err := a.readRooms(); err != nil {
		return err
	}
	elsewhere, err := a.writeElsewhere()
	if err != nil {
		return err
	}
	for room, m := range a.members {
		row, ok := a.rooms[room]
		if !ok || elsewhere[row.ID] || !a.q.filter.Room.room(row.ID) {
			continue
		}
		r := a.news.rooms[room]
		switch m.Membership {
		case "join":
			// spec: msc3902
			if row.Partial && !a.lazy() {
				continue // it is shown when it is whole
			}
			a.joined = append(a.joined, &joined{row: row, news: r})
		case "invite", "knock":
			if a.news.all || r != nil && r.mine {
				err = a.writeInvited(row, m)
			}
			if roomserver.IsGone(err) {
				continue // purged meanwhile
			}
		case "leave", "ban":
			if (a.news.all && a.q.filter.Room.IncludeLeave || r != nil && r.mine) && !m.Forgotten {
				a.left = append(a.left, &left{row: row, member: m, news: r})
			}
		}
		if err != nil {
			return err
		}
	}
	if err := a.fallen(); err != nil {
		return err
	}
	rooms := &writer{}
	joins, err := a.writeJoined()
	if err != nil {
		return err
	}
	leaves, err := a.writeLeft()
	if err != nil {
		return err
	}
	rooms.inside("join", joins)
	rooms.inside("invite", &a.invited)
	rooms.inside("knock", &a.knocked)
	rooms.inside("leave", leaves)
	body.inside("rooms", rooms)
	return nil
}

// readRooms reads the rows of the rooms that the answer may be about.
func (a *answer) readRooms() error {
	var wanted []int64
	typing := a.typingRooms()
	for room, m := range a.members {
		_, isNew := a.news.rooms[room]
		if isNew || typing[room] || (a.news.all || a.q.full) && (m.Membership == "join" || m.Membership == "invite" || m.Membership == "knock" || a.q.filter.Room.IncludeLeave) {
			wanted = append(wanted, room)
		}
	}
	for room, r := range a.news.rooms {
		if _, is := a.members[room]; !is && r.mine {
			wanted = append(wanted, room)
		}
	}
	if len(wanted) == 0 {
		return nil
	}
	rows, err := a.tx.Rooms(wanted)
	if err != nil {
		return fmt.Errorf("read rooms: %w", err)
	}
	for _, r := range rows {
		a.rooms[r.NID] = r
	}
	return nil
}

// fallen puts rooms into the section "leave" in whose state there is nothing of the user any more, though they were
// joined at the token: where branches of a room met, their join fell away. There is no event that says so.
func (a *answer) fallen() error {
	for room, r := range a.news.rooms {
		row, ok := a.rooms[room]
		if _, is := a.members[room]; is || !ok || !r.mine || !a.q.filter.Room.room(row.ID) {
			continue
		}
		// The event that brought it about has the same root as what it brought about.
		root, _, err := a.tx.RootAt(room, a.q.since.Pos)
		if err != nil {
			return fmt.Errorf("read a room's state at a token: %w", err)
		}
		was, err := a.membershipAt(row, state.Root(root))
		if roomserver.IsGone(err) {
			continue
		}
		if err != nil {
			return err
		}
		if was == "join" {
			a.left = append(a.left, &left{row: row, news: r})
		}
	}
	return nil
}

// base is a room as it was at the token.
type base struct {
	root state.Root
	ord  int64 // all events up to it were told
}

type baseKey struct{ room, first int64 }

// noOrd is below every place.
const noOrd = math.MinInt64

// base finds a room as it was before the first fact that is new. Every client that asks from between the
// same two facts has the same base, so it is read once.
func (a *answer) base(room storage.Room, r *roomNews) (base, error) {
	if r == nil || r.first == 0 {
		return base{state.Root(room.Root), math.MaxInt64}, nil
	}
	key := baseKey{room.NID, r.first}
	if b, ok := a.s.shared.bases.Get(key); ok {
		return b, nil
	}
	b := base{ord: noOrd}
	root, ok, err := a.tx.RootAt(room.NID, r.first-1)
	if err != nil {
		return b, fmt.Errorf("read a room's state at a token: %w", err)
	}
	if ok {
		b.root = state.Root(root)
	}
	ord, ok, err := a.tx.OrdAt(room.NID, r.first-1)
	if err != nil {
		return b, fmt.Errorf("read a room's end at a token: %w", err)
	}
	if ok {
		b.ord = ord
	}
	a.s.shared.bases.Put(key, b, 100)
	return b, nil
}

// membershipAt is the user's membership in a state of a room.
func (a *answer) membershipAt(room storage.Room, root state.Root) (string, error) {
	if root == 0 {
		return "", nil
	}
	ev, err := a.s.Reader.StateEvent(a.tx, room, root, "m.room.member", string(a.q.user))
	if err != nil || ev == nil {
		return "", err
	}
	return ev.Membership(), nil
}

// wasAway says whether the user was outside of a room that they are in, at the token or since.
func (a *answer) wasAway(room storage.Room, r *roomNews, b base) (bool, error) {
	if r == nil || !r.mine {
		return false, nil
	}
	was, err := a.membershipAt(room, b.root)
	if err != nil || was != "join" {
		return true, err
	}
	own, err := a.s.Reader.ByNumber(a.tx, room, r.own)
	if err != nil {
		return false, err
	}
	for _, ev := range own {
		if ev.IsState("m.room.member", string(a.q.user)) && ev.Membership() != "join" {
			return true, nil
		}
	}
	return false, nil
}

func isMember(ev *roomserver.Stored) bool {
	_, isState := ev.StateKey()
	return isState && ev.Type() == "m.room.member"
}
