// Package room is the rooms' side of the client-server API: making, entering and leaving rooms,
// sending, and reading what was sent. It asks roomserver to change rooms and reads them from
// storage; it decides only what clients are told.
package room

import (
	"context"
	"encoding/json"
	"fmt"

	"chancery"
	"chancery/config"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// API answers for rooms.
type API struct {
	Config   *config.Config
	DB       *storage.DB
	Reader   *roomserver.Reader
	Rooms    *roomserver.Server
	Profiles Profiles
	Log      *zap.Logger
}

// Profiles tells what the member events of our users say of them.
type Profiles interface {
	MemberProfile(ctx context.Context, user id.UserID) (displayname, avatarURL string, err error)
}

// memberContent begins the content of a member event of a user: their profile, if they are ours,
// and the reason given.
//
// spec: c2s#mroommember
func (a *API) memberContent(ctx context.Context, user id.UserID, reason string) (map[string]any, error) {
	content := map[string]any{}
	if reason != "" {
		content["reason"] = reason
	}
	if a.Profiles == nil || !a.Rooms.IsLocal(user) {
		return content, nil
	}
	name, avatar, err := a.Profiles.MemberProfile(ctx, user)
	if err != nil {
		return nil, fmt.Errorf("read the profile of the member: %w", err)
	}
	if name != "" {
		content["displayname"] = name
	}
	if avatar != "" {
		content["avatar_url"] = avatar
	}
	return content, nil
}

// mayWrite refuses what a suspended user must not do.
//
// spec: c2s#account-suspension
func mayWrite(c endpoint.Caller) error {
	if c.Suspended {
		return chancery.Errorf(403, chancery.CodeUserSuspended, "your account is suspended")
	}
	return nil
}

// notHere makes of a room that we do not have what clients are told of any room that they are not in.
func notHere(err error) error {
	if roomserver.IsUnknownRoom(err) {
		return chancery.Forbidden("you are not in this room")
	}
	return err
}

func object(members map[string]any) (json.RawMessage, error) {
	text, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("encode an event's content: %w", err)
	}
	return text, nil
}
