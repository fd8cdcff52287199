package state

import "chancery/roomserver/auth"

// Trace is told how a resolution came to its result.
//
// spec: rooms/v2#state-resolution
type Trace struct {
	Difference []int64 // the auth difference, conflicted events left out
	Subgraph   []int64 // the conflicted subgraph, in version 2.1
	Full       []int64 // the full conflicted set; in version 1 there is none
	Mainline   int64   // the power levels that the mainline begins with; 0: there were none
	Tried      []Tried // in the order in which they were tried

	positions map[int64]int64
}

// Unasked is the order of what version 1 takes without asking the rules.
const Unasked = "unasked"

// Tried is one event that was tried against the partially resolved state.
type Tried struct {
	NID      int64
	Order    string // by which it has its turn
	Mainline int64  // its mainline position, 0 being the power levels that hold; -1 where that does not count
	Allowed  bool
	Said     []auth.Said // empty: it was taken unasked
}

func (t *Trace) sets(difference, subgraph, full []int64) {
	if t != nil {
		t.Difference, t.Subgraph, t.Full = difference, subgraph, full
	}
}

func (t *Trace) mainline(base *Known, positions map[int64]int64) {
	if t == nil {
		return
	}
	t.positions = positions
	if base != nil {
		t.Mainline = base.NID
	}
}

// uncontested is told of an event that version 1 takes unasked.
func (t *Trace) uncontested(k *Known) {
	if t != nil {
		t.Tried = append(t.Tried, Tried{NID: k.NID, Order: Unasked, Mainline: -1, Allowed: true})
	}
}

// check asks whether an event is allowed by the partially resolved state.
func (r *resolution) check(order string, k *Known) error {
	t := r.in.Trace
	if t == nil {
		return auth.Check(k.Event, view{r, k})
	}
	said, err := auth.Explain(k.Event, view{r, k})
	tried := Tried{NID: k.NID, Order: order, Mainline: -1, Allowed: err == nil, Said: said}
	if p, ok := t.positions[k.NID]; ok {
		tried.Mainline = p
	}
	t.Tried = append(t.Tried, tried)
	return err
}
