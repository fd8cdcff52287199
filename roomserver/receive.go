package roomserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// Receive takes the PDUs of a transaction from another server. Each has its own result, nil when it was
// taken, known, or kept as rejected; one bad PDU never fails another.
//
// spec: s2s/sendTransaction, s2s#checks-performed-on-receipt-of-a-pdu
func (s *Server) Receive(ctx context.Context, origin string, pdus []json.RawMessage) map[id.EventID]error {
	results := &pduResults{of: make(map[id.EventID]error, len(pdus))}
	byRoom := map[id.RoomID][]*event.Event{}
	versions := map[id.RoomID]*event.Version{}
	var order []id.RoomID
	for _, raw := range pdus {
		roomID := id.RoomID(gjson.GetBytes(raw, "room_id").Str)
		version, asked := versions[roomID]
		if !asked {
			var err error
			if version, err = s.versionOf(ctx, roomID); err == nil || chancery.IsCode(err, chancery.CodeNotFound) {
				versions[roomID] = version
			}
		}
		if version == nil {
			version, _ = s.versionOfInvite(ctx, roomID, raw)
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
	good := inOrder(s.verified(ctx, fresh, results), func(x, y *event.Event) int { return urgency(y) - urgency(x) })
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
		results.set(ev.ID(), err)
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
	errs := s.verify(ctx, events)
	good := make([]*event.Event, 0, len(events))
	for i, ev := range events {
		if errs[i] == nil {
			good = append(good, ev)
		} else if results != nil {
			results.set(ev.ID(), chancery.Forbidden("the event's signature does not hold").Because(errs[i]))
		}
	}
	return good
}

// needs says what must be fetched before an event can be judged.
type needs struct {
	prev, auth []id.EventID
	partial    bool // the room is: it takes an event without the state before it
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
	if len(n.prev) == 0 && len(n.auth) == 0 {
		return err // a part of the state refuses it: the whole may not
	}
	// Not one for all servers: who answers slowly must not hold up the others that have the event.
	return s.fills.once(ctx, origin+" "+string(ev.ID()), func() error {
		return s.receiveWithHelp(ctx, &errand{origin: origin, room: roomID}, ev, len(n.prev) > 0)
	})
}

// receiveWithHelp asks for the events between what we have and the event, if there are any, and takes them before it.
func (s *Server) receiveWithHelp(ctx context.Context, e *errand, ev *event.Event, between bool) error {
	ctx, cancel := context.WithTimeout(ctx, errandTime)
	defer cancel()
	if !between {
		return s.takeWithState(ctx, e, ev)
	}
	missing, err := fromSomebody(ctx, s, e.room, []string{e.origin}, func(server string) ([]*event.Event, error) {
		return s.fetchMissing(ctx, server, e.room, ev)
	})
	if err != nil {
		s.Log.Debug("get_missing_events failed", zap.String("origin", e.origin), zap.Error(err))
	}
	for _, m := range missing {
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
	if e := (*peer.Error)(nil); errors.As(err, &e) && e.Code == codePartial {
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
	pieces   []piece        // the state before the event, when all of it has been stored
	guess    error          // why nobody tells the state before the event: it is made of what is known
	past     bool           // the event is of the past

	// Of the answer to a join:
	partial bool              // members are left out
	began   bool              // and the room was entered with it
	members []json.RawMessage // not looked at yet
	servers []string          // in the room
	server  string            // that gave it
}

// isOfPart says that a guess was good enough for a partial room, and the room is whole now.
func (g *given) isOfPart(r *room) bool { return g.guess == errPartial && r.partial == nil }

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
	n.partial = r.partial != nil
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
	h.missing, h.guessed = n.prev, len(n.prev) > 0 && g.guess != nil
	if h.before, err = r.rootBefore(ev, prev, auths, n, g); err != nil {
		return fmt.Errorf("find the state before %s: %w", ev.ID(), err)
	}
	if h.status, err = r.judge(ev, h.before, auths); err != nil {
		return err
	}
	if isKnown && before.Status == storage.Rejected {
		h.status = storage.Rejected // by its own auth events, and for good
	}
	if h.status == storage.Rejected && r.refusedByPart(ev, auths) {
		return n
	}
	if h.status == storage.Rejected && len(n.prev) > 0 && g.guess != nil {
		return fmt.Errorf("judge %s by a state that is not known: %w", ev.ID(), g.guess) // another time it may be
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
	case g.pieces != nil:
		return r.rootOfPieces(g.pieces)
	}
	return r.rootOf(g.state)
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
		slot, isNew, err := r.takeSlot(Key{a.Type(), key})
		if err != nil {
			return 0, err
		}
		if isNew {
			r.newSlots = append(r.newSlots, storage.Slot{Slot: slot, Type: a.Type(), StateKey: key})
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

// judge applies the checks on receipt of a PDU: by the event's own auth events and by the state before
// it, failing which it is rejected; by the room's present state, failing which it fails softly.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 4, 5, 6
func (r *room) judge(ev *event.Event, before state.Root, auths []*Stored) (storage.EventStatus, error) {
	status, err := r.judgePast(ev, before, auths)
	if err != nil || status == storage.Rejected || r.partial != nil { // a partial state refuses nobody softly, spec: msc3902
		return status, err
	}
	if err := r.allowedBy(ev, state.Root(r.row.Root)); err != nil {
		if !isRejection(err) {
			return 0, err
		}
		return r.softFailure(ev, err), nil
	}
	return storage.Accepted, nil
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

// passesOwnAuth judges an event by its own auth events.
func (r *room) passesOwnAuth(ev *event.Event, auths []*Stored) error {
	events := make([]*event.Event, 0, len(auths)+1)
	rejected := map[id.EventID]bool{}
	for _, a := range auths {
		events = append(events, a.Event)
		rejected[a.ID()] = a.Status == storage.Rejected
	}
	create, err := r.createEvent()
	if err != nil {
		return err
	}
	if err := auth.CheckAuthEvents(ev, events, create, func(e *event.Event) bool { return rejected[e.ID()] }); err != nil {
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
