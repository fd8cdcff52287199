package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"chancery/federation/peer"
	"chancery/roomserver/event"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// needs says what must be fetched before an event can be judged.
type needs struct {
	prev, auth []id.EventID
	partial    bool // the room is: it takes an event without the state before it
	held       bool // the prev events are here, and wait to be judged when the room is whole
	guessed    bool // they are here, and the state after them, which refuses the event, is made up
}

func (n *needs) Error() string {
	return fmt.Sprintf("%d prev events and %d auth events are missing", len(n.prev), len(n.auth))
}

// errand is a server's event for which other servers are asked.
type errand struct {
	origin string
	room   id.RoomID
	states int // that were asked for below it
}

// receiveOne takes an event whose signatures hold, fetching what it stands on where that is missing.
func (s *Server) receiveOne(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event) error {
	err := s.take(ctx, origin, roomID, ev, nil)
	var n *needs
	if !errors.As(err, &n) {
		return err
	}
	// Not one for all servers: who answers slowly must not hold up the others that have the event.
	return s.fills.once(ctx, origin+" "+string(ev.ID()), func() error {
		return s.receiveWithHelp(ctx, &errand{origin: origin, room: roomID}, ev, len(n.prev) > 0 && !n.held)
	})
}

// receiveWithHelp asks for the events between what we have and the event, if there are any, and takes them before it.
func (s *Server) receiveWithHelp(ctx context.Context, e *errand, ev *event.Event, between bool) error {
	ctx, cancel := context.WithTimeout(ctx, errandTime)
	defer cancel()
	if !between {
		return s.takeWithState(ctx, e, ev)
	}
	for _, m := range s.fetchBetween(ctx, e, ev) {
		if err := s.takeWithState(ctx, e, m); err != nil {
			s.Log.Debug("could not take a missing event", zap.String("event", string(m.ID())), zap.Error(err))
		}
	}
	e.states = 0
	return s.takeWithState(ctx, e, ev)
}

// takeWithState takes an event, asking for the state before it, or for its auth events, if need be.
func (s *Server) takeWithState(ctx context.Context, e *errand, ev *event.Event) error {
	err := s.take(ctx, e.origin, e.room, ev, nil)
	var n *needs
	if !errors.As(err, &n) {
		return err
	}
	if len(n.prev) > 0 && n.partial {
		err := s.takeGiven(ctx, e, ev, &given{guess: errPartial})
		if !errors.As(err, &n) || n.partial {
			return err
		}
		// Meanwhile the room has become whole.
	}
	var g *given
	if len(n.prev) > 0 {
		if e.states++; e.states > maxStates {
			return err
		}
		if g, err = s.stateBefore(ctx, e, ev); err != nil && !knowsNot(err) {
			return err // when a server can be asked again it may tell
		} else if err != nil {
			g = &given{guess: err}
		}
	}
	return s.takeGiven(ctx, e, ev, g)
}

// stateBefore gives the state before an event that another server tells: its sender's server is asked first, which
// has nothing to gain from a false one.
func (s *Server) stateBefore(ctx context.Context, e *errand, ev *event.Event) (*given, error) {
	g, err := fromSomebody(ctx, s, e.room, []string{ev.Sender().Homeserver(), e.origin}, func(server string) (*given, error) {
		return s.fetchState(ctx, caller{theirs, e.origin}, server, ev)
	})
	if err != nil {
		return nil, fmt.Errorf("nobody tells the state before %s: %w", ev.ID(), err)
	}
	return g, nil
}

// knowsNot says that a server answered, and has not what it was asked for, or will not tell. One that does not know yet
// may tell later.
func knowsNot(err error) bool {
	if isOfPart(err) {
		return false
	}
	status := peer.StatusOf(err)
	return status == http.StatusBadRequest || status == http.StatusForbidden || status == http.StatusNotFound
}

// takeGiven takes an event with what others say of the state before it. Its auth events need not be here, nor among
// those of that state: what it cites may have lost against something else since.
func (s *Server) takeGiven(ctx context.Context, e *errand, ev *event.Event, g *given) error {
	err := s.take(ctx, e.origin, e.room, ev, g)
	if n := (*needs)(nil); !errors.As(err, &n) || len(n.auth) == 0 {
		return err
	}
	_, err = fromSomebody(ctx, s, e.room, []string{e.origin}, func(server string) (struct{}, error) {
		chain, err := s.fetchAuth(ctx, server, e.room, ev)
		if err != nil {
			return struct{}{}, fmt.Errorf("fetch the auth events of %s: %w", ev.ID(), err)
		}
		if err := s.addOutside(ctx, caller{theirs, e.origin}, e.room, chain); err != nil {
			return struct{}{}, err
		}
		return struct{}{}, s.take(ctx, e.origin, e.room, ev, g)
	})
	return err
}

// given is what another server says of the events around one: verified, and judged again here.
type given struct {
	state    []*event.Event // the state before the event; nil: not asked for
	hasState bool
	chain    []*event.Event // auth events, of the state too
	told     []told         // the state before the event, when all of it has been stored
	guess    error          // why nobody tells the state before the event: it is made of what is known
	past     bool           // the event is of the past

	// Of the answer to a join:
	partial bool              // members are left out
	began   bool              // and the room was entered with it
	members []json.RawMessage // not looked at yet
	servers []string          // in the room
	server  string            // that gave it
}

// told is a state that another server tells: before the event in question, or before one that this builds on.
type told struct {
	pieces []piece
	of     id.EventID // the prev event that it is the state before, "" for the event itself
}

// isOfPart says that a guess was good enough for a partial room, and the room is whole now.
func (g *given) isOfPart(r *room) bool { return g.guess == errPartial && r.partial == nil }
