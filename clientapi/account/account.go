// Package account is the part of the client-server API about having an account: registering,
// signing in and out, passwords, and what of it administrators may do. What may be proved is
// told by users and uia; this package speaks JSON.
package account

import (
	"chancery/clientapi/uia"
	"chancery/config"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about accounts.
type API struct {
	Users  *users.Server
	UIA    *uia.Sessions
	Config *config.Config
}

// CallerIn is the input of operations that take none but the caller.
type CallerIn struct {
	Caller endpoint.Caller
}

// signedIn is what a client gets when it signs in.
type signedIn struct {
	User      id.UserID   `json:"user_id"`
	Token     string      `json:"access_token,omitempty"`
	Device    id.DeviceID `json:"device_id,omitempty"`
	Refresh   string      `json:"refresh_token,omitempty"`
	Expires   int64       `json:"expires_in_ms,omitempty"`
	Server    string      `json:"home_server,omitempty"` // deprecated, and old clients want it
	WellKnown *wellKnown  `json:"well_known,omitempty"`
}

type wellKnown struct {
	Homeserver struct {
		BaseURL string `json:"base_url"`
	} `json:"m.homeserver"`
}

func (a *API) signedIn(t users.Tokens) *signedIn {
	return &signedIn{
		User: t.User, Token: t.Access, Device: t.Device,
		Refresh: t.Refresh, Expires: t.Expires.Milliseconds(), Server: a.Config.ServerName,
	}
}
