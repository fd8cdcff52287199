// Package accountdata is the part of the client-server API about what a user's clients keep on the server:
// account data, tags and filters.
package accountdata

import (
	"context"
	"encoding/json"
	"strings"

	"chancery"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about account data, tags and filters.
type API struct {
	Users *users.Server
}

// own refuses what is another user's.
func own(c endpoint.Caller, user id.UserID) error {
	if c.User != user {
		return chancery.Forbidden("that belongs to another user")
	}
	return nil
}

func checkRoom(room id.RoomID) error {
	if !strings.HasPrefix(string(room), "!") || len(room) > 255 {
		return chancery.InvalidParam("that is no room ID")
	}
	return nil
}

type SetIn struct {
	Caller  endpoint.Caller
	User    id.UserID       `path:"userId"`
	Type    string          `path:"type"`
	Content json.RawMessage `body:"json"`
}

// Set keeps global account data.
//
// spec: c2s/setAccountData
func (a *API) Set(ctx context.Context, in *SetIn) (*struct{}, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	return nil, a.Users.SetAccountData(ctx, users.AccountDataKey{User: in.User, Type: in.Type}, in.Content)
}

type GetIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Type   string    `path:"type"`
}

// Get reads global account data.
//
// spec: c2s/getAccountData
func (a *API) Get(ctx context.Context, in *GetIn) (*json.RawMessage, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	content, err := a.Users.AccountData(ctx, users.AccountDataKey{User: in.User, Type: in.Type})
	return &content, err
}

type SetInRoomIn struct {
	Caller  endpoint.Caller
	User    id.UserID       `path:"userId"`
	Room    id.RoomID       `path:"roomId"`
	Type    string          `path:"type"`
	Content json.RawMessage `body:"json"`
}

// SetInRoom keeps account data for a room.
//
// spec: c2s/setAccountDataPerRoom
func (a *API) SetInRoom(ctx context.Context, in *SetInRoomIn) (*struct{}, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	if err := checkRoom(in.Room); err != nil {
		return nil, err
	}
	return nil, a.Users.SetAccountData(ctx, users.AccountDataKey{User: in.User, Room: in.Room, Type: in.Type}, in.Content)
}

type GetInRoomIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Room   id.RoomID `path:"roomId"`
	Type   string    `path:"type"`
}

// GetInRoom reads account data for a room.
//
// spec: c2s/getAccountDataPerRoom
func (a *API) GetInRoom(ctx context.Context, in *GetInRoomIn) (*json.RawMessage, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	if err := checkRoom(in.Room); err != nil {
		return nil, err
	}
	content, err := a.Users.AccountData(ctx, users.AccountDataKey{User: in.User, Room: in.Room, Type: in.Type})
	return &content, err
}

type TagsIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Room   id.RoomID `path:"roomId"`
}

type TagsOut struct {
	Tags users.Tags `json:"tags"`
}

// Tags lists the tags of a room.
//
// spec: c2s/getRoomTags
func (a *API) Tags(ctx context.Context, in *TagsIn) (*TagsOut, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	tags, err := a.Users.Tags(ctx, in.User, in.Room)
	return &TagsOut{tags}, err
}

type SetTagIn struct {
	Caller endpoint.Caller
	User   id.UserID       `path:"userId"`
	Room   id.RoomID       `path:"roomId"`
	Tag    string          `path:"tag"`
	Value  json.RawMessage `body:"json,optional"`
}

// SetTag tags a room.
//
// spec: c2s/setRoomTag
func (a *API) SetTag(ctx context.Context, in *SetTagIn) (*struct{}, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	if len(in.Value) == 0 {
		in.Value = json.RawMessage(`{}`)
	}
	return nil, a.Users.SetTag(ctx, in.User, in.Room, in.Tag, in.Value)
}

type DeleteTagIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Room   id.RoomID `path:"roomId"`
	Tag    string    `path:"tag"`
}

// DeleteTag takes a tag away.
//
// spec: c2s/deleteRoomTag
func (a *API) DeleteTag(ctx context.Context, in *DeleteTagIn) (*struct{}, error) {
	if err := own(in.Caller, in.User); err != nil {
		return nil, err
	}
	return nil, a.Users.SetTag(ctx, in.User, in.Room, in.Tag, nil)
}
