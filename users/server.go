// Package users owns what belongs to a person: accounts, tokens, devices and their keys, to-device
// messages, profiles, account data, receipts, presence. It is the only writer of those, for our
// clients and for peers. It knows nothing of HTTP and learns of rooms from storage and the log.
package users

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"sync"
	"sync/atomic"

	"chancery/config"
	"chancery/federation/peer"
	"chancery/storage"

	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Options are what a Server needs.
type Options struct {
	DB         *storage.DB
	ServerName string
	Config     *config.Config
	Log        *zap.Logger
	Peer       *peer.Client // nil asks no other server
	Peers      Peers        // who asks other servers for keys; nil is Peer
	Rooms      Rooms        // which replaced which; nil carries nothing over
	NATS       *nats.Conn   // tells other processes who types and who is online; nil tells only this one

	// OnDeactivate takes a deactivated user out of all rooms. It is asked again until it
	// succeeds, also after a restart, and needs Run. Nil leaves them in.
	OnDeactivate func(ctx context.Context, user id.UserID) error

	// OnProfile puts a changed display name and avatar into a room that the user is in, by a member event with
	// the content. It is asked again until it succeeds or is refused, also after a restart, and needs Run. Nil tells no room.
	OnProfile func(ctx context.Context, user id.UserID, room id.RoomID, content json.RawMessage) error
}

// Server answers for our users.
type Server struct {
	Options
	passwords *passwords
	attempts  *attempts // nil when nothing is limited
	sessions  sessions
	sightings sightings
	leave     chan struct{} // somebody has rooms to leave
	spread    chan struct{} // somebody's profile changed
	typing    *Typing
	presences *Presences

	acknowledged acknowledged
	stale        chan struct{} // there are device lists to fetch
	keysEpoch    atomic.Int64  // the epoch for which OnEpoch is done
	epochTurn    sync.Mutex    // one OnEpoch at a time
}

// New makes a Server. Run must be running for what needs no request.
func New(o Options) *Server {
	if o.Config == nil {
		o.Config = config.Default()
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	s := &Server{Options: o, passwords: newPasswords(o.Config.Passwords.Cost == "low"), leave: make(chan struct{}, 1),
		stale: make(chan struct{}, 1), spread: make(chan struct{}, 1), typing: newTyping(o.NATS, rand.Text()), presences: newPresences(o.NATS)}
	if s.Peers == nil && o.Peer != nil {
		s.Peers = o.Peer
	}
	if o.Config.RateLimits.Enabled {
		s.attempts = &attempts{}
	}
	return s
}

// IsLocal says whether a user is one of ours.
func (s *Server) IsLocal(user id.UserID) bool { return user.Homeserver() == s.ServerName }
