package roomserver

import (
	"chancery/roomserver/event"
	"chancery/roomserver/visibility"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Viewer is a user who wants to see events of a room.
type Viewer struct {
	User id.UserID
	// Until is the place of the event by which they left the room when they were last in it: math.MaxInt64
	// while they are in it, 0 when they never were.
	Until int64
}

// Visible gives those of the events that the viewer may see, in their order, by the state at each. It
// takes a few queries, however many events there are.
//
// spec: c2s#room-history-visibility
func (rd *Reader) Visible(tx storage.Tx, room storage.Room, viewer Viewer, events []*Stored) ([]*Stored, error) {
	asked := make([]Lookup, 0, 2*len(events))
	for _, ev := range events {
		asked = append(asked,
			Lookup{ev.Before, Key{"m.room.history_visibility", ""}},
			Lookup{ev.Before, Key{"m.room.member", string(viewer.User)}})
	}
	found, err := rd.Lookup(tx, room, asked)
	if err != nil {
		return nil, err
	}
	seen := make([]*Stored, 0, len(events))
	for i, ev := range events {
		var history *event.Event
		if found[2*i] != nil {
			history = found[2*i].Event
		}
		membership := "leave"
		if found[2*i+1] != nil {
			membership = found[2*i+1].Membership()
		}
		if visibility.Event(ev.Event, visibility.Of(history), visibility.Viewer{User: viewer.User, Membership: membership, JoinedLater: ev.Ord < viewer.Until}) {
			seen = append(seen, ev)
		}
	}
	return seen, nil
}
