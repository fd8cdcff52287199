package storage

import (
	"testing"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// order.md 7: a cursor moves only from where its reader left it; whoever finds it elsewhere learns that another instance
// is at work.
func TestACursorMovesFromWhereItWasLeft(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		for i, c := range []struct {
			was, is int64
			moved   bool
		}{
			{0, 10, true}, {0, 20, false}, {10, 30, true}, {10, 40, false}, {30, 35, true}, {35, 30, true}, {20, 50, false},
		} {
			var moved bool
			var now int64
			err := db.Write(t.Context(), nil, func(tx Tx) (err error) {
				if moved, err = tx.MoveCursor("reader", c.was, c.is); err != nil {
					return err
				}
				now, err = tx.Cursor("reader")
				return err
			})
			if err != nil || moved != c.moved || moved && now != c.is {
				t.Errorf("step %d, from %d to %d: moved %v, now at %d (%v)", i, c.was, c.is, moved, now, err)
			}
		}
	})
}
