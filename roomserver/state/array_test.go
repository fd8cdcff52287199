package state

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// shelf is a Source in memory. It counts how it is asked and what it is given.
type shelf struct {
	nodes map[int64][]byte
	calls int
	last  int64
}

func newShelf() *shelf { return &shelf{nodes: make(map[int64][]byte)} }

func (s *shelf) Nodes(ids []int64) (map[int64][]byte, error) {
	s.calls++
	out := make(map[int64][]byte, len(ids))
	for _, id := range ids {
		if b, ok := s.nodes[id]; ok {
			out[id] = b
		}
	}
	return out, nil
}

func (s *shelf) next() int64 { s.last++; return s.last }

// store does what a transaction does with the nodes an event made.
func (s *shelf) store(a *Array) (count, bytes int) {
	nodes := a.Take()
	for _, n := range nodes {
		s.nodes[n.ID] = n.Data
		bytes += len(n.Data)
	}
	a.Stored(nodes)
	return len(nodes), bytes
}

func (s *shelf) open() *Array { return NewArray(1, s, NewCache(1<<20), s.next) }

func mustSet(t testing.TB, a *Array, root Root, changes map[int64]int64) Root {
	t.Helper()
	root, err := a.Set(root, changes)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func mustAll(t testing.TB, a *Array, root Root) map[int64]int64 {
	t.Helper()
	all, err := a.All(root)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.IsSortedFunc(all, func(x, y Entry) int { return int(x.Slot - y.Slot) }) {
		t.Fatal("All is not in slot order")
	}
	m := make(map[int64]int64)
	for _, e := range all {
		m[e.Slot] = e.NID
	}
	return m
}

func changesBetween(x, y map[int64]int64) []Change {
	var out []Change
	for slot, was := range x {
		if y[slot] != was {
			out = append(out, Change{slot, was, y[slot]})
		}
	}
	for slot, is := range y {
		if x[slot] == 0 {
			out = append(out, Change{slot, 0, is})
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return int(a.Slot - b.Slot) })
	return out
}

// The array behaves as a map does, whatever is set and taken away, and whether its nodes
// come from memory or from storage.
func TestArrayIsAMap(t *testing.T) {
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := newShelf()
		a := s.open()
		type version struct {
			root Root
			want map[int64]int64
		}
		versions := []version{{0, map[int64]int64{}}}
		span := []int64{60, 5000, 300_000, 20_000_000}[seed%4]
		for range 60 {
			v := versions[r.IntN(len(versions))]
			want := maps.Clone(v.want)
			changes := map[int64]int64{}
			for range r.IntN(80) {
				slot := r.Int64N(span)
				if r.IntN(3) == 0 {
					slot = r.Int64N(70)
				}
				changes[slot] = 1 + r.Int64N(1<<40)
			}
			if r.IntN(2) == 0 {
				for slot := range v.want {
					if r.IntN(3) > 0 {
						changes[slot] = 0
					}
				}
			}
			for slot, nid := range changes {
				if nid == 0 {
					delete(want, slot)
				} else {
					want[slot] = nid
				}
			}
			versions = append(versions, version{mustSet(t, a, v.root, changes), want})
			if r.IntN(3) == 0 {
				s.store(a)
				a = s.open()
			}
		}
		s.store(a)
		a = s.open()
		for _, v := range versions {
			if got := mustAll(t, a, v.root); !maps.Equal(got, v.want) {
				t.Fatalf("seed %d: state of %d entries reads as %d", seed, len(v.want), len(got))
			}
			slots := []int64{0, 1, 64, 5000, 1 << 29}
			for slot := range v.want {
				slots = append(slots, slot)
			}
			got, err := a.Get(v.root, slots...)
			if err != nil {
				t.Fatal(err)
			}
			for i, slot := range slots {
				if got[i] != v.want[slot] {
					t.Fatalf("slot %d is %d, want %d", slot, got[i], v.want[slot])
				}
			}
			o := versions[r.IntN(len(versions))]
			diff, err := a.Diff(v.root, o.root)
			if err != nil {
				t.Fatal(err)
			}
			if want := changesBetween(v.want, o.want); !slices.Equal(diff, want) {
				t.Fatalf("seed %d: difference %v, want %v", seed, diff, want)
			}
		}
	}
}

// Equal states have equal shape, by whatever way they came about.
func TestArrayHasOneShapeForEachContent(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := newShelf()
		a := s.open()
		want := map[int64]int64{}
		for range r.IntN(300) {
			want[r.Int64N([]int64{40, 3000, 200_000}[r.IntN(3)])] = 1 + r.Int64N(1000)
		}
		straight := mustSet(t, a, 0, want)
		// The long way: other slots come and go, one change at a time.
		var root Root
		noise := map[int64]int64{}
		for range 50 {
			if slot := r.Int64N(1 << 25); want[slot] == 0 {
				noise[slot] = 7
				root = mustSet(t, a, root, map[int64]int64{slot: 7})
			}
		}
		for _, slot := range slices.Sorted(maps.Keys(want)) {
			root = mustSet(t, a, root, map[int64]int64{slot: 5})
			root = mustSet(t, a, root, map[int64]int64{slot: want[slot]})
		}
		for slot := range noise {
			root = mustSet(t, a, root, map[int64]int64{slot: 0})
		}
		if x, y := shape(t, a, int64(straight)), shape(t, a, int64(root)); x != y {
			t.Fatalf("seed %d: one content, two shapes:\n%s\n%s", seed, x, y)
		}
		if diff, err := a.Diff(straight, root); err != nil || len(diff) != 0 {
			t.Fatalf("equal states differ in %v (%v)", diff, err)
		}
	}
}

func shape(t *testing.T, a *Array, id int64) string {
	if id == 0 {
		return "-"
	}
	w := walk{array: a}
	n, err := w.node(id)
	if err != nil {
		t.Fatal(err)
	}
	if n.level == 0 {
		return fmt.Sprint(n.bits, n.vals)
	}
	out := fmt.Sprint(n.level, n.bits, "(")
	for _, v := range n.vals {
		out += shape(t, a, v)
	}
	return out + ")"
}

func TestSettingWhatIsThereMakesNothing(t *testing.T) {
	s := newShelf()
	a := s.open()
	root := mustSet(t, a, 0, map[int64]int64{3: 30, 5000: 40})
	s.store(a)
	for _, same := range []map[int64]int64{nil, {3: 30}, {5000: 40, 3: 30}, {70: 0}, {1 << 28: 0}} {
		if got := mustSet(t, a, root, same); got != root {
			t.Errorf("setting %v gives root %d, want %d", same, got, root)
		}
	}
	if n := a.Take(); len(n) != 0 {
		t.Errorf("%d nodes were made", len(n))
	}
	if got := mustSet(t, a, root, map[int64]int64{3: 0, 5000: 0}); got != 0 {
		t.Errorf("the empty state is root %d", got)
	}
	for _, bad := range []map[int64]int64{{-1: 1}, {1 << 30: 1}, {1: -1}} {
		if _, err := a.Set(root, bad); err == nil {
			t.Errorf("%v was set", bad)
		}
	}
}

// Uncommitted nodes are nobody else's, and a failed commit leaves none behind.
func TestUncommittedNodesStayInTheirArray(t *testing.T) {
	s := newShelf()
	cache := NewCache(1 << 20)
	mine, other := NewArray(1, s, cache, s.next), NewArray(1, s, cache, nil)
	root := mustSet(t, mine, 0, map[int64]int64{1: 10})
	if _, err := other.Get(root, 1); !errors.Is(err, ErrMissing) {
		t.Fatalf("an uncommitted node was read: %v", err)
	}
	mine.Take()
	mine.Drop()
	if _, err := mine.Get(root, 1); !errors.Is(err, ErrMissing) {
		t.Fatalf("a dropped node was read: %v", err)
	}
	s.last = 0 // the room is loaded again: the number is given to another node
	again := mustSet(t, mine, 0, map[int64]int64{1: 20})
	s.store(mine)
	if got, err := other.Get(again, 1); again != root || err != nil || got[0] != 20 {
		t.Fatalf("slot 1 is %v (%v)", got, err)
	}
}

// A state change costs at 100,000 members at most three times what it costs at 10, counted
// in nodes and in stored bytes. Event numbers are those of a server where other rooms talk too.
func TestStateChangeCostsLittleInLargeRooms(t *testing.T) {
	type cost struct{ nodes, bytes float64 }
	measure := func(members int) cost {
		s := newShelf()
		a := s.open()
		change := roomOf(t, a, members)
		s.store(a)
		nodes, bytes := 0, 0
		const changes = 2000
		for range changes {
			change()
			n, b := s.store(a)
			nodes, bytes = nodes+n, bytes+b
		}
		return cost{float64(nodes) / changes, float64(bytes) / changes}
	}
	small := measure(10)
	for _, members := range []int{1000, 100_000} {
		large := measure(members)
		t.Logf("%d members: %.1f nodes, %.0f bytes a change; 10 members: %.1f nodes, %.0f bytes",
			members, large.nodes, large.bytes, small.nodes, small.bytes)
		if large.nodes > 3*small.nodes || large.bytes > 3*small.bytes {
			t.Errorf("a change in a room of %d costs more than three times that in a room of 10", members)
		}
	}
}

// roomOf makes a room whose members have joined, and gives a function that changes one.
func roomOf(t testing.TB, a *Array, members int) func() {
	r := rand.New(rand.NewPCG(uint64(members), 3))
	nid := int64(5_000_000)
	event := func() int64 { nid += 1 + r.Int64N(200); return nid }
	first := map[int64]int64{}
	for slot := range int64(8 + members) { // create, power levels, join rules, name ...
		first[slot] = event()
	}
	root := mustSet(t, a, 0, first)
	return func() { root = mustSet(t, a, root, map[int64]int64{8 + r.Int64N(int64(members)): event()}) }
}

// A lookup of the keys that auth needs asks storage once a level, twice where nodes are
// differences, and not at all when the room is hot.
func TestLookupsReadALevelAtATime(t *testing.T) {
	s := newShelf()
	a := s.open()
	change := roomOf(t, a, 100_000)
	for range 100 {
		change()
	}
	root := Root(s.last)
	s.store(a)
	a = s.open()
	for i, limit := range []int{6, 0} {
		s.calls = 0
		if _, err := a.Get(root, 0, 1, 2, 77_000, 99_999); err != nil {
			t.Fatal(err)
		}
		if s.calls > limit {
			t.Errorf("lookup %d asked storage %d times, want at most %d", i, s.calls, limit)
		}
	}
	s.calls = 0
	if _, err := s.open().All(root); err != nil || s.calls > 6 {
		t.Errorf("the whole state took %d calls (%v)", s.calls, err)
	}
}

func TestCacheKeepsItsLimit(t *testing.T) {
	s := newShelf()
	cache := NewCache(20_000)
	a := NewArray(1, s, cache, s.next)
	change := roomOf(t, a, 5000)
	for range 300 {
		change()
		s.store(a)
		if cache.Size() > 20_000 {
			t.Fatalf("the cache holds %d bytes", cache.Size())
		}
	}
	if cache.Size() < 10_000 {
		t.Fatalf("the cache holds only %d bytes", cache.Size())
	}
	// Rooms do not see each other's nodes.
	if _, err := NewArray(2, newShelf(), cache, nil).Get(Root(s.last), 0); !errors.Is(err, ErrMissing) {
		t.Fatalf("another room's node was read: %v", err)
	}
}

// The collector finds by References all that reading needs.
func TestReferencesLeadToAllNodes(t *testing.T) {
	s := newShelf()
	a := s.open()
	change := roomOf(t, a, 3000)
	for range 500 {
		change()
	}
	s.store(a)
	root := Root(s.last)
	want := mustAll(t, s.open(), root)
	kept := map[int64][]byte{}
	var mark func(id int64)
	mark = func(id int64) {
		if kept[id] != nil {
			return
		}
		kept[id] = s.nodes[id]
		refs, err := References(s.nodes[id])
		if err != nil {
			t.Fatal(err)
		}
		for _, ref := range refs {
			if s.nodes[id][0]&^deltaFlag > 0 || s.nodes[id][0]&deltaFlag != 0 {
				mark(ref)
			}
		}
	}
	mark(int64(root))
	if len(kept) >= len(s.nodes) {
		t.Fatal("nothing could be collected")
	}
	s.nodes = kept
	if got := mustAll(t, s.open(), root); !maps.Equal(got, want) {
		t.Fatal("the state lost entries")
	}
}

// Stored bytes may be anything: reading them gives an error, never a panic or an endless walk.
func FuzzNode(f *testing.F) {
	s := newShelf()
	a := s.open()
	change := roomOf(f, a, 200)
	for range 30 {
		change()
	}
	for _, n := range a.Take() {
		f.Add(n.Data)
	}
	f.Add([]byte{})
	f.Add([]byte{1, 1, 2})       // its own child
	f.Add([]byte{0x80, 1, 1, 0}) // differs from itself
	f.Fuzz(func(t *testing.T, data []byte) {
		s := newShelf()
		s.nodes[1] = data
		s.last = 1
		a := s.open()
		if _, err := a.All(1); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMissing) {
			t.Fatal(err)
		}
		if _, err := a.Set(1, map[int64]int64{0: 1, 70: 0, 5000: 5}); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrMissing) {
			t.Fatal(err)
		}
		References(data)
		n, err := decode(data)
		if err != nil || n.base != 0 {
			return
		}
		if again, err := decode(n.encode()); err != nil || again.bits != n.bits || !slices.Equal(again.vals, n.vals) {
			t.Fatalf("node changes when stored again (%v)", err)
		}
	})
}

func BenchmarkStateChange(b *testing.B) {
	for _, members := range []int{10, 1000, 100_000} {
		b.Run(fmt.Sprint(members), func(b *testing.B) {
			s := newShelf()
			a := NewArray(1, s, NewCache(64<<20), s.next)
			change := roomOf(b, a, members)
			s.store(a)
			nodes, bytes := 0, 0
			for b.Loop() {
				change()
				n, size := s.store(a)
				nodes, bytes = nodes+n, bytes+size
			}
			b.ReportMetric(float64(nodes)/float64(b.N), "nodes/op")
			b.ReportMetric(float64(bytes)/float64(b.N), "stored-B/op")
		})
	}
}
