package state

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

const (
	fanBits  = 6
	fan      = 1 << fanBits
	maxLevel = 4 // slots below 2^30

	// A node with this many entries or more is stored as what it changes in a whole node,
	// up to maxDelta entries; then it is whole again. A member's change in a room of
	// 100,000 so writes tens of bytes a level instead of hundreds. Smaller nodes are always
	// whole: a second read would cost more than the bytes.
	deltaFrom = 24
	maxDelta  = 8

	deltaFlag = 0x80
)

// A node has up to 64 entries: event numbers at level 0, nodes of the level below above it.
// It never changes once made.
type node struct {
	level int
	bits  uint64  // which entries there are
	vals  []int64 // those entries, in order

	// base is the whole node that this one is stored as a difference to, 0 for a whole
	// node; diff says which entries are in that difference.
	base int64
	diff uint64
}

func (n *node) get(i int) int64 {
	if n.bits&(1<<i) == 0 {
		return 0
	}
	return n.vals[bits.OnesCount64(n.bits&(1<<i-1))]
}

// size is about what a node holds in memory, the cache's entry included.
func (n *node) size() int { return 160 + 8*cap(n.vals) }

// compact makes a node of all 64 entries, 0 for those that are not there.
func compact(level int, all *[fan]int64) *node {
	n := &node{level: level}
	count := 0
	for i, v := range all {
		if v != 0 {
			n.bits |= 1 << i
			count++
		}
	}
	n.vals = make([]int64, 0, count)
	for _, v := range all {
		if v != 0 {
			n.vals = append(n.vals, v)
		}
	}
	return n
}

func (n *node) expand() (all [fan]int64) {
	for i, rest := 0, n.bits; rest != 0; i, rest = i+1, rest&(rest-1) {
		all[bits.TrailingZeros64(rest)] = n.vals[i]
	}
	return all
}

// encode writes the node: its level, then which entries, then their values, each as the
// difference to the one before. Neighbours in a room are often neighbours in time, so most
// values take one to three bytes.
func (n *node) encode() []byte {
	out := make([]byte, 0, 16+3*len(n.vals))
	which := n.bits
	if n.base != 0 {
		out = append(out, byte(n.level)|deltaFlag)
		out = binary.AppendUvarint(out, uint64(n.base))
		which = n.diff
		out = append(out, byte(bits.OnesCount64(which)))
		for rest := which; rest != 0; rest &= rest - 1 {
			out = append(out, byte(bits.TrailingZeros64(rest)))
		}
	} else {
		out = append(out, byte(n.level))
		out = binary.AppendUvarint(out, which)
	}
	var last int64
	for rest := which; rest != 0; rest &= rest - 1 {
		v := n.get(bits.TrailingZeros64(rest))
		out = binary.AppendVarint(out, v-last)
		last = v
	}
	return out
}

// decode reads what encode wrote. A difference comes back with base set and only the
// entries that differ, those taken away as 0: patch makes it whole.
func decode(data []byte) (*node, error) {
	r := reader{data: data}
	head := r.byte()
	n := &node{level: int(head &^ deltaFlag)}
	if n.level > maxLevel {
		return nil, fmt.Errorf("%w: node of level %d", ErrCorrupt, n.level)
	}
	if head&deltaFlag != 0 {
		n.base = int64(r.uvarint())
		if n.base <= 0 {
			r.bad = true
		}
		count, last := int(r.byte()), -1
		for range min(count, fan) {
			i := int(r.byte())
			if i <= last || i >= fan {
				r.bad = true
				break
			}
			n.diff |= 1 << i
			last = i
		}
		n.bits = n.diff
		if count > fan {
			r.bad = true
		}
	} else {
		n.bits = r.uvarint()
	}
	if r.bad || n.bits == 0 {
		return nil, fmt.Errorf("%w: node of %d bytes", ErrCorrupt, len(data))
	}
	n.vals = make([]int64, bits.OnesCount64(n.bits))
	var last int64
	for i := range n.vals {
		last += r.varint()
		if last < 0 || last == 0 && n.base == 0 {
			r.bad = true
		}
		n.vals[i] = last
	}
	if r.bad || len(r.data) != 0 {
		return nil, fmt.Errorf("%w: node of %d bytes", ErrCorrupt, len(data))
	}
	return n, nil
}

// patch applies a decoded difference to its whole node.
func (n *node) patch(base *node) (*node, error) {
	if base.base != 0 || base.level != n.level {
		return nil, fmt.Errorf("%w: a node differs from one that is not whole", ErrCorrupt)
	}
	all := base.expand()
	for i, rest := 0, n.diff; rest != 0; i, rest = i+1, rest&(rest-1) {
		all[bits.TrailingZeros64(rest)] = n.vals[i]
	}
	whole := compact(n.level, &all)
	if whole.bits == 0 {
		return nil, fmt.Errorf("%w: an empty node", ErrCorrupt)
	}
	whole.base, whole.diff = n.base, n.diff
	return whole, nil
}

// References gives the nodes that a stored node needs beside itself: those below it and the
// one it is stored as a difference to. It is for the collector of unused nodes.
func References(data []byte) ([]int64, error) {
	n, err := decode(data)
	if err != nil {
		return nil, err
	}
	var refs []int64
	if n.base != 0 {
		refs = append(refs, n.base)
	}
	if n.level > 0 {
		for _, v := range n.vals {
			if v != 0 {
				refs = append(refs, v)
			}
		}
	}
	return refs, nil
}

// reader takes numbers off stored bytes and remembers when there were too few.
type reader struct {
	data []byte
	bad  bool
}

func (r *reader) byte() byte {
	if len(r.data) == 0 {
		r.bad = true
		return 0
	}
	b := r.data[0]
	r.data = r.data[1:]
	return b
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.data)
	if n <= 0 {
		r.bad = true
		r.data = nil
		return 0
	}
	r.data = r.data[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.data)
	if n <= 0 {
		r.bad = true
		r.data = nil
		return 0
	}
	r.data = r.data[n:]
	return v
}
