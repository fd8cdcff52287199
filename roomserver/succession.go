package roomserver

import (
	"chancery/storage"

	"github.com/tidwall/gjson"
)

// Predecessor finds the room that a room of ours has replaced, if both say so and we know it. One word is not enough: anybody
// can make a room that claims to come after another.
//
// spec: c2s#room-upgrades
func (rd *Reader) Predecessor(tx storage.Tx, room int64) (storage.Room, bool, error) {
	row, ok, err := tx.RoomByNumber(room)
	if err != nil || !ok {
		return storage.Room{}, false, err
	}
	old, ok, err := rd.otherRoom(tx, row, "m.room.create", "predecessor.room_id")
	if err != nil || !ok {
		return storage.Room{}, false, err
	}
	next, ok, err := rd.otherRoom(tx, old, "m.room.tombstone", "replacement_room")
	return old, ok && next.NID == row.NID, err
}

// Replacement finds the room that replaces a room of ours, if both say so and we know it.
//
// spec: c2s#room-upgrades
func (rd *Reader) Replacement(tx storage.Tx, room int64) (storage.Room, bool, error) {
	row, ok, err := tx.RoomByNumber(room)
	if err != nil || !ok {
		return storage.Room{}, false, err
	}
	next, ok, err := rd.otherRoom(tx, row, "m.room.tombstone", "replacement_room")
	if err != nil || !ok {
		return storage.Room{}, false, err
	}
	old, ok, err := rd.otherRoom(tx, next, "m.room.create", "predecessor.room_id")
	return next, ok && old.NID == row.NID, err
}

// otherRoom finds the room that a piece of state names.
func (rd *Reader) otherRoom(tx storage.Tx, room storage.Room, typ, path string) (other storage.Room, ok bool, err error) {
	ev, err := rd.StateEvent(tx, room, rootOf(room), typ, "")
	if err != nil || ev == nil {
		return other, false, err
	}
	named := text(gjson.GetBytes(ev.Content(), path))
	if named == "" || named == room.ID {
		return other, false, nil
	}
	return tx.Room(named)
}
