package roomserver_test

import (
	"fmt"
	"testing"

	"chancery"
	"chancery/roomserver"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// Whoever invents ever new pieces of state does not fill our storage with them; the room goes on with what it has.
func TestARoomHasABoundedNumberOfPiecesOfState(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s, b := beside(t, fresh())
		room := newRoom(t, s, "12")
		join := b.join(t, s, room)
		s.LimitSlots(10)
		refused := 0
		var all []id.EventID
		for i := range 12 {
			key := fmt.Sprint(i)
			sent, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "x", StateKey: &key, Content: content(map[string]any{})})
			switch {
			case err == nil:
				all = append(all, sent.ID)
			case chancery.IsCode(err, chancery.CodeForbidden):
				refused++
			default:
				t.Fatal(err)
			}
		}
		if refused == 0 || len(all) == 0 {
			t.Fatalf("%d were taken and %d refused", len(all), refused)
		}
		// What there is goes on changing, and others are judged as before.
		key := "0"
		send(t, s, room, "x", &key, map[string]any{"changed": true})
		said := b.message(t, "12", room, []id.EventID{join.ID()}, authIDs(t, s, "12", room, join.ID()), "said")
		if err := s.ReceiveFor(t.Context(), room, said); err != nil {
			t.Error(err)
		}
		s.LimitSlots(1 << 20)
		key = "another"
		send(t, s, room, "x", &key, map[string]any{})
	})
}
