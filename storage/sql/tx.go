package sql

import (
	"context"
	stdsql "database/sql"
	"errors"
	"fmt"
	"strings"
)

// ErrNoRows is what QueryRow's Scan gives when there is no row.
var ErrNoRows = stdsql.ErrNoRows

// Null is a column that may be NULL.
type Null[T any] = stdsql.Null[T]

// session is one connection, in one transaction at a time, of one engine.
type session interface {
	begin(ctx context.Context, write bool) error
	exec(query string, args []any) error
	execRows(query string, args []any) (int64, error)
	query(query string, args []any) (cursor, error)
	copyIn(table string, columns []string, rows [][]any, onConflict string) error
	savepoint() error
	rollbackTo() bool                               // false: the whole transaction is lost
	flush() error                                   // nothing is queued after it
	commit(facts []*Fact) (unknown bool, err error) // true: whether it happened is not known
	rollback()                                      // always leaves the session outside of a transaction
	statements() int                                // since begin
	script(ctx context.Context, text string) error  // several statements, outside of the cache
	broken() bool
	close()
}

// cursor walks the rows of one query.
type cursor interface {
	next() (bool, error)
	columns() int
	value(i int) (value, error)
	close() error
}

// Tx is one transaction. It carries its own context: that of the group, never a caller's.
// The first failed statement fails the whole function, whatever the function answers.
type Tx struct {
	db    *DB
	s     session
	ctx   context.Context
	open  *Rows
	err   error // the first failed statement
	facts []*Fact
	write bool
	fence bool // a fence was checked: a division by zero means that it moved
}

// Context is the transaction's own. Read and Write refuse it: nobody holds a connection
// while asking for another.
func (tx *Tx) Context() context.Context { return tx.ctx }

// Exec runs a statement for its effect. On PostgreSQL it is queued and leaves with what comes
// next; its failure is told by the next query, or at the end, and fails the function.
func (tx *Tx) Exec(query string, args ...any) {
	if tx.ready(query) != nil {
		return
	}
	bound, err := arguments(args)
	if err == nil {
		err = tx.s.exec(query, bound)
	}
	tx.failed(query, err)
}

// ExecRows runs a statement now and tells how many rows it changed.
func (tx *Tx) ExecRows(query string, args ...any) (int64, error) {
	if err := tx.ready(query); err != nil {
		return 0, err
	}
	bound, err := arguments(args)
	if err != nil {
		return 0, tx.failed(query, err)
	}
	n, err := tx.s.execRows(query, bound)
	return n, tx.failed(query, err)
}

// Query runs a statement that gives rows. They are closed, or read to their end, before the
// next statement.
func (tx *Tx) Query(query string, args ...any) (*Rows, error) {
	if err := tx.ready(query); err != nil {
		return nil, err
	}
	bound, err := arguments(args)
	if err != nil {
		return nil, tx.failed(query, err)
	}
	c, err := tx.s.query(query, bound)
	if err != nil {
		return nil, tx.failed(query, err)
	}
	tx.open = &Rows{tx: tx, c: c, query: query}
	return tx.open, nil
}

// QueryRow runs a statement of which the first row matters.
func (tx *Tx) QueryRow(query string, args ...any) *Row {
	rows, err := tx.Query(query, args...)
	return &Row{rows: rows, err: err}
}

// Collect scans every row of a query.
func Collect[T any](tx *Tx, scan func(*Rows) (T, error), query string, args ...any) ([]T, error) {
	rows, err := tx.Query(query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []T
	for rows.Next() {
		one, err := scan(rows)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, rows.Err()
}

// CopyIn inserts many rows; those that are there already stay as they are.
func (tx *Tx) CopyIn(table string, columns []string, rows [][]any) error {
	return tx.copyIn(table, columns, rows, ` ON CONFLICT DO NOTHING`)
}

// CopyNew inserts many rows, of which none may be there.
func (tx *Tx) CopyNew(table string, columns []string, rows [][]any) error {
	return tx.copyIn(table, columns, rows, ``)
}

func (tx *Tx) copyIn(table string, columns []string, rows [][]any, onConflict string) error {
	if err := tx.ready("INSERT INTO " + table); err != nil {
		return err
	}
	if len(rows) == 0 {
		return nil
	}
	bound := make([][]any, len(rows))
	for i, row := range rows {
		if len(row) != len(columns) {
			return tx.failed("copy into "+table, fmt.Errorf("row %d has %d of %d columns", i, len(row), len(columns)))
		}
		var err error
		if bound[i], err = arguments(row); err != nil {
			return tx.failed("copy into "+table, err)
		}
	}
	return tx.failed("copy into "+table, tx.s.copyIn(table, columns, bound, onConflict))
}

// Announce adds a fact. It gets its position with the commit, and is told after it.
func (tx *Tx) Announce(f Fact) {
	if !tx.write {
		tx.failed("announce", errors.New("a read tells no facts"))
		return
	}
	if f.Kind == FactEpoch {
		tx.failed("announce", errors.New("an epoch is begun by BeginEpoch"))
		return
	}
	f.Pos = 0
	tx.facts = append(tx.facts, &f)
}

// MaxPos is the position this transaction sees: in a Read exactly the facts up to it.
func (tx *Tx) MaxPos() (int64, error) {
	var pos int64
	err := tx.QueryRow(`SELECT COALESCE(max(pos), 0) FROM facts`).Scan(&pos)
	return pos, err
}

// Pair chooses between two texts where no common one exists. A test counts the pairs.
func (tx *Tx) Pair(postgreSQL, sqlite string) string {
	if tx.db.OnPostgreSQL() {
		return postgreSQL
	}
	return sqlite
}

func (tx *Tx) ready(query string) error {
	tx.db.told(query)
	if tx.open != nil && tx.err == nil {
		tx.err = fmt.Errorf("a statement was begun while the rows of another are open: %s", oneLine(tx.open.query))
	}
	return tx.err
}

func (tx *Tx) failed(query string, err error) error {
	if err == nil {
		return nil
	}
	if tx.fence && fenceMoved(err) {
		err = fmt.Errorf("%w: %w", ErrFenced, err)
	}
	err = fmt.Errorf("%s: %w", oneLine(query), err)
	if tx.err == nil {
		tx.err = err
	}
	return err
}

func oneLine(query string) string {
	s := strings.Join(strings.Fields(query), " ")
	if len(s) > 120 {
		s = s[:120] + "..."
	}
	return s
}

// finish closes what a function left open and tells its failure, swallowed or not.
func (tx *Tx) finish(err error) error {
	if tx.open != nil {
		tx.open.Close()
	}
	if err == nil {
		err = tx.err
	}
	return err
}

// Rows are the rows of a query.
type Rows struct {
	tx    *Tx
	c     cursor
	query string
	err   error
	done  bool
}

// Next goes to the next row; it is false after the last, and on an error.
func (r *Rows) Next() bool {
	if r.done || r.err != nil {
		return false
	}
	more, err := r.c.next()
	if err != nil {
		r.err = err
	}
	if !more {
		r.Close()
	}
	return more
}

// Scan copies the row's columns to where the targets point.
func (r *Rows) Scan(targets ...any) error {
	if r.done {
		return errors.New("scan without a row")
	}
	if n := r.c.columns(); n != len(targets) {
		return fmt.Errorf("%s: %d columns, %d targets", oneLine(r.query), n, len(targets))
	}
	for i, t := range targets {
		v, err := r.c.value(i)
		if err == nil {
			err = v.assign(t)
		}
		if err != nil {
			return fmt.Errorf("%s: column %d: %w", oneLine(r.query), i+1, err)
		}
	}
	return nil
}

// Close ends the query; it may be called again.
func (r *Rows) Close() {
	if r.done {
		return
	}
	r.done = true
	r.tx.open = nil
	if err := r.c.close(); err != nil && r.err == nil {
		r.err = err
	}
	r.err = r.tx.failed(r.query, r.err)
}

// Err is what ended the rows early, if anything did.
func (r *Rows) Err() error { return r.err }

// Row is the first row of a query.
type Row struct {
	rows *Rows
	err  error
}

// Scan reads the row, or says ErrNoRows.
func (r *Row) Scan(targets ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		if err := r.rows.Err(); err != nil {
			return err
		}
		return ErrNoRows
	}
	if err := r.rows.Scan(targets...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}
