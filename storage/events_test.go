package storage_test

import (
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
