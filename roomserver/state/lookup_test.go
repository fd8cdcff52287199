package state

import (
	"math/rand/v2"
	"testing"
)

// Whatever the heights of the arrays, asking for many at once is asking for each.
func TestGetEachIsGetOfEach(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	src := newShelf()
	a := src.open()
	roots := []Root{0}
	for range 200 {
		changes := map[int64]int64{}
		for range 1 + r.IntN(30) {
			slot := r.Int64N(1 << (6 * (1 + r.IntN(3))))
			changes[slot] = r.Int64N(1000)
		}
		roots = append(roots, mustSet(t, a, roots[r.IntN(len(roots))], changes))
		src.store(a)
	}
	var asked []Lookup
	for range 5000 {
		asked = append(asked, Lookup{roots[r.IntN(len(roots))], r.Int64N(1<<18) - 1})
	}
	for _, root := range roots {
		for slot := range int64(70) {
			asked = append(asked, Lookup{root, slot})
		}
	}
	a, src.calls = src.open(), 0
	got, err := a.GetEach(asked)
	if err != nil {
		t.Fatal(err)
	}
	if src.calls > 8 {
		t.Errorf("%d questions asked storage %d times", len(asked), src.calls)
	}
	filled := 0
	for i, l := range asked {
		want := []int64{0}
		if l.Slot >= 0 {
			if want, err = a.Get(l.Root, l.Slot); err != nil {
				t.Fatal(err)
			}
		}
		if got[i] != want[0] {
			t.Fatalf("slot %d of state %d is %d, asked for alone it is %d", l.Slot, l.Root, got[i], want[0])
		}
		if got[i] != 0 {
			filled++
		}
	}
	if filled < 1000 {
		t.Fatalf("only %d questions found anything", filled)
	}
}
