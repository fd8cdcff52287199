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
// each question stands at its place; nil where the state has no such piece. The answers are pieces of state: where an
// outlier stands in the room's history by now they do not say.
func (rd *Reader) Lookup(tx storage.Tx, room storage.Room, asked []Lookup) ([]*Stored, error) {
	out := make([]*Stored, len(asked))
	if len(asked) == 0 {
		return out, nil
	}
	keys := make([]Key, len(asked))
	for i, l := range asked {
		keys[i] = l.Key
	}
	slots, err := rd.slotsOf(tx, room.NID, keys)
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
	events := make(map[int64]*Stored, len(nids))
	var missing []int64
	for _, n := range distinct(nids) {
		if ev, ok := rd.outliers.Get(n); ok {
			events[n] = ev
		} else {
			missing = append(missing, n)
		}
	}
	found, err := rd.ByNumber(tx, room, missing)
	if err != nil {
		return nil, err
	}
	for n, ev := range found {
		events[n] = ev
		if ev.Status == storage.Outlier {
			rd.outliers.Put(n, ev, ev.Size()+400)
		}
	}
	for i, n := range nids {
		out[i] = events[n]
	}
	return out, nil
}

type slotKey struct {
	room int64
	Key
}

// slotsOf finds the slots of some keys; what has none is left out.
func (rd *Reader) slotsOf(tx storage.Tx, room int64, keys []Key) (map[Key]int64, error) {
	slots := make(map[Key]int64, len(keys))
	unknown := map[Key]bool{}
	var types, stateKeys []string
	seenType, seenKey := map[string]bool{}, map[string]bool{}
	for _, k := range keys {
		if slot, ok := rd.slots.Get(slotKey{room, k}); ok {
			slots[k] = slot
			continue
		}
		unknown[k] = true
		if !seenType[k.Type] {
			seenType[k.Type] = true
			types = append(types, k.Type)
		}
		if !seenKey[k.StateKey] {
			seenKey[k.StateKey] = true
			stateKeys = append(stateKeys, k.StateKey)
		}
	}
	if len(unknown) == 0 {
		return slots, nil
	}
	found, err := tx.SlotsByKeys(room, types, stateKeys)
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		if k := (Key{s.Type, s.StateKey}); unknown[k] {
			slots[k] = s.Slot
			rd.slots.Put(slotKey{room, k}, s.Slot, 150+len(k.Type)+len(k.StateKey))
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
