package users_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"chancery/storage"
	"chancery/storage/sql/sqltest"
	"chancery/users"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"maunium.net/go/mautrix/id"
)

// process is a users.Server of its own over a database and a NATS that it shares.
func process(t *testing.T, db *storage.DB, broker *server.Server) *users.Server {
	t.Helper()
	conn, err := nats.Connect("", nats.InProcessServer(broker))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	s := users.New(users.Options{DB: db, ServerName: "test", NATS: conn})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	return s
}

// Who types and who is online is known in every process, and each counts for itself.
//
// spec: c2s#typing-notifications, c2s#presence
func TestProcessesTellEachOtherWhoIsThere(t *testing.T) {
	broker, err := server.NewServer(&server.Options{DontListen: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	broker.Start()
	defer broker.Shutdown()
	db, err := storage.Open(t.Context(), sqltest.SQLite(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	err = db.Write(t.Context(), nil, func(tx storage.Tx) error {
		tx.InsertRoom(storage.Room{NID: 1, ID: "!r:test", Version: "12"})
		tx.SetMember(storage.Member{Room: 1, User: "@a:test", Server: "test", Membership: "join"})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	here, there := process(t, db, broker), process(t, db, broker)
	if here.Typing().Process() == there.Typing().Process() {
		t.Error("two processes have one name")
	}
	if err := here.SetTyping(t.Context(), "@a:test", "!r:test", true, time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := here.SetPresence("@a:test", "online", nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, s := range []*users.Server{here, there} {
		for {
			v, known := s.Presences().Of("@a:test")
			if slices.Equal(s.Typing().In("!r:test"), []id.UserID{"@a:test"}) && known && v.Presence == "online" {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("typing: %v, presence: %v", s.Typing().In("!r:test"), v)
			}
			time.Sleep(time.Millisecond)
		}
	}

	// A process knows its own users at once, also while the others cannot be reached.
	broker.Shutdown()
	if err := here.SetTyping(ctx, "@a:test", "!r:test", false, 0); err != nil {
		t.Fatal(err)
	}
	if err := here.SetPresence("@a:test", "unavailable", nil); err != nil {
		t.Fatal(err)
	}
	if v, _ := here.Presences().Of("@a:test"); len(here.Typing().In("!r:test")) > 0 || v.Presence != "unavailable" {
		t.Errorf("typing: %v, presence: %v", here.Typing().In("!r:test"), v)
	}
}
