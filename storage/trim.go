package storage

import (
	"context"
	"time"

	"chancery/storage/sql"
)

// How long things are kept that grow with use.
const (
	factsKept        = 30 * 24 * time.Hour // an older sync token gets an initial sync
	transactionsKept = 24 * time.Hour      // transaction IDs of clients
	setsKeptLonger   = time.Hour           // than the facts that name them: clocks of processes differ
	trimPiece        = 1000
)

// Rows among the cursors that are no positions, but the number of the epoch whose beginning was dealt with: for the keys
// of devices, and for the events of rooms.
const (
	EpochCursor      = "keys-epoch"
	RoomsEpochCursor = "rooms-epoch"
)

// Trim removes what is older than its time, in small pieces, until nothing is left to remove or ctx ends.
// Facts stay as long as a reader has not read them.
func (db *DB) Trim(ctx context.Context, now time.Time) error {
	floor, err := db.trimFacts(ctx, now)
	if err != nil {
		return err
	}
	if err := db.trimNotifications(ctx, now); err != nil {
		return err
	}
	return db.trimPieces(ctx,
		func(tx Tx) (int64, error) {
			return tx.ExecRows(`DELETE FROM transactions WHERE event IN
				(SELECT event FROM transactions WHERE ts < $1 ORDER BY ts LIMIT $2)`, now.Add(-transactionsKept).UnixMilli(), trimPiece)
		},
		func(tx Tx) (int64, error) { return tx.trimServerSets(floor-setsKeptLonger.Milliseconds(), trimPiece) })
}

// trimFacts removes facts, and gives a time before which all facts that are left were made.
func (db *DB) trimFacts(ctx context.Context, now time.Time) (floor int64, err error) {
	var below int64
	err = db.Write(ctx, []string{"trim"}, func(tx Tx) error {
		tx.Exec(`INSERT INTO fact_marks (ts, pos) SELECT $1, pos FROM facts WHERE pos = (SELECT max(pos) FROM facts)
			ON CONFLICT (ts) DO NOTHING`, now.UnixMilli())
		if err := tx.QueryRow(`SELECT COALESCE(max(pos), 0) FROM fact_marks WHERE ts <= $1`, now.Add(-factsKept).UnixMilli()).Scan(&below); err != nil {
			return err
		}
		slowest, err := sql.Collect(tx.Tx, scanInt, `SELECT pos FROM cursors WHERE name <> $1 AND name <> $2`, EpochCursor, RoomsEpochCursor)
		for _, pos := range slowest {
			below = min(below, pos)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := db.trimPieces(ctx, func(tx Tx) (int64, error) { return tx.TrimFacts(below, trimPiece) }); err != nil {
		return 0, err
	}
	err = db.Write(ctx, []string{"trim"}, func(tx Tx) error {
		// Facts above a mark were made after it. The newest mark below all that is left says how old it can be.
		err := tx.QueryRow(`SELECT COALESCE(max(ts), 0) FROM fact_marks WHERE pos <= $1`, below).Scan(&floor)
		if err != nil || floor == 0 {
			return err
		}
		tx.Exec(`DELETE FROM fact_marks WHERE ts < $1`, floor)
		return nil
	})
	return floor, err
}

// trimPieces runs functions that remove up to trimPiece of something, each until it has removed less.
func (db *DB) trimPieces(ctx context.Context, pieces ...func(Tx) (int64, error)) error {
	for _, piece := range pieces {
		for {
			var removed int64
			err := db.Write(ctx, []string{"trim"}, func(tx Tx) (err error) {
				removed, err = piece(tx)
				return err
			})
			if err != nil {
				return err
			}
			if removed < trimPiece {
				break
			}
		}
	}
	return nil
}
