package roomserver

import (
	"errors"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// judge applies the checks on receipt of a PDU: by the event's own auth events and by the state before
// it, failing which it is rejected; by the room's present state, failing which it fails softly. gap says that some of
// what it builds on was not here.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 4, 5, 6
func (r *room) judge(ev *event.Event, before state.Root, auths []*Stored, gap bool) (storage.EventStatus, error) {
	status, err := r.judgePast(ev, before, auths)
	if err != nil || status == storage.Rejected || r.partial != nil { // a partial state refuses nobody softly, spec: msc3902
		return status, err
	}
	if err := r.allowedNow(ev, state.Root(r.row.Root), before, gap); err != nil {
		if !isRejection(err) {
			return 0, err
		}
		return r.softFailure(ev, err), nil
	}
	return storage.Accepted, nil
}

// allowedNow judges an event by the room's present state. What came over a gap may come after something that we have not
// heard, such as the end of a ban: there the state before the event has its say too, as where branches meet. A ban that
// nobody has ended outlives that.
//
// spec: s2s#soft-failure
func (r *room) allowedNow(ev *event.Event, now, before state.Root, gap bool) error {
	refused := r.allowedBy(ev, now)
	if !gap || !isRejection(refused) {
		return refused
	}
	both, err := r.resolve([]state.Root{now, before})
	if err != nil {
		return err
	}
	return r.allowedBy(ev, both)
}

// recommendedOrNot: an event that the room's policy server does not recommend fails softly.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 7
func (r *room) recommendedOrNot(ev *event.Event) (*event.Event, storage.EventStatus, error) {
	signed, err := r.recommended(ev)
	if no := (*notRecommended)(nil); errors.As(err, &no) {
		return ev, r.softFailure(ev, no), nil
	}
	return signed, storage.Accepted, err
}

// judgePast judges an event by its auth events and by the state before it.
func (r *room) judgePast(ev *event.Event, before state.Root, auths []*Stored) (storage.EventStatus, error) {
	if err := r.passesOwnAuth(ev, auths); err != nil {
		return r.rejected(ev, err), nil
	}
	if err := r.allowedBy(ev, before); err != nil {
		if !isRejection(err) {
			return 0, err
		}
		return r.rejected(ev, err), nil
	}
	return storage.Accepted, nil
}

// allowedBy judges an event by a state; the error is a *auth.Rejection when the rules refuse it.
func (r *room) allowedBy(ev *event.Event, root state.Root) error {
	var stateKey *string
	if key, isState := ev.StateKey(); isState {
		stateKey = &key
	}
	as, err := r.authStateFor(root, ev.Type(), stateKey, ev.Sender(), ev.Content())
	if err != nil {
		return err
	}
	return auth.Check(ev, as)
}

func isRejection(err error) bool {
	var no *auth.Rejection
	return errors.As(err, &no)
}

func (r *room) rejected(ev *event.Event, why error) storage.EventStatus {
	r.s.Log.Info("rejected an event", zap.String("event", string(ev.ID())), zap.Error(why))
	return storage.Rejected
}

// authEvents gives the auth events of an event, and says which of them were rejected.
func authEvents(auths []*Stored) (events []*event.Event, rejected func(*event.Event) bool) {
	events = make([]*event.Event, 0, len(auths)+1)
	is := map[id.EventID]bool{}
	for _, a := range auths {
		events = append(events, a.Event)
		is[a.ID()] = a.Status == storage.Rejected
	}
	return events, func(e *event.Event) bool { return is[e.ID()] }
}

// passesOwnAuth judges an event by its own auth events.
func (r *room) passesOwnAuth(ev *event.Event, auths []*Stored) error {
	events, rejected := authEvents(auths)
	create, err := r.createEvent()
	if err != nil {
		return err
	}
	if err := auth.CheckAuthEvents(ev, events, create, rejected); err != nil {
		return err
	}
	if r.version.CreateNotInAuthEvents && create != nil && ev.Type() != "m.room.create" {
		events = append(events, create)
	}
	return auth.Check(ev, auth.Events(events))
}

// createEvent finds the room's create event, nil before there is one.
func (r *room) createEvent() (*event.Event, error) {
	if r.create != nil {
		return r.create, nil
	}
	found, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.create", ""}})
	if err != nil {
		return nil, err
	}
	if ev := found[Key{"m.room.create", ""}]; ev != nil {
		r.create = ev.Event
	}
	return r.create, nil
}

// checkAlone judges a create event, which stands on nothing.
func checkAlone(create *event.Event) error {
	if err := auth.Check(create, auth.Events(nil)); err != nil {
		return refused(err)
	}
	return nil
}
