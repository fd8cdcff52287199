package state

import (
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// atlas is a stored chain cover in memory.
type atlas struct {
	places map[int64]Place
	at     map[Place]int64
	links  []Link
	calls  int
}

func newAtlas() *atlas {
	return &atlas{places: make(map[int64]Place), at: make(map[Place]int64)}
}

func (m *atlas) store(c *Cover) {
	made := c.Take()
	for _, p := range made {
		if m.at[p.Place] != 0 {
			panic("two events stand in one place")
		}
		m.places[p.NID], m.at[p.Place] = p.Place, p.NID
		m.links = append(m.links, p.Links...)
	}
	c.Stored(made)
}

func (m *atlas) Places(nids []int64) (map[int64]Place, error) {
	m.calls++
	out := make(map[int64]Place)
	for _, nid := range nids {
		if p, ok := m.places[nid]; ok {
			out[nid] = p
		}
	}
	return out, nil
}

func (m *atlas) Events(spans []Span, limit int) (map[Place]int64, error) {
	m.calls++
	out := make(map[Place]int64)
	for _, s := range spans {
		for i := s.First; i <= s.Last && m.at[Place{s.Chain, i}] != 0 && len(out) < limit; i++ {
			out[Place{s.Chain, i}] = m.at[Place{s.Chain, i}]
		}
	}
	return out, nil
}

func (m *atlas) Lengths(chains []int64) (map[int64]int64, error) {
	m.calls++
	out := make(map[int64]int64)
	for p := range m.at {
		if slices.Contains(chains, p.Chain) {
			out[p.Chain] = max(out[p.Chain], p.Index)
		}
	}
	return out, nil
}

func (m *atlas) LinksFrom(chains []int64) ([]Link, error) {
	m.calls++
	want := make(map[int64]bool)
	for _, c := range chains {
		want[c] = true
	}
	var out []Link
	for _, l := range m.links {
		if want[l.From.Chain] {
			out = append(out, l)
		}
	}
	return out, nil
}

func (m *atlas) LinksTo(spans []Span, limit int) ([]Link, error) {
	m.calls++
	want := make(map[int64][]Span)
	for _, s := range spans {
		want[s.Chain] = append(want[s.Chain], s)
	}
	var out []Link
	for _, l := range m.links {
		for _, s := range want[l.To.Chain] {
			if l.To.Index >= s.First && l.To.Index <= s.Last && len(out) < limit {
				out = append(out, l)
			}
		}
	}
	return out, nil
}

// dag is a graph of auth events and the definitions of the specification, word by word.
type dag struct{ auth map[int64][]int64 }

func (d dag) chain(of ...int64) map[int64]bool {
	out := make(map[int64]bool)
	var walk func(nid int64)
	walk = func(nid int64) {
		for _, a := range d.auth[nid] {
			if !out[a] {
				out[a] = true
				walk(a)
			}
		}
	}
	for _, nid := range of {
		walk(nid)
	}
	return out
}

func (d dag) authDifference(states [][]int64) map[int64]bool {
	out := make(map[int64]bool)
	count := make(map[int64]int)
	for _, s := range states {
		for nid := range d.chain(s...) {
			count[nid]++
		}
	}
	for nid, n := range count {
		if n < len(states) {
			out[nid] = true
		}
	}
	return out
}

// subgraph is the union of all paths between any pair of conflicted events: what is in the
// auth chain of one (or it) and has another in its own (or is it).
func (d dag) subgraph(conflicted []int64) map[int64]bool {
	out := make(map[int64]bool)
	above := d.chain(conflicted...)
	for _, nid := range conflicted {
		above[nid] = true
	}
	for nid := range above {
		own := d.chain(nid)
		for _, c := range conflicted {
			if nid == c || own[c] {
				out[nid] = true
			}
		}
	}
	return out
}

// randomDAG adds events with up to four auth events; some follow one of a few keys, as power
// levels and memberships do.
func randomDAG(t testing.TB, r *rand.Rand, size int) (dag, *atlas, *Cover) {
	d := dag{make(map[int64][]int64)}
	m := newAtlas()
	c := NewCover(m)
	key := make(map[int64]int)
	for i := range size {
		nid := 1000 + int64(i)
		key[nid] = r.IntN(6)
		var auth []int64
		var follows int64
		for range r.IntN(5) {
			if i == 0 {
				break
			}
			// Mostly recent events, so that chains are long.
			a := nid - 1 - int64(min(r.IntN(i), r.IntN(i), r.IntN(i)))
			if slices.Contains(auth, a) {
				continue
			}
			auth = append(auth, a)
			if key[a] == key[nid] {
				follows = a
			}
		}
		d.auth[nid] = auth
		if _, err := c.Add(nid, auth, follows); err != nil {
			t.Fatal(err)
		}
		switch r.IntN(8) {
		case 0:
			m.store(c)
		case 1:
			m.store(c)
			c = NewCover(m)
		}
	}
	return d, m, c
}

func TestCoverKnowsAuthChains(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 4))
		d, _, c := randomDAG(t, r, 60)
		for y := range d.auth {
			chain := d.chain(y)
			if whole, err := c.AuthChain(y); err != nil || !slices.Equal(whole, slices.Sorted(maps.Keys(chain))) {
				t.Fatalf("seed %d: auth chain of %d is %v (%v)", seed, y, whole, err)
			}
			for x := range d.auth {
				got, err := c.InAuthChain(x, y)
				if err != nil {
					t.Fatal(err)
				}
				if got != chain[x] {
					t.Fatalf("seed %d: %d in the auth chain of %d: %v", seed, x, y, got)
				}
			}
		}
	}
}

// A whole-state difference and one from the conflicted parts alone are both the literal one, whatever was asked
// before.
//
// spec: rooms/v12#definitions
func TestCoverAgainstTheDefinitions(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5))
		d, _, c := randomDAG(t, r, 30+r.IntN(120))
		all := slices.Sorted(maps.Keys(d.auth))
		pick := func(n int) []int64 {
			var out []int64
			for range n {
				out = append(out, all[r.IntN(len(all))])
			}
			slices.Sort(out)
			return slices.Compact(out)
		}
		for range 4 {
			states := make([][]int64, 2+r.IntN(2))
			agreed := pick(r.IntN(12))
			conflicted := make([][]int64, len(states))
			var union []int64
			for i := range states {
				for _, nid := range pick(1 + r.IntN(6)) {
					if !slices.Contains(agreed, nid) {
						conflicted[i] = append(conflicted[i], nid)
						union = append(union, nid)
					}
				}
				states[i] = append(slices.Clone(agreed), conflicted[i]...)
			}
			want := d.authDifference(states)

			whole, err := c.AuthDifference(states, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(whole, slices.Sorted(maps.Keys(want))) {
				t.Fatalf("seed %d: auth difference %v, want %v", seed, whole, want)
			}
			part, err := c.AuthDifference(conflicted, func(nids []int64) ([]bool, error) {
				is := make([]bool, len(nids))
				for i, nid := range nids {
					is[i] = slices.Contains(agreed, nid)
				}
				return is, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			got := make(map[int64]bool)
			for _, nid := range append(part, union...) {
				got[nid], want[nid] = true, true
			}
			for _, nid := range union {
				want[nid] = true
			}
			if !maps.Equal(got, want) {
				t.Fatalf("seed %d: difference with conflicted events %v, want %v", seed, got, want)
			}
			sub, err := c.ConflictedSubgraph(union)
			if err != nil {
				t.Fatal(err)
			}
			if want := d.subgraph(union); !slices.Equal(sub, slices.Sorted(maps.Keys(want))) {
				t.Fatalf("seed %d: subgraph %v, want %v", seed, sub, want)
			}
		}
	}
}

// A room of many members has few links: each membership one to the power levels and one to
// the join rules, and none when it changes under the same ones.
func TestCoverStaysSmall(t *testing.T) {
	m := newAtlas()
	c := NewCover(m)
	add := func(nid int64, auth []int64, follows int64) {
		if _, err := c.Add(nid, auth, follows); err != nil {
			t.Fatal(err)
		}
	}
	add(1, nil, 0)
	add(2, []int64{1}, 0)
	add(3, []int64{1, 2}, 0)
	add(4, []int64{1, 2, 3}, 0)
	for u := range int64(500) {
		add(100+u, []int64{1, 3, 4}, 0)
		add(1000+u, []int64{1, 3, 4, 100 + u}, 100+u)
	}
	if m.calls > 2 {
		t.Errorf("the hot room asked storage %d times", m.calls)
	}
	links := 0
	for _, p := range c.Take() {
		links += len(p.Links)
	}
	if links > 2*500+4 {
		t.Errorf("%d links for 500 members", links)
	}
}

func TestCoverHasNoPlaceForTheUnknown(t *testing.T) {
	c := NewCover(newAtlas())
	if _, err := c.Add(5, []int64{4}, 0); !errors.Is(err, ErrMissing) {
		t.Errorf("an event without its auth event was added: %v", err)
	}
	if _, err := c.InAuthChain(1, 2); !errors.Is(err, ErrMissing) {
		t.Errorf("unknown events were compared: %v", err)
	}
}

// A failed commit leaves nothing behind, and numbers of chains do not clash afterwards.
func TestCoverForgetsFailedCommits(t *testing.T) {
	m := newAtlas()
	c := NewCover(m)
	for nid, auth := range [][]int64{1: nil, 2: {1}, 3: {2}} {
		if nid == 0 {
			continue
		}
		if _, err := c.Add(int64(nid), auth, int64(nid-1)); err != nil {
			t.Fatal(err)
		}
		if nid == 2 {
			m.store(c)
		}
	}
	c.Take()
	c.Drop()
	if _, err := c.InAuthChain(1, 3); !errors.Is(err, ErrMissing) {
		t.Fatalf("a dropped event has a place: %v", err)
	}
	if p, err := c.Add(4, []int64{2}, 2); err != nil || p != (Place{1, 3}) {
		t.Fatalf("place %v (%v), want the one that became free", p, err)
	}
	if p, err := c.Add(4, []int64{2}, 2); err != nil || p != (Place{1, 3}) || len(c.Take()) != 1 {
		t.Fatalf("adding again gives %v (%v)", p, err)
	}
	if p, err := c.Add(5, []int64{2}, 2); err != nil || p != (Place{5, 1}) {
		t.Fatalf("a second follower stands in %v (%v)", p, err)
	}
}

// A graph made to be expensive costs its size once, not the number of its paths; one that
// is larger than the budget is refused.
func TestCoverWalksAreLinear(t *testing.T) {
	const width, layers = 8, 400
	m := newAtlas()
	c := NewCover(m)
	var last []int64
	nid := int64(0)
	for range layers {
		var layer []int64
		for range width {
			nid++
			if _, err := c.Add(nid, last, 0); err != nil {
				t.Fatal(err)
			}
			layer = append(layer, nid)
		}
		last = layer
	}
	m.store(c)
	c = NewCover(m)
	sub, err := c.ConflictedSubgraph([]int64{1, nid})
	if err != nil || len(sub) != width*(layers-2)+2 {
		t.Fatalf("subgraph of %d (%v)", len(sub), err)
	}
	if spent := coverBudget - c.budget; spent > 4*width*width*layers {
		t.Errorf("%d steps for %d links", spent, width*width*layers)
	}
	c.budget = 1000
	if _, err := c.conflictedSubgraph([]int64{1, nid}); !errors.Is(err, ErrBudget) {
		t.Errorf("no budget stops the walk: %v", err)
	}
	c.budget = 1000
	if _, err := c.authDifference([][]int64{{1}, {nid}}, nil); !errors.Is(err, ErrBudget) {
		t.Errorf("no budget stops the difference: %v", err)
	}
}
