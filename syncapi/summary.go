package syncapi

import (
	"chancery/roomserver"
	"chancery/storage"

	"github.com/tidwall/gjson"
)

// summary says of a room what its name can be made of.
//
// spec: c2s/sync (RoomSummary)
type summary struct {
	joined, invited int64
	heroes          []string // nil: the room has a name
}

const maxHeroes = 5

func (a *answer) summarise(room storage.Room) (*summary, error) {
	s := &summary{joined: room.Joined, invited: room.Invited}
	named, err := a.isNamed(room)
	if err != nil || named {
		return s, err
	}
	if s.heroes, err = a.tx.FirstMembers(room.NID, "join", "invite", string(a.q.user), maxHeroes); err != nil {
		return nil, err
	}
	if len(s.heroes) == 0 {
		s.heroes, err = a.tx.FirstMembers(room.NID, "leave", "ban", string(a.q.user), maxHeroes)
	}
	if s.heroes == nil {
		s.heroes = []string{}
	}
	return s, err
}

// isNamed says whether the room has a name or an alias to go by.
func (a *answer) isNamed(room storage.Room) (bool, error) {
	found, err := a.s.Reader.Lookup(a.tx, room, []roomserver.Lookup{
		{Root: rootOf(room), Key: roomserver.Key{Type: "m.room.name"}},
		{Root: rootOf(room), Key: roomserver.Key{Type: "m.room.canonical_alias"}},
	})
	if err != nil {
		return false, err
	}
	for i, member := range []string{"name", "alias"} {
		if ev := found[i]; ev != nil && gjson.GetBytes(ev.Content(), member).Str != "" {
			return true, nil
		}
	}
	return false, nil
}

func (s *summary) write(w *writer) {
	in := &writer{}
	if s.heroes != nil {
		in.value("m.heroes", s.heroes)
	}
	in.value("m.joined_member_count", s.joined)
	in.value("m.invited_member_count", s.invited)
	w.inside("summary", in)
}
