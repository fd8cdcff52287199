package storage

import (
	"context"
	"fmt"
)

// Belong says that the database belongs to the server of this name, and refuses when it belongs to another
// one: its rooms, users and signatures all carry that name, so nothing of it is of use under a new one.
func (db *DB) Belong(ctx context.Context, serverName string) error {
	var owner string
	err := db.Write(ctx, []string{"server"}, func(tx Tx) error {
		tx.Exec(`INSERT INTO server (one, name) VALUES (1, $1) ON CONFLICT (one) DO NOTHING`, serverName)
		return tx.QueryRow(`SELECT name FROM server WHERE one = 1`).Scan(&owner)
	})
	if err != nil {
		return fmt.Errorf("ask whose database this is: %w", err)
	}
	if owner != serverName {
		return fmt.Errorf("the database belongs to the server %s, not to %s: a server name can never be changed", owner, serverName)
	}
	return nil
}
