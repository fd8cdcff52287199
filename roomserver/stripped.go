package roomserver

import (
	"encoding/json"

	"chancery/storage"
)

// Stripped is what the receiver of an invite, or the sender of a knock, sees of a room: the pieces of its
// state that help to know it, who invited, and the invite itself.
//
// spec: c2s#stripped-state
func (rd *Reader) Stripped(tx storage.Tx, room storage.Room, invite *Stored) ([]json.RawMessage, error) {
	asked := make([]Lookup, 0, len(strippedTypes)+1)
	for _, t := range strippedTypes {
		asked = append(asked, Lookup{invite.After, Key{t, ""}})
	}
	if key, _ := invite.StateKey(); key != string(invite.Sender()) {
		asked = append(asked, Lookup{invite.After, Key{"m.room.member", string(invite.Sender())}})
	}
	found, err := rd.Lookup(tx, room, asked)
	if err != nil {
		return nil, err
	}
	out := make([]json.RawMessage, 0, len(found)+1)
	for _, ev := range found {
		if ev != nil {
			out = append(out, ev.Event.Stripped())
		}
	}
	return append(out, invite.Event.Stripped()), nil
}
