package roomserver_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// nodesOf counts the nodes of a room's state and their bytes.
func nodesOf(t *testing.T, s *roomserver.Server, room id.RoomID) (nodes, bytes int64) {
	t.Helper()
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		return tx.QueryRow(`SELECT count(*), coalesce(sum(length(data)), 0) FROM state_nodes WHERE room = $1`, row.NID).Scan(&nodes, &bytes)
	})
	if err != nil {
		t.Fatal(err)
	}
	return nodes, bytes
}

// readable reads the states before and after every event of a room, its current one and those of its facts, with
// nothing in memory.
func readable(t *testing.T, s *roomserver.Server, room id.RoomID) {
	t.Helper()
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		roots := map[int64]bool{row.Root: true}
		events, err := tx.EventRootsAfter(row.NID, -1, 0, 1<<20)
		for _, ev := range events {
			roots[ev.Before], roots[ev.After] = true, true
		}
		if err != nil {
			return err
		}
		facts, err := tx.FactRootsAfter(row.NID, 0, 1<<20)
		for _, f := range facts {
			roots[f.Root] = true
		}
		if err != nil {
			return err
		}
		array := roomserver.NewReader(8<<20).Array(tx, row.NID)
		for root := range roots {
			if _, err := array.All(state.Root(root)); err != nil {
				return fmt.Errorf("state %d: %w", root, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// forks are three branches of a room on which another server's member changes her name, each apart from the others:
// states are merged that nothing is built on.
type forks struct {
	b       other
	version string
	room    id.RoomID
	auth    []id.EventID
	ends    [3]struct{ event, member id.EventID }
	steps   int
}

func newForks(t *testing.T, s *roomserver.Server, b other, version string, room id.RoomID) *forks {
	t.Helper()
	join := b.join(t, s, room)
	rules := stateOf(t, s, room, "m.room.join_rules", "").ID()
	f := &forks{b: b, version: version, room: room, auth: append(authIDs(t, s, version, room, join.ID())[1:], rules)}
	for i := range f.ends {
		f.ends[i].event, f.ends[i].member = join.ID(), join.ID()
	}
	return f
}

// step goes on on each of the branches.
func (f *forks) step(t *testing.T, s *roomserver.Server) error {
	me := string(carol)
	f.steps++
	for i := range f.ends {
		at := &f.ends[i]
		is := f.b.sign(t, f.version, nil, func(p *event.Proto) {
			p.RoomID, p.Sender, p.Type, p.StateKey = f.room, carol, "m.room.member", &me
			p.Content = content(map[string]any{"membership": "join", "displayname": fmt.Sprint(i, " ", f.steps)})
			p.PrevEvents, p.AuthEvents, p.Depth = []id.EventID{at.event}, append([]id.EventID{at.member}, f.auth...), int64(50+f.steps)
		})
		if err := s.ReceiveFor(context.WithoutCancel(t.Context()), f.room, is); err != nil {
			return err
		}
		at.event, at.member = is.ID(), is.ID()
	}
	return nil
}

// trimFacts removes all facts but the last, as time does.
func trimFacts(t *testing.T, s *roomserver.Server) {
	t.Helper()
	err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
		_, err := tx.TrimFacts(1<<62, 1<<20)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// order.md 11: what nothing leads to any more is removed, and nothing else.
func TestUnusedStateIsCollected(t *testing.T) {
	if testing.Short() {
		t.Skip("one goroutine; TestCollectionOfARoomInUse is for the race detector")
	}
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		f := newForks(t, s, b, version, room)
		empty := ""
		for i := range 30 {
			send(t, s, room, "m.room.topic", &empty, map[string]any{"topic": fmt.Sprint(i)})
			if err := f.step(t, s); err != nil {
				t.Fatal(err)
			}
		}
		before, bytes := nodesOf(t, s, room)
		// As long as facts tell of them, states are in use.
		if removed, err := s.Collect(t.Context(), room); err != nil || removed != 0 {
			t.Errorf("%d nodes were removed that facts lead to: %v", removed, err)
		}
		trimFacts(t, s)
		removed, err := s.Collect(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		after, left := nodesOf(t, s, room)
		if removed == 0 || after != before-removed {
			t.Errorf("%d of %d nodes were removed, %d are left", removed, before, after)
		}
		t.Logf("%d nodes of %d bytes before, %d of %d after", before, bytes, after, left)
		readable(t, s, room)
		if again, err := s.Collect(t.Context(), room); err != nil || again != 0 {
			t.Errorf("a second collection removed %d: %v", again, err)
		}
		err = s.DB.Read(t.Context(), func(tx storage.Tx) error {
			row, _, err := tx.Room(string(room))
			if err != nil {
				return err
			}
			upkeep, err := tx.Loose(row.NID)
			if upkeep.Loose != 0 || upkeep.Kept != after {
				t.Errorf("upkeep says %+v, %d nodes are left", upkeep, after)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// The room goes on, in memory and after a restart.
		send(t, s, room, "m.room.message", nil, map[string]any{"body": "on", "msgtype": "m.text"})
		send(t, again(t, s), room, "m.room.message", nil, map[string]any{"body": "and on", "msgtype": "m.text"})
		readable(t, s, room)
	})
}

// Whatever is sent and merged while a room's state is collected, nothing is removed that is in use.
func TestCollectionOfARoomInUse(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		const version = "12"
		s, b := beside(t, fresh())
		room := newRoom(t, s, version)
		f := newForks(t, s, b, version, room)
		ctx, stop := context.WithCancel(t.Context())
		var busy, collecting sync.WaitGroup
		for worker := range uint64(3) {
			busy.Go(func() {
				r := rand.New(rand.NewPCG(worker, 0))
				empty := ""
				for i := range 80 {
					user := id.UserID(fmt.Sprintf("@u%d:a.example", r.IntN(40)))
					var err error
					switch {
					case worker == 0:
						if i%2 == 0 {
							err = f.step(t, s)
						}
					case r.IntN(2) == 0:
						err = s.Join(ctx, roomserver.Join{User: user, Room: room, Content: content(map[string]any{"displayname": fmt.Sprint(i)})})
					default:
						_, err = s.Send(ctx, roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.topic", StateKey: &empty,
							Content: content(map[string]any{"topic": fmt.Sprint(worker, i)})})
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		var removed int64
		collections := 0
		collecting.Go(func() {
			for ctx.Err() == nil {
				err := s.DB.Write(ctx, nil, func(tx storage.Tx) error {
					_, err := tx.TrimFacts(1<<62, 1<<20)
					return err
				})
				if err == nil {
					var n int64
					n, err = s.Collect(ctx, room)
					removed += n
					collections++
				}
				if err != nil && !errors.Is(err, context.Canceled) {
					t.Error(err)
					return
				}
			}
		})
		busy.Wait()
		stop()
		collecting.Wait()
		readable(t, s, room)
		trimFacts(t, s)
		last, err := s.Collect(t.Context(), room)
		if err != nil {
			t.Fatal(err)
		}
		readable(t, s, room)
		nodes, _ := nodesOf(t, s, room)
		t.Logf("%d collections of the room in use removed %d nodes, the last one %d, %d are left", collections, removed, last, nodes)
		if collections < 2 || removed == 0 {
			t.Error("too few for a test")
		}
		next := again(t, s)
		send(t, next, room, "m.room.message", nil, map[string]any{"body": "on", "msgtype": "m.text"})
		if table, current := members(t, next, room); fmt.Sprint(table) != fmt.Sprint(current) {
			t.Errorf("the table says %v, the state says %v", table, current)
		}
	})
}

// What was resolved once is remembered; after it was collected it must be made anew.
func TestCollectedStateIsForgotten(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		const version = "12"
		s, b := beside(t, fresh())
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		empty, me := "", string(carol)
		send(t, s, room, "m.room.power_levels", &empty, map[string]any{"events": map[string]any{"m.room.topic": 0}})
		base := send(t, s, room, "m.room.message", nil, map[string]any{"body": "base"})
		auth := authIDs(t, s, version, room, join.ID())
		rules := stateOf(t, s, room, "m.room.join_rules", "").ID()
		take := func(typ string, key *string, body any, auth []id.EventID, after ...id.EventID) id.EventID {
			t.Helper()
			ev := b.sign(t, version, nil, func(p *event.Proto) {
				p.RoomID, p.Sender, p.Type, p.StateKey, p.Content = room, carol, typ, key, content(body)
				p.PrevEvents, p.AuthEvents, p.Depth = after, auth, 50
			})
			if err := s.ReceiveFor(t.Context(), room, ev); err != nil {
				t.Fatal(err)
			}
			return ev.ID()
		}
		one := take("m.room.member", &me, map[string]any{"membership": "join", "displayname": "Carol"}, append(auth, rules), base)
		two := take("m.room.topic", &empty, map[string]any{"topic": "two"}, auth, base) // one and two are resolved now
		take("m.room.topic", &empty, map[string]any{"topic": "three"}, auth, two)
		trimFacts(t, s)
		if removed, err := s.Collect(t.Context(), room); err != nil || removed == 0 {
			t.Fatalf("%d nodes were removed: %v", removed, err)
		}
		take("m.room.message", nil, map[string]any{"body": "both"}, auth, one, two)
		readable(t, s, room)
	})
}
