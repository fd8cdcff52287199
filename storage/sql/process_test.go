package sql_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/tidwall/gjson"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

const childVariable = "CHANCERY_SQL_TEST_CHILD"

// child is a second process of this test: it writes facts from several goroutines, prints the
// position of each acknowledged one, and ends when it is killed or told to.
func child() int {
	db, err := sql.Open(context.Background(), sql.Options{URL: os.Getenv(childVariable), MaxConnections: 4, Migrations: migrations(things)})
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	defer db.Close()
	limit, _ := strconv.Atoi(os.Getenv(childVariable + "_WRITES"))
	var mu sync.Mutex
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range limit {
				p := db.Submit([]string{fmt.Sprint(os.Getpid(), g)}, func(tx *sql.Tx) error {
					for range 1 + i%3 {
						tx.Announce(sql.Fact{Kind: sql.FactEvent, Room: int64(os.Getpid()), Event: int64(g), Ord: int64(i)})
					}
					return nil
				}, nil)
				if err := p.Wait(context.Background()); err != nil {
					fmt.Println("error", err)
					return
				}
				mu.Lock()
				for _, f := range p.Facts() {
					fmt.Println("pos", f.Pos)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return 0
}

// order.md 1 and 2: positions have no gap, and no reader ever sees one without all below it,
// with several processes writing, one of them killed in the middle.
func TestPositionsOfManyProcesses(t *testing.T) {
	t.Run("as fast as it goes", func(t *testing.T) { positionsOfManyProcesses(t, sqltest.PostgreSQL(t)) })
	t.Run("commits of 5 ms", func(t *testing.T) {
		o := sqltest.PostgreSQL(t)
		slowCommits(t, o)
		positionsOfManyProcesses(t, o)
	})
}

func positionsOfManyProcesses(t *testing.T, o sql.Options) {
	o.Migrations = migrations(things)
	db := open(t, o)
	const processes, writes = 4, 60

	acknowledged := make([][]int64, processes)
	var wg sync.WaitGroup
	var killed atomic.Bool
	for n := range processes {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+o.URL, childVariable+"_WRITES="+strconv.Itoa(writes))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			lines := bufio.NewScanner(out)
			for lines.Scan() {
				if text, ok := strings.CutPrefix(lines.Text(), "pos "); ok {
					pos, _ := strconv.ParseInt(text, 10, 64)
					acknowledged[n] = append(acknowledged[n], pos)
				} else {
					t.Errorf("process %d: %s", n, lines.Text())
				}
				if n == 0 && len(acknowledged[n]) == 100 {
					cmd.Process.Kill() // SIGKILL, somewhere between a statement and an answer
					killed.Store(true)
				}
			}
			if err := cmd.Wait(); err != nil && n > 0 {
				t.Errorf("process %d: %v", n, err)
			}
		})
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	var looks atomic.Int64
	for range 3 {
		readers.Go(func() { watchPositions(t, db, stop, &looks) })
	}
	wg.Wait()
	close(stop)
	readers.Wait()

	facts, err := db.FactsAfter(context.Background(), 0, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	there := map[int64]bool{}
	for i, f := range facts {
		there[f.Pos] = true
		if i > 0 && f.Pos != facts[i-1].Pos+1 {
			t.Fatalf("a gap between %d and %d", facts[i-1].Pos, f.Pos)
		}
	}
	given := map[int64]bool{}
	for n, list := range acknowledged {
		for _, pos := range list {
			if given[pos] {
				t.Fatalf("position %d was given twice", pos)
			}
			given[pos] = true
			if !there[pos] {
				t.Errorf("process %d was told position %d, which is not there", n, pos)
			}
		}
		if n > 0 && len(list) != 4*writes*2 {
			t.Errorf("process %d: %d acknowledged facts", n, len(list))
		}
	}
	if !killed.Load() || looks.Load() < 10 {
		t.Errorf("killed: %v, looks: %d", killed.Load(), looks.Load())
	}
	t.Logf("%d facts, %d looks", len(facts), looks.Load())
}

// watchPositions checks in each snapshot that everything up to its highest position is there,
// and that nothing new is below what was seen before.
func watchPositions(t *testing.T, db *sql.DB, stop chan struct{}, looks *atomic.Int64) {
	var top, count int64
	for {
		select {
		case <-stop:
			return
		default:
		}
		err := db.Read(context.Background(), func(tx *sql.Tx) error {
			var low, high, n int64
			err := tx.QueryRow(`SELECT min(pos), max(pos), count(*) FROM facts`).Scan(&low, &high, &n)
			if err != nil {
				return err
			}
			if high-low+1 != n {
				t.Errorf("between %d and %d there are %d facts", low, high, n)
			}
			if high < top || (count > 0 && n-count != high-top) {
				t.Errorf("from %d to %d but from %d to %d facts: something appeared below", top, high, count, n)
			}
			top, count = high, n
			return nil
		})
		if err != nil {
			t.Error(err)
			return
		}
		looks.Add(1)
	}
}

// order.md 1: a row that is updated bloats while an old snapshot is open and slows down every write; facts are only
// inserted, and their highest position is found in the index.
func TestPositionsUpdateNothing(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	db := open(t, o)
	conn, err := pgx.Connect(context.Background(), o.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(context.Background(), `BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM facts`); err != nil {
		t.Fatal(err)
	}
	const groups = 300
	for range groups {
		write(t, db, func(tx *sql.Tx) error { tx.Announce(sql.Fact{Kind: sql.FactEvent}); return nil })
	}
	write(t, db, func(tx *sql.Tx) error {
		return tx.QueryRow(`SELECT pg_stat_force_next_flush()::text`).Scan(new(string))
	})
	other, err := pgx.Connect(context.Background(), o.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	var inserted, updated int
	for deadline := time.Now().Add(time.Minute); inserted < groups && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		err := other.QueryRow(context.Background(), `SELECT sum(n_tup_ins) FILTER (WHERE relname = 'facts'), sum(n_tup_upd) FROM pg_stat_user_tables`).Scan(&inserted, &updated)
		if err != nil {
			t.Fatal(err)
		}
	}
	if inserted < groups || updated > 10 { // what a start writes
		t.Errorf("%d groups inserted %d facts and updated %d rows", groups, inserted, updated)
	}
	var plan string
	if err := other.QueryRow(context.Background(), `EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) SELECT max(pos) FROM facts`).Scan(&plan); err != nil {
		t.Fatal(err)
	}
	if pages := gjson.Get(plan, "0.Plan.Shared Hit Blocks").Int() + gjson.Get(plan, "0.Plan.Shared Read Blocks").Int(); pages > 10 {
		t.Errorf("the highest position is found in %d pages: %s", pages, plan)
	}
}

func TestAFencedOwnerCannotCommit(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	o.Migrations = migrations(things)
	a, b := open(t, o), open(t, o)
	ctx := context.Background()
	first, err := a.TakeShard(ctx, 7, "a", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.TakeShard(ctx, 7, "b", time.Minute); err == nil {
		t.Error("a held shard was taken")
	}
	store := func(db *sql.DB, fence, nid int64) error {
		return db.Write(ctx, nil, func(tx *sql.Tx) error {
			tx.CheckFence(7, fence)
			insert(tx, nid)
			return nil
		})
	}
	if err := store(a, first, 1); err != nil {
		t.Errorf("the owner cannot write: %v", err)
	}
	if err := a.RenewLeases(ctx, "a", 1, 50*time.Millisecond); err != nil {
		t.Error(err)
	}
	time.Sleep(120 * time.Millisecond)
	if err := store(a, first, 2); !isFenced(err) {
		t.Errorf("after the lease ran out a write gave %v", err)
	}
	second, err := b.TakeShard(ctx, 7, "b", time.Minute)
	if err != nil || second <= first {
		t.Fatalf("the fence went from %d to %d: %v", first, second, err)
	}
	if err := store(a, first, 3); !isFenced(err) {
		t.Errorf("the old owner's write gave %v", err)
	}
	if err := a.RenewLeases(ctx, "a", 1, time.Minute); err == nil {
		t.Error("the old owner renewed")
	}
	if err := store(b, second, 4); err != nil {
		t.Error(err)
	}
	// A group in which one owner is fenced: the others are committed.
	release := hold(a)
	bad := a.Submit([]string{"1"}, func(tx *sql.Tx) error { tx.CheckFence(7, first); insert(tx, 5); return nil }, nil)
	good := a.Submit([]string{"2"}, func(tx *sql.Tx) error { insert(tx, 6); return nil }, nil)
	release()
	if !isFenced(bad.Wait(ctx)) || good.Wait(ctx) != nil {
		t.Errorf("in a group: %v and %v", bad.Wait(ctx), good.Wait(ctx))
	}
	if got := fmt.Sprint(numbersOf(t, a)); got != "[1 4 6]" {
		t.Errorf("stored: %s", got)
	}
}
