package roomserver

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Limits on what one event may make us ask for, and on what of an answer we look at.
const (
	fetchTime       = 30 * time.Second
	stateTime       = 2 * time.Minute // a large room's state takes its server long to gather
	errandTime      = 4 * time.Minute // for all that one event stands on
	missingAtOnce   = 50
	maxStates       = 4      // states before the event and before those that are missing below it
	maxAuthChain    = 10_000 // events
	stateByIDsLimit = 200    // more missing state events than this are asked for all at once
	spareState      = 20_000 // events that a state may have beyond four times the pieces that we know
	largeStates     = 2      // whole states that are on the way at a time, for all rooms
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

// ofRoom keeps what is an event of the room, and of an answer that is longer than it may be only the beginning;
// signatures are not looked at.
func ofRoom(version *event.Version, roomID id.RoomID, raw []json.RawMessage, limit int) []*event.Event {
	return ofRoomBy(event.Parse, version, roomID, raw, limit)
}

func ofRoomBy(parse func(*event.Version, []byte) (*event.Event, error), version *event.Version, roomID id.RoomID, raw []json.RawMessage, limit int) []*event.Event {
	raw = raw[:min(len(raw), limit)]
	events := make([]*event.Event, 0, len(raw))
	for _, text := range raw {
		if ev, err := parse(version, text); err == nil && ev.RoomID() == roomID {
			events = append(events, ev)
		}
	}
	return events
}

// parsed keeps what is an event of the room with good signatures.
func (s *Server) parsed(ctx context.Context, version *event.Version, roomID id.RoomID, raw []json.RawMessage) []*event.Event {
	return s.verified(ctx, ofRoom(version, roomID, raw, len(raw)), nil)
}

// How many servers are asked for what an event stands on: the one that sent it, then others of the room.
const helpers = 3

// fromSomebody asks servers of a room in turn until one helps: the likely ones first, then the others. The error
// is that of the last likely one, mostly the server that sent the event, which should have what it built on.
func fromSomebody[T any](ctx context.Context, s *Server, roomID id.RoomID, likely []string, ask func(server string) (T, error)) (answer T, failed error) {
	asked := map[string]bool{s.ServerName: true}
	for i, server := range likely {
		if asked[server] || i < len(likely)-1 && s.backedOff(server) {
			continue
		}
		asked[server] = true
		if answer, failed = ask(server); failed == nil {
			return answer, nil
		}
	}
	others, err := s.otherServers(ctx, roomID)
	if err != nil {
		return answer, cmp.Or(failed, err)
	}
	for _, server := range others {
		if asked[server] {
			continue
		}
		if len(asked) > helpers || s.backedOff(server) {
			break // they come last
		}
		asked[server] = true
		if other, err := ask(server); err == nil {
			return other, nil
		}
	}
	return answer, cmp.Or(failed, errNothingCame)
}

// below keeps of what a server gave us the events that hang below some others and whose signatures hold, newest
// first. Signatures cost the most: those of what does not belong there are not looked at.
func (s *Server) below(ctx context.Context, ids []id.EventID, events []*event.Event, isHere func(id.EventID) bool) []*event.Event {
	return belowGap(ids, s.verified(ctx, belowGap(ids, events, isHere), nil), isHere)
}

// judged is room.judged in a turn of its own.
func (s *Server) judged(ctx context.Context, roomID id.RoomID, ids []id.EventID) (is func(id.EventID) bool, err error) {
	err = s.in(ctx, roomID, func(r *room) error {
		is, err = r.judged(ids)
		return err
	})
	return is, err
}

// fetchAuth asks for what an event cites and we do not have: for a few events one by one, and for what these cite, since
// the rest of a chain is mostly here; else for the whole auth chain, which may be thousands.
func (s *Server) fetchAuth(ctx context.Context, origin string, roomID id.RoomID, ev *event.Event) ([]*event.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	few, ok, err := s.fetchCited(ctx, origin, ev)
	if err != nil || ok {
		return few, err
	}
	raw, err := s.Peer.GetEventAuth(ctx, origin, roomID, ev.ID())
	if err != nil {
		return nil, err
	}
	chain := inChain(ev.AuthEvents(), ofRoom(ev.Version(), roomID, raw, maxAuthChain))
	return s.verified(ctx, chain, nil), nil
}

// How many events that are missing of an auth chain are asked for one by one, and how far down.
const (
	fewCited  = 3
	citedDeep = 3
)

// fetchCited asks for what is missing of an event's auth chain one by one; ok is false when that is more than a few
// events, or one of them does not come.
//
// spec: s2s/getEvent
func (s *Server) fetchCited(ctx context.Context, server string, ev *event.Event) (chain []*event.Event, ok bool, err error) {
	room, err := s.rowOf(ctx, ev.RoomID())
	if err != nil {
		return nil, false, err
	}
	asked := map[id.EventID]bool{}
	cited := ev.AuthEvents()
	for range citedDeep {
		have, err := s.standings(ctx, room, cited)
		if err != nil {
			return nil, false, err
		}
		var missing []id.EventID
		for _, v := range cited {
			if _, here := have[v]; !here && !asked[v] {
				asked[v] = true
				missing = append(missing, v)
			}
		}
		if len(missing) == 0 || len(missing) > fewCited {
			return chain, len(missing) == 0, nil
		}
		got := s.fetchEvents(ctx, server, ev.Version(), ev.RoomID(), missing)
		got = slices.DeleteFunc(got, func(e *event.Event) bool { return !slices.Contains(missing, e.ID()) })
		if len(got) < len(missing) {
			return nil, false, nil
		}
		cited = nil
		for _, e := range got {
			chain, cited = append(chain, e), append(cited, e.AuthEvents()...)
		}
	}
	return nil, false, nil
}

// inChain keeps the events that others cite, and those that these cite, and so on.
func inChain(ids []id.EventID, events []*event.Event) (chain []*event.Event) {
	byID := make(map[id.EventID]*event.Event, len(events))
	for _, ev := range events {
		byID[ev.ID()] = ev
	}
	for walk := slices.Clone(ids); len(walk) > 0; {
		ev := byID[walk[0]]
		delete(byID, walk[0])
		walk = walk[1:]
		if ev != nil {
			chain = append(chain, ev)
			walk = append(walk, ev.AuthEvents()...)
		}
	}
	return chain
}

// fetchState asks for the state before an event: by IDs first, and for the events that we do not have. A server that
// does not know the event, which we may be among the first to have, can know what it builds on: then it is asked for the
// states there. All of it is stored before the event is judged by it, in turns of the room of their own.
//
// spec: s2s/getRoomStateIds, s2s/getRoomState
func (s *Server) fetchState(ctx context.Context, who caller, server string, ev *event.Event) (*given, error) {
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	room, err := s.rowOf(ctx, ev.RoomID())
	if err != nil {
		return nil, err
	}
	ids, err := s.Peer.GetStateIDs(ctx, server, ev.RoomID(), ev.ID())
	if knowsNot(err) {
		list, below := s.fetchStatesBelow(ctx, who, server, room, ev)
		if below == nil {
			return &given{hasState: true, told: list}, nil
		}
		s.Log.Debug("states at the prev events failed", zap.String("server", server), zap.String("event", string(ev.ID())), zap.Error(below))
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for the state: %w", server, err)
	}
	pieces, err := s.fetchPieces(ctx, who, server, room, ev.Version(), ev.ID(), ids)
	if err != nil {
		return nil, err
	}
	return &given{hasState: true, told: []told{{pieces: pieces}}}, nil
}

// fetchStatesBelow asks for those prev events of an event that are not here, and for the states before them.
func (s *Server) fetchStatesBelow(ctx context.Context, who caller, server string, room storage.Room, ev *event.Event) (list []told, err error) {
	isHere, err := s.judged(ctx, ev.RoomID(), ev.PrevEvents())
	if err != nil {
		return nil, err
	}
	missing := slices.DeleteFunc(slices.Clone(ev.PrevEvents()), isHere)
	if len(missing) == 0 || len(missing) > fewBuiltOn {
		return nil, fmt.Errorf("%d prev events are missing", len(missing))
	}
	for _, v := range missing {
		ids, err := s.Peer.GetStateIDs(ctx, server, ev.RoomID(), v)
		if err != nil {
			return nil, err
		}
		pieces, err := s.fetchPieces(ctx, who, server, room, ev.Version(), v, ids)
		if err != nil {
			return nil, err
		}
		list = append(list, told{pieces, v})
	}
	have, err := s.standings(ctx, room, missing)
	if err != nil {
		return nil, err
	}
	missing = slices.DeleteFunc(missing, func(v id.EventID) bool { _, here := have[v]; return here })
	got := s.fetchEvents(ctx, server, ev.Version(), ev.RoomID(), missing)
	if len(got) < len(missing) {
		return nil, errNothingCame
	}
	return list, s.addOutside(ctx, who, ev.RoomID(), got)
}

// fetchPieces has all of a state stored that a server names.
func (s *Server) fetchPieces(ctx context.Context, who caller, server string, room storage.Room, version *event.Version, at id.EventID, ids *peer.StateIDs) ([]piece, error) {
	if bound := spareState + 4*room.NextSlot; int64(len(ids.PDUs)) > bound || int64(len(ids.AuthChain)) > bound {
		return nil, falseState(server, "it names more events than the room can have")
	}
	named := append(slices.Clone(ids.PDUs), ids.AuthChain...)
	have, err := s.standings(ctx, room, named)
	if err != nil {
		return nil, err
	}
	missing := map[id.EventID]bool{}
	for _, v := range named {
		if _, ok := have[v]; !ok {
			missing[v] = true
		}
	}
	if len(missing) > 0 {
		got, err := s.fetchNamed(ctx, server, version, id.RoomID(room.ID), at, missing, len(named))
		if err != nil {
			return nil, err
		}
		if err := s.addOutside(ctx, who, id.RoomID(room.ID), got); err != nil {
			return nil, err
		}
		if have, err = s.standings(ctx, room, ids.PDUs); err != nil {
			return nil, err
		}
	}
	return piecesOf(server, ids.PDUs, have)
}

func falseState(server, why string) error {
	return chancery.Errorf(502, chancery.CodeUnknown, "%s tells a state that cannot be: %s", server, why)
}

// fetchNamed asks for events of a state, for a few one by one and else for all of it at once. What was not asked
// for is passed over.
func (s *Server) fetchNamed(ctx context.Context, server string, version *event.Version, roomID id.RoomID, at id.EventID, missing map[id.EventID]bool, named int) ([]*event.Event, error) {
	if len(missing) <= stateByIDsLimit {
		got := s.fetchEvents(ctx, server, version, roomID, slices.Sorted(maps.Keys(missing)))
		if got = slices.DeleteFunc(got, func(ev *event.Event) bool { return !missing[ev.ID()] }); len(got) == len(missing) {
			return got, nil
		}
	}
	select {
	case s.states <- struct{}{}:
		defer func() { <-s.states }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	whole, err := s.Peer.GetState(ctx, server, roomID, at)
	if err != nil {
		return nil, fmt.Errorf("ask %s for the whole state: %w", server, err)
	}
	if len(whole.PDUs)+len(whole.AuthChain) > 2*named {
		return nil, falseState(server, "it gives more events than it names")
	}
	wanted := func(ev *event.Event) bool {
		is := missing[ev.ID()]
		delete(missing, ev.ID())
		return !is
	}
	got := slices.DeleteFunc(ofRoom(version, roomID, append(whole.PDUs, whole.AuthChain...), 2*named), wanted)
	return s.verified(ctx, got, nil), nil
}

// rowOf reads a room's row.
func (s *Server) rowOf(ctx context.Context, roomID id.RoomID) (row storage.Room, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		var ok bool
		if row, ok, err = tx.Room(string(roomID)); err == nil && !ok {
			err = errUnknownRoom
		}
		return err
	})
	return row, err
}

// standings tells of some events how they stand in a room; those that it does not have are left out.
func (s *Server) standings(ctx context.Context, room storage.Room, ids []id.EventID) (map[id.EventID]storage.Bearing, error) {
	have := make(map[id.EventID]storage.Bearing, len(ids))
	for part := range slices.Chunk(ids, 5000) {
		err := s.DB.Read(ctx, func(tx storage.Tx) error {
			rows, err := tx.Bearings(texts(part))
			for _, row := range rows {
				if row.Room == room.NID {
					have[id.EventID(row.ID)] = row
				}
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return have, nil
}

func texts(ids []id.EventID) []string {
	out := make([]string, len(ids))
	for i, v := range ids {
		out[i] = string(v)
	}
	return out
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
			var raw json.RawMessage
			if s.guarded("fetch an event", func() (err error) { raw, err = s.Peer.GetEvent(ctx, origin, v); return err }) != nil {
				raw = nil
			}
			<-tokens
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
	return ofRoomBy(event.ParsePast, version, roomID, raw, limit+len(from)), nil
}
