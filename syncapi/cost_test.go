package syncapi_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// counted lists the statements that a deed costs.
func (s *server) counted(deed func()) []string {
	var mu sync.Mutex
	var list []string
	s.trace.Store(func(statement string) {
		mu.Lock()
		defer mu.Unlock()
		look := strings.Contains(statement, "max(pos)") || strings.Contains(statement, "FROM epochs") // once a second
		if !look || strings.Contains(statement, "FROM members") {
			list = append(list, strings.Join(strings.Fields(statement), " "))
		}
	})
	deed()
	s.trace.Store(func(string) {})
	mu.Lock()
	defer mu.Unlock()
	return list
}

func TestEmptySyncCostsNoSQL(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		other := s.Create(bob, nil)
		since := s.get(alice, "").next()
		since = s.get(alice, since).next()
		s.Say(bob, other, "not for alice")
		since = s.get(alice, since).next()
		list := s.counted(func() {
			for range 3 {
				a := s.get(alice, since, "timeout", "30")
				if a.Get("rooms").Exists() || !a.Get("device_unused_fallback_key_types").Exists() {
					s.T.Errorf("an empty sync says %s", a.Text)
				}
				since = a.next()
			}
		})
		if len(list) != 0 {
			s.T.Errorf("empty syncs cost %d statements:\n%s", len(list), strings.Join(list, "\n"))
		}
		s.Join(bob, room)
		bobs := s.get(bob, s.get(bob, "").next()).next()
		since = s.get(alice, since).next()
		s.Say(alice, room, "x")
		for _, c := range []struct {
			who, since string
			most       int
		}{{alice, since, 11}, {bob, bobs, 2}} { // what they have in common is read once
			list := s.counted(func() { same(s.T, "news", s.get(c.who, c.since).bodies("join", room), []string{"x"}) })
			if len(list) > c.most {
				s.T.Errorf("one message costs %s %d statements, want %d:\n%s", c.who, len(list), c.most, strings.Join(list, "\n"))
			}
		}
	})
}

// What others say of an event is told with it to whoever comes later, though those before them were told that there was
// nothing: what they have in common was read before.
//
// spec: c2s#aggregations-of-child-events
func TestWhatIsSharedAgesWithTheRoom(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		bobs := s.get(bob, "").next()
		alices := s.get(alice, "").next()
		first := s.Say(alice, room, "first")
		same(s.T, "news", s.get(alice, alices, "timeout", "30000").bodies("join", room), []string{"first"})
		reply := s.Send(alice, room, "m.room.message", object{"msgtype": "m.text", "body": "second",
			"m.relates_to": object{"rel_type": "m.reference", "event_id": first}})
		for range 2 {
			events := s.get(bob, bobs).room("join", room).Get("timeline.events")
			if got := events.Get("0.unsigned.m\\.relations.m\\.reference.chunk.0.event_id").Str; got != reply {
				s.T.Errorf("%q refers to the first message, want %s: %s", got, reply, events)
			}
		}
	})
}

// crowd makes a room with many members, each with a token.
func crowd(b *testing.B, s *server, n int) (room string, users, since []string) {
	room = s.Create(alice, nil)
	for i := range n {
		user := fmt.Sprintf("@user%d:test", i)
		if err := s.Rooms.Join(b.Context(), roomserver.Join{User: id.UserID(user), Room: id.RoomID(room)}); err != nil {
			b.Fatal(err)
		}
		users = append(users, user)
	}
	err := s.DB.Write(b.Context(), nil, func(tx storage.Tx) error {
		for _, u := range users {
			if _, err := tx.InsertDevice(storage.Device{User: u, ID: "DEVICE"}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	for _, u := range users {
		since = append(since, s.get(u, s.get(u, "").next()).next())
	}
	return room, users, since
}

func BenchmarkEmptySync(b *testing.B) {
	s := serve(b, sqltest.SQLite(b), 16<<20)
	_, users, since := crowd(b, s, 1)
	b.ResetTimer()
	for range b.N {
		s.get(users[0], since[0])
	}
}

// One message to 200 members, each of whom syncs and has not read so many: the time until all have it, and what each of
// them costs, their client and, apart, PostgreSQL's processes included.
func BenchmarkMessageToMembers(b *testing.B) {
	const members = 200
	for _, engine := range []string{"SQLite", "PostgreSQL"} {
		for _, unread := range []int{10, 100, 1000} {
			b.Run(fmt.Sprint(engine, "/", unread), func(b *testing.B) {
				o := sqltest.SQLite
				if engine == "PostgreSQL" {
					o = sqltest.PostgreSQL
				}
				s := serve(b, o(b), 16<<20)
				room, users, since := crowd(b, s, members)
				for i := range unread {
					s.Say(alice, room, fmt.Sprint(i))
				}
				for i, u := range users {
					since[i] = s.get(u, since[i]).next()
				}
				statements := 0
				b.ResetTimer()
				before, beforeDB := cpuTime(), databaseTime(b, s.DB)
				for range b.N {
					list := s.counted(func() {
						var all sync.WaitGroup
						for i, u := range users {
							all.Go(func() {
								for {
									a, err := s.Try(u, "GET", syncPath(since[i], "timeout", "30000", "filter", `{"presence":{"types":[]}}`), nil)
									if err != nil || a.Status != 200 {
										b.Errorf("%d %v", a.Status, err)
										return
									}
									since[i] = synced{a}.next()
									if len((synced{a}).bodies("join", room)) > 0 {
										return
									}
								}
							})
						}
						s.Say(alice, room, "to all")
						all.Wait()
					})
					statements += len(list)
				}
				each := float64(b.N) * members
				b.ReportMetric(float64((cpuTime()-before).Microseconds())/each, "cpu-µs/member")
				b.ReportMetric(float64((databaseTime(b, s.DB)-beforeDB).Microseconds())/each, "database-cpu-µs/member")
				b.ReportMetric(float64(statements)/each, "statements/member")
			})
		}
	}
}

// The first sync of somebody in 200 rooms of a server that has others, too.
func BenchmarkInitialSync(b *testing.B) {
	for _, engine := range []string{"SQLite", "PostgreSQL"} {
		b.Run(engine, func(b *testing.B) {
			o := sqltest.SQLite
			if engine == "PostgreSQL" {
				o = sqltest.PostgreSQL
			}
			s := serve(b, o(b), 16<<20)
			for i := range 200 {
				room := s.Create(alice, nil)
				for n := range 20 {
					s.Say(alice, room, fmt.Sprint(i, " ", n))
				}
			}
			s.get(alice, "")
			b.ResetTimer()
			before := cpuTime()
			for range b.N {
				if n := len(s.get(alice, "").Get("rooms.join").Map()); n != 200 {
					b.Fatalf("%d rooms", n)
				}
			}
			b.ReportMetric(float64((cpuTime()-before).Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

func cpuTime() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		panic(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// databaseTime is what PostgreSQL's processes have had of the processor, as Linux tells it; 0 for SQLite, which is in ours.
func databaseTime(b testing.TB, db *storage.DB) (sum time.Duration) {
	if !db.OnPostgreSQL() {
		return 0
	}
	var backend int
	if err := db.Read(b.Context(), func(tx storage.Tx) error {
		return tx.QueryRow(`SELECT pg_backend_pid()`).Scan(&backend)
	}); err != nil {
		b.Fatal(err)
	}
	fields := func(pid int) []int {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return make([]int, 15)
		}
		var list []int
		for _, f := range strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:])) { // from the third on
			n, _ := strconv.Atoi(f)
			list = append(list, n)
		}
		return list
	}
	server := fields(backend)[1] // the parent
	processes, _ := filepath.Glob("/proc/[0-9]*")
	ticks := 0
	for _, p := range processes {
		pid, _ := strconv.Atoi(filepath.Base(p))
		f := fields(pid)
		if pid == server {
			ticks += f[11] + f[12] + f[13] + f[14] // its own, and those of processes that have ended
		} else if server != 0 && f[1] == server {
			ticks += f[11] + f[12]
		}
	}
	return time.Duration(ticks) * time.Second / 100
}
