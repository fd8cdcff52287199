package auth

import (
	"testing"

	"chancery/roomserver/event"
)

// What was parsed is dropped again, and what is asked for all the time stays.
func TestCacheIsBounded(t *testing.T) {
	parsed := 0
	c := cache[int]{budget: 10 * entryCost, parse: func(*event.Event) *int { parsed++; return new(int) }}
	hot := &event.Event{}
	for range 1000 {
		c.of(hot)
		c.of(&event.Event{})
	}
	if kept := len(c.young) + len(c.old); kept > 22 {
		t.Errorf("%d entries are kept, of a budget for two times 10", kept)
	}
	if parsed > 1001 {
		t.Errorf("%d events were parsed: the hot one was dropped", parsed)
	}
}
