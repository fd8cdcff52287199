package storage_test

import (
	"cmp"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// Many events are stored whole or not at all: another's event under one of their IDs, as rooms of versions 1 and 2 can
// bring about in two processes, must not leave what is built on an event without it.
func TestEventsAreStoredUnderTheirOwnIDs(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		event := func(nid, room int64, id string) *storage.Event {
			return &storage.Event{NID: nid, Room: room, ID: id, Type: "m.x", Sender: "@a:a", Status: storage.Outlier, JSON: []byte(`{}`)}
		}
		copied := func(events ...*storage.Event) error {
			return db.Write(t.Context(), nil, func(tx storage.Tx) error { return tx.CopyEvents(events) })
		}
		if err := copied(event(1, 1, "$a:a"), event(2, 1, "$b:a")); err != nil {
			t.Fatal(err)
		}
		if err := copied(event(3, 2, "$c:a"), event(4, 2, "$b:a")); err == nil {
			t.Error("a second event of the same ID was stored")
		}
		if err := db.Read(t.Context(), func(tx storage.Tx) error {
			found, err := tx.EventsByID([]string{"$a:a", "$b:a", "$c:a"})
			if len(found) != 2 {
				t.Errorf("%d events are there", len(found))
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// A gap is where its event is, also when that gets its place, or another one, later.
func TestGapsStandWhereTheirEventsDo(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		event := func(nid int64, ord int64) *storage.Event {
			v := &storage.Event{NID: nid, Room: 1, ID: "$" + string(rune('a'+nid)), Type: "m.x", Sender: "@a:a", Status: storage.SoftFailed, JSON: []byte(`{}`)}
			if ord > 0 {
				v.Ord, v.Status = &ord, storage.Accepted
			}
			return v
		}
		write := func(fn func(tx storage.Tx)) {
			t.Helper()
			if err := db.Write(t.Context(), nil, func(tx storage.Tx) error { fn(tx); return nil }); err != nil {
				t.Fatal(err)
			}
		}
		highest := func(upTo, want int64) {
			t.Helper()
			if err := db.Read(t.Context(), func(tx storage.Tx) error {
				got, err := tx.HighestGap(1, upTo)
				if got != want {
					t.Errorf("the highest gap up to %d is at %d, want %d", upTo, got, want)
				}
				gaps, err2 := tx.Gaps(1, upTo, 10)
				if len(gaps) > 0 != (want > 0) || want > 0 && gaps[0].Ord != want {
					t.Errorf("the gaps up to %d are %v", upTo, gaps)
				}
				return cmp.Or(err, err2)
			}); err != nil {
				t.Fatal(err)
			}
		}
		write(func(tx storage.Tx) {
			for _, v := range []*storage.Event{event(1, 10), event(2, 20), event(3, 0)} {
				tx.InsertEvent(v)
				tx.AddMissing(1, v.NID, "$missing below "+v.ID)
			}
		})
		highest(100, 20)
		highest(19, 10)
		highest(9, 0)
		write(func(tx storage.Tx) { tx.PlaceEvent(event(3, 30)) })
		highest(100, 30)
		write(func(tx storage.Tx) { tx.RestateEvent(event(3, 0)) })
		highest(100, 20)
		write(func(tx storage.Tx) { tx.RemoveMissing(1, "$missing below "+event(2, 0).ID) })
		highest(100, 10)
	})
}
