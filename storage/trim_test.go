package storage_test

import (
	"testing"
	"time"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

func TestTrimKeepsWhatIsYoungAndWhatIsUnread(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		write := func(fn func(storage.Tx)) {
			t.Helper()
			if err := db.Write(t.Context(), nil, func(tx storage.Tx) error { fn(tx); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		now := time.Now()
		write(func(tx storage.Tx) {
			tx.Announce(storage.Fact{Kind: sql.FactProfile, User: "@a:x"})
			tx.Announce(storage.Fact{Kind: sql.FactProfile, User: "@b:x"})
			tx.InsertTransaction(storage.Transaction{Room: 1, User: "@a:x", Device: "D", Txn: "old", EventID: "$1", Event: 1, TS: now.Add(-48 * time.Hour).UnixMilli()})
			tx.InsertTransaction(storage.Transaction{Room: 1, User: "@a:x", Device: "D", Txn: "new", EventID: "$2", Event: 2, TS: now.UnixMilli()})
		})
		count := func() (facts, txns int) {
			t.Helper()
			err := db.Read(t.Context(), func(tx storage.Tx) error {
				f, err := tx.FactsAfter(0, 100)
				if err != nil {
					return err
				}
				tr, err := tx.TransactionsOf(1, "@a:x", "D")
				facts, txns = len(f), len(tr)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return facts, txns
		}
		if err := db.Trim(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		if facts, txns := count(); facts != 3 || txns != 1 {
			t.Errorf("after a trim today there are %d facts and %d transaction IDs, want 3 and 1", facts, txns)
		}
		later := now.Add(40 * 24 * time.Hour)
		write(func(tx storage.Tx) { tx.SetCursor("slow", 1); tx.SetCursor(storage.EpochCursor, now.Unix()) }) // no reader's
		if err := db.Trim(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		if facts, _ := count(); facts != 3 {
			t.Errorf("facts that a reader has not read were trimmed: %d left of 3", facts)
		}
		write(func(tx storage.Tx) { tx.SetCursor("slow", later.UnixMicro()) })
		if err := db.Trim(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		if facts, _ := count(); facts != 1 {
			t.Errorf("%d facts are left, want the last alone", facts)
		}
	})
}
