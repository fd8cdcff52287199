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
	trimPiece        = 1000
)

// EpochCursor is the row among the cursors that is no position: the number of the epoch whose beginning the keys of
// devices have seen.
const EpochCursor = "keys-epoch"

// Trim removes what is older than its time, in small pieces, until nothing is left to remove or ctx ends.
// Facts stay as long as a reader has not read them.
func (db *DB) Trim(ctx context.Context, now time.Time) error {
	below := now.Add(-factsKept).UnixMicro() // positions begin at Unix time in microseconds and never fall behind it
	err := db.Read(ctx, func(tx Tx) error {
		slowest, err := sql.Collect(tx.Tx, scanInt, `SELECT pos FROM cursors WHERE name <> $1`, EpochCursor)
		for _, pos := range slowest {
			below = min(below, pos)
		}
		return err
	})
	if err != nil {
		return err
	}
	pieces := []func(Tx) (int64, error){
		func(tx Tx) (int64, error) { return tx.TrimFacts(below, trimPiece) },
		func(tx Tx) (int64, error) {
			return tx.ExecRows(`DELETE FROM transactions WHERE event IN
				(SELECT event FROM transactions WHERE ts < $1 ORDER BY ts LIMIT $2)`, now.Add(-transactionsKept).UnixMilli(), trimPiece)
		},
	}
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
