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
	Config *config.Config
	DB     *storage.DB
	Reader *roomserver.Reader
	Rooms  *roomserver.Server
	Log    *zap.Logger
}

// memberContent begins the content of a member event of a user: their profile, if they are ours,
// and the reason given.
//
// spec: c2s#mroommember
func (a *API) memberContent(ctx context.Context, user id.UserID, reason string) (map[string]any, error) {
	all, err := a.memberContents(ctx, []id.UserID{user})
	if err != nil {
		return nil, err
	}
	content := all[user]
	if reason != "" {
		content["reason"] = reason
	}
	return content, nil
}

// memberContents is memberContent of many.
func (a *API) memberContents(ctx context.Context, users []id.UserID) (map[id.UserID]map[string]any, error) {
	contents := make(map[id.UserID]map[string]any, len(users))
	var ours []string
	for _, user := range users {
		contents[user] = map[string]any{}
		if a.Rooms.IsLocal(user) {
			ours = append(ours, string(user))
		}
	}
	return contents, a.DB.Read(ctx, func(tx storage.Tx) error {
		profiles, err := tx.Profiles(ours)
		if err != nil {
			return fmt.Errorf("read the profiles of members: %w", err)
		}
		for _, p := range profiles {
			content := contents[id.UserID(p.User)]
			if p.DisplayName != "" {
				content["displayname"] = p.DisplayName
			}
			if p.AvatarURL != "" {
				content["avatar_url"] = p.AvatarURL
			}
		}
		return nil
	})
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
