package roomserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"maunium.net/go/mautrix/id"
)

// NewEvent is an event that one of our users sends.
type NewEvent struct {
	Room     id.RoomID
	Sender   id.UserID
	Type     string
	StateKey *string
	Content  json.RawMessage
	Redacts  id.EventID
	Time     time.Time // zero: now; an application service may say when
	Once     *Once
}

// Once makes a repetition of a request find the event that the first one made.
type Once struct {
	Device   id.DeviceID
	Endpoint string // send or redact: the same ID in another one is another request
	Txn      string
}

// Sent is an event that is stored.
type Sent struct {
	ID id.EventID
}

// Send puts an event of one of our users into a room and returns when it is stored. With Once, a
// repeated transaction ID answers with the first event's ID.
//
// spec: c2s/sendMessage, c2s/setRoomStateWithKey, c2s/redactEvent
func (s *Server) Send(ctx context.Context, n NewEvent) (Sent, error) {
	if n.Type == "m.room.member" && n.StateKey != nil {
		if err := s.KnowMember(ctx, n.Room, id.UserID(*n.StateKey), n.Sender); err != nil {
			return Sent{}, err
		}
	}
	var sent Sent
	err := s.inOwn(ctx, n.Room, func(r *room) error {
		if n.Once != nil {
			if eventID, ok, err := r.usedTxn(n.Sender, *n.Once); err != nil {
				return err
			} else if ok {
				sent.ID = eventID
				_, r.leans = r.pendingID[eventID]
				return nil
			}
		}
		if n.Redacts != "" {
			if err := r.checkRedacts(n); err != nil {
				return err
			}
		}
		if n.StateKey != nil {
			if same, err := r.alreadySo(&n); err != nil {
				return err
			} else if same != nil {
				sent.ID = same.ID()
				return nil
			}
		}
		a, err := r.make(n, how{own: true, once: n.Once})
		if err != nil {
			return err
		}
		r.submit(a)
		sent.ID = a.ID()
		return nil
	})
	return sent, err
}

// alreadySo finds the state event that says what a new one of the same sender would say: state that does not
// change needs no event. Who lets a user into a restricted room is ours to name, not the client's.
//
// spec: c2s#restricted-rooms
func (r *room) alreadySo(n *NewEvent) (*Stored, error) {
	if n.Type == "m.room.member" && gjson.GetBytes(n.Content, "join_authorised_via_users_server").Exists() {
		content, err := sjson.DeleteBytes(slices.Clone(n.Content), "join_authorised_via_users_server")
		if err != nil {
			return nil, chancery.BadJSON("the content is not an object").Because(err)
		}
		n.Content = content
	}
	key := Key{n.Type, *n.StateKey}
	found, err := r.stateAt(state.Root(r.row.Root), []Key{key})
	if err != nil {
		return nil, err
	}
	now := found[key]
	if now == nil || now.Sender() != n.Sender {
		return nil, nil
	}
	content, err := event.CanonicalLenient(n.Content)
	if err != nil || !bytes.Equal(content, now.Content()) {
		return nil, nil // what is no canonical JSON is refused when it is built
	}
	return now, nil
}

// make builds an event at the end of the room, authorises it and adds it in memory.
//
// Where the room has a policy server its error may be *unasked: inOwn then asks, and has it made again.
func (r *room) make(n NewEvent, h how) (*addition, error) {
	ev, before, err := r.prepare(n)
	if err != nil {
		return nil, err
	}
	h.before = before
	return r.add(ev, h)
}

// prepare is make without adding the event; before is the state that it stands on.
func (r *room) prepare(n NewEvent) (ev *event.Event, before state.Root, err error) {
	if ev, before, err = r.begun(n); err != nil {
		return nil, 0, err
	}
	if ev == nil {
		before = state.Root(r.row.Root)
		if ev, err = r.build(n, before); err != nil {
			return nil, 0, err
		}
	}
	ev, err = r.recommended(ev)
	return ev, before, clientError(err)
}

// begun finds the event of which a policy server was asked meanwhile, if it is what is to be sent and the room
// still allows it; nil when it must be built anew.
func (r *room) begun(n NewEvent) (*event.Event, state.Root, error) {
	if r.asked == nil || !says(r.asked.ev, n) {
		return nil, 0, nil
	}
	ev := r.asked.ev
	missing := &needs{}
	prev, err := r.prevOf(ev, missing)
	if err != nil || len(missing.prev) > 0 {
		return nil, 0, err
	}
	before, err := r.resolve(rootsAfter(prev))
	if err != nil {
		return nil, 0, err
	}
	for _, root := range []state.Root{before, state.Root(r.row.Root)} {
		if err := r.allowedBy(ev, root); err != nil {
			return nil, 0, asRefusal(err)
		}
	}
	return ev, before, nil
}

// says compares an event with what is to be sent.
func says(ev *event.Event, n NewEvent) bool {
	key, isState := ev.StateKey()
	if ev.Type() != n.Type || ev.Sender() != n.Sender || isState != (n.StateKey != nil) || isState && key != *n.StateKey || ev.Redacts() != n.Redacts {
		return false
	}
	content, err := event.CanonicalLenient(n.Content)
	if err != nil {
		return false
	}
	if n.Redacts != "" && ev.Version().RedactsInContent {
		if content, err = sjson.SetBytes(content, "redacts", string(n.Redacts)); err != nil {
			return false
		}
		if content, err = event.CanonicalLenient(content); err != nil {
			return false
		}
	}
	return bytes.Equal(content, ev.Content())
}

// inOwn is in for work that sends an event of one of our users: where the room's policy server must be asked of
// it, the work is done once more with its answer.
//
// spec: s2s#asking-for-a-policy-server-signature-on-an-event
func (s *Server) inOwn(ctx context.Context, roomID id.RoomID, fn func(*room) error) error {
	s.awaitLost(ctx, roomID)
	var last *unasked
	return s.withOpinion(ctx, func() error {
		err := s.in(ctx, roomID, func(r *room) error {
			r.asked = last
			defer func() { r.asked = nil }()
			return fn(r)
		})
		if u := (*unasked)(nil); errors.As(err, &u) {
			last = u
		}
		return err
	})
}

// An event names at most this many prev events.
//
// spec: rooms/v4#event-format
const maxPrev = 20

// proto chooses the prev and auth events of an event at the end of the room.
func (r *room) proto(n NewEvent, root state.Root) (event.Proto, authState, error) {
	auths, err := r.authStateFor(root, n.Type, n.StateKey, n.Sender, n.Content)
	if err != nil {
		return event.Proto{}, auths, err
	}
	p := event.Proto{RoomID: r.id, Sender: n.Sender, Type: n.Type, StateKey: n.StateKey, Content: n.Content, Redacts: n.Redacts}
	if r.version.EventFormat == event.FormatReferences {
		p.ReferenceHashes = map[id.EventID]string{}
	}
	name := func(list []id.EventID, ev *Stored) []id.EventID {
		if p.ReferenceHashes != nil {
			p.ReferenceHashes[ev.ID()] = ev.ReferenceHash()
		}
		return append(list, ev.ID())
	}
	for k, ev := range auths.found {
		if k.Type == "m.room.create" && r.version.CreateNotInAuthEvents {
			continue
		}
		p.AuthEvents = name(p.AuthEvents, ev)
	}
	for _, e := range latest(r.exts, maxPrev) {
		p.PrevEvents = name(p.PrevEvents, e)
		p.Depth = max(p.Depth, e.Depth())
	}
	p.Depth = min(p.Depth, maxDepth-1) + 1
	return p, auths, nil
}

// Depth is a canonical JSON integer; a peer that sends the largest must not stop the room.
const maxDepth = 1<<53 - 1

// latest gives the n events that came last.
func latest(ends []*Stored, n int) []*Stored {
	if len(ends) <= n {
		return ends
	}
	return ends[len(ends)-n:]
}

func (r *room) build(n NewEvent, root state.Root) (*event.Event, error) {
	p, auths, err := r.proto(n, root)
	if err != nil {
		return nil, err
	}
	at := n.Time
	if at.IsZero() {
		at = time.Now()
	}
	ev, err := event.Build(r.version, p, r.s.ServerName, r.s.KeyID, r.s.Key, at)
	if err != nil {
		return nil, err
	}
	if err := auth.Check(ev, auths); err != nil {
		return nil, refused(err)
	}
	return ev, nil
}

// refused tells the client why the rules of the room do not allow an event.
func refused(err error) error {
	var no *auth.Rejection
	switch {
	case !errors.As(err, &no):
		return chancery.Forbidden("%s", err.Error())
	case no.Malformed:
		return chancery.InvalidParam("%s", no.Why).Because(err)
	}
	return chancery.Forbidden("%s", no.Why).Because(err)
}

// checkRedacts refuses a redaction of somebody else's event without the level for it. Other servers
// only compare the servers of the two senders; for our users we can be exact.
//
// spec: c2s#redactions
func (r *room) checkRedacts(n NewEvent) error {
	// Who is not in the room learns nothing of its events.
	self := Key{"m.room.member", string(n.Sender)}
	if found, err := r.stateAt(state.Root(r.row.Root), []Key{self}); err != nil {
		return err
	} else if ev := (authState{found}).Get(self.Type, self.StateKey); ev == nil || ev.Membership() != "join" {
		return chancery.Forbidden("you are not in this room")
	}
	found, err := r.eventsByID([]id.EventID{n.Redacts})
	if err != nil {
		return err
	}
	target, known := found[n.Redacts]
	if known && target.Sender() == n.Sender {
		return nil
	}
	pl, err := r.powerLevels(state.Root(r.row.Root))
	if err != nil {
		return err
	}
	switch {
	case pl.Of(n.Sender).AtLeast(pl.Redact()):
		return nil // also of an event that has not reached us
	case !known:
		return chancery.NotFound("there is no such event in this room")
	}
	return chancery.Forbidden("you may not redact other people's events")
}

func (r *room) powerLevels(root state.Root) (auth.PowerLevels, error) {
	found, err := r.stateAt(root, []Key{{"m.room.create", ""}, {"m.room.power_levels", ""}})
	if err != nil {
		return auth.PowerLevels{}, err
	}
	as := authState{found}
	return auth.PowerLevelsOf(as.Get("m.room.create", ""), as.Get("m.room.power_levels", "")), nil
}

// usedTxns are the transaction IDs that a device used in a room, as far back as storage keeps them.
type usedTxns struct {
	events map[usedID]id.EventID
}

type usedID struct{ endpoint, txn string }

// Hot rooms hold the transaction IDs of this many devices.
const maxTxnDevices = 200

// usedTxn finds the event of a repeated transaction ID. The first message of a device in a room
// reads what it has used before; from then on the room knows.
func (r *room) usedTxn(user id.UserID, once Once) (id.EventID, bool, error) {
	key := deviceKey{user, once.Device}
	used, ok := r.txns[key]
	if !ok {
		used = &usedTxns{events: map[usedID]id.EventID{}}
		err := r.read(func(tx storage.Tx) error {
			before, err := tx.TransactionsOf(r.row.NID, string(user), string(once.Device))
			for _, t := range before {
				used.events[usedID{t.Endpoint, t.Txn}] = id.EventID(t.EventID)
			}
			return err
		})
		if err != nil {
			return "", false, fmt.Errorf("read transaction IDs: %w", err)
		}
		if len(r.txns) >= maxTxnDevices && r.inFlight.Load() == 0 {
			clear(r.txns)
		}
		r.txns[key] = used
	}
	eventID, ok := used.events[usedID{once.Endpoint, once.Txn}]
	return eventID, ok, nil
}

func (r *room) useTxn(a *addition, once Once) *storage.Transaction {
	key := deviceKey{a.Sender(), once.Device}
	if used, ok := r.txns[key]; ok {
		used.events[usedID{once.Endpoint, once.Txn}] = a.ID()
	}
	return &storage.Transaction{Room: r.row.NID, User: string(a.Sender()), Device: string(once.Device), Endpoint: once.Endpoint, Txn: once.Txn,
		EventID: string(a.ID()), Event: a.NID, TS: time.Now().UnixMilli()}
}
