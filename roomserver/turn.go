package roomserver

import (
	"context"
	"slices"
	"sync"
)

// rank says whose work it is that wants a room: our own users wait behind no flood of another server's.
type rank int

const (
	ours       rank = iota // our users and our own housekeeping
	moderation             // bans, ACLs, power levels and redactions of other servers
	theirs                 // everything else that other servers bring
	ranks
)

// A rank that others go ahead of gets its turn after this many of them.
const maxPassed = 16

// turn is the right to work on a room: one holder at a time, the others in order of rank and arrival.
type turn struct {
	mu      sync.Mutex // guards the rest; a leaf
	held    bool
	waiting [ranks][]chan struct{}
	passed  int // turns given in a row while a lower rank waited
}

// take waits for the turn.
func (t *turn) take(ctx context.Context, who rank) error {
	t.mu.Lock()
	if !t.held {
		t.held = true
		t.mu.Unlock()
		return nil
	}
	mine := make(chan struct{})
	t.waiting[who] = append(t.waiting[who], mine)
	t.mu.Unlock()
	select {
	case <-mine:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	if i := slices.Index(t.waiting[who], mine); i >= 0 {
		t.waiting[who] = slices.Delete(t.waiting[who], i, i+1)
		t.mu.Unlock()
		return ctx.Err()
	}
	t.mu.Unlock()
	t.leave() // it was given at the same moment
	return ctx.Err()
}

// try takes the turn when nobody has it.
func (t *turn) try() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.held {
		return false
	}
	t.held = true
	return true
}

// leave gives the turn to the next.
func (t *turn) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	next := t.next()
	if next < 0 {
		t.held = false
		return
	}
	queue := t.waiting[next]
	close(queue[0])
	if t.waiting[next] = queue[1:]; len(queue) == 1 {
		t.waiting[next] = nil // the array behind it would keep growing
	}
}

// next finds the rank whose turn it is, below 0 when nobody waits.
func (t *turn) next() rank {
	first, last := rank(-1), rank(-1)
	for who := range ranks {
		if len(t.waiting[who]) > 0 {
			if first < 0 {
				first = who
			}
			last = who
		}
	}
	switch {
	case first == last:
		t.passed = 0
		return first
	case t.passed >= maxPassed:
		t.passed = 0
		return last
	}
	t.passed++
	return first
}

// wanted says that somebody of a higher rank waits: whoever has much to do gives way between two events.
func (t *turn) wanted(than rank) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for who := range than {
		if len(t.waiting[who]) > 0 {
			return true
		}
	}
	return false
}
