package users

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// Session is what an access token stands for.
type Session struct {
	User      id.UserID
	Device    id.DeviceID
	Number    int64 // of the token: never 0
	Guest     bool
	Admin     bool
	Locked    bool
	Suspended bool

	expires int64 // milliseconds, 0 never
	owner   *owner
	seen    atomic.Int64 // when it was last noted, milliseconds
}

// owner is shared by all sessions of a user that are held; gone ends them.
type owner struct {
	user string
	gone atomic.Bool
}

// sessions holds what is known of access tokens, so that an authenticated request needs no
// SQL. It is bounded in two generations: when the younger is full the elder is forgotten.
// The owner of every session of a generation is in that generation too, so forget finds it.
type sessions struct {
	mu           sync.Mutex // guards all below
	young, elder generation
	changes      int64 // goes up with every forget
}

type generation struct {
	tokens map[string]*Session // by hash
	owners map[string]*owner   // by user
}

const sessionTable = 20_000

func (c *sessions) get(hash string) *Session {
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.young.tokens[hash]
	if v == nil {
		if v = c.elder.tokens[hash]; v == nil {
			return nil
		}
		if !v.owner.gone.Load() {
			c.keep(hash, v)
		}
	}
	if v.owner.gone.Load() {
		return nil
	}
	return v
}

// begin is asked before a session is read from SQL; put keeps it only when nothing was
// forgotten since, for it may be what was forgotten.
func (c *sessions) begin() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changes
}

func (c *sessions) put(hash string, v *Session, begun int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes != begun {
		return
	}
	user := string(v.User)
	if v.owner = c.young.owners[user]; v.owner == nil {
		if v.owner = c.elder.owners[user]; v.owner == nil {
			v.owner = &owner{user: user}
		}
	}
	c.keep(hash, v)
}

func (c *sessions) keep(hash string, v *Session) {
	if c.young.tokens == nil || len(c.young.tokens) >= sessionTable {
		c.elder = c.young
		c.young = generation{map[string]*Session{}, map[string]*owner{}}
	}
	c.young.tokens[hash] = v
	c.young.owners[v.owner.user] = v.owner
}

// forget drops all sessions of a user.
func (c *sessions) forget(user string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changes++
	for _, g := range []generation{c.young, c.elder} {
		if o := g.owners[user]; o != nil {
			o.gone.Store(true)
			delete(g.owners, user)
		}
	}
}

// Authenticate says whose an access token is. A locked user is told so, but for operations
// that end a session: there lockedToo is true.
//
// spec: c2s#using-access-tokens
func (s *Server) Authenticate(ctx context.Context, token string, lockedToo bool) (*Session, error) {
	hash := hashToken(token)
	v := s.sessions.get(hash)
	if v == nil {
		var err error
		if v, err = s.readSession(ctx, hash); err != nil {
			return nil, err
		}
	}
	if v.expires > 0 && v.expires <= now() {
		return nil, chancery.UnknownToken(true)
	}
	if v.Locked && !lockedToo {
		// spec: c2s#account-locking
		return nil, chancery.Errorf(http.StatusUnauthorized, chancery.CodeUserLocked, "this account is locked").With("soft_logout", true)
	}
	return v, nil
}

func (s *Server) readSession(ctx context.Context, hash string) (*Session, error) {
	begun := s.sessions.begin()
	var row storage.Session
	var ok bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		row, ok, err = tx.Session(hash)
		return err
	})
	if err != nil {
		return nil, err
	}
	if !ok || row.Deactivated {
		return nil, chancery.UnknownToken(false)
	}
	if row.Replaces != "" {
		if err := s.supersede(ctx, row.Token); err != nil {
			return nil, err
		}
		return s.readSession(ctx, hash) // what was read before is too old to keep
	}
	v := &Session{
		User: id.UserID(row.Token.User), Device: id.DeviceID(row.Device), Number: tokenNumber(hash),
		Guest: row.Guest, Admin: row.Admin, Locked: row.Locked, Suspended: row.Suspended,
		expires: row.Expires,
	}
	s.sessions.put(hash, v, begun)
	return v, nil
}

// Heard takes in a fact that the log tells: another process may have ended a session.
func (s *Server) Heard(f storage.Fact) {
	if f.Kind == sql.FactAccount {
		s.sessions.forget(f.User)
	}
}

// accountChanged announces in tx that what is known of a user must be forgotten.
func accountChanged(tx storage.Tx, user id.UserID) {
	tx.Announce(storage.Fact{Kind: sql.FactAccount, User: string(user)})
}

// change is a Write about one user, after which this process knows nothing old of them; the
// others hear of it from the log.
func (s *Server) change(ctx context.Context, user id.UserID, fn func(storage.Tx) error) error {
	// Also when it failed: whether a commit happened may not be known.
	defer s.sessions.forget(string(user))
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		accountChanged(tx, user)
		return nil
	})
}

func now() int64 { return time.Now().UnixMilli() }
