package roomserver

import (
	"slices"

	"chancery/roomserver/event"

	"maunium.net/go/mautrix/id"
)

// inOrder sorts events so that each comes after those among them that it builds on; of those that could come
// next it takes the first by before, and else the one that stood first. An event that is there twice comes once.
// Depth is not looked at: it is its sender's word.
func inOrder(events []*event.Event, before func(x, y *event.Event) int) []*event.Event {
	events = slices.Clone(events)
	slices.SortStableFunc(events, before)
	at := make(map[id.EventID]int, len(events))
	events = slices.DeleteFunc(events, func(ev *event.Event) bool {
		_, twice := at[ev.ID()]
		at[ev.ID()] = 0
		return twice
	})
	for i, ev := range events {
		at[ev.ID()] = i
	}
	waits := make([]int, len(events)) // for how many of the others; below 0 once it has its place
	followers := make([][]int, len(events))
	for i, ev := range events {
		for _, p := range ev.PrevEvents() {
			if j, ok := at[p]; ok && j != i {
				waits[i]++
				followers[j] = append(followers[j], i)
			}
		}
	}
	out := make([]*event.Event, 0, len(events))
	for len(out) < len(events) {
		next := slices.Index(waits, 0)
		if next < 0 { // a circle, which only the IDs of versions 1 and 2 allow: they come as they are
			next = slices.IndexFunc(waits, func(n int) bool { return n > 0 })
		}
		waits[next] = -1
		out = append(out, events[next])
		for _, i := range followers[next] {
			if waits[i] > 0 {
				waits[i]--
			}
		}
	}
	return out
}
