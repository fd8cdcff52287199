package state

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
)

// Place is where an event stands in the chain cover of its room: from a place, every lower
// index of the same chain is in the event's auth chain. A chain has the number of its first
// event; indices begin at 1.
type Place struct{ Chain, Index int64 }

// Link says that the event at From, and so every later one of that chain, has To and all
// before it in its auth chain.
type Link struct{ From, To Place }

// Span is part of a chain, First to Last.
type Span struct{ Chain, First, Last int64 }

// NewPlace is what must be stored with an event.
type NewPlace struct {
	NID   int64
	Place Place
	Links []Link // all from Place
}

// Places reads the stored chain cover of one room.
type Places interface {
	// Places gives where events stand; an event without a place is left out.
	Places(nids []int64) (map[int64]Place, error)
	// Events gives the events that stand in the spans, no more than limit.
	Events(spans []Span, limit int) (map[Place]int64, error)
	// Lengths gives the highest index of each chain.
	Lengths(chains []int64) (map[int64]int64, error)
	// LinksFrom gives all links that leave the chains.
	LinksFrom(chains []int64) ([]Link, error)
	// LinksTo gives links that come from other chains into the spans, no more than limit.
	LinksTo(spans []Span, limit int) ([]Link, error)
}

const (
	// coverBudget is how many events and links one question may touch.
	coverBudget = 400_000
	// coverKeeps is how many places and links stay in memory between questions.
	coverKeeps = 50_000
)

// Cover answers questions about auth chains by arithmetic on places instead of walking
// events. Every event that others may cite as an auth event, or that may stand in a state,
// must have been added; messages need no place.
//
// Like an Array it belongs to one goroutine and keeps what is not yet committed to itself.
type Cover struct {
	src     Places
	places  map[int64]Place
	out     map[int64][]Link // by chain: all links that leave it, by their index
	length  map[int64]int64
	kept    int
	vouched []int64 // agreed events that have shown of others that they are in all states
	unsaved map[int64]NewPlace
	made    []NewPlace
	budget  int // what is left for the question being answered
}

// NewCover opens the chain cover of a room.
func NewCover(src Places) *Cover {
	c := &Cover{src: src}
	c.Drop()
	return c
}

// Take gives the places made since the last Take, to be stored with their events.
func (c *Cover) Take() []NewPlace {
	made := c.made
	c.made = nil
	return made
}

// Stored tells that the transaction of these places is committed.
func (c *Cover) Stored(places []NewPlace) {
	for _, p := range places {
		delete(c.unsaved, p.NID)
	}
}

// Drop forgets what is not stored, after a commit failed.
func (c *Cover) Drop() {
	c.unsaved, c.made, c.vouched = make(map[int64]NewPlace), nil, nil
	c.forget()
}

func (c *Cover) forget() {
	c.places, c.out, c.length = make(map[int64]Place), make(map[int64][]Link), make(map[int64]int64)
	c.kept = 0
}

// begin starts a question with a full budget.
func (c *Cover) begin() {
	c.budget = coverBudget
	if c.kept > coverKeeps {
		c.forget()
	}
}

func (c *Cover) spend(n int) error {
	if c.budget -= n; c.budget < 0 {
		return fmt.Errorf("%w: auth chains of more than %d events and links", ErrBudget, coverBudget)
	}
	return nil
}

// Add gives an event its place. Its auth events must have theirs. follows is the one of them
// that has the event's own type and state key, 0 for none: power levels so form one chain
// and the memberships of a user another, which keeps links few.
//
// An event is added once, when it is first stored. That it has no place yet is not looked up,
// so that in a hot room adding asks storage for nothing.
func (c *Cover) Add(nid int64, auth []int64, follows int64) (Place, error) {
	c.begin()
	if p, ok := c.places[nid]; ok {
		return p, nil
	}
	if err := c.loadPlaces(auth); err != nil {
		return Place{}, err
	}
	chains := make([]int64, 0, len(auth))
	for _, a := range auth {
		p, ok := c.places[a]
		if !ok {
			return Place{}, fmt.Errorf("%w: auth event %d has no place in the chain cover", ErrMissing, a)
		}
		chains = append(chains, p.Chain)
	}
	place := Place{nid, 1}
	if follows != 0 && slices.Contains(auth, follows) {
		last := c.places[follows]
		if err := c.loadLengths([]int64{last.Chain}); err != nil {
			return Place{}, err
		}
		// Two events that follow the same one cannot both stand in its chain.
		if c.length[last.Chain] == last.Index {
			place = Place{last.Chain, last.Index + 1}
		}
	}
	if place.Chain == nid {
		c.out[nid] = nil // a new chain has no links yet
	} else {
		chains = append(chains, place.Chain)
	}
	if err := c.loadLinks(chains); err != nil {
		return Place{}, err
	}
	links := c.newLinks(place, auth)
	c.places[nid] = place
	c.length[place.Chain] = place.Index
	c.out[place.Chain] = append(c.out[place.Chain], links...)
	c.kept += 1 + len(links)
	made := NewPlace{nid, place, links}
	c.unsaved[nid] = made
	c.made = append(c.made, made)
	return place, nil
}

// newLinks are the links a new place needs to reach its auth events: none to what its chain
// or another of the auth events already reaches in one step.
func (c *Cover) newLinks(place Place, auth []int64) []Link {
	want := make(map[int64]int64, len(auth)) // by chain, the highest index that must be reached
	for _, a := range auth {
		p := c.places[a]
		want[p.Chain] = max(want[p.Chain], p.Index)
	}
	implied := func(to, by Place) bool {
		for _, l := range c.out[by.Chain] {
			if l.From.Index <= by.Index && l.To.Chain == to.Chain && l.To.Index >= to.Index {
				return true
			}
		}
		return false
	}
	var links []Link
	for chain, index := range want {
		to := Place{chain, index}
		needed := chain != place.Chain && !implied(to, place)
		for _, a := range auth {
			if by := c.places[a]; needed && by.Chain != chain {
				needed = !implied(to, by)
			}
		}
		if needed {
			links = append(links, Link{place, to})
		}
	}
	slices.SortFunc(links, func(x, y Link) int { return cmp.Compare(x.To.Chain, y.To.Chain) })
	return links
}

// InAuthChain says whether x is in the auth chain of y. No event is in its own.
func (c *Cover) InAuthChain(x, y int64) (bool, error) {
	c.begin()
	r, err := c.reach([]int64{y})
	if err != nil {
		return false, err
	}
	if err := c.loadPlaces([]int64{x}); err != nil {
		return false, err
	}
	p, ok := c.places[x]
	if !ok {
		return false, fmt.Errorf("%w: event %d has no place in the chain cover", ErrMissing, x)
	}
	return r.has(p), nil
}

// AuthChain gives the union of the auth chains of events, in the order of their numbers.
//
// spec: rooms/v2#definitions
func (c *Cover) AuthChain(nids ...int64) ([]int64, error) {
	c.begin()
	r, err := c.reach(nids)
	if err != nil {
		return nil, err
	}
	var spans []Span
	for chain, index := range r {
		if index > 0 {
			spans = append(spans, Span{chain, 1, index})
		}
	}
	slices.SortFunc(spans, func(x, y Span) int { return cmp.Compare(x.Chain, y.Chain) })
	events, err := c.eventsIn(spans)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Values(events)), nil
}

// reached holds an auth chain, or a union of them: of each chain, all up to an index.
type reached map[int64]int64

func (r reached) has(p Place) bool { return p.Index <= r[p.Chain] }

// reach gives the union of the auth chains of events.
func (c *Cover) reach(nids []int64) (reached, error) {
	places, err := c.standing(nids)
	if err != nil {
		return nil, err
	}
	r := make(reached)
	followed := make(map[int64]int64) // by chain, up to which index its links were followed
	next := make(map[int64]int64)     // and up to which they must be
	for _, p := range places {
		r[p.Chain] = max(r[p.Chain], p.Index-1)
		next[p.Chain] = max(next[p.Chain], p.Index)
	}
	for len(next) > 0 {
		chains := make([]int64, 0, len(next))
		for chain := range next {
			chains = append(chains, chain)
		}
		if err := c.loadLinks(chains); err != nil {
			return nil, err
		}
		if err := c.spend(len(chains)); err != nil {
			return nil, err
		}
		further := make(map[int64]int64)
		for chain, upto := range next {
			for _, l := range c.out[chain] {
				if l.From.Index > upto {
					break
				}
				if l.From.Index <= followed[chain] {
					continue
				}
				if err := c.spend(1); err != nil {
					return nil, err
				}
				to := l.To
				r[to.Chain] = max(r[to.Chain], to.Index)
				if to.Index > max(followed[to.Chain], next[to.Chain], further[to.Chain]) {
					further[to.Chain] = to.Index
				}
			}
			followed[chain] = max(followed[chain], upto)
		}
		next = further
	}
	return r, nil
}

// standing gives the places of events that must have one.
func (c *Cover) standing(nids []int64) ([]Place, error) {
	if err := c.spend(len(nids)); err != nil {
		return nil, err
	}
	if err := c.loadPlaces(nids); err != nil {
		return nil, err
	}
	places := make([]Place, len(nids))
	for i, nid := range nids {
		p, ok := c.places[nid]
		if !ok {
			return nil, fmt.Errorf("%w: event %d has no place in the chain cover", ErrMissing, nid)
		}
		places[i] = p
	}
	return places, nil
}

func (c *Cover) loadPlaces(nids []int64) error {
	var missing []int64
	for _, nid := range nids {
		if _, ok := c.places[nid]; ok {
			continue
		}
		if p, ok := c.unsaved[nid]; ok {
			c.places[nid] = p.Place
			continue
		}
		missing = append(missing, nid)
	}
	if len(missing) == 0 {
		return nil
	}
	got, err := c.src.Places(missing)
	if err != nil {
		return fmt.Errorf("read places of %d events: %w", len(missing), err)
	}
	for nid, p := range got {
		c.places[nid] = p
	}
	c.kept += len(got)
	return nil
}

func (c *Cover) loadLengths(chains []int64) error {
	var missing []int64
	for _, chain := range chains {
		if _, ok := c.length[chain]; !ok {
			missing = append(missing, chain)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	got, err := c.src.Lengths(missing)
	if err != nil {
		return fmt.Errorf("read lengths of %d chains: %w", len(missing), err)
	}
	for _, chain := range missing {
		c.length[chain] = got[chain]
	}
	for _, p := range c.unsaved {
		if n, ok := c.length[p.Place.Chain]; ok {
			c.length[p.Place.Chain] = max(n, p.Place.Index)
		}
	}
	return nil
}

func (c *Cover) loadLinks(chains []int64) error {
	var missing []int64
	for _, chain := range chains {
		if _, ok := c.out[chain]; !ok {
			c.out[chain] = nil
			missing = append(missing, chain)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	links, err := c.src.LinksFrom(missing)
	if err != nil {
		for _, chain := range missing {
			delete(c.out, chain)
		}
		return fmt.Errorf("read links of %d chains: %w", len(missing), err)
	}
	for _, p := range c.unsaved {
		if _, ok := slices.BinarySearch(missing, p.Place.Chain); ok {
			links = append(links, p.Links...)
		}
	}
	for _, l := range links {
		c.out[l.From.Chain] = append(c.out[l.From.Chain], l)
	}
	for _, chain := range missing {
		list := c.out[chain]
		slices.SortFunc(list, func(x, y Link) int {
			return cmp.Or(cmp.Compare(x.From.Index, y.From.Index), cmp.Compare(x.To.Chain, y.To.Chain),
				cmp.Compare(x.To.Index, y.To.Index))
		})
		c.out[chain] = slices.Compact(list)
	}
	c.kept += len(missing) + len(links)
	return nil
}

// eventsIn gives the events that stand in spans.
func (c *Cover) eventsIn(spans []Span) (map[Place]int64, error) {
	if len(spans) == 0 {
		return nil, nil
	}
	got, err := c.src.Events(spans, c.budget+1)
	if err != nil {
		return nil, fmt.Errorf("read the events of %d chains: %w", len(spans), err)
	}
	if got == nil {
		got = make(map[Place]int64)
	}
	for nid, p := range c.unsaved {
		for _, s := range spans {
			if p.Place.Chain == s.Chain && p.Place.Index >= s.First && p.Place.Index <= s.Last {
				got[p.Place] = nid
			}
		}
	}
	return got, c.spend(len(got))
}

// linksTo gives links into spans that run to the end of their chains; more says that there
// may be others beyond the limit.
func (c *Cover) linksTo(spans []Span, limit int) (links []Link, more bool, err error) {
	if links, err = c.src.LinksTo(spans, limit); err != nil {
		return nil, false, fmt.Errorf("read links to %d chains: %w", len(spans), err)
	}
	more = len(links) >= limit
	for _, p := range c.unsaved {
		for _, l := range p.Links {
			for _, s := range spans {
				if l.To.Chain == s.Chain && l.To.Index >= s.First && l.To.Index <= s.Last {
					links = append(links, l)
				}
			}
		}
	}
	return links, more, c.spend(len(links))
}

// toEnd is a span from an index to the end of its chain.
func toEnd(p Place) Span { return Span{p.Chain, p.Index, math.MaxInt64} }
