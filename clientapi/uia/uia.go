// Package uia asks users to prove again who they are before something that a stolen access
// token should not be able to do. It knows the stages and the sessions; what is proved by a
// password is told by users.
//
// spec: c2s#user-interactive-authentication-api
package uia

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"chancery"
	"chancery/endpoint"

	"maunium.net/go/mautrix/id"
)

// Stages that we know.
const (
	Password = "m.login.password"
	Dummy    = "m.login.dummy"
)

// A Flow is the stages by which a request is let through, in their order.
type Flow []string

// ByPassword is the flow of everything that a signed-in user confirms.
var ByPassword = []Flow{{Password}}

// Users knows passwords.
type Users interface {
	LocalUser(name string) (user id.UserID, ok bool)
	CheckPassword(ctx context.Context, user id.UserID, password string) error
}

// Request is what must be confirmed.
type Request struct {
	Caller    endpoint.Caller // zero for somebody who has no account yet
	Operation string          // with what it is done to, if that is in the path: "deleteDevice ABC"
	Auth      json.RawMessage // the "auth" member of the body, nil when there is none
	Body      json.RawMessage // when given, no other body than the first is let through with a session
	Flows     []Flow
}

// Sessions are the confirmations that are under way. They live in memory: a client whose
// session is lost gets a new one. They are bounded; when there are too many the oldest half goes.
type Sessions struct {
	users        Users
	mu           sync.Mutex // guards young and elder, and what is in their sessions
	young, elder map[string]*session
}

type session struct {
	bound     binding
	body      [sha256.Size]byte
	began     time.Time
	completed []string
}

// binding is what a session may be used for.
type binding struct {
	operation string
	user      id.UserID
	device    id.DeviceID
}

const (
	table    = 10_000
	lifetime = 15 * time.Minute
)

// New makes Sessions.
func New(users Users) *Sessions { return &Sessions{users: users} }

// auth is the "auth" member of a request.
type auth struct {
	Type       string      `json:"type"`
	Session    string      `json:"session"`
	Identifier *Identifier `json:"identifier"`
	User       string      `json:"user"` // before identifiers
	Password   string      `json:"password"`
}

// Check lets a confirmed request through by nil; else it gives the error that asks the client
// to confirm it, or to go on doing so.
func (s *Sessions) Check(ctx context.Context, r Request) error {
	var a auth
	given := len(r.Auth) > 0 && string(r.Auth) != "null"
	if given {
		if err := endpoint.DecodeJSON(r.Auth, &a); err != nil {
			return err
		}
	}
	sessionID, known := s.find(a.Session, r)
	if a.Session != "" && !known {
		return s.ask(sessionID, r, chancery.Errorf(http.StatusUnauthorized, chancery.CodeUnauthorized, "this session is over or is for something else; begin anew"))
	}
	if given && a.Type != "" && !s.done(sessionID, a.Type) {
		if err := s.stage(ctx, r, a, s.completed(sessionID)); err != nil {
			if e := chancery.As(err); e.Code == chancery.CodeForbidden || e.Code == chancery.CodeUnrecognized {
				return s.ask(sessionID, r, e)
			}
			return err
		}
		s.complete(sessionID, a.Type)
	}
	completed := s.completed(sessionID)
	for _, f := range r.Flows {
		// A request without auth never succeeds, whatever was confirmed before.
		if given && len(completed) >= len(f) && slices.Equal(completed[:len(f)], f) {
			s.end(sessionID)
			return nil
		}
	}
	return s.ask(sessionID, r, nil)
}

// stage tries one stage; it must be the next of a flow.
func (s *Sessions) stage(ctx context.Context, r Request, a auth, completed []string) error {
	next := slices.ContainsFunc(r.Flows, func(f Flow) bool {
		return len(f) > len(completed) && slices.Equal(f[:len(completed)], completed) && f[len(completed)] == a.Type
	})
	if !next {
		return chancery.Errorf(http.StatusUnauthorized, chancery.CodeUnrecognized, "this is not the next stage of a flow")
	}
	switch a.Type {
	case Dummy:
		return nil
	case Password:
		return s.password(ctx, r, a)
	}
	return chancery.Errorf(http.StatusUnauthorized, chancery.CodeUnrecognized, "there is no such stage")
}

// password lets the caller confirm with their own password only.
func (s *Sessions) password(ctx context.Context, r Request, a auth) error {
	name := a.User
	if a.Identifier != nil {
		var err error
		if name, err = a.Identifier.Name(); err != nil {
			return err
		}
	}
	user := r.Caller.User // clients of before identifiers leave the name out
	if name != "" {
		var ok bool
		if user, ok = s.users.LocalUser(name); !ok || (r.Caller.User != "" && user != r.Caller.User) {
			return chancery.Forbidden("this is not your account")
		}
	}
	if user == "" {
		return chancery.MissingParam("identifier is missing")
	}
	return s.users.CheckPassword(ctx, user, a.Password)
}

// ask is the 401 that tells the flows; why may be nil.
func (s *Sessions) ask(sessionID string, r Request, why *chancery.Error) error {
	e := &chancery.Error{Status: http.StatusUnauthorized}
	if why != nil {
		e.Code, e.Message = why.Code, why.Message
	}
	type flow struct {
		Stages []string `json:"stages"`
	}
	flows := make([]flow, len(r.Flows))
	for i, f := range r.Flows {
		flows[i].Stages = f
	}
	e = e.With("flows", flows).With("params", map[string]any{}).With("session", sessionID)
	if completed := s.completed(sessionID); len(completed) > 0 {
		e = e.With("completed", completed)
	}
	return e
}

// find gives the session of a request, a new one when it named none that fits.
func (s *Sessions) find(name string, r Request) (sessionID string, known bool) {
	bound := binding{r.Operation, r.Caller.User, r.Caller.Device}
	body := bodyHash(r.Body)
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.get(name); v != nil && v.bound == bound && v.body == body && time.Since(v.began) < lifetime {
		return name, true
	}
	if s.young == nil || len(s.young) >= table/2 {
		s.elder, s.young = s.young, map[string]*session{}
	}
	name = rand.Text()
	s.young[name] = &session{bound: bound, body: body, began: time.Now()}
	return name, false
}

func (s *Sessions) get(name string) *session {
	if v := s.young[name]; v != nil {
		return v
	}
	return s.elder[name]
}

func (s *Sessions) completed(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.get(name); v != nil {
		return slices.Clone(v.completed)
	}
	return nil
}

func (s *Sessions) done(name, stage string) bool {
	return slices.Contains(s.completed(name), stage)
}

func (s *Sessions) complete(name, stage string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.get(name); v != nil && !slices.Contains(v.completed, stage) {
		v.completed = append(v.completed, stage)
	}
}

func (s *Sessions) end(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.young, name)
	delete(s.elder, name)
}

// bodyHash is of a body without its "auth".
func bodyHash(body json.RawMessage) [sha256.Size]byte {
	if len(body) == 0 {
		return [sha256.Size]byte{}
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) == nil {
		delete(members, "auth")
		if text, err := json.Marshal(members); err == nil {
			body = text
		}
	}
	return sha256.Sum256(body)
}
