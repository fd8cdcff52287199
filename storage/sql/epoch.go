package sql

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap"
)

// Epoch is a life of the database. Positions of one epoch have no gaps; a database that lost
// commits begins a new one, above every position that was ever given. A token of an older epoch
// at most at Restored goes on; one above it names what is lost.
type Epoch struct {
	Number   int64  // Unix time in seconds: two epochs begun from the same copy differ
	ID       string // random
	Restored int64  // the highest position that was there
	Jump     int64  // the position of the epoch's first fact
	System   string // of which instance: another one means that the database was moved or restored
	Reason   string
}

// Epoch is the number of the epoch we are in.
func (db *DB) Epoch() int64 {
	if e := db.epoch.Load(); e != nil {
		return e.Number
	}
	return 0
}

// Epochs lists all epochs, the newest first.
func (tx *Tx) Epochs() ([]Epoch, error) {
	return Collect(tx, func(r *Rows) (e Epoch, err error) {
		err = r.Scan(&e.Number, &e.ID, &e.Restored, &e.Jump, &e.System, &e.Reason)
		return e, err
	}, `SELECT epoch, id, restored, jump, system, reason FROM epochs ORDER BY epoch DESC`)
}

// BeginEpoch begins a new epoch, as a restore does.
func (db *DB) BeginEpoch(ctx context.Context, reason string) error {
	system, err := db.system(ctx)
	if err != nil {
		return err
	}
	return db.takeEpoch(ctx, func([]Epoch, int64) string { return reason }, system)
}

// ensureEpoch takes up the newest epoch, or begins one when the database is new, is another
// instance than the one that was left, or has lost what was seen in it.
func (db *DB) ensureEpoch(ctx context.Context) error {
	system, err := db.system(ctx)
	if err != nil {
		return err
	}
	return db.takeEpoch(ctx, func(epochs []Epoch, top int64) string {
		switch {
		case len(epochs) == 0:
			return "first start"
		case epochs[0].System != system:
			return "another instance of the database"
		case top < db.high.pos:
			return "the database is older than the last position seen"
		case db.high.epoch != 0 && !hasEpoch(epochs, db.high.epoch):
			return "the database does not know the epoch that was last seen"
		}
		return ""
	}, system)
}

func hasEpoch(epochs []Epoch, number int64) bool {
	for _, e := range epochs {
		if e.Number == number {
			return true
		}
	}
	return false
}

// takeEpoch asks why, under the lock that gives positions, whether a new epoch begins.
func (db *DB) takeEpoch(ctx context.Context, why func([]Epoch, int64) string, system string) error {
	var now Epoch
	var top int64
	p := db.submit(&Pending{solo: true, fn: func(tx *Tx) error {
		if db.OnPostgreSQL() {
			if _, err := tx.ExecRows(`SELECT pg_advisory_xact_lock($1)`, lockFacts); err != nil {
				return err
			}
		}
		epochs, err := tx.Epochs()
		if err != nil {
			return err
		}
		if top, err = tx.MaxPos(); err != nil {
			return err
		}
		reason := why(epochs, top)
		if reason == "" {
			now = epochs[0]
			return nil
		}
		now, err = newEpoch(epochs, top, max(top, db.high.pos), time.Now())
		if err != nil {
			return err
		}
		now.System, now.Reason = system, reason
		tx.Exec(`INSERT INTO epochs (epoch, id, restored, jump, system, reason) VALUES ($1, $2, $3, $4, $5, $6)`,
			now.Number, now.ID, now.Restored, now.Jump, now.System, now.Reason)
		f := &Fact{Pos: now.Jump, Kind: FactEpoch, Extra: now.ID}
		tx.Exec(insertFact, factArgs(f)...)
		tx.facts = append(tx.facts, f)
		return nil
	}})
	if err := p.Wait(ctx); err != nil {
		return err
	}
	if len(p.Facts()) > 0 {
		db.log.Info("a new epoch begins", zap.Int64("epoch", now.Number), zap.Int64("position", now.Jump), zap.String("reason", now.Reason))
	}
	db.epoch.Store(&now)
	db.saw(top)
	return nil
}

// newEpoch jumps above everything: positions are counted from Unix time in microseconds, so
// the clock alone is above what was lost, unless it is wrong.
func newEpoch(epochs []Epoch, top, high int64, now time.Time) (Epoch, error) {
	if now.UnixMicro() < high {
		return Epoch{}, fmt.Errorf("the clock (%s) is behind the last fact (%s): set it right", now.UTC().Format(time.RFC3339), time.UnixMicro(high).UTC().Format(time.RFC3339))
	}
	e := Epoch{Number: now.Unix(), ID: rand.Text(), Restored: top, Jump: now.UnixMicro() + 1}
	if len(epochs) > 0 {
		e.Number = max(e.Number, epochs[0].Number+1)
	}
	return e, nil
}

// system names the instance. PostgreSQL: cluster, timeline of its WAL, and database; SQLite has
// no such name, so a file beside it holds one.
func (db *DB) system(ctx context.Context) (name string, err error) {
	e, ok := db.engine.(*postgresEngine)
	if !ok {
		return db.high.system, nil
	}
	err = e.aside(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT (SELECT system_identifier::text FROM pg_control_system()) || '/' ||
			substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) || '/' ||
			(SELECT oid::text FROM pg_database WHERE datname = current_database())`).Scan(&name)
	})
	return name, err
}

// watch looks once a second whether the database still has what we saw committed, remembers
// the highest position, and keeps SQLite's write-ahead log short.
func (db *DB) watch(ctx context.Context) {
	check := time.NewTicker(time.Second)
	defer check.Stop()
	wal := time.NewTicker(checkpointEvery)
	defer wal.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-wal.C:
			if e, ok := db.engine.(*sqliteEngine); ok && db.dirty.Swap(false) {
				e.checkpoint()
			}
		case <-check.C:
			if err := db.Check(ctx); err != nil && ctx.Err() == nil {
				db.log.Warn("the once-a-second check failed", zap.Error(err))
			}
			if err := db.high.save(db.Epoch(), db.seen.Load()); err != nil {
				db.log.Warn("could not remember the highest position", zap.Error(err))
			}
		}
	}
}

// Check compares the database with what this process has seen of it.
func (db *DB) Check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	seen, epoch := db.seen.Load(), db.epoch.Load()
	var top int64
	var newest Epoch
	look := func(tx *Tx) error {
		epochs, err := tx.Epochs()
		if err == nil && len(epochs) > 0 {
			newest = epochs[0]
		}
		if err == nil {
			top, err = tx.MaxPos()
		}
		return err
	}
	if err := db.Read(ctx, look); err != nil {
		return err
	}
	if top < seen {
		return db.lose(fmt.Errorf("the database went back from position %d to %d: it was restored or failed over while we ran", seen, top))
	}
	db.saw(top)
	if newest.Number > epoch.Number { // another process made the jump, and nothing we saw is lost
		db.epoch.Store(&newest)
		return nil
	}
	system, err := db.system(ctx)
	if err == nil && system != epoch.System {
		err = db.ensureEpoch(ctx)
	}
	return err
}

func (db *DB) lose(err error) error {
	if db.lost.CompareAndSwap(nil, &err) {
		db.log.Error("the database lost commits, nothing is written any more", zap.Error(err))
		if tell := db.onLost.Load(); tell != nil {
			(*tell)(err)
		}
	}
	return err
}

// highWater is a small file that outlives a restored database.
type highWater struct {
	path string

	mu     sync.Mutex // guards saved and the file
	saved  int64
	system string
	epoch  int64
	pos    int64
}

type highWaterFile struct {
	System string `json:"system,omitempty"`
	Epoch  int64  `json:"epoch"`
	Pos    int64  `json:"position"`
}

// load reads the file; named says that it also holds the instance's name (SQLite).
func (h *highWater) load(path string, named bool) error {
	h.path = path
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("read the highest position: %w", err)
	default:
		var f highWaterFile
		if json.Unmarshal(text, &f) == nil { // one that cannot be read is like none: a new epoch
			h.system, h.epoch, h.pos = f.System, f.Epoch, f.Pos
		}
	}
	if named && h.system == "" {
		h.system = rand.Text()
	}
	return nil
}

func (h *highWater) save(epoch, pos int64) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.path == "" || pos <= h.saved {
		return nil
	}
	text, err := json.Marshal(highWaterFile{h.system, epoch, pos})
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(h.path), ".epoch-*")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // fails when it was renamed
	_, err = temp.Write(append(text, '\n'))
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), h.path)
	}
	if err == nil {
		h.saved = pos
	}
	return err
}
