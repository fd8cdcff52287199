package roomserver

import (
	"context"
	"slices"

	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// fetchBetween gives the events between what we have and ev, oldest first: those that are kept here, and those that others
// give. What is missing then, where that is not simply more than one answer holds, is asked for by its ID.
//
// spec: s2s#backfilling-and-retrieving-missing-events, s2s#retrieving-events
func (s *Server) fetchBetween(ctx context.Context, e *errand, ev *event.Event) []*event.Event {
	kept, open, err := s.keptBelow(ctx, e.room, ev)
	if err != nil {
		s.Log.Warn("could not read what is kept for later", zap.String("room", string(e.room)), zap.Error(err))
		kept, open = nil, []*event.Event{ev}
	}
	list := append(kept, ev)
	if len(open) > 0 {
		came, err := fromSomebody(ctx, s, e.room, []string{e.origin}, func(server string) (between, error) {
			return s.fetchMissing(ctx, server, e.room, open)
		})
		if err != nil {
			s.Log.Debug("get_missing_events failed", zap.String("origin", e.origin), zap.Error(err))
		}
		list = append(list, came.events...)
		if !came.past && len(came.events) < missingAtOnce {
			list = append(list, s.fetchPrev(ctx, e, list)...)
		}
	}
	list = inOrder(list, func(*event.Event, *event.Event) int { return 0 })
	return slices.DeleteFunc(list, func(m *event.Event) bool { return m.ID() == ev.ID() })
}

// keptBelow gives the events below one that wait here to be judged and whose signatures hold, and those of them and of
// itself of which something is missing that is not here at all.
func (s *Server) keptBelow(ctx context.Context, roomID id.RoomID, ev *event.Event) (kept, open []*event.Event, err error) {
	room, err := s.rowOf(ctx, roomID)
	if err != nil {
		return nil, nil, err
	}
	seen := map[id.EventID]bool{ev.ID(): true}
	for level := []*event.Event{ev}; len(level) > 0 && len(kept) <= maxLateHere; {
		prev := prevOfAll(level)
		isHere, err := s.judged(ctx, roomID, prev)
		if err != nil {
			return nil, nil, err
		}
		prev = slices.DeleteFunc(prev, isHere)
		var rows []storage.Unjudged
		if err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			rows, err = tx.UnjudgedAmong(room.NID, texts(prev))
			return err
		}); err != nil {
			return nil, nil, err
		}
		var waiting []*event.Event
		for _, u := range rows {
			if m, err := event.ParseStored(ev.Version(), id.EventID(u.ID), u.JSON); err == nil {
				waiting = append(waiting, m)
			}
		}
		waits := make(map[id.EventID]bool, len(waiting))
		var next []*event.Event
		for _, m := range s.verified(ctx, waiting, nil) { // some wait because their keys could not be had
			waits[m.ID()] = true
			if !seen[m.ID()] {
				seen[m.ID()] = true
				next = append(next, m)
			}
		}
		for _, m := range level {
			if slices.ContainsFunc(m.PrevEvents(), func(v id.EventID) bool { return !isHere(v) && !waits[v] }) {
				open = append(open, m)
			}
		}
		kept, level = append(kept, next...), next
	}
	return kept, open, nil
}

// between is what a server gives of the events between others and what we have.
type between struct {
	events []*event.Event
	past   bool // what is missing came, and is older than all that we have
}

// fetchMissing asks for the events between what we have and some others.
func (s *Server) fetchMissing(ctx context.Context, origin string, roomID id.RoomID, above []*event.Event) (between, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	var have []id.EventID
	if err := s.in(ctx, roomID, func(r *room) error {
		for _, e := range latest(r.exts, maxPrev) {
			have = append(have, e.ID())
		}
		return nil
	}); err != nil {
		return between{}, err
	}
	raw, err := s.Peer.GetMissingEvents(ctx, origin, roomID, peer.MissingEvents{Earliest: have, Latest: idsOf(above), Limit: missingAtOnce})
	if err != nil {
		return between{}, err
	}
	given := ofRoom(above[0].Version(), roomID, raw, missingAtOnce)
	isHere, err := s.judged(ctx, roomID, idsOf(given)) // a server that does not know where we end goes on to the room's beginning
	if err != nil {
		return between{}, err
	}
	came := s.below(ctx, prevOfAll(above), given, isHere)
	events, err := s.notPast(ctx, roomID, came)
	if err == nil && len(came) == 0 {
		err = errNothingCame
	}
	return between{events, len(came) > 0 && len(events) == 0}, err
}

// prevOfAll are those of the events on which some others build directly.
func prevOfAll(events []*event.Event) (ids []id.EventID) {
	for _, ev := range events {
		ids = append(ids, ev.PrevEvents()...)
	}
	return ids
}

// notPast leaves out what is older than our first event, by its sender's word: that is no news, and comes with the past.
func (s *Server) notPast(ctx context.Context, roomID id.RoomID, events []*event.Event) (news []*event.Event, err error) {
	err = s.in(ctx, roomID, func(r *room) error {
		floor, ok, err := r.firstDepth()
		news = slices.DeleteFunc(slices.Clone(events), func(e *event.Event) bool { return ok && e.Depth() < floor })
		return err
	})
	return news, err
}

// How many missing prev events are asked for one by one.
const fewBuiltOn = 3

// fetchPrev asks for what some events build on and what neither is among them nor here, if it is little.
func (s *Server) fetchPrev(ctx context.Context, e *errand, list []*event.Event) []*event.Event {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	var prev []id.EventID
	for _, m := range list {
		for _, v := range m.PrevEvents() {
			if !slices.Contains(prev, v) && !slices.ContainsFunc(list, func(m *event.Event) bool { return m.ID() == v }) {
				prev = append(prev, v)
			}
		}
	}
	isHere, err := s.judged(ctx, e.room, prev)
	if err != nil {
		return nil
	}
	missing := slices.DeleteFunc(prev, isHere)
	if len(missing) > fewBuiltOn {
		return nil
	}
	var came []*event.Event
	if len(missing) > 0 {
		_, err := fromSomebody(ctx, s, e.room, []string{e.origin}, func(server string) (struct{}, error) {
			for _, m := range s.fetchEvents(ctx, server, list[0].Version(), e.room, missing) {
				if i := slices.Index(missing, m.ID()); i >= 0 {
					missing, came = slices.Delete(missing, i, i+1), append(came, m)
				}
			}
			if len(missing) > 0 {
				return struct{}{}, errNothingCame
			}
			return struct{}{}, nil
		})
		if err != nil {
			s.Log.Debug("prev events failed", zap.String("origin", e.origin), zap.Error(err))
		}
	}
	news, err := s.notPast(ctx, e.room, came)
	if err != nil {
		return nil
	}
	return news
}
