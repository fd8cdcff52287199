package state

import (
	"maps"
	"slices"
	"testing"

	"github.com/matrix-org/gomatrixserverlib"
	"github.com/matrix-org/gomatrixserverlib/spec"
)

// theirs resolves with gomatrixserverlib.
func (w *world) theirs(states ...stateMap) stateMap {
	w.t.Helper()
	v := gomatrixserverlib.MustGetRoomVersion(gomatrixserverlib.RoomVersion(w.v.Name))
	pdus := make(map[int64]gomatrixserverlib.PDU)
	pdu := func(nid int64) gomatrixserverlib.PDU {
		if pdus[nid] == nil {
			ev := w.events[nid].Event
			p, err := v.NewEventFromTrustedJSONWithEventID(string(ev.ID()), ev.JSON(), false)
			if err != nil {
				w.t.Fatal(err)
			}
			pdus[nid] = p
		}
		return pdus[nid]
	}
	sets := make([][]gomatrixserverlib.PDU, len(states))
	var all []int64
	for i, s := range states {
		for _, nid := range s {
			sets[i] = append(sets[i], pdu(nid))
			all = append(all, nid)
		}
	}
	var chain []gomatrixserverlib.PDU
	for nid := range w.auth.chain(all...) {
		chain = append(chain, pdu(nid))
	}
	for _, nid := range all {
		chain = append(chain, pdu(nid))
	}
	resolved := gomatrixserverlib.ResolveStateConflictsV2New(gomatrixserverlib.StateResV2, sets, chain,
		func(_ spec.RoomID, sender spec.SenderID) (*spec.UserID, error) {
			return spec.NewUserID(string(sender), true)
		},
		func(eventID string) bool { return false })
	out := stateMap{}
	for _, p := range resolved {
		nid := w.names[idOf(p)]
		out[keyOf(w.events[nid].Event)] = nid
	}
	return out
}

// theirsHolds says whether gomatrixserverlib can be trusted with a fork. It cannot where the
// auth difference has events that are not conflicted: it takes them neither for power events'
// company nor at all when they are agreed on. And it cannot where an auth check must take an
// event from auth_events: it adds the checked event itself instead.
//
// spec: rooms/v2#algorithm 1, rooms/v2#definitions
func (w *world) theirsHolds(states ...stateMap) bool {
	_, sets := split(states)
	conflicted := slices.Concat(sets...)
	whole := make([][]int64, len(states))
	for i, s := range states {
		whole[i] = slices.Collect(maps.Values(s))
	}
	for nid := range w.auth.authDifference(whole) {
		if !slices.Contains(conflicted, nid) {
			return false
		}
	}
	w.fellBack = false
	w.literal(states...)
	return !w.fellBack
}

// On forks where gomatrixserverlib follows the specification we agree with it, on all others
// with the specification (TestResolutionIsTheSpecifications).
func TestResolutionAgainstGomatrixserverlib(t *testing.T) {
	for _, version := range []string{"2", "11"} {
		t.Run(version, func(t *testing.T) {
			trusted, alike, other := 0, 0, 0
			for seed := range uint64(150) {
				w := newWorld(t, version, 5000+seed)
				history(w, 60, false, w.levels(map[string]int{alice: 100, bob: 50}), func(states []stateMap) stateMap {
					got, theirs := w.resolve(states...), w.theirs(states...)
					switch {
					case w.theirsHolds(states...):
						trusted++
						if !maps.Equal(got, theirs) {
							t.Errorf("seed %d: resolved%s\ntheirs%s", seed, w.tell(got), w.tell(theirs))
						}
					case maps.Equal(got, theirs):
						alike++
					default:
						other++
					}
					return got
				})
			}
			t.Logf("%d forks alike; where they leave the specification %d alike and %d not", trusted, alike, other)
			if trusted < 50 {
				t.Error("too few forks prove nothing")
			}
		})
	}
}
