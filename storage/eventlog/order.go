package eventlog

import (
	"slices"

	"chancery/storage/sql"
)

// maxWaiting bounds what is held above a gap. What is let go is read from SQL with the gap.
const maxWaiting = 20_000

// order turns facts that arrive in any order, twice or never into facts in order, once each.
// It goes forward in two ways only: a fact that arrives directly above the end, or rows that
// Source gives after the end. A read of Source is complete up to its last row, because
// positions are commit order; so a jump between epochs needs no rule of its own.
type order struct {
	end     int64      // everything up to here was given out
	waiting []sql.Fact // above a gap, ascending, each once
}

// arrive takes facts off the wire and gives those that are next.
func (o *order) arrive(facts []sql.Fact) []sql.Fact {
	if len(facts) == 0 {
		return nil
	}
	if len(o.waiting) == 0 && o.next(facts) {
		o.end = facts[len(facts)-1].Pos
		return facts
	}
	for _, f := range facts {
		if f.Pos > o.end {
			o.waiting = append(o.waiting, f)
		}
	}
	slices.SortStableFunc(o.waiting, func(a, b sql.Fact) int {
		switch {
		case a.Pos < b.Pos:
			return -1
		case a.Pos > b.Pos:
			return 1
		}
		return 0
	})
	o.waiting = slices.CompactFunc(o.waiting, func(a, b sql.Fact) bool { return a.Pos == b.Pos })
	if len(o.waiting) > maxWaiting {
		o.waiting = slices.Clone(o.waiting[:maxWaiting])
	}
	return o.release(nil)
}

// next says whether the facts are exactly the ones that follow, without a hole.
func (o *order) next(facts []sql.Fact) bool {
	for i, f := range facts {
		if f.Pos != o.end+1+int64(i) {
			return false
		}
	}
	return true
}

// fill takes what Source has after the end and gives it, and what waited directly above it.
func (o *order) fill(rows []sql.Fact) []sql.Fact {
	ready := make([]sql.Fact, 0, len(rows))
	for _, f := range rows {
		if f.Pos > o.end {
			ready = append(ready, f)
			o.end = f.Pos
		}
	}
	return o.release(ready)
}

func (o *order) release(ready []sql.Fact) []sql.Fact {
	i := 0
	for ; i < len(o.waiting); i++ {
		f := o.waiting[i]
		if f.Pos <= o.end {
			continue
		}
		if f.Pos != o.end+1 {
			break
		}
		ready = append(ready, f)
		o.end = f.Pos
	}
	if o.waiting = o.waiting[i:]; len(o.waiting) == 0 {
		o.waiting = nil
	}
	return ready
}

// gap says whether something waits above a position that has not arrived.
func (o *order) gap() bool { return len(o.waiting) > 0 }
