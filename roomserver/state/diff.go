package state

// Entry is one slot of a state.
type Entry struct{ Slot, NID int64 }

// Change is one slot in which two states differ; 0 where there is no event.
type Change struct{ Slot, Was, Is int64 }

// All reads a whole state in slot order, a level at a time.
func (a *Array) All(root Root) ([]Entry, error) {
	changes, err := a.Diff(0, root)
	if err != nil {
		return nil, err
	}
	all := make([]Entry, len(changes))
	for i, c := range changes {
		all[i] = Entry{c.Slot, c.Is}
	}
	return all, nil
}

// Diff compares two states in slot order. What they share is not looked at, so the cost is
// that of the difference, not of the room.
func (a *Array) Diff(x, y Root) ([]Change, error) {
	if x == y {
		return nil, nil
	}
	w := walk{array: a}
	tops := [2]int{-1, -1}
	if err := w.load([]int64{int64(x), int64(y)}, -1); err != nil {
		return nil, err
	}
	for i, root := range [2]Root{x, y} {
		if root != 0 {
			tops[i] = w.nodes[int64(root)].level
		}
	}
	level := max(tops[0], tops[1])
	// Each pair of entries that differ is looked into on the next level. The lower of two
	// arrays is entry 0 of nodes that it does not have.
	pairs := []Change{{0, int64(x), int64(y)}}
	for ; level >= 0; level-- {
		var ids []int64
		for _, p := range pairs {
			if !(p.Slot == 0 && level > tops[0]) {
				ids = append(ids, p.Was)
			}
			if !(p.Slot == 0 && level > tops[1]) {
				ids = append(ids, p.Is)
			}
		}
		if err := w.load(ids, level); err != nil {
			return nil, err
		}
		below := make([]Change, 0, len(pairs))
		for _, p := range pairs {
			was, is := w.entries(p.Was, level, tops[0]), w.entries(p.Is, level, tops[1])
			for i := range was {
				if was[i] != is[i] {
					below = append(below, Change{p.Slot<<fanBits | int64(i), was[i], is[i]})
				}
			}
		}
		pairs = below
	}
	return pairs, nil
}

// entries are those of a node, or of the level above an array's top that stands for it.
func (w *walk) entries(id int64, level, top int) (all [fan]int64) {
	switch {
	case id == 0:
	case level > top:
		all[0] = id
	default:
		all = w.nodes[id].expand()
	}
	return all
}
