package users

import (
	"encoding/json"
	"slices"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Rooms knows which room has replaced which.
type Rooms interface {
	// Predecessor finds the room that a room has replaced.
	Predecessor(tx storage.Tx, room int64) (storage.Room, bool, error)
	// Replacement finds the room that replaces a room.
	Replacement(tx storage.Tx, room int64) (storage.Room, bool, error)
}

const typeDirect = "m.direct"

// arrived gives a user who has come into a room what they set for the room that it has replaced.
//
// spec: c2s#room-upgrades
func (s *Server) arrived(tx storage.Tx, room int64, user id.UserID) error {
	if s.Rooms == nil {
		return nil
	}
	old, ok, err := s.Rooms.Predecessor(tx, room)
	if err != nil || !ok {
		return err
	}
	next, ok, err := tx.RoomByNumber(room)
	if err != nil || !ok {
		return err
	}
	return s.carryOver(tx, user, old, next)
}

// replaced does the same for those who were in the new room before the old one said that it is replaced.
func (s *Server) replaced(tx storage.Tx, room int64) (next storage.Room, users []string, err error) {
	next, ok, err := s.Rooms.Replacement(tx, room)
	if err != nil || !ok {
		return next, nil, err
	}
	members, err := tx.LocalMembers(next.NID, s.ServerName, []string{"join"})
	for _, m := range members {
		users = append(users, m.User)
	}
	slices.Sort(users)
	return next, users, err
}

// carryOver copies tags, push rules and the mark of direct rooms. What the user has set for the new room stays.
func (s *Server) carryOver(tx storage.Tx, user id.UserID, old, next storage.Room) error {
	tags, ok, err := tx.AccountData(string(user), old.NID, typeTag)
	if err != nil {
		return err
	}
	if ok {
		if _, has, err := tx.AccountData(string(user), next.NID, typeTag); err != nil {
			return err
		} else if !has {
			putAccountData(tx, storage.AccountData{User: string(user), Room: next.NID, Type: typeTag, Content: tags})
		}
	}
	if err := carryOverDirect(tx, user, old.ID, next.ID); err != nil {
		return err
	}
	changes, err := changesIn(tx, user)
	if err != nil || !changes.CarryOver(old.ID, next.ID) {
		return err
	}
	text, err := changes.Text()
	if chancery.IsCode(err, chancery.CodeTooLarge) {
		s.Log.Info("a user has too many push rules to have those of a replaced room for the new one", zap.String("user", string(user)))
		return nil
	}
	if err != nil {
		return err
	}
	tx.SetPushRules(string(user), text)
	tx.Announce(storage.Fact{Kind: sql.FactAccountData, User: string(user), Extra: typePushRules})
	return nil
}

// spec: c2s#mdirect
func carryOverDirect(tx storage.Tx, user id.UserID, old, next string) error {
	content, ok, err := tx.AccountData(string(user), 0, typeDirect)
	if err != nil || !ok {
		return err
	}
	var direct map[string]json.RawMessage
	if json.Unmarshal(content, &direct) != nil {
		return nil // a client may have put anything there
	}
	changed := false
	for with, list := range direct {
		var rooms []string
		if json.Unmarshal(list, &rooms) != nil || !slices.Contains(rooms, old) || slices.Contains(rooms, next) {
			continue
		}
		if direct[with], err = json.Marshal(append(rooms, next)); err != nil {
			return err
		}
		changed = true
	}
	if !changed {
		return nil
	}
	if content, err = json.Marshal(direct); err != nil {
		return err
	}
	putAccountData(tx, storage.AccountData{User: string(user), Type: typeDirect, Content: content})
	return nil
}
