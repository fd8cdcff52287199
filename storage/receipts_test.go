package storage

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// A notification stays while a count takes it in, and for a month after it was read.
func TestNotificationsGoWhenTheyCountForNothing(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		now := time.Now()
		old, young := now.Add(-40*24*time.Hour).UnixMilli(), now.UnixMilli()
		const reader, lurker, gone = "@reader:x", "@lurker:x", "@gone:x"
		const quiet, busy = 7, 8
		write := func(fn func(tx Tx) error) {
			t.Helper()
			if err := db.Write(t.Context(), nil, fn); err != nil {
				t.Fatal(err)
			}
		}
		write(func(tx Tx) error {
			event := func(nid, room, ord, ts int64) {
				tx.Exec(`INSERT INTO events (nid, room, event_id, type, sender, depth, ts, ord, status, root_before, root_after, notify, redacted_by)
					VALUES ($1, $2, $3, 'm.room.message', '@talker:x', 1, $4, $5, 0, 0, 0, $6, '')`, nid, room, fmt.Sprint("$", nid), ts, ord, true)
			}
			member := func(room int64, user, membership string) {
				tx.SetMember(Member{Room: room, User: user, Server: "x", Membership: membership, Event: 1})
			}
			var marks []Notification
			mark := func(user string, room, ord, event int64, highlight bool) {
				marks = append(marks, Notification{User: user, Room: room, Ord: ord, Event: event, Notify: true, Highlight: highlight, Thread: "main"})
			}
			for i := int64(1); i <= 4; i++ { // 1 and 2 are old; 1 to 3 are read
				event(i, quiet, i, map[bool]int64{true: old, false: young}[i <= 2])
				for _, u := range []string{reader, lurker, gone} {
					mark(u, quiet, i, i, i%2 == 0)
				}
			}
			member(quiet, reader, "join")
			member(quiet, lurker, "join")
			member(quiet, gone, "leave")
			member(busy, lurker, "join")
			tx.SetReceipt(Receipt{Room: quiet, User: reader, Type: "m.read", EventID: "$3", Ord: 3})
			tx.SetReceipt(Receipt{Room: quiet, User: lurker, Type: "m.read", Thread: "main", EventID: "$3", Ord: 3})
			mark(lurker, quiet, 99, 99, true) // its event was purged
			for i := int64(1); i <= UnreadDepth+10; i++ {
				event(1000+i, busy, i, old)
				if i <= 15 {
					mark(lurker, busy, i, 1000+i, i%3 == 0)
				}
			}
			return tx.InsertNotifications(marks)
		})
		left := func(user string, room int64) (ords []int64) {
			t.Helper()
			if err := db.Read(t.Context(), func(tx Tx) (err error) {
				ords, err = sql.Collect(tx.Tx, scanInt, `SELECT ord FROM notifications WHERE user_id = $1 AND room = $2 ORDER BY ord`, user, room)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return ords
		}
		if err := db.Trim(t.Context(), now); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			user string
			room int64
			want []int64
		}{
			{reader, quiet, []int64{3, 4}},
			{lurker, quiet, []int64{1, 2, 3, 4}}, // read in one thread alone
			{gone, quiet, nil},
			{lurker, busy, []int64{3, 6, 9, 11, 12, 13, 14, 15}}, // of the oldest ten only highlights
		} {
			if got := left(c.user, c.room); !slices.Equal(got, c.want) {
				t.Errorf("of %s in %d there are %v, want %v", c.user, c.room, got, c.want)
			}
		}
		// Of highlights as many are kept as are counted.
		write(func(tx Tx) error {
			n, err := tx.trimNotified(lurker, busy, 0, 0, 0, 2)
			if n != 3 {
				t.Errorf("%d are gone", n)
			}
			return err
		})
		if got := left(lurker, busy); !slices.Equal(got, []int64{11, 12, 13, 14, 15}) {
			t.Errorf("left are %v", got)
		}
	})
}
