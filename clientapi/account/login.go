package account

import (
	"context"
	"encoding/json"
	"net/http"

	"chancery"
	"chancery/clientapi/uia"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

type LoginFlowsIn struct{}

type loginFlow struct {
	Type     string `json:"type"`
	GetToken bool   `json:"get_login_token,omitempty"`
}

type LoginFlowsOut struct {
	Flows []loginFlow `json:"flows"`
}

// LoginFlows says how one can sign in.
//
// spec: c2s/getLoginFlows
func (a *API) LoginFlows(context.Context, *LoginFlowsIn) (*LoginFlowsOut, error) {
	return &LoginFlowsOut{[]loginFlow{{Type: "m.login.password"}, {Type: "m.login.token", GetToken: true}}}, nil
}

type LoginIn struct {
	Caller endpoint.Caller
	Body   struct {
		Type        string          `json:"type" required:"true"`
		Identifier  *uia.Identifier `json:"identifier"`
		User        string          `json:"user"`    // deprecated
		Medium      string          `json:"medium"`  // deprecated
		Address     string          `json:"address"` // deprecated
		Password    string          `json:"password"`
		Token       string          `json:"token"`
		DeviceID    id.DeviceID     `json:"device_id"`
		DeviceName  string          `json:"initial_device_display_name"`
		Refreshable bool            `json:"refresh_token"`
	} `body:"json"`
}

// Login opens a session on a new device or on one that is there.
//
// spec: c2s/login
func (a *API) Login(ctx context.Context, in *LoginIn) (*signedIn, error) {
	device := users.NewDevice{
		ID: in.Body.DeviceID, Name: in.Body.DeviceName, Refreshable: in.Body.Refreshable,
		IP: in.Caller.IP, UserAgent: in.Caller.UserAgent,
	}
	var tokens users.Tokens
	var err error
	switch in.Body.Type {
	case "m.login.password":
		tokens, err = a.loginByPassword(ctx, in, device)
	case "m.login.token":
		if in.Body.Token == "" {
			return nil, chancery.MissingParam("token is missing")
		}
		tokens, err = a.Users.SignInByToken(ctx, in.Body.Token, device)
	default:
		return nil, chancery.Errorf(http.StatusBadRequest, chancery.CodeUnknown, "there is no such type of login")
	}
	if err != nil {
		return nil, err
	}
	out := a.signedIn(tokens)
	if url := a.Config.ClientURL(); a.Config.WellKnown.Client && url != "" {
		out.WellKnown = &wellKnown{}
		out.WellKnown.Homeserver.BaseURL = url
	}
	return out, nil
}

func (a *API) loginByPassword(ctx context.Context, in *LoginIn, device users.NewDevice) (users.Tokens, error) {
	var who uia.Identifier
	switch {
	case in.Body.Identifier != nil:
		who = *in.Body.Identifier
	case in.Body.User != "":
		who = uia.Identifier{Type: "m.id.user", User: in.Body.User}
	case in.Body.Medium != "" || in.Body.Address != "":
		who = uia.Identifier{Type: "m.id.thirdparty", Medium: in.Body.Medium, Address: in.Body.Address}
	default:
		return users.Tokens{}, chancery.MissingParam("identifier is missing")
	}
	name, err := who.Name()
	if err != nil {
		return users.Tokens{}, err
	}
	if in.Body.Password == "" {
		return users.Tokens{}, chancery.MissingParam("password is missing")
	}
	user, ok := a.Users.LocalUser(name)
	if !ok {
		return users.Tokens{}, chancery.Forbidden("wrong user name or password")
	}
	if err := a.Users.CheckPassword(ctx, user, in.Body.Password); err != nil {
		return users.Tokens{}, err
	}
	return a.Users.SignIn(ctx, user, device)
}

type LoginTokenIn struct {
	Caller endpoint.Caller
	Body   struct {
		Auth json.RawMessage `json:"auth"`
	} `body:"json"`
}

type LoginTokenOut struct {
	Token   string `json:"login_token"`
	Expires int64  `json:"expires_in_ms"`
}

// LoginToken makes a token by which another device of the caller can sign in once.
//
// spec: c2s/generateLoginToken
func (a *API) LoginToken(ctx context.Context, in *LoginTokenIn) (*LoginTokenOut, error) {
	err := a.UIA.Check(ctx, uia.Request{Caller: in.Caller, Operation: "generateLoginToken", Auth: in.Body.Auth, Flows: uia.ByPassword})
	if err != nil {
		return nil, err
	}
	token, good, err := a.Users.LoginToken(ctx, in.Caller.User)
	if err != nil {
		return nil, err
	}
	return &LoginTokenOut{Token: token, Expires: good.Milliseconds()}, nil
}

type RefreshIn struct {
	Body struct {
		Token string `json:"refresh_token" required:"true"`
	} `body:"json"`
}

type RefreshOut struct {
	Token   string `json:"access_token"`
	Refresh string `json:"refresh_token"`
	Expires int64  `json:"expires_in_ms"`
}

// Refresh gives new tokens for a refresh token.
//
// spec: c2s/refresh
func (a *API) Refresh(ctx context.Context, in *RefreshIn) (*RefreshOut, error) {
	t, err := a.Users.Refresh(ctx, in.Body.Token)
	if err != nil {
		return nil, err
	}
	return &RefreshOut{Token: t.Access, Refresh: t.Refresh, Expires: t.Expires.Milliseconds()}, nil
}

type None struct{}

// Logout ends the caller's session and removes its device.
//
// spec: c2s/logout
func (a *API) Logout(ctx context.Context, in *CallerIn) (*None, error) {
	if in.Caller.Device == "" {
		return nil, chancery.Forbidden("there is no session to end")
	}
	return nil, a.Users.Logout(ctx, in.Caller.User, in.Caller.Device)
}

// LogoutAll ends all sessions of the caller.
//
// spec: c2s/logout_all
func (a *API) LogoutAll(ctx context.Context, in *CallerIn) (*None, error) {
	return nil, a.Users.LogoutAll(ctx, in.Caller.User)
}

type WhoAmIOut struct {
	User   id.UserID   `json:"user_id"`
	Device id.DeviceID `json:"device_id,omitempty"`
	Guest  bool        `json:"is_guest"`
}

// WhoAmI says whose the access token is.
//
// spec: c2s/getTokenOwner
func (a *API) WhoAmI(_ context.Context, in *CallerIn) (*WhoAmIOut, error) {
	return &WhoAmIOut{User: in.Caller.User, Device: in.Caller.Device, Guest: in.Caller.Guest}, nil
}
