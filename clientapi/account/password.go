package account

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/clientapi/uia"
	"chancery/endpoint"
)

type PasswordIn struct {
	Caller endpoint.Caller
	Body   struct {
		Auth     json.RawMessage `json:"auth"`
		Password string          `json:"new_password"`
		Logout   *bool           `json:"logout_devices"`
	} `body:"json"`
	Text json.RawMessage `body:"json"`
}

// ChangePassword gives the caller another password. Without a session there is no way to
// confirm it: no account here has an email address.
//
// spec: c2s/changePassword
func (a *API) ChangePassword(ctx context.Context, in *PasswordIn) (*None, error) {
	if in.Caller.User == "" {
		return nil, chancery.MissingToken()
	}
	err := a.UIA.Check(ctx, uia.Request{
		Caller: in.Caller, Operation: "changePassword", Auth: in.Body.Auth, Body: in.Text, Flows: uia.ByPassword,
	})
	if err != nil {
		return nil, err
	}
	if in.Body.Password == "" {
		return nil, chancery.MissingParam("new_password is missing")
	}
	logout := in.Body.Logout == nil || *in.Body.Logout
	return nil, a.Users.SetPassword(ctx, in.Caller.User, in.Body.Password, logout, in.Caller.Device)
}

type DeactivateIn struct {
	Caller endpoint.Caller
	Body   struct {
		Auth  json.RawMessage `json:"auth"`
		Erase bool            `json:"erase"`
	} `body:"json"`
}

type DeactivateOut struct {
	Unbound string `json:"id_server_unbind_result"`
}

// Deactivate ends the caller's account for ever.
//
// spec: c2s/deactivateAccount
func (a *API) Deactivate(ctx context.Context, in *DeactivateIn) (*DeactivateOut, error) {
	if in.Caller.User == "" {
		return nil, chancery.MissingToken()
	}
	err := a.UIA.Check(ctx, uia.Request{Caller: in.Caller, Operation: "deactivateAccount", Auth: in.Body.Auth, Flows: uia.ByPassword})
	if err != nil {
		return nil, err
	}
	if err := a.Users.Deactivate(ctx, in.Caller.User, in.Body.Erase); err != nil {
		return nil, err
	}
	return &DeactivateOut{"success"}, nil // there is nothing to unbind
}
