// Package presence is the part of the client-server API about who is online.
package presence

import (
	"context"

	"chancery"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about presence.
type API struct {
	Users *users.Server
}

type SetIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Body   struct {
		Presence  string  `json:"presence" required:"true"`
		StatusMsg *string `json:"status_msg"`
	} `body:"json"`
}

// Set sets the caller's presence.
//
// spec: c2s/setPresence
func (a *API) Set(_ context.Context, in *SetIn) (*struct{}, error) {
	if in.Caller.User != in.User {
		return nil, chancery.Forbidden("you may only set your own presence")
	}
	return nil, a.Users.SetPresence(in.User, in.Body.Presence, in.Body.StatusMsg)
}

type GetIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
}

type GetOut struct {
	Presence        string  `json:"presence"`
	LastActiveAgo   *int64  `json:"last_active_ago,omitempty"`
	StatusMsg       *string `json:"status_msg,omitempty"`
	CurrentlyActive *bool   `json:"currently_active,omitempty"`
}

// Get tells a user's presence to who shares a room with them.
//
// spec: c2s/getPresence
func (a *API) Get(ctx context.Context, in *GetIn) (*GetOut, error) {
	v, err := a.Users.PresenceOf(ctx, in.Caller.User, in.User)
	if err != nil {
		return nil, err
	}
	out := &GetOut{Presence: v.Presence, StatusMsg: v.StatusMsg}
	if v.LastActive != 0 {
		ago := v.LastActiveAgo()
		out.LastActiveAgo, out.CurrentlyActive = &ago, &v.CurrentlyActive
	}
	return out, nil
}
