package roomserver_test

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// member is the n-th of a large room, whose members are of a hundred servers.
func member(n int) id.UserID { return id.UserID(fmt.Sprintf("@member%06d:s%02d.example", n, n%100)) }

// profiles are joins, or changes of the display name, of members from one on.
func profiles(room id.RoomID, from, count int, name string) []roomserver.NewEvent {
	events := make([]roomserver.NewEvent, count)
	for i := range events {
		user := member(from + i)
		key := string(user)
		events[i] = roomserver.NewEvent{Room: room, Sender: user, Type: "m.room.member", StateKey: &key,
			Content: content(map[string]any{"membership": "join", "displayname": fmt.Sprint(name, " ", from+i)})}
	}
	return events
}

// largeRoom makes a room with so many members.
func largeRoom(t testing.TB, s *roomserver.Server, version string, members int) id.RoomID {
	t.Helper()
	room := newRoom(t, s, version)
	if err := s.Grow(t.Context(), room, profiles(room, 0, members, "Member")); err != nil {
		t.Fatal(err)
	}
	return room
}

func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// resolveConflict measures a resolution through the engine with its storage: with nothing of the conflict in memory but
// the room itself, and again with all of it there.
func resolveConflict(b *testing.B, s *roomserver.Server, room id.RoomID, last id.EventID, branch []roomserver.NewEvent, want int) {
	root, err := s.Branch(b.Context(), room, last, branch)
	if err != nil {
		b.Fatal(err)
	}
	for _, cold := range []bool{true, false} {
		b.Run(fmt.Sprintf("cold=%v", cold), func(b *testing.B) {
			b.ReportAllocs()
			o := s.Options
			o.Log, o.Reader = zap.NewNop(), roomserver.NewReader(256<<20)
			s := roomserver.New(o)
			var cpu time.Duration
			run := func() {
				if cold {
					o.Reader = roomserver.NewReader(256 << 20)
					s = roomserver.New(o)
				}
				var at time.Duration
				got, err := s.Merge(context.Background(), room, root, func() {
					at = cpuTime()
					b.StartTimer()
				})
				b.StopTimer()
				cpu += cpuTime() - at
				if err != nil || got != want {
					b.Fatalf("%d events were in conflict, want %d: %v", got, want, err)
				}
			}
			b.StopTimer()
			run() // fills what is to be warm
			b.ResetTimer()
			cpu = 0
			for range b.N {
				run()
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// BenchmarkResolve merges two branches of a room: three events each in a room of 30,000 members, and 500 and 5,000
// changed memberships on each branch.
func BenchmarkResolve(b *testing.B) {
	for _, version := range []string{"11", "12"} {
		b.Run("version="+version, func(b *testing.B) {
			eachEngine(b, func(b *testing.B, o sql.Options) {
				s := engine(b, o)
				room := largeRoom(b, s, version, 30_000)
				last := tip(b, s, room)
				if err := s.Grow(b.Context(), room, profiles(room, 0, 3, "ours")); err != nil {
					b.Fatal(err)
				}
				b.Run("members=30000/conflicted=6", func(b *testing.B) {
					resolveConflict(b, s, room, last, profiles(room, 0, 3, "theirs"), 6)
				})
				for _, n := range []int{1000, 10_000} {
					last := tip(b, s, room)
					if err := s.Grow(b.Context(), room, profiles(room, 100, n/2, fmt.Sprint("ours", n))); err != nil {
						b.Fatal(err)
					}
					b.Run(fmt.Sprint("members=30000/conflicted=", n), func(b *testing.B) {
						resolveConflict(b, s, room, last, profiles(room, 100, n/2, fmt.Sprint("theirs", n)), n)
					})
				}
			})
		})
	}
}

// tip is the room's only open end.
func tip(t testing.TB, s *roomserver.Server, room id.RoomID) (eventID id.EventID) {
	t.Helper()
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		ends, err := tx.Extremities(row.NID)
		if err != nil {
			return err
		}
		events, err := tx.Events(ends)
		if err == nil {
			eventID = id.EventID(events[0].ID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return eventID
}

// sizes are the bytes of every table and index, by the engine's own count.
func sizes(t testing.TB, db *storage.DB) map[string]int64 {
	t.Helper()
	statement := `SELECT name, sum(pgsize) FROM dbstat GROUP BY name`
	if db.OnPostgreSQL() {
		statement = `SELECT relname, pg_table_size(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'
			UNION ALL SELECT relname, pg_relation_size(oid) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind = 'i'`
	}
	out := map[string]int64{}
	err := db.Read(context.Background(), func(tx storage.Tx) error {
		rows, err := tx.Query(statement)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name string
			var size int64
			if err := rows.Scan(&name, &size); err != nil {
				return err
			}
			out[name] = size
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What a membership change costs in the database, all tables and indexes together, in rooms of three sizes. The largest
// takes long: CHANCERY_LARGE_ROOM=100000 asks for it.
func TestBytesOfAMembershipChange(t *testing.T) {
	if testing.Short() {
		t.Skip("bytes are the same under the race detector")
	}
	const most, changes = 4096, 1000
	rooms := []int{10, 1000}
	if large, err := strconv.Atoi(os.Getenv("CHANCERY_LARGE_ROOM")); err == nil {
		rooms = append(rooms, large)
	}
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		for _, members := range rooms {
			s := engine(t, fresh())
			room := largeRoom(t, s, "12", members)
			before := sizes(t, s.DB)
			events := make([]roomserver.NewEvent, 0, changes)
			for i := range changes {
				events = append(events, profiles(room, i*7919%members, 1, fmt.Sprint("change ", i))...)
			}
			if err := s.Grow(t.Context(), room, events); err != nil {
				t.Fatal(err)
			}
			after := sizes(t, s.DB)
			var all int64
			each := map[string]int64{}
			for name, size := range after {
				if grown := size - before[name]; grown > 0 {
					each[name] = grown / changes
					all += grown
				}
			}
			t.Logf("%d members: %d bytes a change", members, all/changes)
			for _, name := range slices.SortedFunc(maps.Keys(each), func(a, b string) int { return cmp.Compare(each[b], each[a]) }) {
				if each[name] > 0 {
					t.Logf("    %5d %s", each[name], name)
				}
			}
			if all/changes > most {
				t.Errorf("%d members: a membership change costs %d bytes, want at most %d", members, all/changes, most)
			}
		}
	})
}

// How often a resolution asks storage does not grow with the conflict: what it reads, it reads of all events at once. A
// room that has just resolved the same asks for what is in no cache: events that were not accepted, and which events
// stand between others.
func TestAResolutionReadsSets(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		t.Run(version, func(t *testing.T) {
			sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
				few, again := readsOfResolution(t, fresh(), version, 20)
				many, manyAgain := readsOfResolution(t, fresh(), version, 200)
				t.Logf("20 in conflict: %d and again %d, 200: %d and again %d", few, again, many, manyAgain)
				if many > few+2 || many > 30 {
					t.Errorf("20 events in conflict ask %d times, 200 ask %d times", few, many)
				}
				if manyAgain > 4 {
					t.Errorf("to resolve the same once more asks %d times", manyAgain)
				}
			})
		})
	}
}

var fromTable = regexp.MustCompile(`FROM (events|event_auth|event_places|chain_links|state_slots|state_nodes)\b`)

// readsOfResolution counts what a resolution asks of storage in a room that was just read, and once more.
func readsOfResolution(t *testing.T, o sql.Options, version string, conflicted int) (first, second int64) {
	var asked atomic.Int64
	o.Trace = func(statement string) {
		if fromTable.MatchString(statement) {
			asked.Add(1)
		}
	}
	s := engine(t, o)
	room := largeRoom(t, s, version, 100)
	last := tip(t, s, room)
	if err := s.Grow(t.Context(), room, profiles(room, 0, conflicted/2, "ours")); err != nil {
		t.Fatal(err)
	}
	root, err := s.Branch(t.Context(), room, last, profiles(room, 0, conflicted/2, "theirs"))
	if err != nil {
		t.Fatal(err)
	}
	s = again(t, s)
	for _, count := range []*int64{&first, &second} {
		got, err := s.Merge(t.Context(), room, root, func() { asked.Store(0) })
		if err != nil || got != conflicted {
			t.Fatalf("%d events were in conflict, want %d: %v", got, conflicted, err)
		}
		*count = asked.Load()
	}
	return first, second
}
