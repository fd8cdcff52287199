package state

// Lookup asks for one slot of one state.
type Lookup struct {
	Root Root
	Slot int64
}

// GetEach reads slots of many states at once: what it asks the source grows with the height of the
// arrays, not with the number of states. 0 means that a slot is empty.
func (a *Array) GetEach(asked []Lookup) ([]int64, error) {
	at := make([]int64, len(asked)) // the node, and in the end the event, that each question has come to
	w := walk{array: a}
	roots := make([]int64, 0, len(asked))
	for _, l := range asked {
		roots = append(roots, int64(l.Root))
	}
	if err := w.load(roots, -1); err != nil {
		return nil, err
	}
	top := -1
	levels := make([]int, len(asked))
	for i, l := range asked {
		if l.Root == 0 || l.Slot < 0 {
			continue
		}
		level := w.nodes[int64(l.Root)].level
		if l.Slot>>(fanBits*(level+1)) != 0 {
			continue
		}
		at[i], levels[i] = int64(l.Root), level
		top = max(top, level)
	}
	for level := top; level >= 0; level-- {
		var ids []int64
		for i := range asked {
			if at[i] != 0 && levels[i] >= level {
				ids = append(ids, at[i])
			}
		}
		if err := w.load(ids, level); err != nil {
			return nil, err
		}
		for i, l := range asked {
			if at[i] != 0 && levels[i] >= level {
				at[i] = w.nodes[at[i]].get(int(l.Slot >> (fanBits * level) & (fan - 1)))
			}
		}
	}
	return at, nil
}
