// Package users owns what belongs to a person: accounts, tokens, devices and their keys, to-device
// messages, profiles, account data, receipts, presence. It is the only writer of those, for our
// clients and for peers. It knows nothing of HTTP and learns of rooms from storage and the log.
package users

import (
	"chancery/config"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Options are what a Server needs.
type Options struct {
	DB         *storage.DB
	ServerName string
	Config     *config.Config
	Log        *zap.Logger
}

// Server answers for our users.
type Server struct {
	Options
}

// New makes a Server.
func New(o Options) *Server { return &Server{Options: o} }

// IsLocal says whether a user is one of ours.
func (s *Server) IsLocal(user id.UserID) bool { return user.Homeserver() == s.ServerName }
