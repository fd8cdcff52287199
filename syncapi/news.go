package syncapi

import (
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/tidwall/gjson"
)

// news is what happened for a user between two positions, by what it is about. It names things; their
// values are read afterwards, as the snapshot has them.
type news struct {
	all       bool // there is no token to go on from
	rooms     map[int64]*roomNews
	elsewhere map[string]bool // rooms that we are not in, with an invite or a knock that changed
	data      map[string]bool // types of global account data
	devices   map[string]bool // users whose device lists changed
	toDevice  bool
}

// roomNews is what happened in a room that the user is, or was, in.
type roomNews struct {
	first   int64 // position of the first fact of the room's state or history
	last    int64
	ord     int64 // the highest place of an event
	members bool  // of anybody
	own     []int64
	mine    bool            // the user's own membership may have changed
	read    map[string]bool // whose receipts moved; nil: nobody's
	allRead bool            // anybody's
	whole   bool            // the last piece of a partial room has come
	data    map[string]bool // types of account data of the room
}

// moved says whether the user's own memberships or invites may have changed.
func (n *news) moved() bool {
	for _, r := range n.rooms {
		if r.mine {
			return true
		}
	}
	return len(n.elsewhere) > 0
}

// An answer that would need more facts than this from SQL reads sums of them instead.
const maxFacts = 5000

func everything() *news {
	return &news{all: true, rooms: map[int64]*roomNews{}, elsewhere: map[string]bool{}, data: map[string]bool{}, devices: map[string]bool{}}
}

func (n *news) room(room int64) *roomNews {
	r := n.rooms[room]
	if r == nil {
		r = &roomNews{}
		n.rooms[room] = r
	}
	return r
}

// since finds what is new: in memory, if the tail reaches back to the token.
func (a *answer) since() (*news, error) {
	n := everything()
	n.all = false
	facts, end, ok := a.s.Tail.Since(a.q.since.Pos)
	if !ok {
		return n, a.sums(n, a.q.since.Pos)
	}
	for i := range facts {
		if facts[i].Pos > a.pos {
			return n, nil
		}
		a.note(n, &facts[i])
	}
	if end = max(end, a.q.since.Pos); end < a.pos { // the snapshot is ahead of the tail
		rest, err := a.tx.FactsAfter(end, maxFacts)
		if err != nil {
			return nil, err
		}
		if len(rest) == maxFacts {
			n = everything()
			n.all = false
			return n, a.sums(n, a.q.since.Pos)
		}
		for i := range rest {
			a.note(n, &rest[i])
		}
	}
	return n, nil
}

// note takes in one fact.
func (a *answer) note(n *news, f *storage.Fact) {
	user := string(a.q.user)
	switch f.Kind {
	case sql.FactEvent, sql.FactState, sql.FactRoomComplete:
		if _, known := a.members[f.Room]; !known && f.User != user {
			return
		}
		r := n.room(f.Room)
		if r.first == 0 {
			r.first = f.Pos
		}
		r.last, r.ord = f.Pos, max(r.ord, f.Ord)
		r.members = r.members || f.User != "" || f.Kind == sql.FactRoomComplete
		r.whole = r.whole || f.Kind == sql.FactRoomComplete
		if f.User == user || f.Kind == sql.FactRoomComplete {
			r.mine = true
			if f.Event != 0 {
				r.own = append(r.own, f.Event)
			}
		}
	case sql.FactReceipt:
		if _, known := a.members[f.Room]; !known {
			return
		}
		if f.User != user && gjson.Get(f.Extra, "type").Str == "m.read.private" {
			return
		}
		r := n.room(f.Room)
		if r.read == nil {
			r.read = map[string]bool{}
		}
		r.read[f.User] = true
	case sql.FactDeviceList:
		n.devices[f.User] = true
	default:
		if f.User == user {
			a.noteOwn(n, f)
		}
	}
}

// noteOwn takes in a fact about the user alone.
func (a *answer) noteOwn(n *news, f *storage.Fact) {
	switch f.Kind {
	case sql.FactInvite:
		n.elsewhere[gjson.Get(f.Extra, "room").Str] = true
	case sql.FactAccountData:
		if f.Room == 0 {
			n.data[f.Extra] = true
			return
		}
		r := n.room(f.Room)
		if r.data == nil {
			r.data = map[string]bool{}
		}
		r.data[f.Extra] = true
	case sql.FactToDevice:
		if f.Device == "" || f.Device == string(a.q.device) {
			n.toDevice = true
		}
	}
}

// sums finds what is new for a token that is older than the tail.
func (a *answer) sums(n *news, since int64) error {
	own, err := a.tx.FactsOfUsers([]string{string(a.q.user)}, since, a.pos)
	if err != nil {
		return err
	}
	for i := range own {
		a.note(n, &own[i])
	}
	devices, err := a.tx.DeviceListFacts(since, a.pos)
	if err != nil {
		return err
	}
	for _, u := range devices {
		n.devices[u] = true
	}
	var rooms []int64
	for room, m := range a.members {
		if m.Membership == "join" {
			rooms = append(rooms, room)
		}
	}
	for room := range n.rooms {
		if a.members[room].Membership != "join" {
			rooms = append(rooms, room)
		}
	}
	sums, err := a.tx.ActivityIn(rooms, since, a.pos)
	if err != nil {
		return err
	}
	for _, v := range sums {
		switch v.Kind {
		case sql.FactEvent, sql.FactState, sql.FactRoomComplete:
			r := n.room(v.Room)
			if r.first == 0 || v.First < r.first {
				r.first = v.First
			}
			r.last, r.ord = max(r.last, v.Last), max(r.ord, v.Ord)
			r.members = r.members || v.Users > 0 || v.Kind == sql.FactRoomComplete
			r.whole = r.whole || v.Kind == sql.FactRoomComplete
		case sql.FactReceipt:
			n.room(v.Room).allRead = true
		}
	}
	return nil
}
