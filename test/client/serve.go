package client

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"chancery"
	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/test/conformance"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"maunium.net/go/mautrix/id"
)

// Parts are what most of the API stands on. The server's name is "test".
type Parts struct {
	Config *config.Config
	DB     *storage.DB
	Reader *roomserver.Reader
	Rooms  *roomserver.Server
	Keys   *peer.Keys
	Log    *zap.Logger
}

// Open makes the parts over a new database. They end after all that the test starts later.
func Open(t testing.TB, o sql.Options) *Parts {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	p := &Parts{Config: config.Default(), DB: OpenDB(t, o), Reader: roomserver.NewReader(16 << 20), Log: Log(t)}
	p.Config.ServerName = "test"
	var err error
	p.Keys, err = peer.LoadKeys(t.TempDir()+"/signing.key", "test")
	must(err)
	peers, err := peer.New(peer.Options{ServerName: "test", Key: p.Keys.Key()})
	must(err)
	t.Cleanup(peers.Close)
	p.Rooms = roomserver.New(roomserver.Options{DB: p.DB, Reader: p.Reader, ServerName: "test", KeyID: p.Keys.Key().ID,
		Key: p.Keys.Key().Private, Keys: peer.NewKeyRing(peers, p.Keys, nil, nil), DefaultVersion: "12", Log: p.Log})
	must(p.Rooms.Own(context.WithoutCancel(t.Context()), "test"))
	// Nobody renews the leases of an engine that does not run, and on a busy machine a test lasts longer than one.
	must(p.DB.RenewLeases(t.Context(), "test", 64, time.Hour))
	return p
}

// OpenDB opens a new database, which is closed after all that the test starts later.
func OpenDB(t testing.TB, o sql.Options) *storage.DB {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	db, err := storage.Open(ctx, o)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		db.Close()
		cancel()
	})
	return db
}

// Log tells beside the test what is no good.
func Log(t testing.TB) *zap.Logger { return zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel)) }

// Server serves the API to one test.
type Server struct {
	*httptest.Server
	T testing.TB
}

// Serve serves the API until the test ends.
func Serve(t testing.TB, api *clientapi.Server) *Server {
	checked := conformance.Middleware(t, conformance.Load(t, endpoint.ClientServer), api.Routes(), clientapi.OldPaths)
	s := &Server{Server: httptest.NewServer(checked(api.Handler())), T: t}
	t.Cleanup(s.Close)
	return s
}

// ByName takes a user ID for a token; what stands behind a slash is the device. Some names are of guests and of who is suspended.
type ByName struct{}

// Authenticate is what clientapi asks.
func (ByName) Authenticate(_ context.Context, r *http.Request, _ []byte) (endpoint.Caller, error) {
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

// Try sends a request that may get no answer.
func (s *Server) Try(token, method, path string, body any) (Answer, error) {
	return Do(context.WithoutCancel(s.T.Context()), s.Client(), Request{Token: token, Method: method, URL: s.URL + path, Body: body})
}

// Ask sends a request that must get an answer.
func (s *Server) Ask(token, method, path string, body any) Answer {
	s.T.Helper()
	a, err := s.Try(token, method, path, body)
	if err != nil {
		s.T.Fatalf("%s %.200s: %v", method, path, err)
	}
	return a
}

// Want asks and wants a status and an error code ("" none).
func (s *Server) Want(status int, code, token, method, path string, body any) Answer {
	s.T.Helper()
	a := s.Ask(token, method, path, body)
	if a.Status != status || a.Code() != code {
		s.T.Fatalf("%s: %s %.200s with %.500v: %s, want %d %s", token, method, path, body, a, status, code)
	}
	return a
}

// OK asks what must succeed.
func (s *Server) OK(token, method, path string, body any) Answer {
	s.T.Helper()
	return s.Want(http.StatusOK, "", token, method, path, body)
}
