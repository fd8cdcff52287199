package syncapi_test

import (
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// A room whose state is gone, as while it is purged, is left out: the others are told all the same.
func TestRoomWithoutStateIsLeftOut(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		s := serve(t, o, 16<<20)
		gone, stays := s.Create(alice, object{"name": "gone"}), s.Create(alice, object{"name": "stays"})
		for _, room := range []string{gone, stays} {
			s.Set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
			s.Join(bob, room)
			s.Say(alice, room, "hello")
		}
		since := s.get(alice, "").next()
		s.Set(alice, gone, "m.room.topic", "", object{"topic": "last"})
		s.Say(alice, stays, "news")
		err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			row, _, err := tx.Room(gone)
			tx.Exec(`DELETE FROM state_nodes WHERE room = $1`, row.NID)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		s = serve(t, o, 16<<20) // with nothing in memory
		for _, token := range []string{"", since} {
			a := s.get(alice, token)
			if a.room("join", gone).Exists() || !a.room("join", stays).Exists() {
				t.Errorf("since %q alice is told %s", token, a.Text)
			}
		}
		for _, path := range [][]string{{"state"}, {"members"}, {"state", "m.room.name", ""}, {"messages?dir=b"}} {
			if a := s.Ask(alice, "GET", at(gone, path...), nil); a.Status >= 500 {
				t.Errorf("%s: %d %s", path, a.Status, a.Text)
			}
		}
	})
}
