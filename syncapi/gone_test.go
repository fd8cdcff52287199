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
		gone, stays := s.create(alice, object{"name": "gone"}), s.create(alice, object{"name": "stays"})
		for _, room := range []string{gone, stays} {
			s.set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
			s.join(bob, room)
			s.say(alice, room, "hello")
		}
		since := s.get(alice, "").next()
		s.set(alice, gone, "m.room.topic", "", object{"topic": "last"})
		s.say(alice, stays, "news")
		err := s.db.Write(t.Context(), nil, func(tx storage.Tx) error {
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
				t.Errorf("since %q alice is told %s", token, a.Raw)
			}
		}
		for _, path := range [][]string{{"state"}, {"members"}, {"state", "m.room.name", ""}, {"messages?dir=b"}} {
			if a := s.ask(alice, "GET", at(gone, path...), nil); a.status >= 500 {
				t.Errorf("%s: %d %s", path, a.status, a.Raw)
			}
		}
	})
}
