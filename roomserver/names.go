package roomserver

import (
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

func (n *names) claim(eventID id.EventID, room int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.room[eventID] = room
}

func (n *names) release(eventID id.EventID, room int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.room[eventID] == room {
		delete(n.room, eventID)
	}
}

func (n *names) releaseAll(list []*addition) {
	for _, a := range list {
		if a.Version().EventIDFormat == event.IDFromSender {
			n.release(a.ID(), a.Room)
		}
	}
}

func (n *names) elsewhere(eventID id.EventID, room int64) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	other, ok := n.room[eventID]
	return ok && other != room
}

// choosesIDs says that the senders of events choose their IDs.
func (r *room) choosesIDs() bool { return r.version.EventIDFormat == event.IDFromSender }

// claim takes an ID for this room until its event is stored.
func (r *room) claim(eventID id.EventID) {
	if r.choosesIDs() {
		r.s.names.claim(eventID, r.row.NID)
	}
}

// mayName refuses an event whose ID another room's event has.
//
// spec: rooms/v1#event-ids
func (r *room) mayName(eventID id.EventID) error {
	elsewhere, err := r.namedElsewhere([]id.EventID{eventID})
	if err == nil && elsewhere[eventID] {
		return chancery.Forbidden("another room has an event of this ID")
	}
	return err
}

// namedElsewhere gives those of some IDs that events of other rooms have.
func (r *room) namedElsewhere(ids []id.EventID) (map[id.EventID]bool, error) {
	if !r.choosesIDs() || len(ids) == 0 {
		return nil, nil
	}
	elsewhere := map[id.EventID]bool{}
	for _, v := range ids {
		if r.s.names.elsewhere(v, r.row.NID) {
			elsewhere[v] = true
		}
	}
	err := r.read(func(tx storage.Tx) error {
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
