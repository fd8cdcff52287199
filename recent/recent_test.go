package recent_test

import (
	"testing"

	"chancery/recent"
)

func TestWhatIsUsedStaysAndTheRestGoes(t *testing.T) {
	const each, limit = 10, 1_000
	c := recent.New[int, int](limit)
	c.Put(-1, -1, each)
	for i := range 10_000 {
		c.Put(i, i, each)
		if v, ok := c.Get(-1); !ok || v != -1 {
			t.Fatalf("what is asked for all the time is gone after %d others", i)
		}
	}
	kept := 0
	for i := range 10_000 {
		if v, ok := c.Get(i); ok {
			if kept++; v != i {
				t.Fatalf("%d is kept as %d", i, v)
			}
		}
	}
	if kept == 0 || kept > limit/each {
		t.Errorf("%d values are kept, of %d bytes in %d", kept, each, limit)
	}
}

func TestAValueIsReplacedAndCountedOnce(t *testing.T) {
	c := recent.New[string, int](1_000)
	c.Put("other", 0, 10)
	for i := range 1_000 {
		c.Put("a", i, 400)
	}
	if v, ok := c.Get("a"); !ok || v != 999 {
		t.Errorf("a is %d, %v", v, ok)
	}
	if _, ok := c.Get("other"); !ok {
		t.Error("one value put again pushed another out")
	}
}

func TestWhatWasDroppedDoesNotComeBack(t *testing.T) {
	c := recent.New[string, int](1_000)
	c.Put("a", 1, 10)
	c.Drop("a")
	c.Put("a", 1, 10) // by a reader with an older snapshot
	if _, ok := c.Get("a"); ok {
		t.Error("it came back")
	}
}
