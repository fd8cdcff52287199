package roomserver

import (
	"cmp"
	"slices"

	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// With so few members, of whatever membership, none is left out.
const fewMembers = 50

// withoutMembers are the numbers of the events of a state, of members only those of its heroes. others are the slots
// of all other types.
//
// spec: s2s/sendJoinV2
func (rd *Reader) withoutMembers(tx storage.Tx, room storage.Room, root state.Root, user id.UserID, others []storage.Slot) ([]int64, error) {
	numbers := make([]int64, len(others))
	for i, v := range others {
		numbers[i] = v.Slot
	}
	found, err := rd.Array(tx, room.NID).Get(root, numbers...)
	if err != nil {
		return nil, asGone(err)
	}
	named := false
	nids := make([]int64, 0, len(found)+maxHeroes)
	for i, n := range found {
		if n != 0 {
			nids = append(nids, n)
			named = named || others[i].StateKey == "" && (others[i].Type == "m.room.name" || others[i].Type == "m.room.canonical_alias")
		}
	}
	if named {
		return nids, nil
	}
	heroes, err := rd.heroes(tx, room, root, user)
	return append(nids, heroes...), err
}

// Heroes of a room, and among how many of its first pieces of state they are looked for.
const (
	maxHeroes    = 5
	heroesAmong  = 500
	heroesAtOnce = 50
)

// heroes are the membership events of those by whom a room without a name is called: the first who are joined or
// invited, or have gone where nobody else is found, but for one user. Slots are numbered as state comes, so the first
// members have the lowest, and no more of them than that are looked at however large the room is.
//
// spec: c2s/sync (RoomSummary)
func (rd *Reader) heroes(tx storage.Tx, room storage.Room, root state.Root, but id.UserID) ([]int64, error) {
	numbers := make([]int64, min(room.NextSlot, heroesAmong))
	for i := range numbers {
		numbers[i] = int64(i)
	}
	slots, err := tx.SlotsByNumber(room.NID, numbers)
	if err != nil {
		return nil, err
	}
	slots = slices.DeleteFunc(slots, func(v storage.Slot) bool { return v.Type != "m.room.member" || v.StateKey == string(but) })
	slices.SortFunc(slots, func(a, b storage.Slot) int { return cmp.Compare(a.Slot, b.Slot) })
	var here, gone []int64
	for piece := range slices.Chunk(slots, heroesAtOnce) {
		members, err := rd.stateOf(tx, room, root, piece)
		if err != nil {
			return nil, err
		}
		for _, ev := range members {
			switch ev.Membership() {
			case "join", "invite":
				here = append(here, ev.NID)
			case "leave", "ban":
				gone = append(gone, ev.NID)
			}
		}
		if len(here) >= maxHeroes {
			break
		}
	}
	if len(here) == 0 {
		here = gone
	}
	return here[:min(len(here), maxHeroes)], nil
}
