package clientapi

import (
	"context"
	"net/http"
	"net/netip"

	"chancery"
	"chancery/endpoint"
	"chancery/users"
)

// authenticator finds out who asks, by access token.
type authenticator struct {
	users   *users.Server
	proxies []netip.Prefix
}

// spec: c2s#account-locking (a locked user can still end their sessions)
var lockedMay = map[string]bool{"logout": true, "logout_all": true}

func (a authenticator) Authenticate(ctx context.Context, r *http.Request, _ []byte) (endpoint.Caller, error) {
	token, ok := endpoint.AccessToken(r)
	if !ok {
		return endpoint.Caller{}, chancery.MissingToken()
	}
	route, _ := endpoint.RouteOf(ctx)
	session, err := a.users.Authenticate(ctx, token, route.API == endpoint.ClientServer && lockedMay[route.ID])
	if err != nil {
		return endpoint.Caller{}, err
	}
	a.users.Saw(session, endpoint.ClientIP(r, a.proxies), r.UserAgent())
	return endpoint.Caller{
		User:      session.User,
		Device:    session.Device,
		Token:     session.Number,
		Guest:     session.Guest,
		Admin:     session.Admin,
		Suspended: session.Suspended,
	}, nil
}
