package roomserver_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// standing is where the events of a room stand at the engine, the lowest first, and what its gaps lack.
func (w *world) standing() (places map[id.EventID]int64, order []id.EventID, gaps []storage.Gap) {
	w.t.Helper()
	places = map[id.EventID]int64{}
	err := w.engine.DB.Read(context.Background(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(w.room))
		if err != nil {
			return err
		}
		events, err := tx.EventsAbove(row.NID, -1<<62, 1<<62, 10_000)
		for _, ev := range events {
			places[id.EventID(ev.ID)] = *ev.Ord
			order = append(order, id.EventID(ev.ID))
		}
		if err == nil {
			gaps, err = tx.Gaps(row.NID, 1<<62, 1000)
		}
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return places, order, gaps
}

// readBack asks for what is missing as somebody does who reads from the top to the bottom: at each gap until nothing more
// comes there. In the end none is left.
func (w *world) readBack(limit int) {
	w.t.Helper()
	at := int64(1 << 62)
	for range 500 {
		_, _, gaps := w.standing()
		i := slices.IndexFunc(gaps, func(g storage.Gap) bool { return g.Ord < at })
		if i < 0 {
			if len(gaps) > 0 {
				w.t.Errorf("%d gaps are left, below %s is %s missing", len(gaps), gaps[0].ID, gaps[0].PrevID)
			}
			return
		}
		came, err := w.engine.Backfill(context.Background(), w.room, gaps[i].Ord, limit)
		if err != nil {
			w.t.Fatal(err)
		}
		if !came {
			at = gaps[i].Ord
		}
	}
	w.t.Fatal("whoever reads never comes to the end")
}

// wantWhole checks that all of the room is here but what was refused. What is older than our first event stands below it, each
// event above those that it builds on, and the room's creation is the lowest.
func (w *world) wantWhole(first *node) {
	w.t.Helper()
	places, order, _ := w.standing()
	if w.byID[order[0]].Type() != "m.room.create" {
		w.t.Errorf("the history begins with a %s", w.byID[order[0]].Type())
	}
	for _, n := range w.order {
		at, ok := places[n.ID()]
		if !ok {
			if !n.rejected {
				w.t.Errorf("event %d, a %s at depth %d, has no place", n.nid, n.Type(), n.Depth())
			}
			continue
		}
		if n.Depth() >= first.Depth() {
			continue
		}
		if at > places[first.ID()] {
			w.t.Errorf("event %d at depth %d stands above our first one at depth %d", n.nid, n.Depth(), first.Depth())
		}
		for _, v := range n.PrevEvents() {
			if below, ok := places[v]; ok && below > at {
				w.t.Errorf("event %d at depth %d stands below event %d at depth %d, on which it builds", n.nid, n.Depth(), w.byID[v].nid, w.byID[v].Depth())
			}
		}
	}
}

// What somebody sent before we joined, and our server did not hear of then, comes to light when something builds on it. It
// is of the past: it does not end, with the creation of the room, the history of who reads back to our join, and no gap
// stays open because of it.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func TestWhatIsOlderThanOurFirstEventGoesBelowIt(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		w := newWorld(t, "11", 1, fresh())
		join := w.order[len(w.order)-1]
		say := func(prev ...*node) *node {
			return w.put(w.build(prev, w.users[0], "m.room.message", "-", map[string]any{"msgtype": "m.text", "body": fmt.Sprint(len(w.order))}))
		}
		old := say(w.order[4]) // a fork that is older than the join
		for old.Depth() < join.Depth()-1 {
			old = say(old)
		}
		top := say(join, old)
		w.engine.Receive(t.Context(), w.homes[0], []json.RawMessage{top.JSON()})
		if came, err := w.engine.Backfill(t.Context(), w.room, 1<<62, 4); err != nil || !came {
			t.Fatalf("what is missing below the newest event does not come: %v", err)
		}
		places, _, gaps := w.standing()
		if at, ok := places[old.ID()]; !ok || at > places[join.ID()] {
			t.Errorf("the old event is at %d (%v), our join at %d", at, ok, places[join.ID()])
		}
		for _, g := range gaps {
			if id.EventID(g.ID) == top.ID() {
				t.Errorf("there is still a gap below the newest event")
			}
		}
		w.readBack(4)
		w.wantWhole(join)
	})
}

// However the branches of a room run, and wherever pieces of them end, all of it comes, and the room's creation is the
// last that is reached.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func TestForkedHistoryComesWhole(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t, "11", seed, sqltest.SQLite(t))
			join := w.order[len(w.order)-1]
			r := rand.New(rand.NewPCG(seed, 7))
			for range 40 { // branches begin anywhere
				prev := []*node{w.order[r.IntN(len(w.order))]}
				if other := w.ends[r.IntN(len(w.ends))]; other != prev[0] {
					prev = append(prev, other)
				}
				sender := w.users[r.IntN(len(w.users))]
				w.put(w.build(prev, sender, "m.room.message", "-", map[string]any{"msgtype": "m.text", "body": fmt.Sprint(r.Int())}))
				if r.IntN(6) == 0 {
					w.engine.Receive(t.Context(), w.homes[0], []json.RawMessage{w.order[len(w.order)-1].JSON()})
				}
			}
			last := w.tie()
			w.engine.Receive(t.Context(), w.homes[0], []json.RawMessage{last.JSON()})
			w.readBack(12 + r.IntN(8))
			w.wantWhole(join)
		})
	}
}
