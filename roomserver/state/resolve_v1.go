package state

import (
	"bytes"
	"cmp"
	"crypto/sha1"
	"maps"
	"slices"
	"strings"

	"chancery/roomserver/auth"
)

// resolveV1 is the algorithm of room version 1: types in the order in which they authorise
// each other, and of each the events by depth.
//
// spec: rooms/v1#state-resolution
func (r *resolution) resolveV1(conflicted []int64) error {
	if err := r.foresee(conflicted); err != nil {
		return err
	}
	conflicts := make(map[auth.Key][]*Known)
	for _, nid := range conflicted {
		k := r.known[nid]
		key := keyOf(k.Event)
		conflicts[key] = append(conflicts[key], k)
	}
	keys := slices.SortedFunc(maps.Keys(conflicts), func(x, y auth.Key) int {
		return cmp.Or(strings.Compare(x.Type, y.Type), strings.Compare(x.StateKey, y.StateKey))
	})
	for key, events := range conflicts {
		// A key that only some states have, with one event, is no conflict in version 1.
		if len(events) == 1 {
			r.state[key] = events[0]
			r.in.Trace.uncontested(events[0])
		}
		sortByDepth(events)
	}
	for _, typ := range []string{"m.room.power_levels", "m.room.join_rules", "m.room.member"} {
		for _, key := range keys {
			if key.Type == typ && len(conflicts[key]) > 1 {
				r.lastOfAllowed(key, conflicts[key])
			}
		}
	}
	// Nothing else authorises anything: the highest that is allowed is taken.
	for _, key := range keys {
		if len(conflicts[key]) == 1 || r.state[key] != nil {
			continue
		}
		for _, k := range slices.Backward(conflicts[key]) {
			if r.check("from the highest down", k) == nil {
				r.state[key] = k
				break
			}
		}
	}
	return nil
}

// lastOfAllowed takes the first event as it is, and each next one that the state so far
// allows, up to one that it does not.
func (r *resolution) lastOfAllowed(key auth.Key, events []*Known) {
	r.state[key] = events[0]
	r.in.Trace.uncontested(events[0])
	for _, k := range events[1:] {
		if r.check("by ascending depth", k) != nil {
			return
		}
		r.state[key] = k
	}
}

// sortByDepth sorts by ascending depth, then descending SHA-1 of the event ID.
func sortByDepth(events []*Known) {
	slices.SortFunc(events, func(x, y *Known) int {
		sx, sy := sha1.Sum([]byte(x.Event.ID())), sha1.Sum([]byte(y.Event.ID()))
		return cmp.Or(cmp.Compare(x.Event.Depth(), y.Event.Depth()), bytes.Compare(sy[:], sx[:]))
	})
}
