package federation

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"chancery/federation/peer"
)

// After a long outage a server gets all of a room with little, and the last of a room with much.
func TestWhatIsOwedIsBounded(t *testing.T) {
	w := &owed{rooms: map[int64][]item{}}
	for i := range int64(3 * maxOfRoom) {
		w.add(item{pos: 2*i + 1, event: i, room: 1})
		if i < 5 {
			w.add(item{pos: 2*i + 2, event: i, room: 2})
		}
	}
	list := w.list()
	if len(list) != 6 || list[5] != (item{pos: 6*maxOfRoom - 1, event: 3*maxOfRoom - 1, room: 1}) {
		t.Fatalf("%d items, the last is %v", len(list), list[len(list)-1])
	}
	w = &owed{rooms: map[int64][]item{}}
	last := map[int64]int64{}
	for pos := range int64(50_000) {
		room := rand.Int64N(20_000)
		last[room] = pos
		w.add(item{pos: pos, room: room})
	}
	list = w.list()
	if len(list) != len(last) {
		t.Errorf("%d items for %d rooms", len(list), len(last))
	}
	for i, v := range list {
		if v.pos != last[v.room] {
			t.Fatalf("of room %d there is %d, not the last %d", v.room, v.pos, last[v.room])
		}
		if i > 0 && list[i-1].pos >= v.pos {
			t.Fatal("not in order")
		}
	}
}

// Names that anybody may invent take no memory and no rows; a server that is owed something is remembered.
func TestStrangersThatFailAreBounded(t *testing.T) {
	o := NewOutbox(OutboxOptions{ServerName: "a.example"})
	o.destination("b.example")
	fail := func(server string) {
		o.BackoffChanged(peer.Destination{Server: server, Failures: 1, RetryAt: time.Now().Add(time.Minute)})
	}
	for i := range 5 * maxStrangers {
		fail(fmt.Sprintf("s%d.example", i))
	}
	fail("b.example")
	if len(o.backoff) > maxStrangers+1 || o.backoff["b.example"].Failures != 1 {
		t.Errorf("%d servers are remembered, b.example: %+v", len(o.backoff), o.backoff["b.example"])
	}
	o.BackoffChanged(peer.Destination{Server: "b.example"})
	if _, ok := o.backoff["b.example"]; ok {
		t.Error("b.example is back and still remembered")
	}
}
