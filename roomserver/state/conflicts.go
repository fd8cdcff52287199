package state

import (
	"maps"
	"slices"

	"chancery/roomserver/auth"
)

// Conflicts are the slots in which some states of a room differ.
//
// spec: rooms/v2#definitions
type Conflicts struct {
	Slots []int64
	Sets  [][]int64 // for each state, its events in those slots
}

// Conflicts compares states. It looks only at where they differ.
func (a *Array) Conflicts(roots ...Root) (Conflicts, error) {
	first := make(map[int64]int64) // by slot, the event of the first state
	is := make([]map[int64]int64, len(roots))
	for i, root := range roots {
		is[i] = make(map[int64]int64)
		changes, err := a.Diff(roots[0], root)
		if err != nil {
			return Conflicts{}, err
		}
		for _, c := range changes {
			first[c.Slot] = c.Was
			is[i][c.Slot] = c.Is
		}
	}
	c := Conflicts{Slots: slices.Sorted(maps.Keys(first)), Sets: make([][]int64, len(roots))}
	for i := range roots {
		for _, slot := range c.Slots {
			nid, differs := is[i][slot]
			if !differs {
				nid = first[slot]
			}
			if nid != 0 {
				c.Sets[i] = append(c.Sets[i], nid)
			}
		}
	}
	return c, nil
}

// Agreed makes the lookup that Resolve needs of the state all roots agree on: root is any of
// them, slots finds the slots of keys, -1 for one that has none.
func (a *Array) Agreed(root Root, c Conflicts, slots func([]auth.Key) ([]int64, error)) func([]auth.Key) ([]int64, error) {
	return func(keys []auth.Key) ([]int64, error) {
		at, err := slots(keys)
		if err != nil {
			return nil, err
		}
		nids, err := a.Get(root, at...)
		if err != nil {
			return nil, err
		}
		for i, slot := range at {
			if _, conflicted := slices.BinarySearch(c.Slots, slot); conflicted {
				nids[i] = 0
			}
		}
		return nids, nil
	}
}
