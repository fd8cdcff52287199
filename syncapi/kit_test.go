package syncapi_test

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"chancery/clientapi"
	"chancery/storage"
	"chancery/storage/eventlog"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/syncapi"
	"chancery/test/client"
	"chancery/users"

	"github.com/tidwall/gjson"
)

const (
	v3    = client.V3
	alice = "@alice:test"
	bob   = "@bob:test"
	carol = "@carol:test"
)

type (
	object = client.J
	answer = client.Answer
)

// server is a homeserver with rooms and people who need not sign in.
type server struct {
	*client.Server
	*client.Parts
	users *users.Server
	log   *eventlog.Log
	sync  *syncapi.Server
	stop  func()       // ends the long polls
	trace atomic.Value // of func(string): told every statement
}

func eachEngine(t *testing.T, test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(serve(t, fresh(), 16<<20)) })
}

func onSQLite(t testing.TB) *server { return serve(t, sqltest.SQLite(t), 16<<20) }

func serve(t testing.TB, o sql.Options, tailBytes int64) *server {
	t.Helper()
	s := &server{}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	o.Trace = func(statement string) {
		if tell, ok := s.trace.Load().(func(string)); ok {
			tell(statement)
		}
	}
	s.Parts = client.Open(t, o)
	nats, err := eventlog.Start(ctx, eventlog.NATSOptions{Dir: t.TempDir()})
	must(err)
	s.log, err = eventlog.Open(ctx, nats, s.DB, eventlog.Options{TailBytes: tailBytes})
	must(err)
	t.Cleanup(func() {
		s.log.Close()
		nats.Close()
	})
	s.DB.OnCommit(s.log.Publish)
	s.users = users.New(users.Options{DB: s.DB, ServerName: "test", Config: s.Parts.Config, Log: s.Log, NATS: nats.Conn()})
	must(s.DB.Write(ctx, nil, func(tx storage.Tx) error {
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
	s.sync = syncapi.New(syncapi.Options{DB: s.DB, Reader: s.Reader, Tail: s.log.Tail(), Users: s.users, NATS: nats.Conn(),
		ServerName: "test", Presence: true, Log: s.Log})
	syncing, stop := context.WithCancel(ctx)
	s.stop = stop
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.sync.Run(syncing); err != nil {
			t.Error(err)
		}
	}()
	s.Server = client.Serve(t, &clientapi.Server{Config: s.Parts.Config, DB: s.DB, Reader: s.Reader, Rooms: s.Rooms, Log: s.Log,
		Auth: client.ByName{}, Users: s.users, Sync: s.sync.Sync()})
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return s
}

func at(room string, more ...string) string { return client.Room(room, more...) }

// longPoll is a timeout of /sync, in milliseconds, that no test waits for; woken is by when a poll must have been woken.
const (
	longPoll = "240000"
	woken    = 2 * time.Minute
)

// waiting waits until so many syncs are under way.
func (s *server) waiting(polls int) {
	s.T.Helper()
	for deadline := time.Now().Add(woken); s.sync.Polls() < polls; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			s.T.Fatal("nobody syncs")
		}
	}
}

// synced is an answer of /sync.
type synced struct{ answer }

func (s *server) get(who, since string, query ...string) synced {
	s.T.Helper()
	return synced{s.OK(who, "GET", syncPath(since, query...), nil)}
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
