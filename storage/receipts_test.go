package storage

import (
	"fmt"
	"slices"
	"testing"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// Somebody who never reads a busy room does not make us read all of it.
func TestUnreadIsCountedToADepth(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		const room, own = 7, "@lurker:x"
		err = db.Write(t.Context(), nil, func(tx Tx) error {
			event := func(nid int64, sender string) {
				tx.Exec(`INSERT INTO events (nid, room, event_id, type, sender, depth, ts, ord, status, root_before, root_after, notify, redacted_by)
					VALUES ($1, $2, $3, 'm.room.message', $4, 1, 1, $1, 0, 0, 0, $5, '')`, nid, room, fmt.Sprint("$", nid), sender, true)
			}
			event(1, own)
			tx.Exec(`INSERT INTO members (room, user_id, server, membership, event, displayname, avatar_url, forgotten)
				VALUES ($1, $2, 'x', 'join', 1, '', '', $3)`, room, own, false)
			var marks []Notification
			for nid := int64(2); nid <= 31; nid++ {
				event(nid, "@talker:x")
				if nid%5 == 0 { // 5, 10, 15, 20, 25, 30
					marks = append(marks, Notification{User: own, Room: room, Ord: nid, Event: nid, Notify: true, Highlight: true, Thread: "main"})
				}
			}
			return tx.InsertNotifications(marks)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			depth int64
			want  Unread
		}{
			{1000, Unread{room, "main", 30, 6}},
			{10, Unread{room, "main", 10 + 4, 6}}, // 22 to 31, and the highlights 5 to 20
			{3, Unread{room, "main", 3 + 2, 3}},   // 29 to 31, and the highlights of the last three: 20 and 25
		} {
			var got []Unread
			err := db.Read(t.Context(), func(tx Tx) (err error) {
				got, err = tx.unreadCounts(own, []int64{room}, nil, c.depth)
				return err
			})
			if err != nil || !slices.Equal(got, []Unread{c.want}) {
				t.Errorf("to a depth of %d: %v, %v, want %v", c.depth, got, err, c.want)
			}
		}
	})
}
