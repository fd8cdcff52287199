package sql_test

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// order.md 12: a reader that takes its time lets the WAL grow; it is cut off once the reader has gone.
func TestAWALThatGrewIsCut(t *testing.T) {
	o := sqltest.SQLite(t)
	o.Migrations = migrations(things)
	db := open(t, o)
	size := func() int64 {
		info, err := os.Stat(o.Path + "-wal")
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	reading, read := make(chan struct{}), make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- db.Read(context.Background(), func(tx *sql.Tx) error {
			_, err := tx.MaxPos() // the snapshot begins here
			close(reading)
			<-read
			return err
		})
	}()
	<-reading
	text := strings.Repeat("x", 1<<20)
	for nid := int64(0); size() < 70<<20; nid++ {
		write(t, db, func(tx *sql.Tx) error {
			tx.Exec(`INSERT INTO things (nid, flag, small, name) VALUES ($1, FALSE, 0, $2)`, nid, text)
			return nil
		})
	}
	close(read)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); size() > 64<<20; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the WAL has %d bytes", size())
		}
		announce(t, db)
	}
	t.Logf("the WAL has %d bytes", size())
}
