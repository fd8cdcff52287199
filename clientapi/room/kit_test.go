package room_test

import (
	"testing"

	"chancery/clientapi"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/client"
	"chancery/users"
)

const (
	v3 = client.V3
	v1 = client.V1

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
}

func eachEngine(t *testing.T, test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(serve(t, fresh())) })
}

func onSQLite(t testing.TB) *server { return serve(t, sqltest.SQLite(t)) }

func serve(t testing.TB, o sql.Options) *server {
	t.Helper()
	p := client.Open(t, o)
	return &server{client.Serve(t, &clientapi.Server{Config: p.Config, DB: p.DB, Reader: p.Reader, Rooms: p.Rooms, Log: p.Log, Auth: client.ByName{},
		Users: users.New(users.Options{DB: p.DB, ServerName: "test", Config: p.Config, Log: p.Log})}), p}
}

func at(room string, more ...string) string { return client.Room(room, more...) }

func (s *server) reports() (kept []storage.Report) {
	s.T.Helper()
	err := s.DB.Read(s.T.Context(), func(tx storage.Tx) (err error) {
		kept, err = tx.Reports(1<<60, 100)
		return err
	})
	if err != nil {
		s.T.Fatal(err)
	}
	return kept
}
