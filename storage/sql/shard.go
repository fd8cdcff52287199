package sql

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// ErrFenced is a write by an owner whose shard was taken by another or whose lease ran out.
var ErrFenced = errors.New("the shard has another owner, or the lease ran out")

// ErrHeld is a shard that another owner holds.
var ErrHeld = errors.New("another owner holds the shard")

// The lease runs by the database's clock, which is the same for everybody.
const clockMillis = `CAST(extract(epoch FROM clock_timestamp()) * 1000 AS BIGINT)`

// TakeShard makes owner the one writer of a shard and gives the fence its commits check. It
// waits for commits of the last owner that are under way. On SQLite there is one process, kept
// alone by LockDir, and no fence.
func (db *DB) TakeShard(ctx context.Context, shard int64, owner string, lease time.Duration) (fence int64, err error) {
	if !db.OnPostgreSQL() {
		return 1, nil
	}
	err = db.submit(&Pending{solo: true, keys: []string{fmt.Sprintf("shard %d", shard)}, fn: func(tx *Tx) error {
		taken, err := tx.ExecRows(`INSERT INTO leases (shard, owner, until) VALUES ($1, $2, `+clockMillis+` + $3)
			ON CONFLICT (shard) DO UPDATE SET owner = excluded.owner, until = excluded.until
			WHERE leases.owner = excluded.owner OR leases.until < `+clockMillis, shard, owner, lease.Milliseconds())
		if err != nil {
			return err
		}
		if taken == 0 {
			return ErrHeld
		}
		return tx.QueryRow(`INSERT INTO fences (shard, fence) VALUES ($1, 1)
			ON CONFLICT (shard) DO UPDATE SET fence = fences.fence + 1 RETURNING fence`, shard).Scan(&fence)
	}}).Wait(ctx)
	return fence, err
}

// RenewLeases prolongs the leases of an owner who still has as many shards as it believes.
func (db *DB) RenewLeases(ctx context.Context, owner string, shards int64, lease time.Duration) error {
	if !db.OnPostgreSQL() {
		return nil
	}
	return db.Write(ctx, []string{"leases"}, func(tx *Tx) error {
		n, err := tx.ExecRows(`UPDATE leases SET until = `+clockMillis+` + $2 WHERE owner = $1`, owner, lease.Milliseconds())
		if err == nil && n != shards {
			return ErrHeld
		}
		return err
	})
}

// ReleaseShards ends an owner's leases at once, so that another need not wait for them.
func (db *DB) ReleaseShards(ctx context.Context, owner string) error {
	if !db.OnPostgreSQL() {
		return nil
	}
	return db.Write(ctx, []string{"leases"}, func(tx *Tx) error {
		tx.Exec(`UPDATE leases SET until = 0 WHERE owner = $1`, owner)
		return nil
	})
}

// CheckFence fails the transaction when the fence has moved or the lease has run out. It is
// queued, so it must raise an error: an empty result would not stop the COMMIT. Commits share
// the row; only a taker changes it. That the lease must run keeps sharers from starving a taker.
func (tx *Tx) CheckFence(shard, fence int64) {
	if !tx.db.OnPostgreSQL() {
		return
	}
	tx.fence = true
	tx.Exec(`WITH mine AS (SELECT fence FROM fences WHERE shard = $1 FOR SHARE)
		SELECT 1 / count(*) FROM mine WHERE fence = $2
			AND EXISTS (SELECT 1 FROM leases WHERE shard = $1 AND until > `+clockMillis+`)`, shard, fence)
}

// fenceMoved recognises the error that CheckFence raises: a division by zero.
func fenceMoved(err error) bool {
	var told *pgconn.PgError
	return errors.As(err, &told) && told.Code == "22012"
}
