package keys_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"chancery/clientapi"
	"chancery/config"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/conformance"
	"chancery/users"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
)

// server is a homeserver as far as keys go; every answer is held against the OpenAPI.
type server struct {
	*httptest.Server
	t     *testing.T
	cfg   *config.Config
	db    *storage.DB
	users *users.Server
}

func eachEngine(t *testing.T, change func(*config.Config), test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(serve(t, fresh(), change)) })
}

func serve(t *testing.T, o sql.Options, change func(*config.Config)) *server {
	t.Helper()
	cfg := config.Default()
	cfg.ServerName = "agency.example"
	cfg.Registration.Open = true
	cfg.Passwords.Cost = "low"
	cfg.RateLimits.Enabled = false
	if change != nil {
		change(cfg)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	db, err := storage.Open(ctx, o)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	log := zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel))
	api := &clientapi.Server{Config: cfg, DB: db, Log: log,
		Users: users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg, Log: log})}
	checked := conformance.Middleware(t, conformance.Load(t, "client-server"), api.Routes(), clientapi.OldPaths)
	s := &server{Server: httptest.NewServer(checked(api.Handler())), t: t, cfg: cfg, db: db, users: api.Users}
	t.Cleanup(func() {
		s.Server.Close()
		db.Close()
		cancel()
	})
	return s
}

// object is a JSON object.
type object = map[string]any

// answer is what a request got.
type answer struct {
	status int
	body   object
}

func (a answer) text(name string) string {
	v, _ := a.body[name].(string)
	return v
}

func (a answer) code() string { return a.text("errcode") }

// ask sends a request; body is an object, or a string that is sent as it is.
func (s *server) ask(token, method, path string, body any) answer {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = bytes.NewReader([]byte(b))
	default:
		text, err := json.Marshal(b)
		if err != nil {
			s.t.Fatal(err)
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, r)
	if err != nil {
		s.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := s.Client().Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	a := answer{status: resp.StatusCode}
	if err := json.Unmarshal(text, &a.body); err != nil {
		s.t.Fatalf("%s %s answered %d and no object: %s", method, path, resp.StatusCode, text)
	}
	return a
}

// want asks and wants a status and an error code ("" none).
func (s *server) want(status int, code, token, method, path string, body any) answer {
	s.t.Helper()
	a := s.ask(token, method, path, body)
	if a.status != status || a.code() != code {
		s.t.Fatalf("%s %s with %v: %d %v, want %d %s", method, path, body, a.status, a.body, status, code)
	}
	return a
}

const (
	v3       = "/_matrix/client/v3"
	password = "correct horse battery"
)

// person is somebody who signed in.
type person struct {
	user, device, token, refresh string
}

func personOf(a answer) person {
	return person{a.text("user_id"), a.text("device_id"), a.text("access_token"), a.text("refresh_token")}
}

func (s *server) register(name string) person {
	s.t.Helper()
	return personOf(s.want(200, "", "", "POST", v3+"/register", object{
		"username": name, "password": password, "auth": object{"type": "m.login.dummy"}}))
}

func login(name, word string) object {
	return object{"type": "m.login.password", "identifier": object{"type": "m.id.user", "user": name}, "password": word}
}

func (s *server) login(name string, more object) person {
	s.t.Helper()
	body := login(name, password)
	for k, v := range more {
		body[k] = v
	}
	return personOf(s.want(200, "", "", "POST", v3+"/login", body))
}

// confirm is the auth of a request that the person confirms.
func (p person) confirm(session string) object {
	return object{"type": "m.login.password", "session": session, "password": password,
		"identifier": object{"type": "m.id.user", "user": p.user}}
}

// confirmed asks twice: without auth, and with the password in the session that was given.
func (s *server) confirmed(p person, method, path string, body object) answer {
	s.t.Helper()
	first := s.want(401, "", p.token, method, path, body)
	again := object{"auth": p.confirm(first.text("session"))}
	for k, v := range body {
		again[k] = v
	}
	return s.ask(p.token, method, path, again)
}
