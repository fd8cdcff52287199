package storage_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// Whatever is written of members, the counts say what counting would.
func TestMembersAreCounted(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		write := func(fn func(tx storage.Tx) error) {
			t.Helper()
			if err := db.Write(t.Context(), nil, fn); err != nil {
				t.Fatal(err)
			}
		}
		write(func(tx storage.Tx) error {
			tx.InsertRoom(storage.Room{NID: 1, ID: "!a:a", Version: "12"})
			tx.InsertRoom(storage.Room{NID: 2, ID: "!b:a", Version: "12"})
			return nil
		})
		for seed := range uint64(20) {
			r := rand.New(rand.NewPCG(seed, 1))
			any := func() storage.Member {
				server := fmt.Sprint("s", r.IntN(3))
				return storage.Member{Room: 1, User: fmt.Sprint("@u", r.IntN(10), ":", server), Server: server, Event: r.Int64N(1000),
					Membership: []string{"join", "join", "invite", "leave", "ban", "knock"}[r.IntN(6)]}
			}
			write(func(tx storage.Tx) error {
				for range 10 {
					switch v := any(); r.IntN(4) {
					case 0:
						tx.DeleteMember(1, v.User)
					case 1:
						list := make([]storage.Member, r.IntN(6))
						for i := range list {
							list[i] = any()
						}
						if err := tx.CopyMembers(1, list); err != nil {
							return err
						}
					default:
						tx.SetMember(v)
					}
				}
				tx.SetMember(storage.Member{Room: 2, User: "@u1:s1", Server: "s1", Membership: "join"})
				return nil
			})
			err := db.Read(t.Context(), func(tx storage.Tx) error {
				rows, err := tx.Members(1, []string{"join", "invite"})
				if err != nil {
					return err
				}
				var joined, invited int64
				servers := map[string]int64{}
				for _, m := range rows {
					if m.Membership == "invite" {
						invited++
					} else {
						joined++
						servers[m.Server]++
					}
				}
				room, _, err := tx.RoomByNumber(1)
				if err != nil {
					return err
				}
				if room.Joined != joined || room.Invited != invited {
					t.Errorf("%d joined and %d invited are counted, want %d and %d", room.Joined, room.Invited, joined, invited)
				}
				counts, err := tx.ServersIn(1)
				got := map[string]int64{}
				for _, c := range counts {
					got[c.Server] = c.Count
				}
				if !maps.Equal(got, servers) {
					t.Errorf("the servers are counted as %v, want %v", got, servers)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Who came first is first, whatever they changed since.
//
// spec: c2s/sync (RoomSummary)
func TestFirstMembersStayFirst(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		err = db.Write(t.Context(), nil, func(tx storage.Tx) error {
			for i, membership := range []string{"join", "leave", "invite", "join", "join", "ban"} {
				tx.SetMember(storage.Member{Room: 1, User: fmt.Sprintf("@u%d:a", i), Server: "a", Membership: membership, Event: int64(i + 1)})
			}
			tx.SetMember(storage.Member{Room: 1, User: "@u0:a", Server: "a", Membership: "join", Event: 100, DisplayName: "new"})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		err = db.Read(t.Context(), func(tx storage.Tx) error {
			here, err := tx.FirstMembers(1, "join", "invite", "@u3:a", 2)
			if err != nil {
				return err
			}
			gone, err := tx.FirstMembers(1, "leave", "ban", "@u3:a", 5)
			if got := fmt.Sprint(here, gone); got != "[@u0:a @u2:a] [@u1:a @u5:a]" {
				t.Errorf("the first members are %s", got)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// Who came first is found by reading a few rows, however many members the room has.
func TestFirstMembersAreFewRows(t *testing.T) {
	const fill = `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < $1)
		INSERT INTO members (room, user_id, server, membership, event, displayname, avatar_url, forgotten, first_event)
		SELECT $2, '@u' || i || ':s', 's', CASE WHEN i % 3 = 0 THEN 'invite' ELSE 'join' END, i, '', '', FALSE, i FROM n`
	sizes := []int64{10, 1000, 100_000}
	if testing.Short() {
		sizes = sizes[:2]
	}
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		var asked string
		o.Trace = func(statement string) {
			if strings.Contains(statement, "first_event LIMIT") {
				asked = statement
			}
		}
		db, err := storage.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		err = db.Write(t.Context(), nil, func(tx storage.Tx) error {
			for _, members := range sizes {
				tx.Exec(fill, members, members)
			}
			tx.Exec("ANALYZE members")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, members := range sizes {
			err := db.Read(t.Context(), func(tx storage.Tx) error {
				first, err := tx.FirstMembers(members, "join", "invite", "@u2:s", 5)
				if err != nil {
					return err
				}
				if got := fmt.Sprint(first); got != "[@u1:s @u3:s @u4:s @u5:s @u6:s]" {
					t.Errorf("the first of %d members are %s", members, got)
				}
				if !db.OnPostgreSQL() {
					lines, err := sql.Collect(tx.Tx, func(r *sql.Rows) (detail string, err error) {
						var a, b, c int64
						err = r.Scan(&a, &b, &c, &detail)
						return detail, err
					}, "EXPLAIN QUERY PLAN "+asked, members, "join", "invite", "@u2:s", 5)
					if plan := strings.Join(lines, "\n"); strings.Count(plan, "SEARCH members USING INDEX members_first (room=? AND membership=?)") != 2 ||
						strings.Count(plan, "TEMP B-TREE") != 1 {
						t.Errorf("%d members: %s", members, plan)
					}
					return err
				}
				lines, err := sql.Collect(tx.Tx, func(r *sql.Rows) (line string, err error) { err = r.Scan(&line); return line, err },
					"EXPLAIN (ANALYZE) "+asked, members, "join", "invite", "@u2:s", 5)
				if err != nil {
					return err
				}
				read, text := 0, strings.Join(lines, "\n")
				for _, m := range regexp.MustCompile(` rows=(\d+)\S* loops|Removed by Filter: (\d+)`).FindAllStringSubmatch(text, -1) {
					n, _ := strconv.Atoi(m[1] + m[2])
					read += n
				}
				if read == 0 || read > 60 { // those of every step of the plan
					t.Errorf("%d members: %d rows are read:\n%s", members, read, text)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}
