package account

import (
	"context"
	"time"

	"chancery"
	"chancery/endpoint"

	"maunium.net/go/mautrix/id"
)

type capability struct {
	Enabled bool `json:"enabled"`
}

type roomVersions struct {
	Default   string            `json:"default"`
	Available map[string]string `json:"available"`
}

type moderation struct {
	Suspend bool `json:"suspend"`
	Lock    bool `json:"lock"`
}

type capabilities struct {
	ChangePassword capability   `json:"m.change_password"`
	RoomVersions   roomVersions `json:"m.room_versions"`
	DisplayName    capability   `json:"m.set_displayname"`
	Avatar         capability   `json:"m.set_avatar_url"`
	Contacts       capability   `json:"m.3pid_changes"`
	LoginToken     capability   `json:"m.get_login_token"`
	ProfileFields  capability   `json:"m.profile_fields"`
	ForcedForget   capability   `json:"m.forget_forced_upon_leave"`
	Moderation     *moderation  `json:"m.account_moderation,omitempty"`
}

type CapabilitiesOut struct {
	Capabilities capabilities `json:"capabilities"`
}

// Capabilities says what the caller can do here.
//
// spec: c2s/getCapabilities
func (a *API) Capabilities(_ context.Context, in *CallerIn) (*CapabilitiesOut, error) {
	person := capability{!in.Caller.Guest} // a guest has no password to change or to confirm with, and only a name
	out := &CapabilitiesOut{capabilities{
		ChangePassword: person,
		RoomVersions:   roomVersions{Default: a.Config.Rooms.DefaultVersion, Available: stable},
		DisplayName:    capability{true},
		Avatar:         person,
		LoginToken:     person,
		ProfileFields:  person,
	}}
	if in.Caller.Admin {
		out.Capabilities.Moderation = &moderation{Suspend: true, Lock: true}
	}
	return out, nil
}

// stable are the room versions of the spec; we make rooms of each.
var stable = map[string]string{
	"1": "stable", "2": "stable", "3": "stable", "4": "stable", "5": "stable", "6": "stable",
	"7": "stable", "8": "stable", "9": "stable", "10": "stable", "11": "stable", "12": "stable",
}

type ContactsOut struct {
	Contacts []struct{} `json:"threepids"`
}

// Contacts lists the caller's email addresses and telephone numbers: accounts here have none.
//
// spec: c2s/getAccount3PIDs
func (a *API) Contacts(context.Context, *CallerIn) (*ContactsOut, error) {
	return &ContactsOut{Contacts: []struct{}{}}, nil
}

// TurnServer gives no relay for calls: none is configured.
//
// spec: c2s/getTurnServer
func (a *API) TurnServer(context.Context, *CallerIn) (*None, error) { return nil, nil }

type OpenIDIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Body   struct{}  `body:"json"`
}

type OpenIDOut struct {
	Token   string `json:"access_token"`
	Type    string `json:"token_type"`
	Server  string `json:"matrix_server_name"`
	Expires int64  `json:"expires_in"` // seconds
}

// OpenIDToken makes a token by which the caller proves to a third party who they are.
//
// spec: c2s/requestOpenIdToken
func (a *API) OpenIDToken(ctx context.Context, in *OpenIDIn) (*OpenIDOut, error) {
	if in.User != in.Caller.User {
		return nil, chancery.Forbidden("a token for somebody else is not to be had")
	}
	token, good, err := a.Users.OpenIDToken(ctx, in.User)
	if err != nil {
		return nil, err
	}
	return &OpenIDOut{Token: token, Type: "Bearer", Server: a.Config.ServerName, Expires: int64(good / time.Second)}, nil
}
