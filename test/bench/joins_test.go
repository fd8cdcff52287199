// Package bench has figures that take too long for every run of the tests: `make bench-joins` prints those of
// joins of large rooms.
package bench

import (
	"bytes"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/roomserver/event"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/test/homeserver"
	"chancery/test/largeroom"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

type J = homeserver.J

// sizes are the rooms that are joined: CHANCERY_BENCH_MEMBERS=1000,10000,100000. Without it a small one shows that
// the figures can be had.
func sizes(t *testing.T) (list []int) {
	text := os.Getenv("CHANCERY_BENCH_MEMBERS")
	if text == "" {
		return []int{200}
	}
	for _, v := range strings.Split(text, ",") {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, n)
	}
	return list
}

// TestJoinsOfLargeRooms prints for each size how long the joiner waits for the first message, and how long and with how
// much memory the rest comes; the joiner is a process of its own. Then what a change of membership costs on disk.
//
// spec: msc3902
func TestJoinsOfLargeRooms(t *testing.T) {
	for _, members := range sizes(t) {
		homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
			ca := homeserver.NewCA(t)
			began := time.Now()
			room := largeroom.New(t, ca, largeroom.Options{Members: members, Servers: 20, Renamed: members / 50, Left: members / 100, LevelChanges: 10})
			built := time.Since(began)
			s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
			alice := s.Register(t, "alice")

			// The rest waits until the first message is out, so that each figure is its own.
			hold := make(chan struct{})
			open := sync.OnceFunc(func() { close(hold) })
			t.Cleanup(open)
			room.Intercept = func(kind string, _ http.ResponseWriter, r *http.Request) bool {
				if kind == "state_ids" {
					select {
					case <-hold:
					case <-r.Context().Done():
					}
				}
				return false
			}
			asked := time.Now()
			alice.Join(string(room.ID), room.Servers[0].Name)
			whole := time.Since(asked)
			alice.Send(string(room.ID), "I am here")
			first := time.Since(room.Answered())
			before, cpuBefore := peak(t, s), cpu(t, s)

			began = time.Now()
			open()
			got := len(awaitMembers(t, alice, string(room.ID)))
			rest, cpuAfter := time.Since(began), cpu(t, s)
			if got != members+1 {
				t.Errorf("%d members are in the room, want %d", got, members+1)
			}
			t.Logf("%d members (built in %v): join answered after %v, first message %v after the last byte of send_join; whole %v later; peak memory %d MB, %d MB before that; CPU %v to the first message, %v from there",
				members, built.Round(time.Millisecond), whole.Round(time.Millisecond), first.Round(time.Millisecond), rest.Round(time.Millisecond), peak(t, s)>>20, before>>20,
				cpuBefore, cpuAfter-cpuBefore)
			perChange(t, s, room, members)
		})
	}
}

// awaitMembers asks who is in a room until it is whole: a request waits for that, but not for ever.
func awaitMembers(t *testing.T, u *homeserver.User, room string) map[string]gjson.Result {
	for {
		a := u.Ask("GET", homeserver.Room(room, "joined_members"), nil)
		if a.Status == http.StatusOK {
			return a.Get("joined").Map()
		}
		if a.Status != http.StatusGatewayTimeout {
			t.Fatalf("%s", a)
		}
	}
}

// cpu is the time that a server has had of the processor; PostgreSQL's own is not in it.
func cpu(t *testing.T, s *homeserver.Server) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.Pid()))
	if err != nil {
		t.Skip("the time is read from /proc")
	}
	// What follows the command's name, which may have blanks in it, begins with the third field.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks time.Duration
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatal(err)
		}
		ticks += time.Duration(n)
	}
	return ticks * time.Second / 100 // Linux tells programs of hundredths, whatever it counts itself
}

// peak is the most memory that a server has had, in bytes.
func peak(t *testing.T, s *homeserver.Server) int64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.Pid()))
	if err != nil {
		t.Skip("memory is read from /proc")
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no peak in /proc")
	return 0
}

// changes of membership that are weighed.
const changes = 500

// perChange prints the growth of the database by a change of membership in the large room.
func perChange(t *testing.T, s *homeserver.Server, room *largeroom.Room, members int) {
	n := min(changes, members/2)
	was := size(t, s)
	var last id.EventID
	for from := 1; from <= n; from += 50 {
		var events []*event.Event
		for i := from; i < min(from+50, n+1); i++ {
			key := string(room.User(i))
			events = append(events, room.Add(t, i, "m.room.member", &key, J{"membership": "join", "displayname": fmt.Sprint("changed ", i)}))
		}
		a := room.Tell(t, s, events...)
		last = events[len(events)-1].ID()
		if a.Status != 200 || a.Get("pdus").Map()[string(last)].Get("error").Exists() {
			t.Fatalf("%s", a)
		}
	}
	a := room.Servers[0].As(t).Ask(s, homeserver.Signed{Method: "GET", Path: "/_matrix/federation/v1/event/" + url.PathEscape(string(last))})
	if a.Status != 200 {
		t.Fatalf("the last change has not come: %s", a)
	}
	t.Logf("%d members: %d bytes in the database for each of %d changes of membership (target 4096)", members, (size(t, s)-was)/int64(n), n)
}

// size is what tables and indexes take by the engine's own word. The server is stopped for it: SQLite has one process.
func size(t *testing.T, s *homeserver.Server) (bytes int64) {
	s.Stop()
	defer s.Start()
	o := sql.Options{URL: s.Config.Database.URL}
	if o.URL == "" {
		o.Path = filepath.Join(s.Dir, "chancery.db")
	}
	db, err := storage.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Read(t.Context(), func(tx storage.Tx) error {
		return tx.QueryRow(tx.Pair(
			`SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = current_schema() AND c.relkind = 'r'`,
			`SELECT (p.page_count - f.freelist_count) * z.page_size FROM pragma_page_count() p, pragma_freelist_count() f, pragma_page_size() z`)).Scan(&bytes)
	}); err != nil {
		t.Fatal(err)
	}
	return bytes
}
