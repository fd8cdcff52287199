package durability

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"chancery/storage/sql/sqltest"
	"chancery/test/homeserver"

	"github.com/jackc/pgx/v5"
)

// database is how the files of a database are kept and put back, while the server is down.
type database interface {
	save(t *testing.T)
	restore(t *testing.T)
}

// files is SQLite's.
type files struct{ dir, copy string }

func (f files) save(t *testing.T) { f.move(t, f.dir, f.copy) }

func (f files) restore(t *testing.T) {
	old, err := filepath.Glob(filepath.Join(f.dir, "chancery.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	f.move(t, f.copy, f.dir)
}

func (f files) move(t *testing.T, from, to string) {
	t.Helper()
	list, err := filepath.Glob(filepath.Join(from, "chancery.db*"))
	if err != nil || len(list) == 0 {
		t.Fatalf("there is no database in %s: %v", from, err)
	}
	for _, file := range list {
		text, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(file)), text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// cluster is PostgreSQL's.
type cluster struct{ admin, name string }

func (c cluster) save(t *testing.T) {
	c.run(t, `CREATE DATABASE `+c.name+`_copy TEMPLATE `+c.name)
	t.Cleanup(func() { c.run(t, `DROP DATABASE IF EXISTS `+c.name+`_copy WITH (FORCE)`) })
}

func (c cluster) restore(t *testing.T) {
	c.run(t, `DROP DATABASE `+c.name+` WITH (FORCE)`)
	c.run(t, `CREATE DATABASE `+c.name+` TEMPLATE `+c.name+`_copy`)
}

func (c cluster) run(t *testing.T, statement string) {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, c.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, statement); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// databaseOf is the one of a server, by where it is: "" for SQLite's files.
func databaseOf(t *testing.T, s *homeserver.Server, where string) database {
	t.Helper()
	if where == "" {
		return files{s.Dir, t.TempDir()}
	}
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	return cluster{sqltest.Server(t).URL, strings.TrimPrefix(u.Path, "/")}
}

// position reads a token's: "s<epoch>_<position>...".
func position(t *testing.T, token string) int64 {
	t.Helper()
	_, rest, ok := strings.Cut(token, "_")
	digits := rest
	if i := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		digits = rest[:i]
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if !ok || err != nil {
		t.Fatalf("the token %q has no position", token)
	}
	return n
}

// After yesterday's database was put back a new epoch begins: no position is used again, a client that knows more
// than the server begins anew, one that knows less goes on, and no one-time key is handed out again.
func TestYesterdaysDatabase(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		where := fresh()
		s := homeserver.Start(t, homeserver.Options{Database: where, Process: true})
		db := databaseOf(t, s, where)
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(room)
		var names []string
		for i := range 10 {
			names = append(names, fmt.Sprint("key", i))
		}
		bob.OK("POST", "/_matrix/client/v3/keys/upload", keys(bob, names...))
		alice.Send(room, "yesterday")
		yesterday := bob.Sync("").Get("next_batch").Str
		before := history(t, alice, room)

		s.Stop()
		db.save(t)
		s.Start()
		for i := range 20 {
			alice.Send(room, fmt.Sprint("lost ", i))
		}
		claimed := map[string]bool{}
		for range 5 {
			name, err := claim(t.Context(), alice, bob)
			if err != nil || name == "" {
				t.Fatalf("claim: %q %v", name, err)
			}
			claimed[name] = true
		}
		today := bob.Sync(yesterday).Get("next_batch").Str

		s.Stop()
		db.restore(t)
		s.Start()
		if got := history(t, alice, room); len(got) != len(before) {
			t.Errorf("the restored room has %d events, want %d", len(got), len(before))
		}

		again := bob.Sync(today)
		in := again.Get("rooms.join").Map()[room]
		if !in.Exists() || len(in.Get("state.events").Array())+len(in.Get("timeline.events").Array()) < len(before) {
			t.Errorf("a token of what was lost must begin anew: %.1000s", again)
		}
		if p := position(t, again.Get("next_batch").Str); p <= position(t, today) {
			t.Errorf("the position %d is used again (clients have seen %d)", p, position(t, today))
		}
		old := bob.Sync(yesterday)
		if in := old.Get("rooms.join").Map()[room]; len(in.Get("state.events").Array()) > 0 {
			t.Errorf("a token of before the restored state must go on: %.1000s", old)
		}
		// Claims know of the restore at once; the client is told as soon as the keys are dropped.
		told := old
		for deadline := time.Now().Add(2 * time.Minute); told.Get("device_one_time_keys_count.signed_curve25519").Int() != 0; {
			if time.Now().After(deadline) {
				t.Fatalf("one-time keys are still offered and nobody knows which of them were handed out: %s", told.Get("device_one_time_keys_count"))
			}
			told = bob.OK("GET", homeserver.SyncPath(told.Get("next_batch").Str, 500), nil)
		}
		for {
			name, err := claim(t.Context(), alice, bob)
			if err != nil {
				t.Fatal(err)
			}
			if name == "" {
				break
			}
			if claimed[name] {
				t.Errorf("the one-time key %s was handed out again", name)
			}
		}
		bob.OK("POST", "/_matrix/client/v3/keys/upload", keys(bob, "new"))
		if name, err := claim(t.Context(), alice, bob); err != nil || name != "signed_curve25519:new" {
			t.Errorf("a new key is claimed as %q: %v", name, err)
		}

		// Both clients go on in the new epoch, also over another restart.
		watch := newWatcher(t, bob, room, old.Get("next_batch").Str)
		other := newWatcher(t, bob, room, again.Get("next_batch").Str)
		alice.Send(room, "after the restore")
		s.Kill()
		s.Start()
		alice.Send(room, "and after another start")
		for _, w := range []*watcher{watch, other} {
			w.sawAll([]string{"after the restore", "and after another start"})
		}
	})
}
