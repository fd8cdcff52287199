package federation_test

import (
	"fmt"
	"slices"
	"testing"
)

// History in which two servers spoke side by side comes in pieces whose edges cut through the branches:
// what is missing below an event in the middle of a piece has its place too.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func TestForkedHistoryIsFetchedInPieces(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		c := newNode(t, a.authority, sqliteOf(t))
		dave := c.user("dave")
		c.join(dave, room, a)
		a.say(alice, room, "both")
		c.hears(room, []string{"both"})
		a.deaf.Store(true)
		c.deaf.Store(true)
		want := []string{"both"}
		for i := range 20 {
			for _, of := range []string{"a", "c"} {
				body := fmt.Sprintf("%s%d", of, i)
				want = append(want, body)
				if of == "a" {
					a.say(alice, room, body)
				} else {
					c.say(dave, room, body)
				}
			}
		}
		a.deaf.Store(false)
		c.deaf.Store(false)
		slices.Sort(want)
		all := func(n *node) func() bool {
			return func() bool {
				said := n.said(room)
				slices.Sort(said)
				return slices.Equal(said, want)
			}
		}
		eventually(t, "a has heard both branches", all(a))
		b.join(bob, room, a)
		for range 40 {
			if all(b)() {
				return
			}
			if _, err := b.rooms.Backfill(t.Context(), room, b.lowest(room)+1<<41, 7); err != nil {
				t.Fatal(err)
			}
		}
		said := b.said(room)
		slices.Sort(said)
		t.Fatalf("there are %d of %d: %q", len(said), len(want), said)
	})
}
