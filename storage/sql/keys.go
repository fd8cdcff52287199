package sql

import (
	"container/heap"
	"slices"
)

// inKeyOrder sorts a group so that groups of different processes take rows in the same order,
// else two of them deadlock. Functions with a key in common keep the order of submission,
// which goes before.
func inKeyOrder(group []*Pending) []*Pending {
	single := true
	for _, p := range group {
		single = single && len(p.keys) <= 1
	}
	if single {
		slices.SortStableFunc(group, func(a, b *Pending) int { return slices.Compare(a.keys, b.keys) })
		return group
	}
	// Each function waits for the last one before it of each of its keys; of those that wait
	// for nobody the one with the lowest keys is next.
	nodes := make([]node, len(group))
	last := map[string]int{}
	var free byKeys
	for i, p := range group {
		keys := slices.Compact(slices.Sorted(slices.Values(p.keys)))
		nodes[i].keys, nodes[i].place = keys, i
		for _, k := range keys {
			if before, ok := last[k]; ok {
				nodes[before].after = append(nodes[before].after, i)
				nodes[i].waits++
			}
			last[k] = i
		}
		if nodes[i].waits == 0 {
			free = append(free, &nodes[i])
		}
	}
	heap.Init(&free)
	sorted := make([]*Pending, 0, len(group))
	for len(free) > 0 {
		n := heap.Pop(&free).(*node)
		sorted = append(sorted, group[n.place])
		for _, i := range n.after {
			if nodes[i].waits--; nodes[i].waits == 0 {
				heap.Push(&free, &nodes[i])
			}
		}
	}
	return sorted
}

type node struct {
	keys  []string
	place int
	waits int
	after []int
}

type byKeys []*node

func (h byKeys) Len() int      { return len(h) }
func (h byKeys) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h byKeys) Less(i, j int) bool {
	if c := slices.Compare(h[i].keys, h[j].keys); c != 0 {
		return c < 0
	}
	return h[i].place < h[j].place
}
func (h *byKeys) Push(x any) { *h = append(*h, x.(*node)) }
func (h *byKeys) Pop() any {
	old := *h
	n := old[len(old)-1]
	*h = old[:len(old)-1]
	return n
}
