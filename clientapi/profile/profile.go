// Package profile is the part of the client-server API about what users say of themselves.
package profile

import (
	"context"
	"encoding/json"
	"strings"

	"chancery"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about profiles.
type API struct {
	Users  *users.Server
	Limits *endpoint.Limits // nil limits nothing
}

type ProfileIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
}

type Fields = map[string]json.RawMessage

func checkUser(user id.UserID) error {
	if _, _, err := user.Parse(); err != nil || len(user) > 255 {
		return chancery.InvalidParam("that is no user ID")
	}
	return nil
}

// mayAsk limits questions that anybody can put and that make us ask another server.
func (a *API) mayAsk(c endpoint.Caller, user id.UserID) error {
	if err := checkUser(user); err != nil || a.Users.IsLocal(user) {
		return err
	}
	return a.Limits.Allow(endpoint.LimitRemote, c)
}

// Profile tells everything a user says of themselves.
//
// spec: c2s/getUserProfile
func (a *API) Profile(ctx context.Context, in *ProfileIn) (*Fields, error) {
	if err := a.mayAsk(in.Caller, in.User); err != nil {
		return nil, err
	}
	fields, err := a.Users.ProfileOf(ctx, in.User, "")
	return &fields, err
}

type FieldIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Key    string    `path:"keyName"`
}

// Field tells one thing a user says of themselves.
//
// spec: c2s/getProfileField
func (a *API) Field(ctx context.Context, in *FieldIn) (*Fields, error) {
	if err := a.mayAsk(in.Caller, in.User); err != nil {
		return nil, err
	}
	fields, err := a.Users.ProfileOf(ctx, in.User, in.Key)
	return &fields, err
}

type SetFieldIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Key    string    `path:"keyName"`
	Body   Fields    `body:"json"`
}

// SetField changes one thing the caller says of themselves.
//
// spec: c2s/setProfileField
func (a *API) SetField(ctx context.Context, in *SetFieldIn) (*struct{}, error) {
	if err := mayChange(in.Caller, in.User, in.Key); err != nil {
		return nil, err
	}
	value, ok := in.Body[in.Key]
	if !ok {
		return nil, chancery.MissingParam("%s is missing", in.Key)
	}
	if len(in.Body) != 1 {
		// Some clients send more for the two old fields, which was never refused.
		if in.Key != "displayname" && in.Key != "avatar_url" {
			return nil, chancery.InvalidParam("the body has exactly one property: %s", in.Key)
		}
	}
	if strings.TrimSpace(string(value)) == "null" && (in.Key == "displayname" || in.Key == "avatar_url") {
		value = nil // how clients removed a field before there was a way to
	}
	return nil, a.Users.SetProfileField(ctx, in.User, in.Key, value)
}

// DeleteFieldIn names the field.
type DeleteFieldIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Key    string    `path:"keyName"`
}

// DeleteField removes one thing the caller says of themselves.
//
// spec: c2s/deleteProfileField
func (a *API) DeleteField(ctx context.Context, in *DeleteFieldIn) (*struct{}, error) {
	if err := mayChange(in.Caller, in.User, in.Key); err != nil {
		return nil, err
	}
	return nil, a.Users.SetProfileField(ctx, in.User, in.Key, nil)
}

// A suspended user may change nothing, a guest only their name.
//
// spec: c2s#account-suspension, c2s#guest-access
func mayChange(c endpoint.Caller, user id.UserID, key string) error {
	switch {
	case c.User != user:
		return chancery.Forbidden("you may only change your own profile")
	case c.Suspended:
		return chancery.Errorf(403, chancery.CodeUserSuspended, "your account is suspended")
	case c.Guest && key != "displayname":
		return chancery.Errorf(403, chancery.CodeGuestAccessForbidden, "guests may only change their display name")
	}
	return nil
}
