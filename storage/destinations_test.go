package storage

import (
	"slices"
	"testing"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// A room with many open ends takes no more of what is read for a server than another one.
func TestHeadsAreTheNewestOfEachRoom(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		err = db.Write(t.Context(), nil, func(tx Tx) error {
			member := func(room int64, server string) {
				tx.Exec(`INSERT INTO members (room, user_id, server, membership, event, displayname, avatar_url, forgotten)
					VALUES ($1, $2, $3, 'join', 1, '', '', $4)`, room, "@u:"+server, server, false)
			}
			for room := int64(1); room <= 4; room++ {
				tx.InsertRoom(Room{NID: room, ID: string(rune('a' + room)), Version: "12"})
				member(room, "us")
				if room != 3 {
					member(room, "them")
				}
			}
			for n := int64(10); n < 40; n++ {
				tx.AddExtremity(1, n)
			}
			tx.AddExtremity(2, 50)
			tx.AddExtremity(3, 51) // they are not in it
			tx.AddExtremity(4, 53)
			tx.AddExtremity(4, 52)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		var got []int64
		err = db.Read(t.Context(), func(tx Tx) error {
			for room := int64(0); ; {
				heads, last, err := tx.HeadsFor("them", "us", room, 2, 3)
				for _, h := range heads {
					got = append(got, h.Room, h.Event)
				}
				if room = last; err != nil || room == 0 {
					return err
				}
			}
		})
		if want := []int64{1, 39, 1, 38, 1, 37, 2, 50, 4, 53, 4, 52}; err != nil || !slices.Equal(got, want) {
			t.Errorf("the open ends are %v, want %v (%v)", got, want, err)
		}
	})
}
