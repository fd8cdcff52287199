package roomserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Limits on what one event may make us ask for.
const (
	fetchTime       = 30 * time.Second
	stateTime       = 2 * time.Minute // a large room's state takes its server long to gather
	missingAtOnce   = 50
	stateByIDsLimit = 200 // more missing state events than this are asked for all at once
)

// verify checks the signatures that events must carry; each has its own result.
//
// spec: s2s#validating-hashes-and-signatures-on-received-events
func (s *Server) verify(ctx context.Context, events []*event.Event) []error {
	var things []peer.SignedThing
	var owner []int
	for i, ev := range events {
		signed := ev.SignedBytes()
		signatures := ev.Signatures()
		for _, server := range ev.NeedsSignaturesOf() {
			things = append(things, peer.SignedThing{Server: server, Payload: signed, Signatures: signatures[server],
				At: time.UnixMilli(ev.OriginServerTS()), EnforceValidity: ev.Version().EnforceKeyValidity})
			owner = append(owner, i)
		}
	}
	errs := make([]error, len(events))
	for i, err := range s.Keys.VerifyEvents(ctx, things) {
		if err != nil && errs[owner[i]] == nil {
			errs[owner[i]] = err
		}
	}
	return errs
}

// ofRoom keeps what is an event of the room; signatures are not looked at.
func ofRoom(version *event.Version, roomID id.RoomID, raw []json.RawMessage) []*event.Event {
	events := make([]*event.Event, 0, len(raw))
	for _, text := range raw {
		if ev, err := event.Parse(version, text); err == nil && ev.RoomID() == roomID {
			events = append(events, ev)
		}
	}
	return events
}

// parsed keeps what is an event of the room with good signatures.
func (s *Server) parsed(ctx context.Context, version *event.Version, roomID id.RoomID, raw []json.RawMessage) []*event.Event {
	return s.verified(ctx, ofRoom(version, roomID, raw), nil)
}

// How many servers are asked for what an event stands on: the one that sent it, then others of the room.
const helpers = 3

// fromSomebody asks servers of a room in turn until one helps: first the one that sent the event. The error is
// that one's, which is the likeliest to have what it built on.
func fromSomebody[T any](ctx context.Context, s *Server, origin string, roomID id.RoomID, ask func(server string) (T, error)) (T, error) {
	answer, failed := ask(origin)
	if failed == nil {
		return answer, nil
	}
	others, err := s.otherServers(ctx, roomID)
	if err != nil {
		return answer, err
	}
	others = slices.DeleteFunc(others, func(server string) bool { return server == origin })
	for _, server := range others[:min(len(others), helpers-1)] {
		if s.backedOff(server) {
			break // they come last
		}
		if other, err := ask(server); err == nil {
			return other, nil
		}
	}
	return answer, failed
}

// fetchMissing asks for the events between what we have and ev, and gives them oldest first.
func (s *Server) fetchMissing(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event) ([]*event.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	var have []id.EventID
	if err := s.in(ctx, roomID, func(r *room) error {
		for _, e := range latest(r.exts, maxPrev) {
			have = append(have, e.ID())
		}
		return nil
	}); err != nil {
		return nil, err
	}
	raw, err := s.Peer.GetMissingEvents(ctx, origin, roomID, peer.MissingEvents{Earliest: have, Latest: []id.EventID{ev.ID()}, Limit: missingAtOnce})
	if err != nil {
		return nil, err
	}
	events := s.parsed(ctx, ev.Version(), roomID, raw)
	var newestFirst []*event.Event
	if err := s.in(ctx, roomID, func(r *room) error {
		// A server that does not know where we end goes on to the room's beginning.
		isHere, err := r.judged(idsOf(events))
		if err == nil {
			newestFirst = belowGap(ev.PrevEvents(), events, isHere)
		}
		// What is older than all we have, by its sender's word, is no news: it comes with the past.
		floor, ok, lowErr := r.lowestDepth()
		if err = cmp.Or(err, lowErr); err == nil && ok {
			newestFirst = slices.DeleteFunc(newestFirst, func(e *event.Event) bool { return e.Depth() < floor })
		}
		return err
	}); err != nil {
		return nil, err
	}
	newestFirst = newestFirst[:min(len(newestFirst), missingAtOnce)]
	if len(newestFirst) == 0 {
		return nil, errNothingCame
	}
	oldestFirst := make([]*event.Event, 0, len(newestFirst))
	for i := len(newestFirst) - 1; i >= 0; i-- {
		oldestFirst = append(oldestFirst, newestFirst[i])
	}
	return oldestFirst, nil
}

// fetchAuth asks for the auth chain of an event.
func (s *Server) fetchAuth(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event) ([]*event.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	raw, err := s.Peer.GetEventAuth(ctx, origin, roomID, ev.ID())
	if err != nil {
		return nil, err
	}
	return s.parsed(ctx, ev.Version(), roomID, raw), nil
}

// fetchState asks for the state before an event: by IDs first, and for the events that we do not have.
//
// spec: s2s/getRoomStateIds, s2s/getRoomState
func (s *Server) fetchState(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event) (*given, error) {
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	ids, err := s.Peer.GetStateIDs(ctx, origin, roomID, ev.ID())
	if err != nil {
		return nil, fmt.Errorf("ask %s for the state: %w", origin, err)
	}
	stateIDs, authIDs := ids.PDUs, ids.AuthChain
	have, err := s.haveEvents(ctx, roomID, append(append([]id.EventID{}, stateIDs...), authIDs...))
	if err != nil {
		return nil, err
	}
	var missing []id.EventID
	for _, list := range [][]id.EventID{stateIDs, authIDs} {
		for _, v := range list {
			if have[v] == nil {
				missing = append(missing, v)
			}
		}
	}
	got := map[id.EventID]*event.Event{}
	if len(missing) <= stateByIDsLimit {
		for _, e := range s.fetchEvents(ctx, origin, ev.Version(), roomID, missing) {
			got[e.ID()] = e
		}
	}
	if len(got) < len(missing) {
		whole, err := s.Peer.GetState(ctx, origin, roomID, ev.ID())
		if err != nil {
			return nil, fmt.Errorf("ask %s for the whole state: %w", origin, err)
		}
		for _, e := range s.parsed(ctx, ev.Version(), roomID, append(whole.PDUs, whole.AuthChain...)) {
			got[e.ID()] = e
		}
	}
	g := &given{hasState: true}
	for _, v := range stateIDs {
		if e := got[v]; e != nil {
			g.state = append(g.state, e)
		} else if h := have[v]; h != nil {
			g.state = append(g.state, h.Event)
		} else {
			return nil, chancery.Errorf(502, chancery.CodeUnknown, "%s names a state event that it does not give", origin)
		}
	}
	for _, v := range authIDs {
		if e := got[v]; e != nil {
			g.chain = append(g.chain, e)
		} else if have[v] == nil { // a state without some of its events would be another state, for good
			return nil, chancery.Errorf(502, chancery.CodeUnknown, "%s names an auth event that it does not give", origin)
		}
	}
	return g, nil
}

func (s *Server) haveEvents(ctx context.Context, roomID id.RoomID, ids []id.EventID) (have map[id.EventID]*Stored, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(roomID))
		if err != nil || !ok {
			have = map[id.EventID]*Stored{}
			return err
		}
		have, err = s.Reader.ByID(tx, row, ids)
		return err
	})
	return have, err
}

// fetchEvents asks for single events, a few at a time; those that do not come are left out.
func (s *Server) fetchEvents(ctx context.Context, origin string, version *event.Version, roomID id.RoomID, ids []id.EventID) []*event.Event {
	answers := make(chan json.RawMessage)
	tokens := make(chan struct{}, 8)
	for _, v := range ids {
		go func() {
			tokens <- struct{}{}
			raw, err := s.Peer.GetEvent(ctx, origin, v)
			<-tokens
			if err != nil {
				raw = nil
			}
			answers <- raw
		}()
	}
	var raws []json.RawMessage
	for range ids {
		if raw := <-answers; raw != nil {
			raws = append(raws, raw)
		}
	}
	return s.parsed(ctx, version, roomID, raws)
}

func (s *Server) askBackfill(ctx context.Context, server string, roomID id.RoomID, from []id.EventID, limit int) ([]*event.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, backfillTime)
	defer cancel()
	version, err := s.versionOf(ctx, roomID)
	if err != nil {
		return nil, err
	}
	raw, err := s.Peer.Backfill(ctx, server, roomID, limit, from)
	if err != nil {
		return nil, err
	}
	return ofRoom(version, roomID, raw), nil
}
