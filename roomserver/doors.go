package roomserver

import (
	"context"
	"errors"
	"time"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/roomserver/visibility"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// moveDoors notes what follows for people when a room opens or shuts: whether everybody may find who is in it, and
// that guests have to go.
func (r *room) moveDoors(m *moves, k Key, now *Stored, root state.Root) error {
	if k.StateKey != "" {
		return nil
	}
	switch k.Type {
	case "m.room.guest_access":
		m.shut = !letsGuestsIn(now)
	case "m.room.join_rules", "m.room.history_visibility":
		open, err := r.isOpen(root)
		if err != nil {
			return err
		}
		m.open = &open
	}
	return nil
}

// isOpen says whether anybody may join the room, or read in it.
//
// spec: c2s/searchUserDirectory
func (r *room) isOpen(root state.Root) (bool, error) {
	rules, seen := Key{"m.room.join_rules", ""}, Key{"m.room.history_visibility", ""}
	found, err := r.stateAt(root, []Key{rules, seen})
	if err != nil {
		return false, err
	}
	bare := func(ev *Stored) *event.Event {
		if ev == nil {
			return nil
		}
		return ev.Event
	}
	return auth.JoinRule(bare(found[rules])) == "public" || visibility.Of(bare(found[seen])) == visibility.WorldReadable, nil
}

// letsGuestsIn reads m.room.guest_access; nil is no event.
//
// spec: c2s#guest-access
func letsGuestsIn(access *Stored) bool {
	return access != nil && gjson.GetBytes(access.Content(), "guest_access").Str == "can_join"
}

// doorTime bounds the work that follows when a room shuts to guests.
const doorTime = time.Minute

func (s *Server) putGuestsOutLater(roomID id.RoomID) {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), doorTime)
		defer cancel()
		if err := s.guarded("put guests out", func() error { return s.putGuestsOut(ctx, roomID) }); err != nil {
			s.Log.Warn("guests are still in a room that is shut to them", zap.String("room", string(roomID)), zap.Error(err))
		}
	}()
}

// putGuestsOut lets our guests leave a room that does not let guests in any more.
//
// spec: c2s#guest-access
func (s *Server) putGuestsOut(ctx context.Context, roomID id.RoomID) error {
	var guests []string
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		guests = nil
		row, ok, err := tx.Room(string(roomID))
		if err != nil || !ok {
			return err
		}
		access, err := s.Reader.StateEvent(tx, row, rootOf(row), "m.room.guest_access", "")
		if err != nil || letsGuestsIn(access) {
			return err
		}
		guests, err = tx.GuestsIn(row.NID)
		return err
	})
	for _, guest := range guests { // one who cannot leave keeps no other in
		err = errors.Join(err, s.Leave(ctx, id.UserID(guest), roomID, nil))
	}
	return err
}

// lookAtDoors does, when the server starts, what it was stopped in before: guests leave rooms that were shut to them,
// and rooms from before it was noted are looked at. A room that cannot be read keeps no other from it, and waits for the
// next start.
func (s *Server) lookAtDoors(ctx context.Context) {
	look := func(what string, roomID string, do func(context.Context, id.RoomID) error) {
		err := s.guarded(what, func() error { return do(ctx, id.RoomID(roomID)) })
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("could not "+what, zap.String("room", roomID), zap.Error(err))
		}
	}
	var rooms []string
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		rooms, err = tx.RoomsWithGuests()
		return err
	})
	for _, v := range rooms {
		look("put guests out", v, s.putGuestsOut)
	}
	for after := ""; err == nil && ctx.Err() == nil; after = rooms[len(rooms)-1] {
		if err = s.DB.Read(ctx, func(tx storage.Tx) (err error) { rooms, err = tx.RoomsNotLookedAt(after); return err }); len(rooms) == 0 {
			break
		}
		for _, v := range rooms {
			look("see who may find the members of a room", v, s.lookAtDoor)
		}
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("it is not known of all rooms who may find their members", zap.Error(err))
	}
}

func (s *Server) lookAtDoor(ctx context.Context, roomID id.RoomID) error {
	return s.in(ctx, roomID, func(r *room) error {
		open, err := r.isOpen(state.Root(r.row.Root))
		if err != nil {
			return err
		}
		nid := r.row.NID
		r.commit(&additions{}, func(tx storage.Tx) error { tx.SetOpen(nid, open); return nil })
		return nil
	})
}
