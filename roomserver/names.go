package roomserver

import (
	"maps"
	"slices"
	"sync"

	"chancery"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// names are the IDs of events on the way to storage whose senders chose them: in versions 1 and 2 nothing in the
// ID binds it to its room, and storage knows an event by its ID alone. Without this another room's event under
// the same ID would fail a commit, and all that a room builds on it.
type names struct {
	mu   sync.Mutex // guards room; a leaf
	room map[id.EventID]int64
}

// claim takes an ID for a room, unless another has it.
func (n *names) claim(eventID id.EventID, room int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if other, ok := n.room[eventID]; ok && other != room {
		return false
	}
	n.room[eventID] = room
	return true
}

func (n *names) release(ids []id.EventID, room int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, v := range ids {
		if n.room[v] == room {
			delete(n.room, v)
		}
	}
}

// choosesIDs says that the senders of events choose their IDs.
func (r *room) choosesIDs() bool { return r.version.EventIDFormat == event.IDFromSender }

// named gives the IDs that were claimed in this turn for events that go into storage now.
func (r *room) named(all *additions) (ids []id.EventID) {
	if len(r.claimed) == 0 {
		return nil
	}
	for _, a := range all.list {
		if r.claimed[a.ID()] {
			delete(r.claimed, a.ID())
			ids = append(ids, a.ID())
		}
	}
	return ids
}

// unclaim gives back what was claimed in this turn for events that did not go into storage.
func (r *room) unclaim() {
	if len(r.claimed) == 0 {
		return
	}
	r.s.names.release(slices.Collect(maps.Keys(r.claimed)), r.row.NID)
	clear(r.claimed)
}

// mayName refuses an event whose ID another room's event has; else the ID is this room's until the event is stored.
//
// spec: rooms/v1#event-ids
func (r *room) mayName(eventID id.EventID) error {
	elsewhere, err := r.claim([]id.EventID{eventID})
	if err == nil && elsewhere[eventID] {
		return chancery.Forbidden("another room has an event of this ID")
	}
	return err
}

// claim takes IDs for this room, and gives those that events of other rooms have. Storage is asked second: an ID that
// another room gives back meanwhile is found there.
func (r *room) claim(ids []id.EventID) (elsewhere map[id.EventID]bool, err error) {
	if !r.choosesIDs() || len(ids) == 0 {
		return nil, nil
	}
	elsewhere = map[id.EventID]bool{}
	for _, v := range ids {
		if !r.s.names.claim(v, r.row.NID) {
			elsewhere[v] = true
		} else {
			r.claimed[v] = true
		}
	}
	err = r.read(func(tx storage.Tx) error {
		rows, err := tx.Bearings(texts(ids))
		for _, row := range rows {
			if row.Room != r.row.NID {
				elsewhere[id.EventID(row.ID)] = true
			}
		}
		return err
	})
	return elsewhere, err
}
