package roomserver

import (
	"fmt"
	"testing"

	"maunium.net/go/mautrix/id"
)

// Whoever floods a partial room with what a part of its state refuses makes it hold no more than so much, and what is held
// already is no news.
func TestARoomHoldsSoManyEventsAndNoMore(t *testing.T) {
	r := &room{partial: &partial{held: map[id.EventID]bool{}}}
	first := id.EventID("$0")
	for i := range 2 * maxHeld {
		if v := id.EventID(fmt.Sprint("$", i)); r.mayHold(v) {
			r.partial.held[v] = true
		}
	}
	if n := len(r.partial.held); n != maxHeld {
		t.Errorf("%d events are held, want %d", n, maxHeld)
	}
	if !r.mayHold(first) {
		t.Error("what is held already is refused")
	}
}
