package storage

import (
	"fmt"
	"slices"
	"testing"

	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// However many people there are, a walk sees a bounded number of them: first those of whom one shares a room, and in any
// case whoever is named by the whole user ID.
//
// spec: c2s/searchUserDirectory
func TestWalkThroughPeopleIsBounded(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { db.Close() })
		const me, friend, last = "@me:x", "@friend:x", "@zoe:y"
		const shared, fresher, crowd = 7, 9, 5
		err = db.Write(t.Context(), nil, func(tx Tx) error {
			joins := func(room int64, user, server, name string) {
				tx.Exec(`INSERT INTO members (room, user_id, server, membership, event, displayname, avatar_url, forgotten)
					VALUES ($1, $2, $3, 'join', 1, $4, '', $5)`, room, user, server, name, false)
			}
			joins(shared, me, "x", "")
			joins(shared, friend, "x", "of the room")
			joins(shared, "@rick:y", "y", "Rick, once")
			joins(fresher, me, "x", "")
			joins(fresher, "@rick:y", "y", "Rick")
			tx.Exec(`INSERT INTO profiles (user_id, fields, displayname, avatar_url, folded, spreading) VALUES ($1, '{}', 'Friend', '', '', 0)`, friend)
			for i := range 40 {
				joins(crowd, fmt.Sprintf("@many%d:y", i), "y", "")
			}
			joins(crowd, last, "y", "")
			tx.SetOpen(crowd, true)
			tx.SetOpen(shared, true) // both ways to the same people
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		walk := func(named string, most int) (found []Person) {
			t.Helper()
			var all bool
			err := db.Read(t.Context(), func(tx Tx) (err error) {
				found = nil
				all, err = tx.people(me, "x", named, most, func(p Person) { found = append(found, p) })
				return err
			})
			if err != nil || all != (most == maxPeople) {
				t.Fatalf("of %d: all %t, %v", most, all, err)
			}
			return found
		}
		if all := walk("", maxPeople); len(all) != 43 {
			t.Errorf("%d people are found, want the friend, Rick and 41 of the crowd", len(all))
		}
		some := walk("", 10)
		if len(some) != 10-3 { // three of the ten were oneself twice, and Rick once more
			t.Errorf("%d people are found, want 7", len(some))
		}
		for _, want := range []Person{{friend, "Friend", ""}, {"@rick:y", "Rick", ""}} {
			if !slices.Contains(some, want) {
				t.Errorf("%v is not among those who are found first: %v", want, some)
			}
		}
		if named := walk(last, 5); len(named) == 0 || named[0].User != last {
			t.Errorf("who is named is not found: %v", named)
		}
		if named := walk("@stranger:y", 5); slices.ContainsFunc(named, func(p Person) bool { return p.User == "@stranger:y" }) {
			t.Error("who is in no such room is found")
		}
	})
}
