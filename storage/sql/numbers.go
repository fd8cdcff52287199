package sql

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const numberBlock = 1000

// Numbers gives out numbers that nobody else has: identities, never an order.
type Numbers struct {
	db   *DB
	name string

	mu   sync.Mutex // guards the rest
	next int64
	end  int64 // PostgreSQL: of the block we hold. SQLite: of what is, or will be, in the row
	kept int64 // SQLite: what the row says
}

type numbers struct {
	mu sync.Mutex // guards all; taken before that of a Numbers
	of map[string]*Numbers
}

// Numbers is the allocator of that name.
func (db *DB) Numbers(name string) *Numbers {
	db.numbers.mu.Lock()
	defer db.numbers.mu.Unlock()
	n := db.numbers.of[name]
	if n == nil {
		n = &Numbers{db: db, name: name, next: 1, end: 1, kept: 1}
		db.numbers.of[name] = n
	}
	return n
}

// Next gives the next number. On PostgreSQL every thousandth call takes a block, on a
// connection of its own; it may be called inside a write.
func (n *Numbers) Next() (int64, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.next == n.end {
		if err := n.take(); err != nil {
			return 0, fmt.Errorf("take numbers for %s: %w", n.name, err)
		}
	}
	n.next++
	return n.next - 1, nil
}

// take gets a block. SQLite has one process and one writer, so the row may follow: no commit
// stands before the row is above every number given out until then (keepNumbers).
func (n *Numbers) take() error {
	e, ok := n.db.engine.(*postgresEngine)
	if !ok {
		n.end += numberBlock
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	return e.aside(ctx, func(conn *pgx.Conn) error {
		var end int64
		err := conn.QueryRow(ctx, `INSERT INTO counters (name, value) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET value = counters.value + $3 RETURNING value`, n.name, int64(numberBlock+1), int64(numberBlock)).Scan(&end)
		if err == nil {
			n.next, n.end = end-numberBlock, end
		}
		return err
	})
}

func (db *DB) loadNumbers(ctx context.Context) error {
	db.numbers.of = map[string]*Numbers{}
	if db.OnPostgreSQL() {
		return nil
	}
	return db.Read(ctx, func(tx *Tx) error {
		_, err := Collect(tx, func(r *Rows) (struct{}, error) {
			n := &Numbers{db: db}
			err := r.Scan(&n.name, &n.kept)
			n.next, n.end = n.kept, n.kept
			db.numbers.of[n.name] = n
			return struct{}{}, err
		}, `SELECT name, value FROM counters`)
		return err
	})
}

// keepNumbers writes the blocks begun since the last commit, in the transaction that is the
// first in which a number of them can stand. kept is called when that is committed.
func (db *DB) keepNumbers(s session) (kept func(), err error) {
	if db.OnPostgreSQL() {
		return func() {}, nil
	}
	db.numbers.mu.Lock()
	defer db.numbers.mu.Unlock()
	var begun []*Numbers
	var ends []int64
	for _, n := range db.numbers.of {
		n.mu.Lock()
		end, kept := n.end, n.kept
		n.mu.Unlock()
		if end == kept {
			continue
		}
		if err := s.exec(`INSERT INTO counters (name, value) VALUES ($1, $2)
			ON CONFLICT (name) DO UPDATE SET value = excluded.value`, []any{n.name, end}); err != nil {
			return nil, err
		}
		begun, ends = append(begun, n), append(ends, end)
	}
	return func() {
		for i, n := range begun {
			n.mu.Lock()
			n.kept = ends[i]
			n.mu.Unlock()
		}
	}, nil
}
