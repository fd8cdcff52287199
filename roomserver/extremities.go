package roomserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// moveEnds replaces the extremities that the event builds on by the event, and the room's current
// state by the state resolved over all extremities. An event on which another one builds is no extremity, yet what it
// builds on itself is none either, whatever became of the event.
//
// spec: s2s#pdus
func (r *room) moveEnds(a *addition, h how) error {
	isEnd := h.status == storage.Accepted && h.history == nil && !h.referenced
	if !isEnd && !h.referenced {
		return nil
	}
	var lost []int64
	kept := make([]*Stored, 0, len(r.exts)+1)
	for _, e := range r.exts {
		if h.replace || slices.Contains(a.builtOn, e.ID()) {
			lost = append(lost, e.NID)
		} else {
			kept = append(kept, e)
		}
	}
	if !isEnd && (len(lost) == 0 || len(kept) == 0) {
		return nil
	}
	if isEnd {
		for len(kept) >= maxEnds {
			lost = append(lost, kept[0].NID)
			kept = kept[1:]
		}
		a.gained = append(a.gained, a.NID)
		kept = append(kept, a.Stored)
	}
	r.exts, a.lost = kept, append(a.lost, lost...)
	// The event itself is looked up while states are compared.
	r.pending[a.NID], r.pendingID[a.ID()] = a.Stored, a.Stored
	was := state.Root(r.row.Root)
	root, err := r.resolve(r.endRoots())
	if err != nil {
		return fmt.Errorf("resolve the state of %s: %w", r.id, err)
	}
	if r.row.Root = int64(root); root == was {
		return nil
	}
	a.moved = true
	if a.moves, err = r.moveMembers(a.NID, was, root); err != nil {
		return err
	}
	if was == 0 || h.replace {
		a.moves.begin()
	}
	if r.partial != nil { // that members become known moves nothing
		a.moves.silent, a.left = 0, r.servers[r.s.ServerName] == 0
	}
	a.facts = append(a.facts, a.moves.facts...)
	return nil
}

// endRoots are the states after the room's open ends: the current state is what they resolve to.
func (r *room) endRoots() []state.Root {
	roots := make([]state.Root, 0, len(r.exts))
	for _, e := range r.exts {
		if !slices.Contains(roots, e.After) {
			roots = append(roots, e.After)
		}
	}
	return roots
}

// maxUnderneath bounds the events that were not accepted through which we look for ends.
const maxUnderneath = 100

// noteBuiltOn finds the events that an event builds on: its prev events, and where one of these was not accepted, and so
// is no end itself, what that builds on. What is missing there is missing below the event, and where the event itself is
// not accepted, below those that build on it.
func (r *room) noteBuiltOn(a *addition, h how) error {
	a.builtOn = slices.Clone(a.PrevEvents())
	isRefused := func(p *Stored) bool { return p.Status == storage.SoftFailed || p.Status == storage.Rejected }
	refused := slices.DeleteFunc(slices.Clone(h.prev), func(p *Stored) bool { return !isRefused(p) })
	for seen := len(refused); len(refused) > 0 && seen <= maxUnderneath; seen += len(refused) {
		var next []id.EventID
		for _, p := range refused {
			for _, v := range p.PrevEvents() {
				if !slices.Contains(a.builtOn, v) {
					a.builtOn, next = append(a.builtOn, v), append(next, v)
				}
			}
		}
		found, err := r.eventsByID(next)
		if err != nil {
			return err
		}
		refused = nil
		for _, v := range next {
			switch p := found[v]; {
			case p == nil || !p.isJudged():
				a.missing = append(slices.Clone(a.missing), v)
			case isRefused(p):
				refused = append(refused, p)
			}
		}
	}
	above := h.waiting
	if h.status == storage.Accepted {
		above = []int64{a.NID}
	} else {
		a.waiting = h.waiting
	}
	for _, v := range a.missing {
		for _, n := range above {
			r.beneath[a.NID] = append(r.beneath[a.NID], beneath{n, v})
		}
	}
	return nil
}

// beneath is an accepted event and what is missing below it, not in storage yet.
type beneath struct {
	above   int64
	missing id.EventID
}

// Above this many open ends an event of our own ties them together; above maxEnds the oldest are let go.
const (
	manyEnds = 20
	maxEnds  = 200
)

// tieEnds bounds the room's open ends: every further event resolves the states of all of them, so a server that
// forks the room without end would make each message dearer than the last. A member of ours sends an event
// without content that builds on them.
func (r *room) tieEnds() error {
	if len(r.exts) <= manyEnds || r.servers[r.s.ServerName] == 0 {
		return nil
	}
	sender, err := r.localSender(dummyType)
	if err != nil || sender == "" {
		return err
	}
	a, err := r.make(NewEvent{Sender: sender, Type: dummyType, Content: json.RawMessage(`{}`)}, how{own: true})
	if err != nil {
		return err
	}
	r.submit(a)
	return nil
}

// tieLater is tieEnds where the room's policy server must be asked.
func (s *Server) tieLater(r *room) {
	if r.tying.Swap(true) {
		return
	}
	go func() {
		defer r.tying.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), 2*policyWait)
		defer cancel()
		err := s.guarded("tie the open ends of a room", func() error {
			return s.inOwn(ctx, r.id, func(r *room) error { return r.tieEnds() })
		})
		if err != nil {
			s.Log.Info("could not tie the open ends of a room", zap.String("room", string(r.id)), zap.Error(err))
		}
	}()
}

// What other servers too send to tie open ends; clients show nothing of it.
const dummyType = "org.matrix.dummy_event"
