package state

import (
	"fmt"
	"math/bits"
	"slices"
)

// Root names a state of a room: the node its array begins with. 0 is the empty state.
type Root int64

// Source reads the stored nodes of one room. It is asked once for each level of an array,
// and once more where nodes are stored as differences to others.
type Source interface {
	Nodes(ids []int64) (map[int64][]byte, error)
}

// NewNode is a node that must be stored in the transaction of the event that made it.
type NewNode struct {
	ID   int64
	Data []byte
}

// Array reads and changes the states of one room. States share what they have in common;
// making a new one writes a node a level. It has one shape for each content: a level is
// there only when a slot needs it, and an entry only when there is an event.
//
// An Array belongs to one goroutine. Nodes it makes stay in it until Stored tells that their
// transaction is committed.
type Array struct {
	room    int64
	src     Source
	cache   *Cache
	next    func() int64
	unsaved map[int64]*node // made here, not known to be committed
	made    []NewNode       // of those, what Take has not given out
}

// NewArray opens the states of a room. next gives the numbers of new nodes; a reader that
// never calls Set gives nil.
func NewArray(room int64, src Source, cache *Cache, next func() int64) *Array {
	return &Array{room: room, src: src, cache: cache, next: next, unsaved: make(map[int64]*node)}
}

// Take gives the nodes made since the last Take. They go into the transaction of their event.
func (a *Array) Take() []NewNode {
	made := a.made
	a.made = nil
	return made
}

// Made says how many nodes the next Take gives.
func (a *Array) Made() int { return len(a.made) }

// Stored tells that the transaction of these nodes is committed: from now on other readers
// of the room may find them in the cache.
func (a *Array) Stored(nodes []NewNode) {
	for _, n := range nodes {
		if made := a.unsaved[n.ID]; made != nil {
			a.cache.put(a.room, n.ID, made)
			delete(a.unsaved, n.ID)
		}
	}
}

// Drop forgets every node that is not stored, after a commit failed.
func (a *Array) Drop() {
	clear(a.unsaved)
	a.made = nil
}

// Get reads slots of a state, in the order asked for. 0 means that the slot is empty.
func (a *Array) Get(root Root, slots ...int64) ([]int64, error) {
	out := make([]int64, len(slots))
	at := make([]int64, len(slots)) // the node in which each slot is looked for
	var level int
	w := walk{array: a}
	if root != 0 {
		top, err := w.node(int64(root))
		if err != nil {
			return nil, err
		}
		level = top.level
		for i, slot := range slots {
			if slot >= 0 && slot>>(fanBits*(level+1)) == 0 {
				at[i] = int64(root)
			}
		}
	}
	for ; root != 0 && level >= 0; level-- {
		if err := w.load(at, level); err != nil {
			return nil, err
		}
		for i, slot := range slots {
			if at[i] != 0 {
				at[i] = w.nodes[at[i]].get(int(slot >> (fanBits * level) & (fan - 1)))
			}
		}
	}
	copy(out, at)
	return out, nil
}

// Set changes slots of a state and gives the new one; a value of 0 empties its slot. When
// nothing changes the same root comes back and no node is made.
func (a *Array) Set(root Root, changes map[int64]int64) (Root, error) {
	list := make([]change, 0, len(changes))
	level := 0
	for slot, nid := range changes {
		if slot < 0 || slot>>(fanBits*(maxLevel+1)) != 0 || nid < 0 {
			return 0, fmt.Errorf("state: slot %d cannot hold event %d", slot, nid)
		}
		list = append(list, change{slot, nid})
		for nid != 0 && slot>>(fanBits*(level+1)) != 0 {
			level++
		}
	}
	slices.SortFunc(list, func(x, y change) int { return int(x.slot - y.slot) })
	w := walk{array: a}
	if root != 0 {
		top, err := w.node(int64(root))
		if err != nil {
			return 0, err
		}
		if err := w.path(int64(root), top.level, list); err != nil {
			return 0, err
		}
		// The array grows from its top: the old root becomes entry 0 of each new level.
		if level > top.level {
			return a.grow(&w, root, top.level, level, list)
		}
		level = top.level
	}
	// What lies beyond the array can only be a removal of what is not there.
	list = slices.DeleteFunc(list, func(c change) bool { return c.slot>>(fanBits*(level+1)) != 0 })
	id, err := a.update(&w, int64(root), level, list, true)
	return Root(id), err
}

type change struct{ slot, nid int64 }

// grow sets changes in a state whose array must get more levels.
func (a *Array) grow(w *walk, root Root, has, level int, list []change) (Root, error) {
	if level == has {
		id, err := a.update(w, int64(root), level, list, false)
		return Root(id), err
	}
	var all [fan]int64
	span := int64(1) << (fanBits * level)
	below, _ := slices.BinarySearchFunc(list, span, func(c change, s int64) int { return int(c.slot - s) })
	first, err := a.grow(w, root, has, level-1, list[:below])
	if err != nil {
		return 0, err
	}
	all[0] = int64(first)
	if err := a.children(w, &all, level, list[below:], false); err != nil {
		return 0, err
	}
	n := compact(level, &all)
	if n.bits == 0 {
		return 0, nil
	}
	return Root(a.make(n)), nil
}

// update applies changes to the node id (0: an empty one) of a level and gives the node that
// holds the result, 0 when nothing is left. On the spine, where all that lies beside has
// gone, a node with nothing but entry 0 is replaced by that entry: that keeps one shape for
// each content.
func (a *Array) update(w *walk, id int64, level int, list []change, spine bool) (int64, error) {
	if len(list) == 0 && !spine {
		return id, nil
	}
	old := &node{level: level}
	if id != 0 {
		var err error
		if old, err = w.child(id, level); err != nil {
			return 0, err
		}
	}
	was := old.expand()
	all := was
	if level == 0 {
		for _, c := range list {
			all[c.slot&(fan-1)] = c.nid
		}
	} else if err := a.children(w, &all, level, list, spine); err != nil {
		return 0, err
	}
	var diff uint64
	for i := range all {
		if all[i] != was[i] {
			diff |= 1 << i
		}
	}
	n := compact(level, &all)
	switch {
	case n.bits == 0:
		return 0, nil
	case spine && level > 0 && n.bits == 1:
		return all[0], nil
	case diff == 0:
		return id, nil
	}
	if id != 0 && len(n.vals) >= deltaFrom {
		n.base, n.diff = id, diff
		if old.base != 0 {
			n.base, n.diff = old.base, old.diff|diff
		}
		if bits.OnesCount64(n.diff) > maxDelta {
			n.base, n.diff = 0, 0
		}
	}
	return a.make(n), nil
}

// children updates the entries of an inner node. Entry 0 comes last: only then is it known
// whether anything else is left beside it.
func (a *Array) children(w *walk, all *[fan]int64, level int, list []change, spine bool) error {
	for end := len(list); end > 0; {
		i := list[end-1].slot >> (fanBits * level) & (fan - 1)
		begin := end
		for begin > 0 && list[begin-1].slot>>(fanBits*level)&(fan-1) == i {
			begin--
		}
		if i == 0 {
			break
		}
		id, err := a.update(w, all[i], level-1, list[begin:end], false)
		if err != nil {
			return err
		}
		all[i] = id
		list, end = list[:begin], begin
	}
	for i := 1; i < fan && spine; i++ {
		spine = all[i] == 0
	}
	if len(list) == 0 && (!spine || all[0] == 0) {
		return nil
	}
	id, err := a.update(w, all[0], level-1, list, spine)
	all[0] = id
	return err
}

// make gives a new node its number.
func (a *Array) make(n *node) int64 {
	id := a.next()
	a.unsaved[id] = n
	a.made = append(a.made, NewNode{ID: id, Data: n.encode()})
	return id
}

// walk is one operation on an array. It keeps the nodes it has read, so that a small cache
// cannot make it read them twice.
type walk struct {
	array *Array
	nodes map[int64]*node
}

// node gives one node, the root of a walk.
func (w *walk) node(id int64) (*node, error) {
	if err := w.load([]int64{id}, -1); err != nil {
		return nil, err
	}
	return w.nodes[id], nil
}

// child gives a node that must be of a level.
func (w *walk) child(id int64, level int) (*node, error) {
	if err := w.load([]int64{id}, level); err != nil {
		return nil, err
	}
	return w.nodes[id], nil
}

// path reads the nodes on the way to the changed slots, a level at a time.
func (w *walk) path(root int64, level int, list []change) error {
	at := []int64{root}
	for ; ; level-- {
		if err := w.load(at, level); err != nil || level == 0 {
			return err
		}
		var below []int64
		seen := int64(-1)
		for _, c := range list {
			// list is sorted, so equal paths are neighbours.
			if prefix := c.slot >> (fanBits * level); prefix != seen {
				seen = prefix
				if id := w.find(root, level, c.slot); id != 0 {
					below = append(below, id)
				}
			}
		}
		at = below
	}
}

// find follows a slot through nodes already read, down to the entry at a level.
func (w *walk) find(root int64, level int, slot int64) int64 {
	id := root
	top := w.nodes[root].level
	if slot>>(fanBits*(top+1)) != 0 {
		return 0
	}
	for l := top; l >= level && id != 0; l-- {
		id = w.nodes[id].get(int(slot >> (fanBits * l) & (fan - 1)))
	}
	return id
}

// load reads nodes of a level (-1: of any) that the walk does not have yet; 0 is skipped.
func (w *walk) load(ids []int64, level int) error {
	if w.nodes == nil {
		w.nodes = make(map[int64]*node, len(ids))
	}
	var missing []int64
	for _, id := range ids {
		if id != 0 && w.nodes[id] == nil && !w.known(id) {
			missing = append(missing, id)
		}
	}
	if len(missing) > 0 {
		if err := w.read(missing); err != nil {
			return err
		}
	}
	for _, id := range ids {
		if id == 0 || level < 0 {
			continue
		}
		if got := w.nodes[id].level; got != level {
			return fmt.Errorf("%w: node %d of room %d is of level %d, not %d", ErrCorrupt, id, w.array.room, got, level)
		}
	}
	return nil
}

// known takes a node from memory.
func (w *walk) known(id int64) bool {
	n := w.array.unsaved[id]
	if n == nil {
		n = w.array.cache.get(w.array.room, id)
	}
	if n == nil {
		return false
	}
	w.nodes[id] = n
	return true
}

// read takes nodes from the source, and those they are stored as differences to.
func (w *walk) read(ids []int64) error {
	slices.Sort(ids)
	ids = slices.Compact(ids)
	stored, err := w.decode(ids)
	if err != nil {
		return err
	}
	var bases []int64
	for _, n := range stored {
		if n.base != 0 && w.nodes[n.base] == nil && stored[n.base] == nil && !w.known(n.base) {
			bases = append(bases, n.base)
		}
	}
	if len(bases) > 0 {
		slices.Sort(bases)
		whole, err := w.decode(slices.Compact(bases))
		if err != nil {
			return err
		}
		for id, n := range whole {
			if n.base == 0 {
				w.keep(id, n)
			}
		}
	}
	for id, n := range stored {
		if n.base == 0 {
			w.keep(id, n)
		}
	}
	for id, n := range stored {
		if n.base == 0 {
			continue
		}
		base := w.nodes[n.base]
		if base == nil {
			return fmt.Errorf("%w: node %d of room %d differs from one that is not whole", ErrCorrupt, id, w.array.room)
		}
		if n, err = n.patch(base); err != nil {
			return err
		}
		w.keep(id, n)
	}
	return nil
}

func (w *walk) keep(id int64, n *node) {
	w.nodes[id] = n
	w.array.cache.put(w.array.room, id, n)
}

func (w *walk) decode(ids []int64) (map[int64]*node, error) {
	if w.array.src == nil {
		return nil, fmt.Errorf("%w: node %d of room %d", ErrMissing, ids[0], w.array.room)
	}
	data, err := w.array.src.Nodes(ids)
	if err != nil {
		return nil, fmt.Errorf("read %d state nodes: %w", len(ids), err)
	}
	nodes := make(map[int64]*node, len(ids))
	for _, id := range ids {
		b, ok := data[id]
		if !ok {
			return nil, fmt.Errorf("%w: node %d of room %d", ErrMissing, id, w.array.room)
		}
		n, err := decode(b)
		if err != nil {
			return nil, fmt.Errorf("node %d of room %d: %w", id, w.array.room, err)
		}
		nodes[id] = n
	}
	return nodes, nil
}
