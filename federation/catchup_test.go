package federation

import (
	"math/rand/v2"
	"testing"
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
