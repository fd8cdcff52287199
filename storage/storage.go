// Package storage holds everything durable: SQL beside the Go that scans it, one file per
// subject. It decides nothing: who may do what is for the components above.
package storage

import (
	"context"
	"embed"
	"fmt"
	"sync/atomic"

	"chancery/storage/sql"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Fact is something that happened, with its position; see sql.Fact.
type Fact = sql.Fact

// DB is the database with our tables in it.
type DB struct {
	*sql.DB
	events *sql.Numbers
	rooms  *sql.Numbers
	sets   *sql.Numbers

	notified atomic.Int64 // when notifications were trimmed, in milliseconds
}

// Tx is one transaction (or one snapshot, when reading) with the accessors of all subjects.
type Tx struct{ *sql.Tx }

// Open connects to the database, brings it up to date and takes up its epoch.
func Open(ctx context.Context, o sql.Options) (*DB, error) {
	o.Migrations = migrations
	db, err := sql.Open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open the database: %w", err)
	}
	return &DB{
		DB:     db,
		events: db.Numbers("events"),
		rooms:  db.Numbers("rooms"),
		sets:   db.Numbers("server_sets"),
	}, nil
}

// Read gives fn one snapshot of the database.
func (db *DB) Read(ctx context.Context, fn func(Tx) error) error {
	return db.DB.Read(ctx, func(tx *sql.Tx) error { return fn(Tx{tx}) })
}

// Write runs fn in a transaction that it may share with others and returns when it is
// committed. fn is repeatable and has no effect outside; keys name what it changes.
func (db *DB) Write(ctx context.Context, keys []string, fn func(Tx) error) error {
	return db.DB.Write(ctx, keys, func(tx *sql.Tx) error { return fn(Tx{tx}) })
}

// Submit is Write without waiting. Writes with a key in common are run in the order of
// their submission; failed is told of a failure before any later write is run.
func (db *DB) Submit(keys []string, fn func(Tx) error, failed func(error)) *sql.Pending {
	return db.DB.Submit(keys, func(tx *sql.Tx) error { return fn(Tx{tx}) }, failed)
}
