package users

import (
	"context"
	"encoding/json"
	"net/http"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

const (
	typePushRules = "m.push_rules"
	typeFullyRead = "m.fully_read"
	typeTag       = "m.tag"
)

const (
	maxAccountData      = 512 << 10 // of one type
	maxAccountDataTypes = 1000      // in one room, or globally
)

// AccountDataKey names a piece of account data.
type AccountDataKey struct {
	User id.UserID
	Room id.RoomID // empty: global
	Type string
}

// SetAccountData stores account data as a client gives it.
//
// spec: c2s/setAccountData, c2s/setAccountDataPerRoom
func (s *Server) SetAccountData(ctx context.Context, k AccountDataKey, content json.RawMessage) error {
	switch {
	case k.Type == typeFullyRead || k.Type == typePushRules:
		return chancery.Errorf(http.StatusMethodNotAllowed, chancery.CodeBadJSON, "%s is kept by the server: there are other ways to set it", k.Type)
	case len(k.Type) > 255:
		return chancery.InvalidParam("the type is too long")
	case len(content) > maxAccountData:
		return chancery.TooLarge("account data of one type has at most %d bytes", maxAccountData)
	}
	return s.writeAccountData(ctx, k, func(json.RawMessage) (json.RawMessage, error) { return content, nil })
}

// writeAccountData changes a piece of account data by what it was; nil when there was none.
func (s *Server) writeAccountData(ctx context.Context, k AccountDataKey, change func(was json.RawMessage) (json.RawMessage, error)) error {
	return s.DB.Write(ctx, []string{string(k.User)}, func(tx storage.Tx) error {
		room, err := accountDataRoom(tx, k.Room)
		if err != nil {
			return err
		}
		was, ok, err := tx.AccountData(string(k.User), room, k.Type)
		if err != nil {
			return err
		}
		if !ok {
			was = nil
			if n, err := tx.CountAccountData(string(k.User), room); err != nil {
				return err
			} else if n >= maxAccountDataTypes {
				return chancery.TooLarge("there are too many types of account data")
			}
		}
		content, err := change(was)
		if err != nil || content == nil {
			return err
		}
		putAccountData(tx, storage.AccountData{User: string(k.User), Room: room, Type: k.Type, Content: content})
		return nil
	})
}

// putAccountData stores account data and tells of it.
func putAccountData(tx storage.Tx, v storage.AccountData) {
	tx.SetAccountData(v)
	tx.Announce(storage.Fact{Kind: sql.FactAccountData, User: v.User, Room: v.Room, Extra: v.Type})
}

// accountDataRoom is the number under which account data is kept.
func accountDataRoom(tx storage.Tx, room id.RoomID) (int64, error) {
	if room == "" {
		return 0, nil
	}
	row, ok, err := tx.Room(string(room))
	if err == nil && !ok {
		err = errUnknownRoom
	}
	return row.NID, err
}

var errUnknownRoom = chancery.NotFound("this server does not know the room")

// AccountData finds a piece of account data. Push rules are always there.
//
// spec: c2s/getAccountData, c2s/getAccountDataPerRoom
func (s *Server) AccountData(ctx context.Context, k AccountDataKey) (content json.RawMessage, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		if k.Type == typePushRules && k.Room == "" {
			content, err = s.pushRulesContent(tx, k.User)
			return err
		}
		room, err := accountDataRoom(tx, k.Room)
		if err != nil {
			return err
		}
		var ok bool
		content, ok, err = tx.AccountData(string(k.User), room, k.Type)
		if err == nil && !ok {
			err = chancery.NotFound("there is no account data of this type")
		}
		return err
	})
	return content, err
}

// AccountDataIn lists a user's account data of some rooms in a transaction, for /sync; room 0 is the global
// one and has the push rules too.
func (s *Server) AccountDataIn(tx storage.Tx, user id.UserID, rooms []int64) ([]storage.AccountData, error) {
	list, err := tx.AccountDataOf(string(user), rooms)
	if err != nil {
		return nil, err
	}
	for _, room := range rooms {
		if room != 0 {
			continue
		}
		rules, err := s.pushRulesContent(tx, user)
		if err != nil {
			return nil, err
		}
		list = append(list, storage.AccountData{User: string(user), Type: typePushRules, Content: rules})
	}
	return list, nil
}

// Tags are the tags of a room, by name.
type Tags map[string]json.RawMessage

func readTags(content json.RawMessage) Tags {
	var v struct {
		Tags Tags `json:"tags"`
	}
	if json.Unmarshal(content, &v) != nil || v.Tags == nil {
		return Tags{} // a client may have put anything there
	}
	return v.Tags
}

// Tags lists the tags that a user gave a room.
//
// spec: c2s/getRoomTags
func (s *Server) Tags(ctx context.Context, user id.UserID, room id.RoomID) (Tags, error) {
	content, err := s.AccountData(ctx, AccountDataKey{user, room, typeTag})
	if chancery.IsCode(err, chancery.CodeNotFound) {
		return Tags{}, nil
	}
	return readTags(content), err
}

// SetTag gives a room a tag; nil takes it away.
//
// spec: c2s/setRoomTag, c2s/deleteRoomTag
func (s *Server) SetTag(ctx context.Context, user id.UserID, room id.RoomID, tag string, value json.RawMessage) error {
	if len(tag) > 255 { // spec: c2s#room-tagging
		return chancery.InvalidParam("a tag has at most 255 bytes")
	}
	return s.writeAccountData(ctx, AccountDataKey{user, room, typeTag}, func(was json.RawMessage) (json.RawMessage, error) {
		tags := readTags(was)
		if value == nil {
			if _, ok := tags[tag]; !ok {
				return nil, nil
			}
			delete(tags, tag)
		} else {
			tags[tag] = value
		}
		content, err := json.Marshal(map[string]Tags{"tags": tags})
		if err == nil && len(content) > maxAccountData {
			err = chancery.TooLarge("the room has too many tags")
		}
		return content, err
	})
}
