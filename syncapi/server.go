// Package syncapi answers /sync: what happened for a user since a token. It follows the log to
// know whom a fact concerns, and reads what it tells from memory or in one read transaction.
// It writes nothing of rooms; who may see what is for the pure packages of roomserver to say.
package syncapi

import (
	"context"
	"time"

	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/eventlog"
	"chancery/users"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
)

// Options are what a Server needs.
type Options struct {
	DB         *storage.DB
	Reader     *roomserver.Reader
	Tail       *eventlog.Tail
	Users      *users.Server
	NATS       *nats.Conn
	ServerName string
	Presence   bool
	Log        *zap.Logger
}

// Server answers the syncs of one process.
type Server struct {
	Options
	watch   *watch
	sent    *sentMembers
	shared  *shared
	process string        // tells what this process counts from what another one counted
	stopped chan struct{} // closed when no long poll waits any more
}

// New makes a Server. Run must be running, or nobody is woken.
func New(o Options) *Server {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &Server{Options: o, process: o.Users.Typing().Process(), stopped: make(chan struct{})}
	s.sent = newSentMembers()
	s.shared = newShared()
	s.watch = newWatch(s)
	return s
}

// Run follows the log until ctx ends; then all long polls are answered.
func (s *Server) Run(ctx context.Context) error {
	defer close(s.stopped)
	defer s.watch.stop()
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	typing, presence := make(chan users.TypingChange, 1000), make(chan users.Presence, 1000)
	defer s.Users.Typing().Watch(typing)()
	defer s.Users.Presences().Watch(presence)()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.watch.heard:
			s.watch.follow(ctx)
		case c := <-typing:
			s.watch.followTyping(ctx, c)
		case c := <-presence:
			s.watch.followPresence(ctx, c)
		case <-tick.C:
			s.watch.dropIdle(time.Now().Add(-idleAfter))
		}
	}
}

// Sync is the handler of the row "sync".
func (s *Server) Sync() endpoint.Handler { return endpoint.Handle(s.sync) }

// Routes gives the rows of a table that this package answers.
func (s *Server) Routes(table []endpoint.Route) []endpoint.Route {
	var rows []endpoint.Route
	for _, r := range table {
		if r.API == endpoint.ClientServer && r.ID == "sync" {
			r.Handler = s.Sync()
			rows = append(rows, r)
		}
	}
	return rows
}
