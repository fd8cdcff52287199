package roomserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// Receive takes the PDUs of a transaction from another server. Each has its own result, nil when it was
// taken, known, or kept as rejected; one bad PDU never fails another. Where storage did not tell a room's version, so that
// its events have no IDs, the failure stands under "".
//
// spec: s2s/sendTransaction, s2s#checks-performed-on-receipt-of-a-pdu
func (s *Server) Receive(ctx context.Context, origin string, pdus []json.RawMessage) map[id.EventID]error {
	results := &pduResults{of: make(map[id.EventID]error, len(pdus))}
	byRoom := map[id.RoomID][]*event.Event{}
	versions := map[id.RoomID]*event.Version{}
	var order []id.RoomID
	for _, raw := range pdus {
		roomID := id.RoomID(gjson.GetBytes(raw, "room_id").Str)
		version, err := s.versionFor(ctx, versions, roomID, raw)
		if err != nil {
			results.set("", storageFailed(err))
		}
		if version == nil {
			continue // without the room's version the event has no ID that a result could stand under
		}
		ev, err := event.Parse(version, raw)
		if err != nil {
			s.Log.Debug("refused an event that does not parse", zap.String("origin", origin), zap.Error(err))
			continue
		}
		if _, ok := byRoom[roomID]; !ok {
			order = append(order, roomID)
		}
		byRoom[roomID] = append(byRoom[roomID], ev)
	}
	var g errgroup.Group
	g.SetLimit(4)
	for _, roomID := range order {
		g.Go(func() error {
			s.receiveGuarded(ctx, origin, roomID, byRoom[roomID], results)
			return nil
		})
	}
	g.Wait() // no function fails: each event has its own result
	return results.of
}

// versionFor gives the version of the room of a PDU, nil when we do not know the room. What is known of rooms of ours is noted.
func (s *Server) versionFor(ctx context.Context, versions map[id.RoomID]*event.Version, roomID id.RoomID, raw json.RawMessage) (*event.Version, error) {
	version, asked := versions[roomID]
	if !asked {
		var err error
		if version, err = s.versionOf(ctx, roomID); err != nil && !chancery.IsCode(err, chancery.CodeNotFound) {
			return nil, err
		}
		versions[roomID] = version
	}
	if version != nil {
		return version, nil
	}
	version, err := s.versionOfInvite(ctx, roomID, raw)
	if chancery.IsCode(err, chancery.CodeNotFound) {
		err = nil
	}
	return version, err
}

type pduResults struct {
	mu sync.Mutex // guards of; a leaf
	of map[id.EventID]error
}

func (p *pduResults) set(eventID id.EventID, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.of[eventID] = err
}

// versionOf gives the version of a room that we have.
func (s *Server) versionOf(ctx context.Context, roomID id.RoomID) (version *event.Version, err error) {
	s.mu.Lock()
	r := s.rooms[roomID]
	s.mu.Unlock()
	if r != nil {
		if v := r.known.Load(); v != nil {
			return v, nil
		}
	}
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(roomID))
		if err != nil {
			return err
		}
		if !ok {
			return errUnknownRoom
		}
		if version, ok = event.Lookup(row.Version); !ok {
			return fmt.Errorf("room %s has the unknown version %q", roomID, row.Version)
		}
		return nil
	})
	return version, err
}

// receiveGuarded turns a panic into refused events: a peer must not be able to end the process.
func (s *Server) receiveGuarded(ctx context.Context, origin string, roomID id.RoomID, events []*event.Event, results *pduResults) {
	defer func() {
		if p := recover(); p != nil {
			s.Log.Error("panic while taking events", zap.String("origin", origin), zap.String("room", string(roomID)), zap.Any("panic", p), zap.Stack("stack"))
			for _, ev := range events {
				results.set(ev.ID(), chancery.Internal(fmt.Errorf("panic: %v", p)))
			}
		}
	}()
	s.receiveInRoom(ctx, origin, roomID, events, results)
}

func (s *Server) receiveInRoom(ctx context.Context, origin string, roomID id.RoomID, events []*event.Event, results *pduResults) {
	fresh, here, err := s.unknown(ctx, origin, roomID, events)
	if err == nil && !here || chancery.IsCode(err, chancery.CodeNotFound) {
		s.receiveOutside(ctx, events, results)
		return
	}
	if err != nil {
		for _, ev := range events {
			results.set(ev.ID(), s.told(origin, ev, err))
		}
		return
	}
	for _, ev := range events {
		results.set(ev.ID(), nil) // what is known was judged when it came
	}
	good, unsure := s.verifiedOrUnsure(ctx, fresh, results)
	for _, ev := range unsure {
		if err := s.keepLate(ctx, origin, roomID, ev, false); err != nil {
			s.Log.Warn("could not keep an event for later", zap.String("event", string(ev.ID())), zap.Error(err))
		}
	}
	good = inOrder(good, func(x, y *event.Event) int { return urgency(y) - urgency(x) })
	for _, ev := range s.takeReady(ctx, origin, roomID, good, results) {
		// What it stands on may not be here: it is fetched outside the exclusion.
		results.set(ev.ID(), s.told(origin, ev, s.orLater(ctx, origin, roomID, ev, s.receiveOne(ctx, origin, roomID, ev))))
	}
}

// unknown leaves out the events that were judged before, so that what is sent again costs little, and says
// whether we are in the room. A server that its ACL bars gets an error.
//
// spec: s2s#server-access-control-lists-acls
func (s *Server) unknown(ctx context.Context, origin string, roomID id.RoomID, events []*event.Event) (fresh []*event.Event, here bool, err error) {
	err = s.inAs(ctx, caller{theirs, origin}, roomID, func(r *room) error {
		if here = r.servers[s.ServerName] > 0; !here {
			return nil
		}
		if err := r.checkACL(origin); err != nil {
			return err
		}
		judged, err := r.judged(idsOf(events))
		fresh = slices.DeleteFunc(slices.Clone(events), func(ev *event.Event) bool { return judged(ev.ID()) })
		return err
	})
	return fresh, here, err
}

// receiveOutside takes events of a room that we are not in: they can only end what is pending there.
func (s *Server) receiveOutside(ctx context.Context, events []*event.Event, results *pduResults) {
	for _, ev := range s.verified(ctx, events, results) {
		ended, err := s.endInvite(ctx, ev)
		if err == nil && !ended {
			err = chancery.Forbidden("we are not in this room")
		}
		results.set(ev.ID(), storageFailed(err))
	}
}

// isModeration says that an event protects the room: it goes ahead of what came with it.
func isModeration(ev *event.Event) bool {
	key, isState := ev.StateKey()
	switch ev.Type() {
	case "m.room.redaction":
		return true
	case "m.room.member":
		return isState && (ev.Membership() == "ban" || ev.Membership() == "leave" && key != string(ev.Sender()))
	case "m.room.power_levels", "m.room.server_acl":
		return isState
	}
	return false
}

// urgency is 1 for what goes ahead of everything else.
func urgency(ev *event.Event) int {
	if isModeration(ev) {
		return 1
	}
	return 0
}

// turnOfOthers is how many events of one server a room takes before another server that waits is served.
const turnOfOthers = 10

// takeReady takes the events that need no help and gives those that do. Events share turns of the room and
// the waits for their commits, but a turn ends early when somebody of a higher rank wants it, or another server.
// What begins with moderation goes ahead of what others sent, as far as it is that.
func (s *Server) takeReady(ctx context.Context, origin string, roomID id.RoomID, events []*event.Event, results *pduResults) (rest []*event.Event) {
	if n := slices.IndexFunc(events, func(ev *event.Event) bool { return !isModeration(ev) }); n > 0 {
		rest = s.takeReadyAs(ctx, caller{moderation, origin}, roomID, events[:n], results)
		events = events[n:]
	}
	return append(rest, s.takeReadyAs(ctx, caller{theirs, origin}, roomID, events, results)...)
}

func (s *Server) takeReadyAs(ctx context.Context, who caller, roomID id.RoomID, events []*event.Event, results *pduResults) (rest []*event.Event) {
	var unaskeds []*unasked
	var turns []taken
	for len(events) > 0 {
		t := taken{}
		t.waits, t.err = s.begin(ctx, who, roomID, func(r *room) error {
			t.errs = t.errs[:0]
			defer r.foresee(events)()
			for _, ev := range events {
				t.errs = append(t.errs, r.take(ev, nil))
				if !r.loaded || r.turn.wanted(who.rank) || len(t.errs) >= turnOfOthers && s.share.wanted(roomID, who.origin) {
					return nil // the room must be read again before the next, or another goes first
				}
			}
			return nil
		})
		if len(t.errs) == 0 { // not even begun
			for _, ev := range events {
				results.set(ev.ID(), s.told(who.origin, ev, t.err))
			}
			break
		}
		t.events, events = events[:len(t.errs)], events[len(t.errs):]
		turns = append(turns, t)
	}
	for _, t := range turns {
		// A commit that failed took what came after it in its turn with it.
		failed := cmp.Or(t.err, await(ctx, t.waits))
		for i, ev := range t.events {
			if n := (*needs)(nil); errors.As(t.errs[i], &n) {
				rest = append(rest, ev)
				continue
			}
			if u := (*unasked)(nil); errors.As(t.errs[i], &u) {
				rest, unaskeds = append(rest, ev), append(unaskeds, u)
				continue
			}
			if t.errs[i] == nil && errors.Is(failed, ErrStorage) {
				rest = append(rest, ev) // by itself: the fault need not be its own
				continue
			}
			results.set(ev.ID(), s.told(who.origin, ev, cmp.Or(t.errs[i], failed)))
		}
	}
	s.askAll(ctx, unaskeds)
	return rest
}

// taken is what one turn of a room took, before it is known to be stored.
type taken struct {
	events []*event.Event
	errs   []error
	waits  []waiter
	err    error
}

// told logs why an event was not taken.
func (s *Server) told(origin string, ev *event.Event, err error) error {
	if err != nil {
		s.Log.Info("could not take an event", zap.String("origin", origin), zap.String("room", string(ev.RoomID())),
			zap.String("event", string(ev.ID())), zap.Error(err))
	}
	return err
}

// verified checks signatures, outside any room's exclusion. What fails is dropped with its reason.
func (s *Server) verified(ctx context.Context, events []*event.Event, results *pduResults) []*event.Event {
	good, _ := s.verifiedOrUnsure(ctx, events, results)
	return good
}

// verifiedOrUnsure also gives the events of which nobody can say now whether their signatures hold, since the keys cannot
// be had.
func (s *Server) verifiedOrUnsure(ctx context.Context, events []*event.Event, results *pduResults) (good, unsure []*event.Event) {
	errs := s.verify(ctx, events)
	good = make([]*event.Event, 0, len(events))
	for i, ev := range events {
		why := "the event's signature does not hold"
		switch {
		case errs[i] == nil:
			good = append(good, ev)
			continue
		case !errors.Is(errs[i], peer.ErrBadSignature):
			unsure = append(unsure, ev)
			why = "the keys that the event is signed with cannot be had now"
		}
		if results != nil {
			results.set(ev.ID(), chancery.Forbidden("%s", why).Because(errs[i]))
		}
	}
	return good, unsure
}
