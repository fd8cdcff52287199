package sql

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"go.uber.org/zap"
	"zombiezen.com/go/sqlite"
)

// ErrUnknownOutcome is a commit that was sent and never answered: it may stand or not.
// Whoever has built on it raises its own fence, which waits for the lost transaction, and
// reads again.
var ErrUnknownOutcome = errors.New("COMMIT was not answered with success: it is not known whether it happened")

const (
	groupFunctions  = 256
	groupStatements = 4000
)

// Pending is a write that was submitted.
type Pending struct {
	keys   []string
	fn     func(*Tx) error
	failed func(error)
	solo   bool // shares no transaction
	done   chan struct{}
	err    error
	facts  []Fact
	placed []*Fact // of the run that was committed
}

// Done is closed when the write is committed or has failed.
func (p *Pending) Done() <-chan struct{} { return p.done }

// Wait returns the outcome. A caller that gives up leaves early; the write goes on.
func (p *Pending) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	default:
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Facts are this function's own, with their positions. They are there when Wait gave nil.
func (p *Pending) Facts() []Fact { return p.facts }

func (p *Pending) fail(err error) {
	if p.failed != nil {
		p.failed(err)
	}
	p.err = err
	close(p.done)
}

// Submit lets fn run in a transaction that it may share with others, and returns at once.
// Functions with a key in common run in the order of their submission; failed is called
// before any later function runs. fn is repeatable, has no effect outside, changes shared rows
// only under its keys, and calls neither Read, Write nor Numbers of this database.
func (db *DB) Submit(keys []string, fn func(*Tx) error, failed func(error)) *Pending {
	return db.submit(&Pending{keys: keys, fn: fn, failed: failed})
}

func (db *DB) submit(p *Pending) *Pending {
	p.done = make(chan struct{})
	if !db.queue.put(p) {
		p.fail(ErrClosed)
	}
	return p
}

// Write is Submit and Wait.
func (db *DB) Write(ctx context.Context, keys []string, fn func(*Tx) error) error {
	if ctx.Value(insideKey{}) != nil {
		return ErrNested
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return db.Submit(keys, fn, nil).Wait(ctx)
}

// queue holds what waits for the committer.
type queue struct {
	mu     sync.Mutex // guards the rest
	wait   []*Pending
	closed bool
	wake   chan struct{}
}

func (q *queue) put(p *Pending) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.wait = append(q.wait, p)
	q.signal()
	return true
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.signal()
}

// take gives the next group; what runs alone is a group of one.
func (q *queue) take() (group []*Pending, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for n < len(q.wait) && n < groupFunctions && !q.wait[n].solo {
		n++
	}
	if n == 0 && len(q.wait) > 0 {
		n = 1
	}
	group = q.wait[:n:n]
	if q.wait = q.wait[n:]; len(q.wait) == 0 {
		q.wait = nil
	}
	return group, q.closed
}

// commitGroups is the one committer. A group is what waits when the last one is done: it
// grows with the load, and nothing waits for a timer.
func (db *DB) commitGroups(ctx context.Context) {
	for {
		group, closed := db.queue.take()
		if len(group) == 0 {
			if closed {
				return
			}
			<-db.queue.wake
			continue
		}
		group = inKeyOrder(group)
		for len(group) > 0 {
			group = db.runGroup(ctx, group)
		}
	}
}

// runGroup commits functions together, or each alone when that fails. It gives back those
// that did not fit.
func (db *DB) runGroup(ctx context.Context, group []*Pending) (rest []*Pending) {
	if len(group) == 1 {
		db.runAlone(ctx, group[0])
		return nil
	}
	ran, rest, err := db.tryGroup(ctx, group)
	switch {
	case err == nil:
		db.committed(ran)
	case errors.Is(err, ErrUnknownOutcome):
		db.noteIll(err)
		for _, p := range ran {
			p.fail(err)
		}
	default:
		db.log.Debug("a group failed, its functions run alone", zap.Int("functions", len(ran)), zap.Error(err))
		for _, p := range ran {
			db.runAlone(ctx, p)
		}
	}
	return rest
}

// tryGroup runs the functions in one transaction. A function that fails without having
// changed anything, or on SQLite any, fails by itself; ran are the others.
func (db *DB) tryGroup(ctx context.Context, group []*Pending) (ran, rest []*Pending, err error) {
	s, err := db.start(ctx)
	if err != nil {
		return group, nil, err
	}
	var facts []*Fact
	for i, p := range group {
		if i > 0 && s.statements() >= groupStatements {
			rest = group[i:]
			break
		}
		err := s.savepoint()
		if err == nil {
			err = db.run(ctx, s, p)
		}
		if err != nil {
			if !s.rollbackTo() {
				s.rollback()
				return append(ran, group[i:]...), nil, err
			}
			p.fail(err)
			continue
		}
		ran = append(ran, p)
		facts = append(facts, p.placed...)
	}
	if len(ran) == 0 {
		s.rollback()
		return nil, rest, nil
	}
	return ran, rest, db.end(s, facts)
}

// runAlone gives a function a transaction of its own, again when it lost against another.
func (db *DB) runAlone(ctx context.Context, p *Pending) {
	var err error
	for try := range 5 {
		if err = db.tryAlone(ctx, p); err == nil {
			db.committed([]*Pending{p})
			return
		}
		if !again(err) && (try > 0 || !taken(err)) || ctx.Err() != nil {
			break
		}
		time.Sleep(time.Duration(try) * 5 * time.Millisecond)
	}
	db.noteIll(err)
	p.fail(err)
}

// noteIll remembers that the database could not take a write, for whoever probes it.
func (db *DB) noteIll(err error) {
	var told *pgconn.PgError
	full := errors.As(err, &told) && (strings.HasPrefix(told.Code, "53") || strings.HasPrefix(told.Code, "58")) // resources, its system
	switch sqlite.ErrCode(err).ToPrimary() {
	case sqlite.ResultFull, sqlite.ResultIOErr, sqlite.ResultReadOnly, sqlite.ResultCantOpen, sqlite.ResultCorrupt:
		full = true
	}
	if full || errors.Is(err, ErrUnknownOutcome) || errors.Is(err, errLost) {
		db.ill.Store(&err)
	}
}

func (db *DB) tryAlone(ctx context.Context, p *Pending) error {
	s, err := db.start(ctx)
	if err != nil {
		return err
	}
	if err := db.run(ctx, s, p); err != nil {
		lost := s.broken()
		s.rollback()
		if lost { // before COMMIT: it certainly did not happen
			return fmt.Errorf("%w: %w", errLost, err)
		}
		return err
	}
	return db.end(s, p.placed)
}

var errLost = errors.New("the connection was lost")

// again says that the same function may well succeed: a deadlock, a lock that took too long,
// a connection lost before its commit.
func again(err error) bool {
	if errors.Is(err, ErrUnknownOutcome) {
		return false
	}
	if errors.Is(err, errLost) {
		return true
	}
	var told *pgconn.PgError
	return errors.As(err, &told) && (told.Code == "40P01" || told.Code == "40001" || // deadlock, serialization
		told.Code == "0A000") // a statement prepared before a migration
}

// taken says that another process was faster to write what the function found not to be there: it finds it now.
func taken(err error) bool {
	var told *pgconn.PgError
	return errors.As(err, &told) && told.Code == "23505"
}

func (db *DB) start(ctx context.Context) (session, error) {
	if lost := db.lost.Load(); lost != nil {
		return nil, *lost
	}
	s, err := db.writer(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.begin(ctx, true); err != nil {
		s.rollback()
		return nil, fmt.Errorf("begin: %w", err)
	}
	return s, nil
}

// run calls one function; a panic in it is its own failure and not the committer's.
func (db *DB) run(ctx context.Context, s session, p *Pending) (err error) {
	tx := &Tx{db: db, s: s, ctx: context.WithValue(ctx, insideKey{}, true), write: true}
	defer func() {
		if r := recover(); r != nil {
			db.log.Error("a write panicked", zap.Any("panic", r), zap.ByteString("stack", debug.Stack()))
			err = tx.finish(fmt.Errorf("write panicked: %v", r))
		}
	}()
	err = tx.finish(p.fn(tx))
	p.placed = tx.facts
	return err
}

func (db *DB) end(s session, facts []*Fact) error {
	var fresh []*Fact // those of an epoch have their position
	for _, f := range facts {
		if f.Kind != FactEpoch {
			fresh = append(fresh, f)
		}
	}
	kept, err := db.keepNumbers(s)
	if err != nil {
		s.rollback()
		return err
	}
	if len(fresh) > 0 {
		db.told(`INSERT INTO facts ...`)
	}
	db.told(`COMMIT`)
	unknown, err := s.commit(fresh)
	if err == nil {
		kept()
		return nil
	}
	s.rollback()
	if fenceMoved(err) {
		err = fmt.Errorf("%w: %w", ErrFenced, err)
	}
	if unknown {
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	if s.broken() {
		return fmt.Errorf("%w: %w", errLost, err)
	}
	return err
}

// committed tells the facts, in order, and then the writers.
func (db *DB) committed(ran []*Pending) {
	var all []Fact
	for _, p := range ran {
		for _, f := range p.placed {
			p.facts = append(p.facts, *f)
		}
		all = append(all, p.facts...)
		p.placed = nil
	}
	if len(all) > 0 {
		db.saw(all[len(all)-1].Pos)
		if tell := db.onCommit.Load(); tell != nil {
			(*tell)(all)
		}
	}
	db.dirty.Store(true)
	db.commits.Add(1)
	for _, p := range ran {
		close(p.done)
	}
}

// saw remembers the highest position known to be committed.
func (db *DB) saw(pos int64) {
	for {
		old := db.seen.Load()
		if pos <= old || db.seen.CompareAndSwap(old, pos) {
			return
		}
	}
}
