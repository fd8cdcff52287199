package roomserver_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// harm has the room's latest events, and the room, stand on a state without bob, as a fault of the engine might.
func harm(t *testing.T, s *roomserver.Server, room id.RoomID, bobs id.EventID) {
	t.Helper()
	err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		join, _, err := tx.Event(string(bobs))
		if err != nil {
			return err
		}
		later, err := tx.EventsAbove(row.NID, *join.Ord, 1<<62, 100)
		if err != nil {
			return err
		}
		for _, ev := range later {
			tx.MoveEvent(ev.NID, join.RootBefore, join.RootBefore)
		}
		row.Root = join.RootBefore
		tx.UpdateRoom(row)
		tx.DeleteMember(row.NID, string(bob))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// spec: rooms/v11#state-resolution, rooms/v12#state-resolution
func TestStateIsRebuiltFromTheEvents(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		r := makeReset(t, version, o)
		for i := range 3 {
			send(t, r.s, r.room, "m.room.message", nil, map[string]any{"body": fmt.Sprint(i), "msgtype": "m.text"})
		}
		whole, err := r.s.Rebuild(t.Context(), r.room, true)
		if err != nil || whole.Differ != 0 || len(whole.Changes) != 0 || whole.Applied || whole.Events < 9 {
			t.Fatalf("a room in order is rebuilt as %+v: %v", whole, err)
		}
		harm(t, r.s, r.room, r.bob)
		s := again(t, r.s)

		look, err := s.Rebuild(t.Context(), r.room, false)
		if err != nil {
			t.Fatal(err)
		}
		if look.Differ != 3 || look.Applied || len(look.Changes) != 1 || look.Changes[0].StateKey != string(bob) || look.Changes[0].Was != nil || look.Changes[0].Is.ID != r.bob {
			t.Fatalf("a look says %+v", look)
		}
		if table, current := members(t, s, r.room); table[string(bob)] != "" || current[string(bob)] != "" {
			t.Fatal("a look changed the room")
		}

		// The room is in use meanwhile.
		ctx, stop := context.WithCancel(t.Context())
		var busy sync.WaitGroup
		sent := 0
		busy.Go(func() {
			for ctx.Err() == nil {
				_, err := s.Send(context.WithoutCancel(ctx), roomserver.NewEvent{Room: r.room, Sender: alice, Type: "m.room.message", Content: content(map[string]any{"body": "meanwhile"})})
				if err != nil {
					t.Error(err)
					return
				}
				sent++
			}
		})
		from, err := s.DB.MaxPos(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		done, err := s.Rebuild(t.Context(), r.room, true)
		stop()
		busy.Wait()
		if err != nil || !done.Applied {
			t.Fatalf("rebuilt as %+v: %v", done, err)
		}
		t.Logf("%d messages were sent meanwhile", sent)
		table, current := members(t, s, r.room)
		if table[string(bob)] != "join" || fmt.Sprint(table) != fmt.Sprint(current) {
			t.Errorf("the table says %v, the state says %v", table, current)
		}
		facts, err := s.DB.FactsAfter(t.Context(), from, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		for _, f := range facts {
			if f.Kind == sql.FactState && f.User == string(bob) {
				told++
			}
		}
		if told != 1 {
			t.Errorf("clients are told %d times", told)
		}
		readable(t, s, r.room)
		for restarted := range 2 {
			if restarted == 1 {
				s = again(t, s)
			}
			if _, err := s.Send(t.Context(), roomserver.NewEvent{Room: r.room, Sender: bob, Type: "m.room.message", Content: content(map[string]any{"body": "back"})}); err != nil {
				t.Errorf("bob, who is back, cannot speak: %v", err)
			}
			if look, err := s.Rebuild(t.Context(), r.room, false); err != nil || look.Differ != 0 || len(look.Changes) != 0 {
				t.Errorf("after a rebuild a look says %+v: %v", look, err)
			}
		}
		// What the rebuild left unused is collected.
		trimFacts(t, s)
		if _, err := s.Collect(t.Context(), r.room); err != nil {
			t.Error(err)
		}
		readable(t, s, r.room)
	})
}
