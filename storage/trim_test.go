package storage_test

import (
	"maps"
	"slices"
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
		// Positions count facts: how old one is says only where they stood at that time.
		soon := now.Add(29 * 24 * time.Hour)
		if err := db.Trim(t.Context(), soon); err != nil {
			t.Fatal(err)
		}
		if facts, _ := count(); facts != 3 {
			t.Errorf("of facts of 29 days %d are left of 3", facts)
		}
		later := now.Add(40 * 24 * time.Hour)
		write(func(tx storage.Tx) {
			tx.SetCursor("slow", 1)
			tx.SetCursor(storage.EpochCursor, now.Unix())
			tx.SetCursor(storage.RoomsEpochCursor, now.Unix())
		}) // no reader's
		if err := db.Trim(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		if facts, _ := count(); facts != 3 {
			t.Errorf("facts that a reader has not read were trimmed: %d left of 3", facts)
		}
		write(func(tx storage.Tx) { tx.SetCursor("slow", later.UnixMicro()) })
		write(func(tx storage.Tx) { tx.Announce(storage.Fact{Kind: sql.FactProfile, User: "@young:x"}) })
		if err := db.Trim(t.Context(), later); err != nil {
			t.Fatal(err)
		}
		if facts, _ := count(); facts != 2 {
			t.Errorf("%d facts are left, want the one where the positions stood and the young one", facts)
		}
	})
}

// A set of servers goes when no fact can name it any more: another took its place, and the facts of before are gone.
func TestServerSetsGoWithTheFactsThatNameThem(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		insert := func(nid, room int64) {
			t.Helper()
			if err := db.Write(t.Context(), nil, func(tx storage.Tx) error {
				tx.Announce(storage.Fact{Kind: sql.FactEvent, Room: room})
				return tx.InsertServerSet(nid, room, []string{"a.example"})
			}); err != nil {
				t.Fatal(err)
			}
		}
		left := func(want ...int64) {
			t.Helper()
			if err := db.Read(t.Context(), func(tx storage.Tx) error {
				sets, err := tx.ServerSets([]int64{1, 2, 3, 4})
				if got := slices.Sorted(maps.Keys(sets)); !slices.Equal(got, want) {
					t.Errorf("sets %v are left, want %v", got, want)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
		trim := func(after time.Duration) {
			t.Helper()
			if err := db.Trim(t.Context(), time.Now().Add(after)); err != nil {
				t.Fatal(err)
			}
		}
		insert(1, 10)
		insert(2, 10)
		insert(3, 20)
		trim(2 * time.Hour)
		left(1, 2, 3)
		if err := db.Write(t.Context(), nil, func(tx storage.Tx) error { tx.SetCursor("slow", 1); return nil }); err != nil {
			t.Fatal(err)
		}
		trim(40 * 24 * time.Hour)
		left(1, 2, 3) // somebody has not read its facts
		if err := db.Write(t.Context(), nil, func(tx storage.Tx) error { tx.SetCursor("slow", 1<<62); return nil }); err != nil {
			t.Fatal(err)
		}
		trim(40 * 24 * time.Hour)
		left(2, 3)
	})
}
