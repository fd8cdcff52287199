package syncapi

import (
	"fmt"
	"strings"
	"testing"

	"chancery/roomserver"
	"chancery/roomserver/event"
)

// Timelines that are shared hold no more memory than they may, however large the events are that somebody fills a room with.
func TestSharedTimelinesAreBoundedByTheirEvents(t *testing.T) {
	version, _ := event.Lookup("11")
	text := fmt.Sprintf(`{"type":"m.room.message","room_id":"!r:test","sender":"@a:test","depth":1,"prev_events":[],"auth_events":[],"origin_server_ts":1,"hashes":{"sha256":"x"},"signatures":{},"content":{"body":%q}}`, strings.Repeat("x", 60_000))
	s, held := newShared(), 0
	for i := range int64(1000) {
		ev, err := event.ParseStored(version, "$e", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		one := &timeline{events: []*roomserver.Stored{{Event: ev}}}
		s.timelines.Put(timelineKey{first: i}, one, one.size())
	}
	for i := range int64(1000) {
		if one, ok := s.timelines.Get(timelineKey{first: i}); ok {
			held += one.events[0].Size()
		}
	}
	if held == 0 || held > 8<<20 {
		t.Errorf("%d bytes of events are held", held)
	}
}
