package roomserver

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"chancery/roomserver/event"

	"maunium.net/go/mautrix/id"
)

func built(t *testing.T, typ string, depth int64, prev ...*event.Event) *event.Event {
	t.Helper()
	v, _ := event.Lookup("11")
	p := event.Proto{RoomID: "!r:x.example", Sender: "@a:x.example", Type: typ, Content: json.RawMessage(`{}`), Depth: depth}
	for _, ev := range prev {
		p.PrevEvents = append(p.PrevEvents, ev.ID())
	}
	ev, err := event.Build(v, p, "x.example", "ed25519:1", ed25519.NewKeyFromSeed(make([]byte, 32)), time.UnixMilli(depth+rand.Int64N(1<<40)))
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// Events are taken after those they build on, whatever depth they claim; among the others moderation is first.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu
func TestEventsOfATransactionAreTakenInOrder(t *testing.T) {
	first := built(t, "m.room.message", 1<<50)
	second := built(t, "m.room.message", 3, first)
	redaction := built(t, "m.room.redaction", 1, second)
	third := built(t, "m.room.message", 2, redaction)
	elsewhere := built(t, "m.room.redaction", 9)
	list := []*event.Event{third, second, redaction, first, second, elsewhere}
	got := inOrder(list, func(x, y *event.Event) int { return urgency(y) - urgency(x) })
	want := []*event.Event{elsewhere, first, second, redaction, third}
	if !slices.Equal(got, want) {
		t.Errorf("the order is %v", got)
	}
	newest := belowGap([]id.EventID{third.ID()}, list, func(v id.EventID) bool { return v == first.ID() })
	if !slices.Equal(newest, []*event.Event{third, redaction, second}) {
		t.Errorf("below the third event stand %v", newest)
	}
}

// A circle, as the IDs of versions 1 and 2 allow it, ends.
func TestACircleOfEventsEnds(t *testing.T) {
	v, _ := event.Lookup("1")
	var list []*event.Event
	for i := range 3 {
		text := fmt.Sprintf(`{"auth_events":[],"content":{},"depth":5,"event_id":"$%d:x.example","hashes":{"sha256":""},"origin_server_ts":1,"prev_events":[["$%d:x.example",{}]],
			"room_id":"!r:x.example","sender":"@a:x.example","signatures":{},"type":"m.room.message"}`, i, (i+1)%3)
		ev, err := event.Parse(v, []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, ev)
	}
	if got := inOrder(list, func(x, y *event.Event) int { return 0 }); len(got) != 3 {
		t.Errorf("of 3 events there are %d", len(got))
	}
	if got := belowGap([]id.EventID{"$0:x.example"}, list, func(id.EventID) bool { return false }); len(got) != 3 {
		t.Errorf("of 3 events there are %d below", len(got))
	}
}
