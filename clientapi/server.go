// Package clientapi is the client-server API but sync: it finds out who asks and for what,
// and asks roomserver and users to do it. routes.go is the table of its operations.
// It knows nothing of SQL and writes nothing itself.
package clientapi

import (
	"context"
	"net/http"

	"github.com/nats-io/nats.go"
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

// Server answers the client-server API.
type Server struct {
	Config  *config.Config
	DB      *storage.DB
	Reader  *roomserver.Reader
	Rooms   *roomserver.Server
	Users   *users.Server
	Media   *media.Server
	Peer    *peer.Client
	NATS    *nats.Conn             // for what is told without being kept: typing, presence
	Sync    endpoint.Handler       // the row "sync", answered by syncapi; the zero value is planned
	Auth    endpoint.Authenticator // nil asks Users
	Limits  *endpoint.Limits       // nil limits nothing
	Metrics *endpoint.Metrics      // nil counts nothing
	Log     *zap.Logger

	parts
}

// OldPaths are what clients of before v1.1 of the spec call today's paths, and an alias of media.
var OldPaths = map[string]string{
	"/_matrix/client/r0/": "/_matrix/client/v3/",
	"/_matrix/media/r0/":  "/_matrix/media/v3/",
	"/_matrix/media/v1/":  "/_matrix/media/v3/",
}

// Handler is the API as the client listener serves it.
func (s *Server) Handler() http.Handler {
	proxies, err := endpoint.ParseProxies(s.Config.TrustedProxies)
	if err != nil {
		panic("clientapi: " + err.Error()) // config has checked them
	}
	auth := s.Auth
	switch {
	case auth != nil:
	case s.Users != nil:
		auth = authenticator{s.Users, proxies}
	default:
		auth = nobodyKnown{}
	}
	return endpoint.New(endpoint.API{
		Routes:   s.Routes(),
		Auth:     auth,
		Prefixes: OldPaths,
		CORS:     true,
		Limits:   s.Limits,
		Metrics:  s.Metrics,
		Proxies:  proxies,
		Log:      s.Log,
	})
}

// nobodyKnown is the authentication of a server without accounts.
type nobodyKnown struct{}

func (nobodyKnown) Authenticate(context.Context, *http.Request, []byte) (endpoint.Caller, error) {
	return endpoint.Caller{}, chancery.UnknownToken(false)
}

// sync is the handler of the row that syncapi answers, which this package does not know.
func (s *Server) sync() endpoint.Handler {
	if s.Sync.IsZero() {
		return planned
	}
	return s.Sync
}
