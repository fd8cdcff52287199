// Package sql is the engine under storage: one SQL text, in PostgreSQL's words, on PostgreSQL
// (native pgx) and on SQLite (inside the binary). It opens and migrates a database, groups
// writes into commits, and gives every announced Fact its position, in commit order.
// It knows nothing of Matrix: tables and their meaning are storage's.
//
// Common text: $1 parameters, `= ANY($1)` and `<> ALL($1)` over []int64 and []string, BIGINT,
// SMALLINT, BOOLEAN, TEXT, BYTEA, ON CONFLICT, RETURNING, row values, CTEs. Times are BIGINT
// milliseconds. Not common: casts with ::, LIKE, lower(), now(), FOR UPDATE, DELETE ... USING,
// greatest(). Where the engines truly differ Tx.Pair holds both texts side by side.
package sql
