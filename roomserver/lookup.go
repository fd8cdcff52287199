package roomserver

import (
	"fmt"

	"chancery/roomserver/state"
	"chancery/storage"
)

// Lookup asks for one piece of one state.
type Lookup struct {
	Root state.Root
	Key  Key
}

// Lookup reads pieces of many states of a room in a few queries, however many there are. The answer to
// each question stands at its place; nil where the state has no such piece.
func (rd *Reader) Lookup(tx storage.Tx, room storage.Room, asked []Lookup) ([]*Stored, error) {
	out := make([]*Stored, len(asked))
	if len(asked) == 0 {
		return out, nil
	}
	slots, err := slotsOf(tx, room.NID, asked)
	if err != nil {
		return nil, err
	}
	numbers := make([]state.Lookup, len(asked))
	for i, l := range asked {
		slot, ok := slots[l.Key]
		if !ok {
			slot = noSlot
		}
		numbers[i] = state.Lookup{Root: l.Root, Slot: slot}
	}
	nids, err := rd.Array(tx, room.NID).GetEach(numbers)
	if err != nil {
		return nil, fmt.Errorf("look up states: %w", asGone(err))
	}
	events, err := rd.ByNumber(tx, room, distinct(nids))
	if err != nil {
		return nil, err
	}
	for i, n := range nids {
		out[i] = events[n]
	}
	return out, nil
}

func slotsOf(tx storage.Tx, room int64, asked []Lookup) (map[Key]int64, error) {
	wanted := make(map[Key]bool, len(asked))
	var types, keys []string
	seenType, seenKey := map[string]bool{}, map[string]bool{}
	for _, l := range asked {
		wanted[l.Key] = true
		if !seenType[l.Key.Type] {
			seenType[l.Key.Type] = true
			types = append(types, l.Key.Type)
		}
		if !seenKey[l.Key.StateKey] {
			seenKey[l.Key.StateKey] = true
			keys = append(keys, l.Key.StateKey)
		}
	}
	found, err := tx.SlotsByKeys(room, types, keys)
	if err != nil {
		return nil, err
	}
	slots := make(map[Key]int64, len(wanted))
	for _, s := range found {
		if k := (Key{s.Type, s.StateKey}); wanted[k] {
			slots[k] = s.Slot
		}
	}
	return slots, nil
}

func distinct(nids []int64) []int64 {
	seen := make(map[int64]bool, len(nids))
	out := make([]int64, 0, len(nids))
	for _, n := range nids {
		if n != 0 && !seen[n] {
			seen[n] = true
			out = append(out, n)
		}
	}
	return out
}
