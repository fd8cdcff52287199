package room_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"chancery"
	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/conformance"
	"chancery/users"

	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"maunium.net/go/mautrix/id"
)

const (
	v3 = "/_matrix/client/v3"
	v1 = "/_matrix/client/v1"

	alice = "@alice:test"
	bob   = "@bob:test"
	carol = "@carol:test"
)

// server is a homeserver with rooms and people who need not sign in; every answer is held against the OpenAPI.
type server struct {
	*httptest.Server
	t     testing.TB
	db    *storage.DB
	rooms *roomserver.Server
	txn   int
}

func eachEngine(t *testing.T, test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(serve(t, fresh())) })
}

func onSQLite(t testing.TB) *server { return serve(t, sqltest.SQLite(t)) }

func serve(t testing.TB, o sql.Options) *server {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	db, err := storage.Open(ctx, o)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	cfg := config.Default()
	cfg.ServerName = "test"
	log := zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel))
	reader := roomserver.NewReader(16 << 20)
	rooms := roomserver.New(roomserver.Options{DB: db, Reader: reader, ServerName: "test", KeyID: "ed25519:1",
		Key: ed25519.NewKeyFromSeed(make([]byte, 32)), DefaultVersion: "12", Log: log})
	if err := rooms.Own(ctx, "test"); err != nil {
		t.Fatal(err)
	}
	api := &clientapi.Server{Config: cfg, DB: db, Reader: reader, Rooms: rooms, Log: log, Auth: byName{},
		Users: users.New(users.Options{DB: db, ServerName: "test", Config: cfg, Log: log})}
	checked := conformance.Middleware(t, conformance.Load(t, "client-server"), api.Routes(), clientapi.OldPaths)
	s := &server{Server: httptest.NewServer(checked(api.Handler())), t: t, db: db, rooms: rooms}
	t.Cleanup(func() {
		s.Server.Close()
		db.Close()
		cancel()
	})
	return s
}

// byName takes a user ID for a token; what stands behind a slash is the device.
type byName struct{}

func (byName) Authenticate(_ context.Context, r *http.Request, _ []byte) (endpoint.Caller, error) {
	token, _ := endpoint.AccessToken(r)
	user, device, _ := strings.Cut(token, "/")
	if device == "" {
		device = "DEVICE"
	}
	if !strings.HasPrefix(user, "@") {
		return endpoint.Caller{}, chancery.UnknownToken(false)
	}
	return endpoint.Caller{User: id.UserID(user), Device: id.DeviceID(device), Guest: strings.HasPrefix(user, "@guest"),
		Suspended: strings.HasPrefix(user, "@suspended")}, nil
}

type object = map[string]any

type answer struct {
	status int
	body   object
	list   []any
	raw    string
}

// at walks into an answer: at("chunk", 0, "content", "body").
func (a answer) at(path ...any) any {
	var v any = a.body
	if a.list != nil {
		v = a.list
	}
	for _, p := range path {
		switch k := p.(type) {
		case string:
			m, _ := v.(object)
			v = m[k]
		case int:
			l, _ := v.([]any)
			if k < 0 || k >= len(l) {
				return nil
			}
			v = l[k]
		}
	}
	return v
}

func (a answer) text(path ...any) string {
	s, _ := a.at(path...).(string)
	return s
}

func (a answer) array(path ...any) []any {
	l, _ := a.at(path...).([]any)
	return l
}

func (s *server) ask(who, method, path string, body any) answer {
	s.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
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
	if who != "" {
		req.Header.Set("Authorization", "Bearer "+who)
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
	a := answer{status: resp.StatusCode, raw: string(text)}
	if json.Unmarshal(text, &a.body) != nil && json.Unmarshal(text, &a.list) != nil {
		s.t.Fatalf("%s %s answered %d and no JSON: %s", method, path, resp.StatusCode, text)
	}
	return a
}

// want asks and wants a status and an error code ("" none).
func (s *server) want(status int, code, who, method, path string, body any) answer {
	s.t.Helper()
	a := s.ask(who, method, path, body)
	if a.status != status || a.text("errcode") != code {
		s.t.Fatalf("%s: %s %s with %v: %d %s, want %d %s", who, method, path, body, a.status, a.raw, status, code)
	}
	return a
}

func (s *server) ok(who, method, path string, body any) answer {
	s.t.Helper()
	return s.want(200, "", who, method, path, body)
}

func (s *server) create(who string, body object) string {
	s.t.Helper()
	if body == nil {
		body = object{"preset": "public_chat"}
	}
	return s.ok(who, "POST", v3+"/createRoom", body).text("room_id")
}

func at(room string, more ...string) string {
	path := v3 + "/rooms/" + url.PathEscape(room)
	for _, m := range more {
		path += "/" + url.PathEscape(m)
	}
	return path
}

func (s *server) send(who, room, typ string, content object) string {
	s.t.Helper()
	s.txn++
	return s.ok(who, "PUT", at(room, "send", typ, fmt.Sprint("t", s.txn)), content).text("event_id")
}

func (s *server) say(who, room, body string) string {
	s.t.Helper()
	return s.send(who, room, "m.room.message", object{"msgtype": "m.text", "body": body})
}

func (s *server) join(who, room string) {
	s.t.Helper()
	s.ok(who, "POST", at(room, "join"), object{})
}

func (s *server) leave(who, room string) {
	s.t.Helper()
	s.ok(who, "POST", at(room, "leave"), object{})
}

func (s *server) set(who, room, typ, key string, content object) string {
	s.t.Helper()
	return s.ok(who, "PUT", at(room, "state", typ, key), content).text("event_id")
}

func (s *server) reports() (kept []storage.Report) {
	s.t.Helper()
	err := s.db.Read(s.t.Context(), func(tx storage.Tx) (err error) {
		kept, err = tx.Reports(1<<60, 100)
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return kept
}
