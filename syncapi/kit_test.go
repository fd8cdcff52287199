package syncapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"chancery"
	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/eventlog"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/syncapi"
	"chancery/test/conformance"
	"chancery/users"

	"github.com/tidwall/gjson"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest"
	"maunium.net/go/mautrix/id"
)

const (
	v3    = "/_matrix/client/v3"
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
	users *users.Server
	log   *eventlog.Log
	sync  *syncapi.Server
	keys  *peer.Keys
	txn   int
	stop  func()       // ends the long polls
	trace atomic.Value // of func(string): told every statement
}

func eachEngine(t *testing.T, test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(serve(t, fresh(), 16<<20)) })
}

func onSQLite(t testing.TB) *server { return serve(t, sqltest.SQLite(t), 16<<20) }

func serve(t testing.TB, o sql.Options, tailBytes int64) *server {
	t.Helper()
	s := &server{t: t}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	o.Trace = func(statement string) {
		if tell, ok := s.trace.Load().(func(string)); ok {
			tell(statement)
		}
	}
	s.db, err = storage.Open(ctx, o)
	must(err)
	nats, err := eventlog.Start(ctx, eventlog.NATSOptions{Dir: t.TempDir()})
	must(err)
	s.log, err = eventlog.Open(ctx, nats, s.db, eventlog.Options{TailBytes: tailBytes})
	must(err)
	s.db.OnCommit(s.log.Publish)
	cfg := config.Default()
	cfg.ServerName = "test"
	log := zaptest.NewLogger(t, zaptest.Level(zapcore.WarnLevel))
	reader := roomserver.NewReader(16 << 20)
	s.keys, err = peer.LoadKeys(t.TempDir()+"/signing.key", "test")
	must(err)
	peers, err := peer.New(peer.Options{ServerName: "test", Key: s.keys.Key()})
	must(err)
	t.Cleanup(peers.Close)
	s.rooms = roomserver.New(roomserver.Options{DB: s.db, Reader: reader, ServerName: "test", KeyID: s.keys.Key().ID,
		Key: s.keys.Key().Private, Keys: peer.NewKeyRing(peers, s.keys, nil, nil), DefaultVersion: "12", Log: log})
	must(s.rooms.Own(ctx, "test"))
	s.users = users.New(users.Options{DB: s.db, ServerName: "test", Config: cfg, Log: log, NATS: nats.Conn()})
	must(s.db.Write(ctx, nil, func(tx storage.Tx) error {
		for _, user := range []string{alice, bob, carol} {
			if _, err := tx.InsertAccount(storage.Account{User: user}); err != nil {
				return err
			}
			if _, err := tx.InsertDevice(storage.Device{User: user, ID: "DEVICE"}); err != nil {
				return err
			}
		}
		return nil
	}))
	s.sync = syncapi.New(syncapi.Options{DB: s.db, Reader: reader, Tail: s.log.Tail(), Users: s.users, NATS: nats.Conn(),
		ServerName: "test", Presence: true, Log: log})
	syncing, stop := context.WithCancel(ctx)
	s.stop = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.sync.Run(syncing); err != nil {
			t.Error(err)
		}
	}()
	api := &clientapi.Server{Config: cfg, DB: s.db, Reader: reader, Rooms: s.rooms, Log: log, Auth: byName{}, Users: s.users, Sync: s.sync.Sync()}
	checked := conformance.Middleware(t, conformance.Load(t, "client-server"), api.Routes(), clientapi.OldPaths)
	s.Server = httptest.NewServer(checked(api.Handler()))
	t.Cleanup(func() {
		cancel()
		<-done
		s.Server.Close()
		s.log.Close()
		nats.Close()
		s.db.Close()
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
	return endpoint.Caller{User: id.UserID(user), Device: id.DeviceID(device)}, nil
}

type object = map[string]any

type answer struct {
	gjson.Result
	status int
}

func (s *server) ask(who, method, path string, body any) answer {
	s.t.Helper()
	a, err := s.tryAsk(who, method, path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *server) tryAsk(who, method, path string, body any) (answer, error) {
	var r io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return answer{}, err
		}
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, s.URL+path, r)
	if err != nil {
		return answer{}, err
	}
	req.Header.Set("Authorization", "Bearer "+who)
	resp, err := s.Client().Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{gjson.ParseBytes(text), resp.StatusCode}, err
}

func (s *server) ok(who, method, path string, body any) answer {
	s.t.Helper()
	a := s.ask(who, method, path, body)
	if a.status != 200 {
		s.t.Fatalf("%s: %s %s: %d %s", who, method, path, a.status, a.Raw)
	}
	return a
}

func (s *server) create(who string, body object) string {
	s.t.Helper()
	if body == nil {
		body = object{"preset": "public_chat"}
	}
	return s.ok(who, "POST", v3+"/createRoom", body).Get("room_id").Str
}

func at(room string, more ...string) string {
	path := v3 + "/rooms/" + url.PathEscape(room)
	for _, m := range more {
		path += "/" + url.PathEscape(m)
	}
	return path
}

func (s *server) say(who, room, body string) string {
	s.t.Helper()
	s.txn++
	return s.ok(who, "PUT", at(room, "send", "m.room.message", fmt.Sprint("t", s.txn)), object{"msgtype": "m.text", "body": body}).Get("event_id").Str
}

func (s *server) set(who, room, typ, key string, content object) string {
	s.t.Helper()
	return s.ok(who, "PUT", at(room, "state", typ, key), content).Get("event_id").Str
}

func (s *server) join(who, room string) { s.t.Helper(); s.ok(who, "POST", at(room, "join"), object{}) }

func (s *server) leave(who, room string) {
	s.t.Helper()
	s.ok(who, "POST", at(room, "leave"), object{})
}

func (s *server) invite(who, room, whom string) {
	s.t.Helper()
	s.ok(who, "POST", at(room, "invite"), object{"user_id": whom})
}

// longPoll is a timeout of /sync, in milliseconds, that no test waits for; woken is by when a poll must have been woken.
const (
	longPoll = "240000"
	woken    = 2 * time.Minute
)

// waiting waits until so many syncs are under way.
func (s *server) waiting(polls int) {
	s.t.Helper()
	for deadline := time.Now().Add(woken); s.sync.Polls() < polls; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatal("nobody syncs")
		}
	}
}

// synced is an answer of /sync.
type synced struct{ answer }

func (s *server) get(who, since string, query ...string) synced {
	s.t.Helper()
	return synced{s.ok(who, "GET", syncPath(since, query...), nil)}
}

func syncPath(since string, query ...string) string {
	v := url.Values{}
	if since != "" {
		v.Set("since", since)
	}
	for i := 0; i+1 < len(query); i += 2 {
		v.Set(query[i], query[i+1])
	}
	return v3 + "/sync?" + v.Encode()
}

func (a synced) next() string { return a.Get("next_batch").Str }

func (a synced) room(section, room string) gjson.Result {
	return a.Get("rooms." + section + "." + gjson.Escape(room))
}

// bodies lists the bodies of the messages in a room's timeline.
func (a synced) bodies(section, room string) []string {
	out := []string{}
	for _, ev := range a.room(section, room).Get("timeline.events").Array() {
		if ev.Get("type").Str == "m.room.message" {
			out = append(out, ev.Get("content.body").Str)
		}
	}
	return out
}

// states lists type and state key of events, sorted.
func states(list gjson.Result) []string {
	out := []string{}
	for _, ev := range list.Array() {
		if ev.Get("state_key").Exists() {
			out = append(out, ev.Get("type").Str+"|"+ev.Get("state_key").Str)
		}
	}
	slices.Sort(out)
	return out
}

func same(t testing.TB, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprintf("%q", got), fmt.Sprintf("%q", want); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}
