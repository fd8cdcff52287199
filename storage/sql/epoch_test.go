package sql_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

func isFenced(err error) bool { return errors.Is(err, sql.ErrFenced) }

func announce(t testing.TB, db *sql.DB) int64 {
	t.Helper()
	p := db.Submit(nil, func(tx *sql.Tx) error { tx.Announce(sql.Fact{Kind: sql.FactEvent}); return nil }, nil)
	if err := p.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	return p.Facts()[0].Pos
}

func epochs(t testing.TB, db *sql.DB) (list []sql.Epoch) {
	t.Helper()
	read(t, db, func(tx *sql.Tx) (err error) { list, err = tx.Epochs(); return err })
	return list
}

func TestTheFirstPositionIsTheTime(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		pos := announce(t, db)
		if since := time.Since(time.UnixMicro(pos)); since < 0 || since > time.Minute {
			t.Errorf("the first position is %d", pos)
		}
		facts, err := db.FactsAfter(context.Background(), 0, 10)
		if err != nil || len(facts) != 2 || facts[0].Kind != sql.FactEpoch || facts[0].Pos != epochs(t, db)[0].Jump {
			t.Errorf("facts %v, %v", facts, err)
		}
	})
}

func TestAnEpochStaysOverARestart(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		o.HighWater = filepath.Join(t.TempDir(), "high")
		db := open(t, o)
		epoch, pos := db.Epoch(), announce(t, db)
		db.Close()
		db = open(t, o)
		if db.Epoch() != epoch || announce(t, db) != pos+1 {
			t.Errorf("epoch %d became %d without a reason", epoch, db.Epoch())
		}
	})
}

func TestBeginEpochJumps(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		var told []sql.Fact
		before, first := announce(t, db), db.Epoch()
		db.OnCommit(func(f []sql.Fact) { told = append(told, f...) })
		if err := db.BeginEpoch(context.Background(), "restore"); err != nil {
			t.Fatal(err)
		}
		after := announce(t, db)
		e := epochs(t, db)
		if db.Epoch() <= first || len(e) != 2 || e[0].Restored != before || after != e[0].Jump+1 || e[0].Jump <= before+1 || e[0].ID == e[1].ID {
			t.Errorf("after %d comes %d, epochs %+v", before, after, e)
		}
		if len(told) != 2 || told[0].Kind != sql.FactEpoch || told[0].Pos != e[0].Jump {
			t.Errorf("told %v", told)
		}
	})
}

// order.md 3: yesterday's file under today's process must not give a position again.
func TestARestoredFileBeginsAnEpoch(t *testing.T) {
	o := sqltest.SQLite(t)
	db := open(t, o)
	announce(t, db)
	db.Close()
	yesterday, err := os.ReadFile(o.Path)
	if err != nil {
		t.Fatal(err)
	}
	db = open(t, o)
	first := db.Epoch()
	var last int64
	for range 50 {
		last = announce(t, db)
	}
	db.Close()
	if err := os.WriteFile(o.Path, yesterday, 0o600); err != nil {
		t.Fatal(err)
	}
	db = open(t, o)
	if pos := announce(t, db); db.Epoch() == first || pos <= last {
		t.Errorf("after the restore position %d is given, %d had been", pos, last)
	}
	db.Close()
	// Without the side file it may be any copy.
	if err := os.Remove(filepath.Join(filepath.Dir(o.Path), "epoch")); err != nil {
		t.Fatal(err)
	}
	second := epochs(t, open(t, o))
	if len(second) != 3 || second[0].Reason != "another instance of the database" {
		t.Errorf("epochs %+v", second)
	}
}

// A clock that was set back: positions go on above those that were given, and no epoch begins below them.
func TestTheClockIsSetBack(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		o.HighWater = filepath.Join(t.TempDir(), "high")
		db := open(t, o)
		last, epoch := announce(t, db)+time.Hour.Microseconds(), db.Epoch()
		write(t, db, func(tx *sql.Tx) error {
			tx.Exec(`UPDATE facts SET pos = pos + $1 WHERE pos = $2`, time.Hour.Microseconds(), last-time.Hour.Microseconds())
			return nil
		})
		for range 2 {
			if last++; announce(t, db) != last {
				t.Errorf("after an hour was taken back, positions go on elsewhere than at %d", last)
			}
			if err := db.BeginEpoch(context.Background(), "restore"); err == nil || !strings.Contains(err.Error(), "the clock (") {
				t.Errorf("an epoch begins below what was told: %v", err)
			}
			if db.Epoch() != epoch || len(epochs(t, db)) != 1 {
				t.Errorf("epochs %+v", epochs(t, db))
			}
			db.Close()
			db = open(t, o)
		}
	})
}

func TestADatabaseThatGoesBackStopsTheProcess(t *testing.T) {
	each(t, func(t *testing.T, db *sql.DB) {
		lost := make(chan error, 1)
		db.OnLost(func(err error) { lost <- err })
		last := announce(t, db)
		// What a failover to a standby that was behind looks like.
		write(t, db, func(tx *sql.Tx) error { tx.Exec(`DELETE FROM facts WHERE pos = $1`, last); return nil })
		select {
		case <-lost:
		case <-time.After(time.Minute):
			t.Fatal("nobody noticed")
		}
		if err := db.Write(context.Background(), nil, func(tx *sql.Tx) error { return nil }); err == nil {
			t.Error("something was written afterwards")
		}
	})
}

// Another cluster, timeline or database has another name: whatever it lost, positions jump.
func TestAnotherInstanceBeginsAnEpoch(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	db := open(t, o)
	first := announce(t, db)
	write(t, db, func(tx *sql.Tx) error { tx.Exec(`UPDATE epochs SET system = 'another'`); return nil })
	db.Close()
	a, b := open(t, o), open(t, o) // two processes: one of them makes the jump
	if list := epochs(t, a); len(list) != 2 || a.Epoch() != b.Epoch() || announce(t, b) < list[0].Jump || list[0].Restored != first {
		t.Errorf("epochs %+v, %d and %d", list, a.Epoch(), b.Epoch())
	}
}

func TestTheWriterComesBackAfterALostConnection(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	o.Migrations = migrations(things)
	db := open(t, o)
	conn, err := pgx.Connect(context.Background(), o.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	kill := func() {
		var killed []int32
		err := conn.QueryRow(context.Background(), `SELECT array_agg(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid()`).Scan(&killed)
		if err != nil || len(killed) == 0 {
			t.Fatal(killed, err)
		}
		if _, err := conn.Exec(context.Background(), `SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid`, killed); err != nil {
			t.Fatal(err)
		}
		for left := 1; left > 0; {
			if err := conn.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity WHERE pid = ANY($1)`, killed).Scan(&left); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Idle for as long as a connection is not believed to stand: nobody notices.
	var writer int32
	write(t, db, func(tx *sql.Tx) error { return tx.QueryRow(`SELECT pg_backend_pid()`).Scan(&writer) })
	for idle := false; !idle; time.Sleep(50 * time.Millisecond) {
		if err := conn.QueryRow(context.Background(), `SELECT state_change < clock_timestamp() - interval '1100 milliseconds'
			FROM pg_stat_activity WHERE pid = $1`, writer).Scan(&idle); err != nil {
			t.Fatal(err)
		}
	}
	kill()
	first := announce(t, db)
	kill()
	// The first flush is also the commit: what became of it cannot be known, and is said so.
	err = db.Write(context.Background(), nil, func(tx *sql.Tx) error { insert(tx, 1); return nil })
	if err != nil && !errors.Is(err, sql.ErrUnknownOutcome) {
		t.Errorf("the write on a lost connection gave %v", err)
	}
	if next := announce(t, db); next != first+1 {
		t.Errorf("after %d came %d", first, next)
	}
	// Lost before the commit: the function runs again, nobody notices.
	runs := 0
	write(t, db, func(tx *sql.Tx) error {
		if runs++; runs == 1 {
			kill()
		}
		_, err := tx.ExecRows(`INSERT INTO things (nid, flag, small) VALUES (2, FALSE, 0)`)
		return err
	})
	if runs != 2 {
		t.Errorf("the function ran %d times", runs)
	}
	// Another process took the number meanwhile: the function finds it taken when it runs again.
	runs = 0
	write(t, db, func(tx *sql.Tx) error {
		if runs++; runs == 1 {
			if _, err := conn.Exec(context.Background(), `INSERT INTO things (nid, flag, small) VALUES (3, FALSE, 0)`); err != nil {
				return err
			}
		}
		_, err := tx.ExecRows(`INSERT INTO things (nid, flag, small) VALUES ($1, FALSE, 0)`, 2+runs)
		return err
	})
	if runs != 2 {
		t.Errorf("the function ran %d times", runs)
	}
}

// house.md: what is acknowledged must survive. A server that does not flush is refused.
func TestAServerWithoutFsyncIsRefused(t *testing.T) {
	if os.Getenv(sqltest.URLVariable) != "" {
		t.Skip("the PostgreSQL is somebody else's: its settings are left alone")
	}
	o := sqltest.PostgreSQL(t)
	o.Migrations = migrations(things)
	conn, err := pgx.Connect(t.Context(), o.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	set := func(value string) {
		for _, query := range []string{`ALTER SYSTEM SET fsync = ` + value, `SELECT pg_reload_conf()`} {
			if _, err := conn.Exec(context.Background(), query); err != nil {
				t.Fatal(err)
			}
		}
		for now := ""; now != value; time.Sleep(10 * time.Millisecond) { // each session hears of it by itself
			if err := conn.QueryRow(context.Background(), `SHOW fsync`).Scan(&now); err != nil {
				t.Fatal(err)
			}
		}
	}
	defer set("on")
	set("off")
	if db, err := sql.Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "fsync=off") {
		if db != nil {
			db.Close()
		}
		t.Errorf("with fsync=off: %v", err)
	}
}

// order.md 3: a session that would not wait for the disk is made to.
func TestSessionsWaitForTheDisk(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	o.Migrations = migrations(things)
	set(t, o, `synchronous_commit = off`)
	db := open(t, o)
	var on string
	write(t, db, func(tx *sql.Tx) error { return tx.QueryRow(`SELECT current_setting('synchronous_commit')`).Scan(&on) })
	if on != "on" {
		t.Errorf("synchronous_commit is %s", on)
	}
}

// slowCommits makes every commit take 5 ms more, between its statements and its flush.
func slowCommits(t testing.TB, o sql.Options) {
	t.Helper()
	set(t, o, `commit_delay = 5000`)
	set(t, o, `commit_siblings = 0`)
}

// set changes a setting of all later sessions of a database.
func set(t testing.TB, o sql.Options, setting string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), o.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), `ALTER DATABASE "`+conn.Config().Database+`" SET `+setting); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkWrite(b *testing.B) {
	// A synchronous standby, or a slow disk: the whole round trip lies inside the lock of positions.
	slow := func(t testing.TB) sql.Options {
		o := sqltest.PostgreSQL(t)
		slowCommits(t, o)
		return o
	}
	for name, fresh := range map[string]func(testing.TB) sql.Options{"SQLite": sqltest.SQLite, "PostgreSQL": sqltest.PostgreSQL, "PostgreSQL5ms": slow} {
		b.Run(name, func(b *testing.B) {
			o := fresh(b)
			o.Migrations = migrations(things)
			db := open(b, o)
			var nid int64
			one := func(nid int64) func(*sql.Tx) error {
				return func(tx *sql.Tx) error {
					insert(tx, nid)
					tx.Announce(sql.Fact{Kind: sql.FactEvent, Room: 1, Event: nid})
					return nil
				}
			}
			for _, size := range []int{1, 100} {
				b.Run(map[int]string{1: "1", 100: "100"}[size], func(b *testing.B) {
					for b.Loop() {
						var all []*sql.Pending
						for range size {
							nid++
							all = append(all, db.Submit(nil, one(nid), nil))
						}
						for _, p := range all {
							if err := p.Wait(context.Background()); err != nil {
								b.Fatal(err)
							}
						}
					}
					b.ReportMetric(float64(size*b.N)/b.Elapsed().Seconds(), "writes/s")
				})
			}
		})
	}
}
