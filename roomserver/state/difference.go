package state

import (
	"maps"
	"slices"
)

// AuthDifference gives the events that are in the auth chains of some but not all of the
// states. sets holds what is conflicted in each state; agreed says which of some events
// stand in all states (nil: none do, sets holds whole states). Conflicted events may be
// left out of the result: the full conflicted set has them anyhow.
//
// The states are C_i = chain(agreed) ∪ chain(sets[i]), so the difference is what lies
// between the lowest and the highest index that the sets reach in each chain, less what an
// agreed event reaches. That last question is asked from below: are there agreed events
// among the descendants? Seldom are there many to look at, however large the room is.
//
// spec: rooms/v2#definitions, rooms/v12#definitions
func (c *Cover) AuthDifference(sets [][]int64, agreed func(nids []int64) ([]bool, error)) ([]int64, error) {
	c.begin()
	return c.authDifference(sets, agreed)
}

func (c *Cover) authDifference(sets [][]int64, agreed func([]int64) ([]bool, error)) ([]int64, error) {
	if len(sets) < 2 {
		return nil, nil
	}
	conflicted := make(map[int64]bool)
	chains := make([]reached, len(sets))
	highest := make(reached)
	for i, set := range sets {
		r, err := c.reach(set)
		if err != nil {
			return nil, err
		}
		chains[i] = r
		for chain, index := range r {
			highest[chain] = max(highest[chain], index)
		}
		for _, nid := range set {
			conflicted[nid] = true
		}
	}
	var spans []Span
	for chain, high := range highest {
		low := high
		for _, r := range chains {
			low = min(low, r[chain])
		}
		if low < high {
			spans = append(spans, Span{chain, low + 1, high})
		}
	}
	slices.SortFunc(spans, func(x, y Span) int { return int(x.Chain - y.Chain) })
	left, err := c.eventsIn(spans)
	if err != nil {
		return nil, err
	}
	if agreed != nil {
		maps.DeleteFunc(left, func(_ Place, nid int64) bool { return conflicted[nid] })
		if err := c.withoutAgreed(left, agreed); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Values(left)), nil
}

// withoutAgreed takes from events those that are in the auth chain of an agreed event. Those that showed it the last
// time are asked first: the states of one room agree on nearly the same from one resolution to the next.
func (c *Cover) withoutAgreed(left map[Place]int64, agreed func([]int64) ([]bool, error)) error {
	found, err := only(c.vouched, agreed)
	if err != nil {
		return err
	}
	for {
		if len(found) > 0 {
			// Those found below cover at least one of the events left, often all.
			r, err := c.reach(found)
			if err != nil {
				return err
			}
			maps.DeleteFunc(left, func(p Place, _ int64) bool { return r.has(p) })
		}
		if len(left) == 0 {
			return nil
		}
		if found, err = c.agreedBelow(left, agreed); err != nil || len(found) == 0 {
			return err
		}
		if err := c.vouch(found, left); err != nil {
			return err
		}
	}
}

// maxVouched is how many agreed events are remembered for the next question.
const maxVouched = 16

// vouch remembers of agreed events some that together show what all of them show, the latest last.
func (c *Cover) vouch(found []int64, left map[Place]int64) error {
	shown := make(map[Place]bool, len(left))
	for _, nid := range found {
		r, err := c.reach([]int64{nid})
		if err != nil {
			return err
		}
		more := false
		for p := range left {
			if r.has(p) && !shown[p] {
				shown[p], more = true, true
			}
		}
		if more {
			c.vouched = append(c.vouched, nid)
		}
		if len(shown) == len(left) || more && len(c.vouched) >= 2*maxVouched {
			break
		}
	}
	c.vouched = slices.Delete(c.vouched, 0, max(0, len(c.vouched)-maxVouched))
	return nil
}

func only(nids []int64, is func([]int64) ([]bool, error)) (those []int64, err error) {
	if len(nids) == 0 {
		return nil, nil
	}
	yes, err := is(nids)
	if err != nil {
		return nil, err
	}
	for i, nid := range nids {
		if yes[i] {
			those = append(those, nid)
		}
	}
	return those, nil
}

// firstLook is how many links are looked at before more of them are: where an event has very many descendants, the
// first few tell.
const firstLook = 16

// agreedBelow walks down from events to what has them in its auth chain, and stops at the
// first step that meets agreed events.
func (c *Cover) agreedBelow(events map[Place]int64, agreed func([]int64) ([]bool, error)) ([]int64, error) {
	low := make(map[int64]int64) // by chain, from where on all are descendants
	// Nothing is its own descendant: of each chain the lowest event itself does not count.
	begin := make(map[int64]int64)
	for p := range events {
		if at, ok := begin[p.Chain]; !ok || p.Index < at {
			begin[p.Chain] = p.Index
		}
	}
	var news []Place // descendants not yet looked at
	var from []Span  // where links may come into
	for chain, index := range begin {
		low[chain] = index + 1
		news = append(news, Place{chain, index + 1})
		from = append(from, toEnd(Place{chain, index}))
	}
	seen := make(map[int64]bool)
	look := func() ([]int64, error) {
		spans := make([]Span, len(news))
		for i, p := range news {
			spans[i] = toEnd(p)
		}
		got, err := c.eventsIn(spans)
		if err != nil {
			return nil, err
		}
		var nids []int64
		for _, nid := range got {
			if !seen[nid] {
				seen[nid] = true
				nids = append(nids, nid)
			}
		}
		slices.Sort(nids)
		return only(nids, agreed)
	}
	for {
		if found, err := look(); err != nil || len(found) > 0 {
			return found, err
		}
		if len(from) == 0 {
			return nil, nil
		}
		// A link's chain is a descendant from the link on; it is walked further from the lowest such index.
		var next []Span
		for limit, more := firstLook, true; more; limit *= 16 {
			var links []Link
			var err error
			if links, more, err = c.linksTo(from, min(limit, c.budget+1)); err != nil {
				return nil, err
			}
			news = news[:0]
			for _, l := range links {
				if at, ok := low[l.From.Chain]; !ok || l.From.Index < at {
					low[l.From.Chain] = l.From.Index
					news = append(news, l.From)
				}
			}
			for _, p := range news {
				next = append(next, toEnd(p))
			}
			if !more {
				break
			}
			if found, err := look(); err != nil || len(found) > 0 {
				return found, err
			}
		}
		from = next
	}
}

// ConflictedSubgraph gives the events that lie on a path of auth events between two
// conflicted events, those included. It is one walk up and one walk down the links,
// intersected: of each chain, what lies between the lowest descendant and the highest
// ancestor of a conflicted event.
//
// spec: rooms/v12#definitions
func (c *Cover) ConflictedSubgraph(conflicted []int64) ([]int64, error) {
	c.begin()
	return c.conflictedSubgraph(conflicted)
}

func (c *Cover) conflictedSubgraph(conflicted []int64) ([]int64, error) {
	up, err := c.reach(conflicted)
	if err != nil {
		return nil, err
	}
	places, err := c.standing(conflicted)
	if err != nil {
		return nil, err
	}
	down := make(map[int64]int64) // by chain, the lowest descendant of a conflicted event
	var queue []int64
	for _, p := range places {
		up[p.Chain] = max(up[p.Chain], p.Index)
		if at, ok := down[p.Chain]; !ok || p.Index < at {
			down[p.Chain] = p.Index
			queue = append(queue, p.Chain)
		}
	}
	into := make(map[int64][]Link)
	for chain, index := range up {
		for _, l := range c.out[chain] {
			if l.From.Index <= index {
				into[l.To.Chain] = append(into[l.To.Chain], l)
			}
		}
	}
	// Links into a chain are sorted with the highest target first: as the lowest descendant
	// falls, each is used once.
	for _, links := range into {
		slices.SortFunc(links, func(x, y Link) int { return int(y.To.Index - x.To.Index) })
	}
	for len(queue) > 0 {
		chain := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		links := into[chain]
		for len(links) > 0 && links[0].To.Index >= down[chain] {
			if err := c.spend(1); err != nil {
				return nil, err
			}
			from := links[0].From
			links = links[1:]
			if at, ok := down[from.Chain]; !ok || from.Index < at {
				down[from.Chain] = from.Index
				queue = append(queue, from.Chain)
			}
		}
		into[chain] = links
	}
	var spans []Span
	for chain, low := range down {
		if high := up[chain]; low <= high {
			spans = append(spans, Span{chain, low, high})
		}
	}
	slices.SortFunc(spans, func(x, y Span) int { return int(x.Chain - y.Chain) })
	events, err := c.eventsIn(spans)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Values(events)), nil
}
