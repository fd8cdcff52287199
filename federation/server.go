// Package federation is how other homeservers reach this one, and the outbox by which this
// one tells them what happened here. routes.go is the table of its operations. The way out is
// federation/peer; rooms and users are asked to do the work.
package federation

import (
	"context"
	"net/http"

	"go.uber.org/zap"

	"chancery"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/media"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/users"
)

// Server answers the server-server API.
type Server struct {
	Config  *config.Config
	DB      *storage.DB
	Reader  *roomserver.Reader
	Rooms   *roomserver.Server
	Users   *users.Server
	Media   *media.Server
	Keys    *peer.Keys             // our own
	Ring    *peer.KeyRing          // those of others
	Release string                 // of this program
	Auth    endpoint.Authenticator // nil asks Ring
	Limits  *endpoint.Limits       // nil limits nothing
	Metrics *endpoint.Metrics      // nil counts nothing
	Log     *zap.Logger

	inbound inbound
}

// Handler is the API as the federation listener serves it.
func (s *Server) Handler() http.Handler {
	auth := s.Auth
	switch {
	case auth != nil:
	case s.Ring != nil:
		auth = Authenticator{s.Ring}
	default:
		auth = nobodyKnown{}
	}
	proxies, err := endpoint.ParseProxies(s.Config.TrustedProxies)
	if err != nil {
		panic("federation: " + err.Error()) // config has checked them
	}
	return endpoint.New(endpoint.API{
		Routes:  s.Routes(),
		Auth:    auth,
		Limits:  s.Limits,
		Metrics: s.Metrics,
		Proxies: proxies,
		Log:     s.Log,
	})
}

// nobodyKnown is the authentication of a server without keys of others.
type nobodyKnown struct{}

func (nobodyKnown) Authenticate(context.Context, *http.Request, []byte) (endpoint.Caller, error) {
	return endpoint.Caller{}, chancery.Unauthorized("the signature cannot be checked")
}
