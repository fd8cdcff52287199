package sql_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// things is the table these tests write to.
const things = `-- expand
CREATE TABLE things (
	nid   BIGINT PRIMARY KEY,
	name  TEXT,
	flag  BOOLEAN NOT NULL,
	small SMALLINT NOT NULL,
	data  BYTEA
);
CREATE INDEX things_name ON things (name);
`

func migrations(files ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i, text := range files {
		m[fmt.Sprintf("%04d_test.sql", i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	return m
}

func each(t *testing.T, test func(t *testing.T, db *sql.DB)) {
	t.Helper()
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		o.Migrations = migrations(things)
		test(t, open(t, o))
	})
}

func open(t testing.TB, o sql.Options) *sql.DB {
	t.Helper()
	db, err := sql.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func write(t testing.TB, db *sql.DB, fn func(*sql.Tx) error) {
	t.Helper()
	if err := db.Write(context.Background(), nil, fn); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, db *sql.DB, fn func(*sql.Tx) error) {
	t.Helper()
	if err := db.Read(context.Background(), fn); err != nil {
		t.Fatal(err)
	}
}

func insert(tx *sql.Tx, nid int64) {
	tx.Exec(`INSERT INTO things (nid, name, flag, small) VALUES ($1, $2, $3, $4)`, nid, fmt.Sprint("n", nid), nid%2 == 0, nid%100)
}

func numbersOf(t testing.TB, db *sql.DB) (nids []int64) {
	t.Helper()
	read(t, db, func(tx *sql.Tx) (err error) {
		nids, err = sql.Collect(tx, func(r *sql.Rows) (n int64, err error) { return n, r.Scan(&n) }, `SELECT nid FROM things ORDER BY nid`)
		return err
	})
	return nids
}

type userID string

func TestValuesComeBackAsTheyWent(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var nothing *string
		name := "name"
		write(t, db, func(tx *sql.Tx) error {
			tx.Exec(`INSERT INTO things (nid, name, flag, small, data) VALUES ($1, $2, $3, $4, $5)`,
				int64(math.MaxInt64), userID("@a:b"), true, int16(-7), []byte{0, 1, 255})
			tx.Exec(`INSERT INTO things (nid, name, flag, small, data) VALUES ($1, $2, $3, $4, $5)`, 2, nothing, false, 3, []byte(nil))
			tx.Exec(`INSERT INTO things (nid, name, flag, small, data) VALUES ($1, $2, $3, $4, $5)`, 3, &name, false, 3, []byte{})
			tx.Exec(`INSERT INTO things (nid, name, flag, small, data) VALUES ($1, $2, $3, $4, $5)`,
				4, json.RawMessage(`{"a":1}`), false, 3, nil)
			tx.Exec(`INSERT INTO things (nid, name, flag, small, data) VALUES ($1, $2, $3, $4, $5)`, time.UnixMilli(5000), "", false, 3, nil)
			return nil
		})
		read(t, db, func(tx *sql.Tx) error {
			var user userID
			var big int64
			var small int16
			var flag bool
			var data []byte
			if err := tx.QueryRow(`SELECT nid, name, flag, small, data FROM things WHERE name = $1 AND flag = $2`, userID("@a:b"), true).
				Scan(&big, &user, &flag, &small, &data); err != nil {
				return err
			}
			if user != "@a:b" || big != math.MaxInt64 || small != -7 || !flag || !bytes.Equal(data, []byte{0, 1, 255}) {
				t.Errorf("got %q %d %d %v %v", user, big, small, flag, data)
			}
			var missing *string
			var maybe sql.Null[string]
			if err := tx.QueryRow(`SELECT name, name, data FROM things WHERE nid = 2`).Scan(&missing, &maybe, &data); err != nil {
				return err
			}
			if missing != nil || maybe.Valid || data != nil {
				t.Errorf("NULL came back as %v %v %v", missing, maybe, data)
			}
			var typed *userID
			if err := tx.QueryRow(`SELECT name, name, data FROM things WHERE nid = 3`).Scan(&typed, &maybe, &data); err != nil {
				return err
			}
			if typed == nil || *typed != "name" || maybe.V != "name" || data == nil || len(data) != 0 {
				t.Errorf("got %v %v %v", typed, maybe, data)
			}
			var raw json.RawMessage
			if err := tx.QueryRow(`SELECT name FROM things WHERE nid = 4`).Scan(&raw); err != nil || string(raw) != `{"a":1}` {
				t.Errorf("got %s %v", raw, err)
			}
			var at time.Time
			if err := tx.QueryRow(`SELECT nid FROM things WHERE nid = 5000`).Scan(&at); err != nil || at.UnixMilli() != 5000 {
				t.Errorf("got %v %v", at, err)
			}
			var sum, count int64
			if err := tx.QueryRow(`SELECT sum(nid), count(*) FROM things WHERE nid < $1`, 10).Scan(&sum, &count); err != nil || sum != 9 || count != 3 {
				t.Errorf("got %d %d %v", sum, count, err)
			}
			if err := tx.QueryRow(`SELECT nid FROM things WHERE nid = $1`, -1).Scan(&sum); !errors.Is(err, sql.ErrNoRows) {
				t.Errorf("no row gave %v", err)
			}
			var never string
			if err := tx.QueryRow(`SELECT name FROM things WHERE nid = 2`).Scan(&never); err == nil {
				t.Error("NULL was scanned into a string")
			}
			return nil
		})
	})
}

func TestSetsAsArguments(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		write(t, db, func(tx *sql.Tx) error {
			for i := range int64(10) {
				insert(tx, i)
			}
			return nil
		})
		count := func(query string, args ...any) (n int) {
			read(t, db, func(tx *sql.Tx) error { return tx.QueryRow(query, args...).Scan(&n) })
			return n
		}
		for _, c := range []struct {
			query string
			arg   any
			want  int
		}{
			{`SELECT count(*) FROM things WHERE nid = ANY($1)`, []int64{1, 2, 99}, 2},
			{`SELECT count(*) FROM things WHERE nid = ANY($1)`, []int64{}, 0},
			{`SELECT count(*) FROM things WHERE nid = ANY($1)`, []int64(nil), 0},
			{`SELECT count(*) FROM things WHERE small = ANY($1)`, []int64{1, 2, 3}, 3},
			{`SELECT count(*) FROM things WHERE name = ANY($1)`, []string{"n1", `"`, `\`, "é"}, 1},
			{`SELECT count(*) FROM things WHERE name = ANY($1)`, []userID{"n1", "n2"}, 2},
			{`SELECT count(*) FROM things WHERE nid <> ALL($1)`, []int64{1, 2}, 8},
			{`SELECT count(*) FROM things WHERE nid <> ALL($1)`, []int64(nil), 10},
		} {
			if got := count(c.query, c.arg); got != c.want {
				t.Errorf("%s with %#v: %d, want %d", c.query, c.arg, got, c.want)
			}
		}
	})
}

// Text is compared by its bytes on both engines, whatever the locale.
func TestTextIsOrderedByBytes(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		write(t, db, func(tx *sql.Tx) error {
			var rows [][]any
			for i, name := range []string{"a", "B", "é", "Z", "_", "b", "\U0001f600", "\uffee"} {
				rows = append(rows, []any{i, name, false, 0})
			}
			return tx.CopyIn("things", []string{"nid", "name", "flag", "small"}, rows)
		})
		read(t, db, func(tx *sql.Tx) error {
			got, err := sql.Collect(tx, func(r *sql.Rows) (s string, err error) { return s, r.Scan(&s) }, `SELECT name FROM things ORDER BY name`)
			if !slices.IsSorted(got) || len(got) != 8 {
				t.Errorf("order %q", got)
			}
			return err
		})
	})
}

func TestCopyInKeepsWhatIsThere(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for _, n := range []int{1, 3, 700} {
			write(t, db, func(tx *sql.Tx) error {
				var rows [][]any
				for i := range n {
					var name any
					if i%3 > 0 {
						name = userID(fmt.Sprint("copy", n))
					}
					rows = append(rows, []any{i, name, i%2 == 0, int16(i), []byte{byte(i)}})
				}
				return tx.CopyIn("things", []string{"nid", "name", "flag", "small", "data"}, rows)
			})
		}
		read(t, db, func(tx *sql.Tx) error {
			var name string
			var all, null int
			if err := tx.QueryRow(`SELECT count(*) FROM things`).Scan(&all); err != nil {
				return err
			}
			if err := tx.QueryRow(`SELECT count(*) FROM things WHERE name IS NULL`).Scan(&null); err != nil {
				return err
			}
			if err := tx.QueryRow(`SELECT name FROM things WHERE nid = 2`).Scan(&name); err != nil {
				return err
			}
			if all != 700 || null != 234 || name != "copy3" {
				t.Errorf("%d rows, %d NULL, the third is %q", all, null, name)
			}
			return nil
		})
		if err := db.Write(context.Background(), nil, func(tx *sql.Tx) error {
			return tx.CopyIn("nothing", []string{"a"}, [][]any{{1}})
		}); err == nil {
			t.Error("a missing table was copied into")
		}
	})
}

func TestEscapedTextIsDifferentForDifferentText(t *testing.T) {
	for _, s := range []string{"", "a", "\x00", "\x1a", "\x1a00", "\x00\x1a", "a\x00b", "\xff\xfe", "é\x00", "\x1a1a", "\x1aff", "\xed\xa0\x80", strings.Repeat("\x00", 9)} {
		got := sql.Text(s)
		if strings.ContainsRune(got, 0) || strings.ToValidUTF8(got, "") != got {
			t.Errorf("%q is stored as %q", s, got)
		}
		if back := sql.Untext(got); back != s {
			t.Errorf("%q came back as %q", s, back)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\x00b\x1a\xff")
	f.Fuzz(func(t *testing.T, s string) {
		got := sql.Text(s)
		if strings.ContainsRune(got, 0) || strings.ToValidUTF8(got, "") != got || sql.Untext(got) != s {
			t.Fatalf("%q is stored as %q and read as %q", s, got, sql.Untext(got))
		}
	})
}

func TestZeroCharactersAreStored(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		write(t, db, func(tx *sql.Tx) error {
			tx.Exec(`INSERT INTO things (nid, name, flag, small) VALUES (1, $1, FALSE, 0)`, sql.Text("a\x00b"))
			tx.Announce(sql.Fact{Kind: sql.FactReceipt, User: "@\x00:x", Extra: "\xff"})
			return nil
		})
		read(t, db, func(tx *sql.Tx) error {
			var s string
			if err := tx.QueryRow(`SELECT name FROM things WHERE name = $1`, sql.Text("a\x00b")).Scan(&s); err != nil {
				return err
			}
			if sql.Untext(s) != "a\x00b" {
				t.Errorf("got %q", s)
			}
			facts, err := tx.FactsAfter(0, 10)
			if len(facts) != 2 || facts[1].User != "@\x00:x" || facts[1].Extra != "\xff" {
				t.Errorf("got %+v", facts)
			}
			return err
		})
		err := db.Write(context.Background(), nil, func(tx *sql.Tx) error {
			tx.Exec(`INSERT INTO things (nid, name, flag, small) VALUES (2, $1, FALSE, 0)`, "a\x00b")
			return nil
		})
		if err == nil {
			t.Error("U+0000 without escape was stored: the other engine would refuse it")
		}
	})
}

// order.md 4: one function's failure is its own, whatever stage it comes at.
func TestAFailingFunctionDoesNotHurtItsGroup(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		refuse := errors.New("refused")
		bad := map[int]func(*sql.Tx) error{
			3: func(tx *sql.Tx) error { insert(tx, 1003); return refuse },
			5: func(tx *sql.Tx) error { insert(tx, 1); return nil }, // there already: told at the end
			7: func(tx *sql.Tx) error { tx.Exec(`INSERT INTO nowhere (a) VALUES (1)`); return nil },
			9: func(tx *sql.Tx) error { panic("a bug") },
			11: func(tx *sql.Tx) error {
				if _, err := tx.ExecRows(`INSERT INTO things (nid, flag, small) VALUES (1011, FALSE, 0)`); err != nil {
					return err
				}
				return refuse
			},
			13: func(tx *sql.Tx) error { // an error is swallowed: the function fails all the same
				_, _ = tx.ExecRows(`INSERT INTO things (nid, flag, small) VALUES (1, FALSE, 0)`)
				insert(tx, 1013)
				return nil
			},
		}
		write(t, db, func(tx *sql.Tx) error { insert(tx, 1); return nil })
		release := hold(db)
		var pending []*sql.Pending
		for i := range 20 {
			pending = append(pending, db.Submit([]string{"k"}, func(tx *sql.Tx) error {
				if f := bad[i]; f != nil {
					return f(tx)
				}
				insert(tx, int64(100+i))
				tx.Announce(sql.Fact{Kind: sql.FactEvent, Event: int64(i)})
				return nil
			}, nil))
		}
		release()
		var last int64
		for i, p := range pending {
			err := p.Wait(context.Background())
			if (err != nil) != (bad[i] != nil) {
				t.Errorf("function %d: %v", i, err)
			}
			if bad[i] == nil {
				if f := p.Facts(); len(f) != 1 || f[0].Event != int64(i) || f[0].Pos <= last {
					t.Errorf("function %d has facts %v after %d", i, f, last)
				} else {
					last = f[0].Pos
				}
			}
		}
		if got := numbersOf(t, db); len(got) != 15 || got[14] > 200 {
			t.Errorf("stored: %v", got)
		}
		noGap(t, db, 15)
	})
}

// What waits becomes one transaction; one without facts does not take the lock of positions.
func TestWaitingWritesShareACommit(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		var mu sync.Mutex
		counted := map[string]int{}
		o := fresh()
		o.Migrations = migrations(things)
		o.Trace = func(statement string) {
			mu.Lock()
			defer mu.Unlock()
			counted[strings.Fields(statement)[0]+" "+strings.Fields(statement + " . .")[2]]++
		}
		db := open(t, o)
		for _, facts := range []bool{false, true} {
			release := hold(db)
			mu.Lock()
			clear(counted)
			mu.Unlock()
			before, base := db.Commits(), map[bool]int64{true: 1000}[facts]
			var all []*sql.Pending
			for i := range int64(100) {
				all = append(all, db.Submit([]string{fmt.Sprint(i)}, func(tx *sql.Tx) error {
					if facts {
						tx.Announce(sql.Fact{Kind: sql.FactEvent, Event: i})
					}
					insert(tx, base+i)
					return nil
				}, nil))
			}
			release()
			for _, p := range all {
				if err := p.Wait(context.Background()); err != nil {
					t.Fatal(err)
				}
			}
			mu.Lock()
			places := counted["INSERT facts"]
			mu.Unlock()
			if n := db.Commits() - before; n != 2 || counted["INSERT things"] != 100 || (places == 1) != facts {
				t.Errorf("facts %v: %d commits of %v", facts, n, counted)
			}
		}
	})
}

// hold keeps the committer busy until it is released, so that what is submitted becomes one group.
func hold(db *sql.DB) (release func()) {
	started, wait := make(chan struct{}), make(chan struct{})
	var once sync.Once
	db.Submit(nil, func(*sql.Tx) error {
		once.Do(func() { close(started) })
		<-wait
		return nil
	}, nil)
	<-started
	return func() { close(wait) }
}

func noGap(t testing.TB, db *sql.DB, want int) {
	t.Helper()
	facts, err := db.FactsAfter(context.Background(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(facts); i++ {
		if facts[i].Pos != facts[i-1].Pos+1 {
			t.Fatalf("a gap between %d and %d", facts[i-1].Pos, facts[i].Pos)
		}
	}
	if len(facts) != want {
		t.Errorf("%d facts, want %d", len(facts), want)
	}
}

// A room's next event may be built on one that is being committed: its failure is told before
// anything later runs.
func TestFailureIsToldBeforeLaterFunctionsRun(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for _, kind := range []string{"refuses", "breaks"} {
			release := hold(db)
			var gone bool
			base := map[string]int64{"refuses": 0, "breaks": 50}[kind]
			first := db.Submit([]string{"room"}, func(tx *sql.Tx) error {
				insert(tx, base+1)
				if kind == "refuses" {
					return errors.New("no")
				}
				tx.Exec(`INSERT INTO nowhere (a) VALUES (1)`)
				return nil
			}, func(error) { gone = true })
			second := db.Submit([]string{"room"}, func(tx *sql.Tx) error {
				if gone {
					return errors.New("built on nothing")
				}
				insert(tx, base+2)
				return nil
			}, nil)
			release()
			if first.Wait(context.Background()) == nil || second.Wait(context.Background()) == nil {
				t.Errorf("%s: a function built on a failed one was committed", kind)
			}
		}
		if got := numbersOf(t, db); len(got) != 0 {
			t.Errorf("stored: %v", got)
		}
	})
}

func TestOrderOfAKeyIsKept(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var mu sync.Mutex
		told := []sql.Fact{}
		db.OnCommit(func(facts []sql.Fact) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, facts...)
		})
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				var all []*sql.Pending
				for i := range 100 {
					keys := []string{fmt.Sprint("room", g)}
					if i%3 == 0 {
						keys = append(keys, fmt.Sprint("a-user", i%5))
					}
					all = append(all, db.Submit(keys, func(tx *sql.Tx) error {
						tx.Announce(sql.Fact{Kind: sql.FactEvent, Room: int64(g + 1), Ord: int64(i)})
						return nil
					}, nil))
				}
				for _, p := range all {
					if err := p.Wait(context.Background()); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		next := map[int64]int64{}
		for i, f := range told {
			if f.Ord != next[f.Room] {
				t.Fatalf("room %d: %d was told where %d was due", f.Room, f.Ord, next[f.Room])
			}
			next[f.Room]++
			if i > 0 && f.Pos != told[i-1].Pos+1 {
				t.Fatalf("told %d after %d", f.Pos, told[i-1].Pos)
			}
		}
		noGap(t, db, 801)
	})
}

// A caller that gives up leaves; its write, and the group, go on.
func TestCancelledCallersLeaveAndTheWriteGoesOn(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		release := hold(db)
		ctx, cancel := context.WithCancel(context.Background())
		one := db.Submit(nil, func(tx *sql.Tx) error { insert(tx, 1); return nil }, nil)
		other := db.Submit(nil, func(tx *sql.Tx) error { insert(tx, 2); return nil }, nil)
		cancel()
		if err := one.Wait(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("the cancelled caller got %v", err)
		}
		release()
		if err := other.Wait(context.Background()); err != nil {
			t.Error(err)
		}
		write(t, db, func(*sql.Tx) error { return nil })
		if got := numbersOf(t, db); !slices.Equal(got, []int64{1, 2}) {
			t.Errorf("stored: %v", got)
		}
		if err := db.Read(ctx, func(tx *sql.Tx) error { return tx.QueryRow(`SELECT count(*) FROM things`).Scan(new(int)) }); !errors.Is(err, context.Canceled) {
			t.Errorf("a cancelled read gave %v", err)
		}
	})
}

func TestAReadIsASnapshot(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		read(t, db, func(tx *sql.Tx) error {
			before, err := tx.MaxPos()
			if err != nil {
				return err
			}
			write(t, db, func(tx *sql.Tx) error {
				insert(tx, 1)
				tx.Announce(sql.Fact{Kind: sql.FactEvent})
				return nil
			})
			after, err := tx.MaxPos()
			var n int
			if err == nil {
				err = tx.QueryRow(`SELECT count(*) FROM things`).Scan(&n)
			}
			if after != before || n != 0 {
				t.Errorf("the snapshot moved from %d to %d and sees %d rows", before, after, n)
			}
			return err
		})
		read(t, db, func(tx *sql.Tx) error {
			tx.Query(`SELECT nid FROM things`) // left open: closed for us
			return nil
		})
		if err := db.Read(context.Background(), func(tx *sql.Tx) error { insert(tx, 5); return nil }); err == nil {
			t.Error("a read wrote")
		}
		if err := db.Read(context.Background(), func(tx *sql.Tx) error {
			return db.Read(tx.Context(), func(*sql.Tx) error { return nil })
		}); !errors.Is(err, sql.ErrNested) {
			t.Errorf("a read inside of a read gave %v", err)
		}
		if err := db.Read(context.Background(), func(tx *sql.Tx) error {
			rows, err := tx.Query(`SELECT nid FROM things UNION SELECT 7`)
			if err != nil {
				return err
			}
			rows.Next()
			_, err = tx.MaxPos()
			return err
		}); err == nil || !strings.Contains(err.Error(), "rows of another are open") {
			t.Errorf("two queries at once gave %v", err)
		}
		write(t, db, func(tx *sql.Tx) error { insert(tx, 9); return nil }) // all connections are whole
	})
}

func TestNumbersAreGivenOnce(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		o.Migrations = migrations(things)
		seen := map[int64]bool{}
		for range 3 {
			db := open(t, o)
			var mu sync.Mutex
			var wg sync.WaitGroup
			for range 4 {
				wg.Go(func() {
					for range 600 {
						n, err := db.Numbers("x").Next()
						mu.Lock()
						if err != nil || n <= 0 || seen[n] {
							t.Errorf("number %d again, %v", n, err)
						}
						seen[n] = true
						mu.Unlock()
					}
				})
			}
			wg.Wait()
			// Inside a write, too, and more than a block.
			write(t, db, func(tx *sql.Tx) error {
				for range 1500 {
					n, err := db.Numbers("x").Next()
					if err != nil || seen[n] {
						t.Errorf("number %d again, %v", n, err)
					}
					seen[n] = true
				}
				return nil
			})
			db.Close()
		}
	})
}

func TestMigrations(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		second := "-- contract\n-- requires 0.3.1\nALTER TABLE things ADD COLUMN more TEXT NOT NULL DEFAULT 'TEXT $1 BYTEA'; -- TEXT\n"
		attempt := func(release string, files ...string) error {
			o.Release, o.Migrations = release, migrations(files...)
			db, err := sql.Open(context.Background(), o)
			if err != nil {
				return err
			}
			defer db.Close()
			return nil
		}
		if err := attempt("0.3", things); err != nil {
			t.Fatal(err)
		}
		if err := attempt("0.3", things+" "); err == nil || !strings.Contains(err.Error(), "was changed after it had been applied") {
			t.Errorf("a changed migration gave %v", err)
		}
		if err := attempt("0.3.1", things, second, "-- expand\nCREATE TABLE broken (a BIGINT); CREATE TABLE broken (a BIGINT);"); err == nil {
			t.Error("a broken migration was applied")
		}
		if err := attempt("0.10", things, second, "-- expand\nCREATE TABLE broken (a BIGINT);"); err != nil {
			t.Errorf("a migration that failed left something behind: %v", err)
		}
		if err := attempt("0.3", things); err == nil || !strings.Contains(err.Error(), "this database needs release 0.3.1 or newer") {
			t.Errorf("an old release gave %v", err)
		}
		if err := attempt("0.3.1", things, second); err != nil {
			t.Errorf("a release that is new enough gave %v", err)
		}
		if err := attempt("1", "CREATE TABLE x (a BIGINT)"); err == nil {
			t.Error("a migration without a kind was accepted")
		}
		db := open(t, o2(o, things, second))
		write(t, db, func(tx *sql.Tx) error {
			insert(tx, 1)
			var more string
			if err := tx.QueryRow(`SELECT more FROM things`).Scan(&more); err != nil || more != "TEXT $1 BYTEA" {
				t.Errorf("got %q %v", more, err)
			}
			return nil
		})
	})
}

func o2(o sql.Options, files ...string) sql.Options {
	o.Release, o.Migrations = "0.3.1", migrations(files...)
	return o
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	unlock, err := sql.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sql.LockDir(dir); err == nil || !strings.Contains(err.Error(), "another process uses the data directory") {
		t.Errorf("a second lock gave %v", err)
	}
	unlock()
	unlock, err = sql.LockDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

func TestTrimKeepsTheLastFact(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		for range 10 {
			write(t, db, func(tx *sql.Tx) error { tx.Announce(sql.Fact{Kind: sql.FactProfile}); return nil })
		}
		var top, n int64
		write(t, db, func(tx *sql.Tx) (err error) {
			if top, err = tx.MaxPos(); err != nil {
				return err
			}
			n, err = tx.TrimFacts(math.MaxInt64, 100)
			return err
		})
		p := db.Submit(nil, func(tx *sql.Tx) error { tx.Announce(sql.Fact{Kind: sql.FactProfile}); return nil }, nil)
		if err := p.Wait(context.Background()); err != nil {
			t.Fatal(err)
		}
		if n != 10 || p.Facts()[0].Pos != top+1 {
			t.Errorf("trimmed %d; the next position after %d is %d", n, top, p.Facts()[0].Pos)
		}
	})
}

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		os.Exit(child())
	}
	os.Exit(m.Run())
}
