package account

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/clientapi/uia"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

type RegisterIn struct {
	Caller endpoint.Caller
	Kind   string `query:"kind" default:"user"`
	Body   struct {
		Auth        json.RawMessage `json:"auth"`
		Username    string          `json:"username"`
		Password    string          `json:"password"`
		DeviceID    id.DeviceID     `json:"device_id"`
		DeviceName  string          `json:"initial_device_display_name"`
		NoLogin     bool            `json:"inhibit_login"`
		Refreshable bool            `json:"refresh_token"`
	} `body:"json"`
}

// Register makes an account, for a person or for a guest.
//
// spec: c2s/register
func (a *API) Register(ctx context.Context, in *RegisterIn) (*signedIn, error) {
	switch in.Kind {
	case "user":
		return a.registerUser(ctx, in)
	case "guest":
		return a.registerGuest(ctx, in)
	}
	return nil, chancery.InvalidParam("kind must be user or guest")
}

func (a *API) registerUser(ctx context.Context, in *RegisterIn) (*signedIn, error) {
	if !a.Config.Registration.Open {
		return nil, chancery.Forbidden("registration is closed on this server")
	}
	// What cannot be is said before anybody is asked to confirm it.
	if in.Body.Username != "" {
		if err := a.Users.Available(ctx, in.Body.Username); err != nil {
			return nil, err
		}
	}
	err := a.UIA.Check(ctx, uia.Request{Operation: "register", Auth: in.Body.Auth, Flows: []uia.Flow{{uia.Dummy}}})
	if err != nil {
		return nil, err
	}
	if in.Body.Password == "" {
		return nil, chancery.MissingParam("password is missing")
	}
	var device *users.NewDevice
	if !in.Body.NoLogin {
		device = &users.NewDevice{
			ID: in.Body.DeviceID, Name: in.Body.DeviceName, Refreshable: in.Body.Refreshable,
			IP: in.Caller.IP, UserAgent: in.Caller.UserAgent,
		}
	}
	tokens, err := a.Users.Create(ctx, users.NewAccount{Name: in.Body.Username, Password: in.Body.Password}, device)
	if err != nil {
		return nil, err
	}
	return a.signedIn(tokens), nil
}

// registerGuest looks at nothing the guest says but the name of the device.
//
// spec: c2s#guest-access
func (a *API) registerGuest(ctx context.Context, in *RegisterIn) (*signedIn, error) {
	if !a.Config.Registration.Guests {
		return nil, chancery.Forbidden("this server has no guests")
	}
	device := users.NewDevice{Name: in.Body.DeviceName, IP: in.Caller.IP, UserAgent: in.Caller.UserAgent}
	tokens, err := a.Users.Create(ctx, users.NewAccount{Guest: true}, &device)
	if err != nil {
		return nil, err
	}
	return a.signedIn(tokens), nil
}

type AvailableIn struct {
	Username string `query:"username" required:"true"`
}

type AvailableOut struct {
	Available bool `json:"available"`
}

// Available says whether a user name can be had.
//
// spec: c2s/checkUsernameAvailability
func (a *API) Available(ctx context.Context, in *AvailableIn) (*AvailableOut, error) {
	if err := a.Users.Available(ctx, in.Username); err != nil {
		return nil, err
	}
	return &AvailableOut{true}, nil
}

type TokenValidityIn struct {
	Token string `query:"token" required:"true"`
}

type TokenValidityOut struct {
	Valid bool `json:"valid"`
}

// TokenValidity says whether a registration token is good. This server gives out none: it is
// open to everybody or to nobody.
//
// spec: c2s/registrationTokenValidity
func (a *API) TokenValidity(context.Context, *TokenValidityIn) (*TokenValidityOut, error) {
	if !a.Config.Registration.Open {
		return nil, chancery.Forbidden("registration is closed on this server")
	}
	return &TokenValidityOut{false}, nil
}
