package roomserver

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// line is a share with claims that a test has put in it.
type line struct {
	*share
	given map[*claim]string
}

func (l *line) wait(name string, who caller, room id.RoomID) *claim {
	c := &claim{who, room, make(chan struct{})}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting[who.origin]) == 0 {
		l.used[who.origin] = max(l.used[who.origin], l.least)
	}
	l.waiting[who.origin] = append(l.waiting[who.origin], c)
	l.give()
	l.given[c] = name
	return c
}

// served gives back the one place until nobody waits, and lists who had it.
func (l *line) served(held time.Duration) (order []string) {
	for len(l.given) > 0 {
		for c, name := range l.given {
			select {
			case <-c.given:
				delete(l.given, c)
				order = append(order, name)
				l.leave(c, held)
			default:
			}
		}
	}
	return order
}

func newLine(places int) *line {
	s := newShare()
	s.free = places
	return &line{s, map[*claim]string{}}
}

// A server that sends a flood waits for itself: another one is served next.
func TestAFloodWaitsForItself(t *testing.T) {
	l := newLine(1)
	for i := range 1000 {
		l.wait("flood", caller{theirs, "flood.example"}, id.RoomID(fmt.Sprint("!", i)))
	}
	for range 3 {
		l.wait("quiet", caller{theirs, "quiet.example"}, "!quiet")
	}
	order := l.served(time.Millisecond)
	quiet := 0
	for i, name := range order[:8] {
		if name == "quiet" {
			quiet++
		}
		if i == 0 && name != "flood" {
			t.Errorf("first came %s", name)
		}
	}
	if quiet != 3 {
		t.Errorf("of the first 8 turns the quiet server had %d: %v", quiet, order[:8])
	}
}

// Who used much lately stands behind who did not, and names that are used once do not keep it out for ever.
func TestManyNamesKeepNobodyOut(t *testing.T) {
	l := newLine(1)
	c := l.wait("large", caller{theirs, "large.example"}, "!a")
	<-c.given
	delete(l.given, c)
	l.wait("early", caller{theirs, "early.example"}, "!early")
	l.leave(c, 100*time.Millisecond)
	l.wait("large", caller{theirs, "large.example"}, "!a")
	served := -1
	for i := range 10_000 {
		name := fmt.Sprint("new", i, ".example")
		l.wait(name, caller{theirs, name}, id.RoomID("!"+name))
		order := []string{}
		for c, who := range l.given {
			select {
			case <-c.given:
				delete(l.given, c)
				order = append(order, who)
				l.leave(c, time.Millisecond)
			default:
			}
		}
		if slices.Contains(order, "large") { // whoever has left gives its place on, to be met in this round or in the next
			served = i
			break
		}
	}
	if served < 1 || served > 1000 {
		t.Errorf("the large server was served after %d others", served)
	}
	if len(l.used) > 2*maxUsed {
		t.Errorf("%d servers are remembered", len(l.used))
	}
}

// A room that is flooded by many servers holds one place: other rooms go on. Moderation does not wait for it.
func TestAFloodedRoomHoldsOnePlace(t *testing.T) {
	l := newLine(4)
	first := l.wait("0", caller{theirs, "s0.example"}, "!hot")
	for i := range 50 {
		l.wait("hot", caller{theirs, fmt.Sprint("s", i+1, ".example")}, "!hot")
	}
	other := l.wait("other", caller{theirs, "o.example"}, "!other")
	ban := l.wait("ban", caller{moderation, "m.example"}, "!hot")
	for name, c := range map[string]*claim{"the first": first, "another room": other, "moderation": ban} {
		select {
		case <-c.given:
		default:
			t.Errorf("%s waits", name)
		}
	}
	if l.busy["!hot"] != 2 || l.free != 1 {
		t.Errorf("the hot room holds %d places, %d are free", l.busy["!hot"], l.free)
	}
	if !l.wanted("!hot", "s0.example") || l.wanted("!other", "x") {
		t.Error("it is not known who waits")
	}
}

// Whoever gives up waiting leaves nothing behind.
func TestWhoGivesUpHoldsNoPlace(t *testing.T) {
	s := newShare()
	s.free = 1
	leave, err := s.take(t.Context(), caller{theirs, "a"}, "!a")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.take(ctx, caller{theirs, "b"}, "!b"); err == nil {
		t.Error("a place was given twice")
	}
	leave(time.Second)
	if len(s.waiting) != 0 || s.free != 1 || len(s.busy) != 0 {
		t.Errorf("left are %v, %d free, %v busy", s.waiting, s.free, s.busy)
	}
}
