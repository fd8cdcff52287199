package roomserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"chancery"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// take judges an event and adds it to its room.
func (s *Server) take(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event, g *given) error {
	return s.withOpinion(ctx, func() error {
		return s.inAs(ctx, caller{theirs, origin}, roomID, func(r *room) error { return r.take(ev, g) })
	})
}

func (r *room) take(ev *event.Event, g *given) error {
	known, err := r.eventsByID([]id.EventID{ev.ID()})
	if err != nil {
		return err
	}
	before, isKnown := known[ev.ID()]
	if isKnown && before.isJudged() {
		return nil
	}
	if !isKnown {
		if err := r.mayName(ev.ID()); err != nil {
			return err
		}
	}
	if ev.Type() == "m.room.create" {
		// By the rules a second one passes, since it cites nothing.
		return chancery.Forbidden("the room has been created")
	}
	h := how{}
	if isKnown {
		h.row = before
	}
	n := &needs{}
	prev, err := r.prevOf(ev, n)
	if err != nil {
		return err
	}
	n.partial, n.held = r.partial != nil, r.holds(n.prev)
	if n.held && g == nil {
		g = &given{guess: errPartial}
	}
	if len(n.prev) > 0 && (g == nil || !g.hasState && g.guess == nil || g.isOfPart(r)) {
		return n
	}
	if g != nil {
		if err := r.addOutliers(append(slices.Clone(g.chain), g.state...)); err != nil {
			return err
		}
	}
	auths, err := r.authOf(ev, n)
	if err != nil {
		return err
	}
	if len(n.auth) > 0 {
		return n
	}
	h.missing, h.guessed = r.notHeld(n.prev), len(n.prev) > 0 && g.guess != nil
	if h.before, err = r.rootBefore(ev, prev, auths, n, g); err != nil {
		return fmt.Errorf("find the state before %s: %w", ev.ID(), err)
	}
	if h.status, err = r.judge(ev, h.before, auths, len(n.prev) > 0); err != nil {
		return err
	}
	if isKnown && before.Status == storage.Rejected {
		h.status = storage.Rejected // by its own auth events, and for good
	}
	if h.status == storage.Rejected && r.refusedByPart(ev, auths) {
		if len(n.prev) > 0 && !n.held || !r.mayHold(ev.ID()) {
			return n
		}
		return r.hold(ev)
	}
	if h.status == storage.Rejected && len(n.prev) > 0 && g.guess != nil {
		return fmt.Errorf("judge %s by a state that is not known: %w", ev.ID(), g.guess) // another time it may be
	}
	if h.status == storage.Rejected && r.partial == nil && r.passesOwnAuth(ev, auths) == nil {
		if n.guessed, err = r.standsOnGuess(prev); err != nil || n.guessed {
			return cmp.Or(err, error(n)) // by the true state it may be allowed: until that is learned it waits
		}
	}
	if h.status == storage.Accepted {
		if ev, h.status, err = r.recommendedOrNot(ev); err != nil {
			return err
		}
	}
	if err = r.await(ev, &h); err != nil {
		return err
	}
	if isKnown && !h.referenced {
		if h.referenced, err = r.isCurrent(ev); err != nil {
			return err
		}
	}
	h.prev = prev
	a, err := r.add(ev, h)
	if err != nil {
		return err
	}
	r.submit(a)
	if err := r.tieEnds(); errors.As(err, new(*unasked)) {
		r.s.tieLater(r)
	} else if err != nil {
		r.s.Log.Warn("could not tie the open ends of a room", zap.String("room", string(r.id)), zap.Error(err))
	}
	return nil
}

// standsOnGuess says that the state after one of some events follows, not far below, from one that was guessed and is not
// learned yet. Of what is not stored yet nobody can say.
func (r *room) standsOnGuess(prev []*Stored) (bool, error) {
	if r.seq == 0 {
		return false, nil
	}
	var noted []storage.PartialEvent
	if err := r.read(func(tx storage.Tx) (err error) {
		noted, err = tx.PartialEvents(r.row.NID)
		return err
	}); err != nil {
		return false, err
	}
	seen := map[int64]bool{}
	for len(prev) > 0 && len(seen) <= maxUnderneath {
		var next []id.EventID
		for _, p := range prev {
			if r.pending[p.NID] != nil || slices.ContainsFunc(noted, func(v storage.PartialEvent) bool { return v.Event == p.NID }) {
				return true, nil
			}
			if !seen[p.NID] {
				seen[p.NID] = true
				next = append(next, p.PrevEvents()...)
			}
		}
		found, err := r.eventsByID(next)
		if err != nil {
			return false, err
		}
		prev = slices.DeleteFunc(slices.Collect(maps.Values(found)), func(p *Stored) bool { return seen[p.NID] || !p.isJudged() })
	}
	return false, nil
}

// refusedByPart says of an event that was refused that a part of the state did it, and not its own auth events: by the
// whole state it may be allowed, and what cites it too. So it is not rejected, but judged when the room is whole.
//
// spec: msc3902
func (r *room) refusedByPart(ev *event.Event, auths []*Stored) bool {
	return r.partial != nil && r.passesOwnAuth(ev, auths) == nil
}

// rootBefore finds the state before an event. What we know ourselves is better than what another server says.
func (r *room) rootBefore(ev *event.Event, prev, auths []*Stored, n *needs, g *given) (state.Root, error) {
	root, err := r.knownBefore(prev, auths, n, g)
	if err != nil || r.partial == nil {
		return root, err
	}
	return r.fillIn(root, ev, auths)
}

func (r *room) knownBefore(prev, auths []*Stored, n *needs, g *given) (state.Root, error) {
	switch {
	case len(n.prev) == 0:
		return r.resolve(rootsAfter(prev))
	case g.guess != nil:
		if g.past && r.partial != nil { // not the room's present state: our users were not in it yet
			return r.guess(prev, auths, r.partial.before)
		}
		return r.guess(prev, auths, state.Root(r.row.Root))
	case g.told != nil:
		return r.rootTold(prev, g.told)
	case g.partial && r.partial != nil: // we know members already: ours, above all
		return r.rootOf(state.Root(r.row.Root), g.state)
	}
	return r.rootOf(0, g.state)
}

// guess makes a state of what is known of it: that after the prev events that are here, else another, and in
// it the auth events, which its sender's server took from the true one.
func (r *room) guess(prev, auths []*Stored, known state.Root) (state.Root, error) {
	if len(prev) > 0 {
		var err error
		if known, err = r.resolve(rootsAfter(prev)); err != nil {
			return 0, err
		}
	}
	changes := make(map[int64]int64, len(auths))
	for _, a := range auths {
		key, isState := a.StateKey()
		if !isState || a.Status == storage.Rejected {
			continue
		}
		slot, err := r.keptSlot(Key{a.Type(), key})
		if err != nil {
			return 0, err
		}
		changes[slot] = a.NID
	}
	then, err := r.array.Set(known, changes)
	if err != nil {
		return 0, err
	}
	return r.resolve([]state.Root{known, then})
}

func rootsAfter(events []*Stored) []state.Root {
	var roots []state.Root
	for _, ev := range events {
		if !slices.Contains(roots, ev.After) {
			roots = append(roots, ev.After)
		}
	}
	return roots
}

// prevOf finds the prev events; those that have no place in the room are noted in n.
func (r *room) prevOf(ev *event.Event, n *needs) ([]*Stored, error) {
	found, err := r.eventsByID(ev.PrevEvents())
	if err != nil {
		return nil, err
	}
	var prev []*Stored
	for _, v := range ev.PrevEvents() {
		if p := found[v]; p != nil && p.isJudged() {
			prev = append(prev, p)
		} else {
			n.prev = append(n.prev, v)
		}
	}
	if len(prev) == 0 && len(n.prev) == 0 && ev.Type() != "m.room.create" {
		return nil, chancery.BadJSON("the event has no prev events")
	}
	return prev, nil
}

func (r *room) authOf(ev *event.Event, n *needs) ([]*Stored, error) {
	found, err := r.eventsByID(ev.AuthEvents())
	if err != nil {
		return nil, err
	}
	var auths []*Stored
	for _, v := range ev.AuthEvents() {
		if p := found[v]; p != nil {
			auths = append(auths, p)
		} else {
			n.auth = append(n.auth, v)
		}
	}
	return auths, nil
}

// isCurrent says that a state event is part of the room's present state: what the ends stand on is no end.
func (r *room) isCurrent(ev *event.Event) (bool, error) {
	key, isState := ev.StateKey()
	if !isState {
		return false, nil
	}
	k := Key{ev.Type(), key}
	found, err := r.stateAt(state.Root(r.row.Root), []Key{k})
	return found[k] != nil && found[k].ID() == ev.ID(), err
}
