package clientapi_test

import (
	"encoding/json"
	"slices"
	"testing"

	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

func (h *house) setState(room id.RoomID, typ, content string) {
	h.T.Helper()
	key := ""
	_, err := h.Rooms.Send(h.T.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: typ, StateKey: &key, Content: json.RawMessage(content)})
	if err != nil {
		h.T.Fatal(err)
	}
}

// People are found who are in rooms that anybody may join or read, as long as that is so.
//
// spec: c2s/searchUserDirectory
func TestMembersOfOpenRoomsAreFound(t *testing.T) {
	eachEngine(t, func(h *house) {
		room := h.room(bob) // anybody may join
		found := `{"results":[{"user_id":"@bob:test"}],"limited":false}`
		none := `{"results":[],"limited":false}`
		wants := func(want string) {
			h.T.Helper()
			h.want(carol, "POST", v3+"/user_directory/search", `{"search_term":"bob"}`, 200, want)
		}
		wants(found)
		h.setState(room, "m.room.join_rules", `{"join_rule":"knock"}`)
		wants(none)
		h.setState(room, "m.room.history_visibility", `{"history_visibility":"world_readable"}`)
		wants(found)
		h.setState(room, "m.room.history_visibility", `{"history_visibility":"shared"}`)
		wants(none)
		h.setState(room, "m.room.join_rules", `{"join_rule":"public"}`)
		wants(found)

		// A room from before this was noted, among others that nobody can read.
		var renamed, broken []string
		for range 3 {
			made := string(h.room())
			renamed = append(renamed, made)
			broken = append(broken, "!!"+made)
		}
		slices.Sort(broken)
		err := h.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			tx.Exec(`UPDATE open_rooms SET looked_at = $1`, false)
			tx.Exec(`UPDATE rooms SET room_id = '!!' || room_id, version = 'none' WHERE room_id = ANY($1)`, renamed)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		wants(none)
		h.runRooms()
		h.eventually("all rooms are looked at that can be", func(tx storage.Tx) (bool, error) {
			left, err := tx.RoomsNotLookedAt("")
			return slices.Equal(left, broken), err
		})
		wants(found)
	})
}

// runRooms does what the engine does beside answering.
func (h *house) runRooms() {
	ended := make(chan error)
	go func() { ended <- h.Rooms.Run(h.T.Context()) }()
	h.T.Cleanup(func() { <-ended })
}

// Guests have to go when a room is shut to them; others stay. A server that was stopped in between does it when it
// starts.
//
// spec: c2s#guest-access
func TestGuestsLeaveRoomsThatAreShutToThem(t *testing.T) {
	eachEngine(t, func(h *house) {
		h.account(storage.Account{User: guest, Guest: true})
		isIn := func(room id.RoomID, want ...string) func(storage.Tx) (bool, error) {
			return func(tx storage.Tx) (bool, error) {
				row, _, err := tx.Room(string(room))
				if err != nil {
					return false, err
				}
				members, err := tx.Members(row.NID, []string{"join"})
				var users []string
				for _, m := range members {
					users = append(users, m.User)
				}
				slices.Sort(users)
				return slices.Equal(users, want), err
			}
		}
		open := h.room(bob)
		h.setState(open, "m.room.guest_access", `{"guest_access":"can_join"}`)
		if err := h.Rooms.Join(t.Context(), roomserver.Join{User: guest, Room: open}); err != nil {
			t.Fatal(err)
		}
		forgotten := h.room(bob, guest) // as if the server had been stopped when it was shut
		h.setState(open, "m.room.guest_access", `{"guest_access":"forbidden"}`)
		h.eventually("the guest is out of the room that was shut", isIn(open, alice, bob))
		h.eventually("the guest is in the other room", isIn(forgotten, alice, bob, guest))
		h.runRooms()
		h.eventually("the guest is out of the other room too", isIn(forgotten, alice, bob))
	})
}
