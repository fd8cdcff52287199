package roomserver

import (
	"fmt"

	"chancery/roomserver/auth"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// noteRedaction applies a redaction that the event makes, or one that came before the event.
//
// spec: rooms/v3#handling-redactions
func (r *room) noteRedaction(a *addition) error {
	if target := a.Redacts(); target != "" && a.Type() == "m.room.redaction" {
		found, err := r.eventsByID([]id.EventID{target})
		if err != nil {
			return err
		}
		ev, ok := found[target]
		if !ok || ev.RedactedBy != "" {
			return nil
		}
		return r.redact(a, ev, a.Stored)
	}
	if a.own || a.RedactedBy != "" { // nobody can have redacted what was made here this moment
		return nil
	}
	return r.redactedBefore(a)
}

// redactedBefore applies a redaction that was here before the event it redacts.
func (r *room) redactedBefore(a *addition) error {
	waiting, err := r.redactionsOf(a.ID())
	if err != nil || len(waiting) == 0 {
		return err
	}
	events, err := r.events(waiting)
	if err != nil {
		return err
	}
	for _, n := range waiting {
		by := events[n]
		if by == nil || by.Status != storage.Accepted {
			continue
		}
		if err := r.redact(a, a.Stored, by); err != nil || a.redacts != nil {
			return err
		}
	}
	return nil
}

// redact puts the redacted form of target in place, if by may do that.
func (r *room) redact(a *addition, target, by *Stored) error {
	allowed, err := r.mayRedact(target, by)
	if err != nil || !allowed {
		return err
	}
	redacted, err := target.Redact()
	if err != nil {
		return fmt.Errorf("redact %s: %w", target.ID(), err)
	}
	a.redacts = &redaction{target: target.NID, by: by.ID(), text: redacted.JSON()}
	r.s.Reader.Forget(r.row.NID, target.NID)
	// Readers may hold the old value: it is replaced, not changed.
	now := *target
	now.Event, now.RedactedBy = redacted, by.ID()
	if _, ok := r.pending[target.NID]; ok {
		r.pending[target.NID], r.pendingID[target.ID()] = &now, &now
	}
	for i, e := range r.exts {
		if e.NID == target.NID {
			r.exts[i] = &now
		}
	}
	if r.foreseen != nil && r.foreseen.events[target.ID()] != nil {
		r.foreseen.events[target.ID()] = &now
	}
	if err := r.redactMember(a, &now); err != nil {
		return err
	}
	a.facts = append(a.facts, storage.Fact{Kind: sql.FactRedaction, Room: r.row.NID, Event: target.NID, Root: r.row.Root})
	return nil
}

// redactMember takes the display name and the avatar of a redacted membership out of the table of members.
func (r *room) redactMember(a *addition, target *Stored) error {
	user, isState := target.StateKey()
	if !isState || target.Type() != "m.room.member" {
		return nil
	}
	member, err := r.member(id.UserID(user))
	if err == nil && member != nil && member.NID == target.NID {
		if a.moves == nil {
			a.moves = &moves{}
		}
		a.moves.members = append(a.moves.members, memberRow(r.row.NID, user, target))
	}
	return err
}

// mayRedact: in versions 1 and 2 the auth rules have judged that already; from 3 on the sender needs the
// room's redact level before the redaction, or to be on the server that sent target.
//
// spec: rooms/v3#handling-redactions
func (r *room) mayRedact(target, by *Stored) (bool, error) {
	if r.version.RedactionAuthRule || target.Sender().Homeserver() == by.Sender().Homeserver() {
		return true, nil
	}
	found, err := r.stateAt(by.Before, []Key{{"m.room.create", ""}, {"m.room.power_levels", ""}})
	if err != nil {
		return false, err
	}
	state := authState{found}
	pl := auth.PowerLevelsOf(state.Get("m.room.create", ""), state.Get("m.room.power_levels", ""))
	return pl.Of(by.Sender()).AtLeast(pl.Redact()), nil
}
