package sql

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Options say where the database is and what belongs into it.
type Options struct {
	URL            string // postgres://...; empty: SQLite
	Path           string // the SQLite file
	MaxConnections int    // 20
	Log            *zap.Logger
	Migrations     fs.FS                  // NNNN_name.sql, in any one folder
	Release        string                 // of this program, such as "0.3.1"; empty: whatever the database asks for
	Trace          func(statement string) // told every statement, for tests that count them
	HighWater      string                 // file that remembers the highest position seen; SQLite: "epoch" beside the database
}

// ErrClosed is what a write gets after Close.
var ErrClosed = errors.New("the database is closed")

// ErrNested is a Read or Write begun with the context of another: it would hold one connection
// while waiting for a second.
var ErrNested = errors.New("a transaction was begun inside of another")

type engine interface {
	writer(context.Context) (session, error)
	reader(context.Context) (session, func(), error)
	close()
}

// DB is an open database, up to date and in an epoch.
type DB struct {
	engine
	log      *zap.Logger
	trace    func(string)
	high     highWater
	queue    queue
	onCommit atomic.Pointer[func([]Fact)]
	onLost   atomic.Pointer[func(error)]
	epoch    atomic.Pointer[Epoch]
	seen     atomic.Int64 // the highest position this process knows to be committed
	dirty    atomic.Bool  // committed since the last checkpoint
	lost     atomic.Pointer[error]
	numbers  numbers
	commits  atomic.Int64
	ill      atomic.Pointer[error] // a write since the last probe that the database could not take

	cancel context.CancelFunc // of all groups
	done   sync.WaitGroup
	stop   chan struct{}
	once   sync.Once
}

// Open connects, brings the tables up to date and takes up the database's epoch, or begins
// a new one when the database is not the one that was left.
func Open(ctx context.Context, o Options) (*DB, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = 20
	}
	db := &DB{log: o.Log, trace: o.Trace, stop: make(chan struct{})}
	var err error
	if o.URL == "" {
		if o.Path == "" {
			return nil, errors.New("neither a database URL nor a file is given")
		}
		o.MaxConnections = min(o.MaxConnections, 8)
		if o.HighWater == "" {
			o.HighWater = filepath.Join(filepath.Dir(o.Path), "epoch")
		}
		db.engine, err = openSQLite(o)
	} else if strings.HasPrefix(o.URL, "postgres://") || strings.HasPrefix(o.URL, "postgresql://") {
		db.engine, err = openPostgreSQL(ctx, o)
	} else {
		err = errors.New("the database URL does not begin with postgres://")
	}
	if err != nil {
		return nil, err
	}
	if err := db.migrate(ctx, o); err != nil {
		db.engine.close()
		return nil, err
	}
	groups, cancel := context.WithCancel(context.Background())
	db.cancel = cancel
	db.queue.wake = make(chan struct{}, 1)
	db.done.Go(func() { db.commitGroups(groups) })
	if err := db.begin(ctx, o); err != nil {
		db.Close()
		return nil, err
	}
	watching, end := context.WithCancel(context.Background())
	db.done.Go(func() { db.watch(watching) })
	db.done.Go(func() { <-db.stop; end() })
	return db, nil
}

func (db *DB) begin(ctx context.Context, o Options) error {
	if err := db.loadNumbers(ctx); err != nil {
		return err
	}
	if err := db.high.load(o.HighWater, o.URL == ""); err != nil {
		return err
	}
	if err := db.ensureEpoch(ctx); err != nil {
		return fmt.Errorf("take up the epoch: %w", err)
	}
	return db.high.save(db.Epoch(), db.seen.Load())
}

// Close commits what was submitted, at most for 5 seconds, and closes all connections.
func (db *DB) Close() error {
	db.once.Do(func() {
		close(db.stop)
		db.queue.close()
		late := time.AfterFunc(5*time.Second, db.cancel)
		db.done.Wait()
		late.Stop()
		db.cancel()
		if err := db.high.save(db.Epoch(), db.seen.Load()); err != nil {
			db.log.Warn("could not remember the highest position", zap.Error(err))
		}
		db.engine.close()
	})
	return nil
}

// Seen is the highest position that this process knows to be committed: not below any write that it
// has told to have happened.
func (db *DB) Seen() int64 { return db.seen.Load() }

// OnPostgreSQL says which engine this is, for the few true differences.
func (db *DB) OnPostgreSQL() bool {
	_, ok := db.engine.(*postgresEngine)
	return ok
}

// OnCommit sets who is told all facts of each commit, in order of position, before the
// writers learn of it. It is set once, before the first write, must be quick, and must not
// wait for a write.
func (db *DB) OnCommit(tell func([]Fact)) { db.onCommit.Store(&tell) }

// OnLost sets who is told that the database has lost what this process saw committed.
// Nothing is written any more; the process must end and begin a new epoch at its next start.
func (db *DB) OnLost(tell func(error)) { db.onLost.Store(&tell) }

// Commits counts the groups committed since Open.
func (db *DB) Commits() int64 { return db.commits.Load() }

func (db *DB) told(statement string) {
	if db.trace != nil {
		db.trace(statement)
	}
}

// Probe says whether the database answers and takes writes: by a write that changes nothing, and by what became of the
// writes since the last probe. A disk that is full may still have room for the small one.
func (db *DB) Probe(ctx context.Context) error {
	ill := db.ill.Swap(nil)
	err := db.Write(ctx, nil, func(tx *Tx) error {
		tx.Exec(`UPDATE epochs SET id = id WHERE epoch = $1`, db.Epoch())
		return nil
	})
	if err == nil && ill != nil {
		return *ill
	}
	return err
}

type insideKey struct{}

// Read gives fn one snapshot of the database. What it sees is exactly what is told by the
// facts up to its MaxPos.
func (db *DB) Read(ctx context.Context, fn func(*Tx) error) (err error) {
	if ctx.Value(insideKey{}) != nil {
		return ErrNested
	}
	select {
	case <-db.stop:
		return ErrClosed
	default:
	}
	s, release, err := db.reader(ctx)
	if err != nil {
		return err
	}
	defer release()
	began := time.Now()
	inside := context.WithValue(ctx, insideKey{}, true)
	if err := s.begin(inside, false); err != nil {
		s.rollback()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return err
	}
	tx := &Tx{db: db, s: s, ctx: inside}
	ended := false
	defer func() { // a panic must not leave a transaction on the connection
		if !ended {
			tx.finish(nil)
			s.rollback()
		}
	}()
	err = tx.finish(fn(tx))
	if err == nil {
		_, err = s.commit(nil)
	}
	if err != nil {
		s.rollback()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
	}
	ended = true
	if took := time.Since(began); took > time.Second && !db.OnPostgreSQL() {
		db.log.Warn("a read held its snapshot for long and let the write-ahead log grow", zap.Duration("took", took))
	}
	return err
}

// MaxPos is the highest position committed.
func (db *DB) MaxPos(ctx context.Context) (pos int64, err error) {
	err = db.Read(ctx, func(tx *Tx) error {
		pos, err = tx.MaxPos()
		return err
	})
	return pos, err
}
