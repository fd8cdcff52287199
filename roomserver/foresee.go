package roomserver

import (
	"slices"

	"chancery/roomserver/event"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// foreseen is what the events of one turn will ask storage for, read at once. Nobody else changes it meanwhile.
type foreseen struct {
	own      map[id.EventID]bool    // those that are taken
	events   map[id.EventID]*Stored // and what they name; nil: not there
	awaited  map[id.EventID][]storage.Awaiting
	redacted map[id.EventID][]int64
}

// foresee reads what events build on and cite, what waits for them and what redacts them, for as long as the
// turn lasts. Where it fails, or there is too much, everything is read when it is asked for.
func (r *room) foresee(events []*event.Event) (forget func()) {
	f := &foreseen{map[id.EventID]bool{}, map[id.EventID]*Stored{}, map[id.EventID][]storage.Awaiting{}, map[id.EventID][]int64{}}
	var ids, own []id.EventID
	note := func(v id.EventID) {
		if _, ok := f.events[v]; !ok {
			f.events[v] = nil
			ids = append(ids, v)
		}
	}
	for _, ev := range events {
		note(ev.ID())
		own = append(own, ev.ID())
		f.own[ev.ID()] = true
		for _, list := range [][]id.EventID{ev.PrevEvents(), ev.AuthEvents()} {
			for _, v := range list {
				note(v)
			}
		}
	}
	found, err := r.eventsByID(ids)
	if err == nil {
		for v, ev := range found {
			f.events[v] = ev
		}
		err = r.read(func(tx storage.Tx) error {
			awaited, err := tx.Awaiting(r.row.NID, texts(own))
			if err != nil {
				return err
			}
			for _, a := range awaited {
				f.awaited[id.EventID(a.PrevID)] = append(f.awaited[id.EventID(a.PrevID)], a)
			}
			redactions, err := tx.RedactionsOfEach(r.row.NID, texts(own), maxWaiting)
			for _, w := range redactions {
				f.redacted[id.EventID(w.Redacts)] = append(f.redacted[id.EventID(w.Redacts)], w.Event)
			}
			if len(redactions) == maxWaiting {
				f.redacted = nil
			}
			return err
		})
	}
	if err != nil {
		r.s.Log.Debug("could not read ahead of events", zap.Error(err))
		return func() {}
	}
	r.foreseen = f
	return func() { r.foreseen = nil }
}

// maxWaiting is how many redactions that came before their event are looked at.
const maxWaiting = 1000

// await finds the events here that wait for one, as how its adding begins. An accepted event that waits for it builds
// on it, so it is no open end; what fails softly, or is rejected, leaves the ends as they are.
func (r *room) await(ev *event.Event, h *how) (err error) {
	var waiting []storage.Awaiting
	if f := r.foreseen; f != nil && f.own[ev.ID()] {
		waiting = slices.Clone(f.awaited[ev.ID()])
	} else {
		err = r.read(func(tx storage.Tx) error {
			waiting, err = tx.Awaiting(r.row.NID, []string{string(ev.ID())})
			return err
		})
	}
	for _, p := range r.pending { // not in storage yet
		if p.isJudged() && slices.Contains(p.PrevEvents(), ev.ID()) {
			waiting = append(waiting, storage.Awaiting{Event: p.NID, Status: p.Status})
		}
	}
	for _, list := range r.beneath {
		for _, b := range list {
			if b.missing == ev.ID() {
				waiting = append(waiting, storage.Awaiting{Event: b.above, Status: storage.Accepted})
			}
		}
	}
	for _, w := range waiting {
		h.awaited = true
		if w.Status == storage.Accepted && !slices.Contains(h.waiting, w.Event) {
			h.referenced, h.waiting = true, append(h.waiting, w.Event)
		}
	}
	return err
}

// redactionsOf gives the numbers of the redactions that were here before an event.
func (r *room) redactionsOf(eventID id.EventID) (waiting []int64, err error) {
	if f := r.foreseen; f != nil && f.own[eventID] && f.redacted != nil {
		waiting = slices.Clone(f.redacted[eventID])
	} else {
		err = r.read(func(tx storage.Tx) error {
			waiting, err = tx.RedactionsOf(r.row.NID, string(eventID), maxWaiting)
			return err
		})
	}
	for nid, p := range r.pending {
		if p.Placed && p.Redacts() == eventID {
			waiting = append(waiting, nid)
		}
	}
	return waiting, err
}
