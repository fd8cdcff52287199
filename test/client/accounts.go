package client

import (
	"maps"
	"testing"

	"chancery/clientapi"
	"chancery/config"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/users"
)

// Accounts is a homeserver without rooms, at which people sign in. Its name is "agency.example".
type Accounts struct {
	*Server
	Config *config.Config
	DB     *storage.DB
	Users  *users.Server
}

// ServeAccounts serves one over a new database; change may be nil.
func ServeAccounts(t testing.TB, o sql.Options, change func(*config.Config)) *Accounts {
	t.Helper()
	cfg := config.Default()
	cfg.ServerName = "agency.example"
	cfg.Registration.Open = true
	cfg.Passwords.Cost = "low"
	cfg.RateLimits.Enabled = false
	if change != nil {
		change(cfg)
	}
	db, log := OpenDB(t, o), Log(t)
	people := users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg, Log: log})
	return &Accounts{Serve(t, &clientapi.Server{Config: cfg, DB: db, Log: log, Users: people}), cfg, db, people}
}

// Password is everybody's.
const Password = "correct horse battery"

// Person is somebody who signed in.
type Person struct{ User, Device, Token, Refresh string }

// PersonOf is who an answer is about.
func PersonOf(a Answer) Person {
	return Person{a.Str("user_id"), a.Str("device_id"), a.Str("access_token"), a.Str("refresh_token")}
}

// Register makes an account and signs it in.
func (s *Accounts) Register(name string) Person {
	s.T.Helper()
	return PersonOf(s.OK("", "POST", V3+"/register", J{"username": name, "password": Password, "auth": J{"type": "m.login.dummy"}}))
}

// Login is the body of a request to sign in.
func Login(name, password string) J {
	return J{"type": "m.login.password", "identifier": J{"type": "m.id.user", "user": name}, "password": password}
}

// Login signs somebody in, with more in the body.
func (s *Accounts) Login(name string, more J) Person {
	s.T.Helper()
	body := Login(name, Password)
	maps.Copy(body, more)
	return PersonOf(s.OK("", "POST", V3+"/login", body))
}

// Confirm is the auth of a request that the person confirms.
func (p Person) Confirm(session string) J {
	return J{"type": "m.login.password", "session": session, "password": Password, "identifier": J{"type": "m.id.user", "user": p.User}}
}

// Confirmed asks twice: without auth, and with the password in the session that was given.
func (s *Accounts) Confirmed(p Person, method, path string, body J) Answer {
	s.T.Helper()
	first := s.Want(401, "", p.Token, method, path, body)
	again := J{"auth": p.Confirm(first.Str("session"))}
	maps.Copy(again, body)
	return s.Ask(p.Token, method, path, again)
}
