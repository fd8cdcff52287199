package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// addition is one event on its way into storage, with all that its transaction writes.
type addition struct {
	*Stored
	awaited       bool
	waiting       []int64      // accepted events that wait for what is missing, when this one is not accepted itself
	builtOn       []id.EventID // what it builds on, beneath what was not accepted too
	own           bool         // made here this moment
	left          bool         // the last of our users left a partial room
	restated      bool         // judged again, with its true state
	partial       *storage.PartialEvent
	known         bool // an outlier, or a soft-failed event: it has a row already
	notify        bool
	auth          []int64 // numbers of its auth events, of state events only
	missing       []id.EventID
	places        []state.NewPlace
	slots         []storage.Slot
	nodes         []state.NewNode
	loose         int64   // how many of them may be unused
	moves         *moves  // of the room's current state, nil when it stays
	gained        []int64 // extremities
	lost          []int64
	txn           *storage.Transaction
	relation      *storage.Relation
	redacts       *redaction
	set           *serverSet
	facts         []storage.Fact
	notifications []storage.Notification
	room          storage.Room           // as it is after the event
	moved         bool                   // the room's row changed
	first         bool                   // the room is new
	also          func(storage.Tx) error // what belongs to it and is not the room's
}

type redaction struct {
	target int64
	by     id.EventID
	text   []byte
}

type serverSet struct {
	nid     int64
	servers []string
}

// additions go into storage together or not at all.
type additions struct {
	list    []*addition
	changed []int64 // events whose rows are others now
}

// how says what is known of an event that is to be added.
type how struct {
	before  state.Root
	status  storage.EventStatus
	own     bool // sent by one of our users now: the outbox sends it on
	once    *Once
	missing []id.EventID // prev events that are not here
	row     *Stored      // it is in storage already, without a place
	auth    []int64      // numbers of its auth events, when the caller knows them
	prev    []*Stored    // those that are, when the caller knows them
	// awaited: events here wait for this one. referenced: an accepted one does, so it is no open end.
	awaited, referenced bool
	waiting             []int64 // the accepted ones
	replace             bool    // it begins the room anew: what was here before is no longer its end
	guessed             bool    // nobody tells the state before it
	history             *int64  // its place, for what is filled in below the newest
}

// distrust has the room read again after an error: memory has part of what will never be stored.
func (r *room) distrust(err *error) {
	if *err != nil {
		r.loaded = false
	}
}

// add puts an event at the end of the room, in memory, and says what must be written. The caller
// has authorised it. Everything here happens under the room's exclusion.
func (r *room) add(ev *event.Event, h how) (added *addition, err error) {
	stateKey, isState := ev.StateKey()
	hasSlot := isState && h.status != storage.Rejected
	if hasSlot { // first: nothing has been changed yet
		if _, err := r.slotOrPlace(Key{ev.Type(), stateKey}); err != nil {
			return nil, err
		}
	}
	defer r.distrust(&err)
	a := &addition{Stored: &Stored{Event: ev, Room: r.row.NID, Before: h.before, After: h.before, Status: h.status}, missing: h.missing, awaited: h.awaited, own: h.own}
	if h.row != nil {
		a.NID, a.known = h.row.NID, true
		if h.row.RedactedBy != "" { // whoever brings it again need not know
			a.Event, a.RedactedBy = h.row.Event, h.row.RedactedBy
		}
	} else {
		nid, err := r.s.DB.NewEventNumber()
		if err != nil {
			return nil, fmt.Errorf("number the event: %w", err)
		}
		a.NID = nid
	}
	if hasSlot {
		if err := r.setState(a, Key{ev.Type(), stateKey}); err != nil {
			return nil, err
		}
	}
	if isState && !a.known {
		a.auth = h.auth
		if a.auth == nil {
			if err := r.numberAuth(a); err != nil {
				return nil, err
			}
		}
		known, err := r.events(a.auth)
		if err != nil {
			return nil, err
		}
		if err := r.cite(a.Stored, a.auth, slices.Collect(maps.Values(known))); err != nil {
			return nil, err
		}
		a.places = r.cover.Take()
	}
	if err := r.noteBuiltOn(a, h); err != nil {
		return nil, err
	}
	switch {
	case h.status != storage.Accepted:
		if err := r.moveEnds(a, h); err != nil {
			return nil, err
		}
	case h.history != nil:
		if err := r.placePast(a, h); err != nil {
			return nil, err
		}
	default:
		if err := r.accept(a, h); err != nil {
			return nil, err
		}
	}
	if r.partial != nil || h.guessed {
		r.seq++
		a.partial = &storage.PartialEvent{Event: a.NID, Seq: r.seq, History: h.history != nil}
	}
	a.nodes = r.array.Take()
	a.slots, r.newSlots = append(a.slots, r.newSlots...), nil
	a.loose, r.loose = r.loose, 0
	r.collection.note(a.Before, a.After, state.Root(r.row.Root))
	r.collection.noteEvent(a.Stored)
	a.room = r.row
	a.first, r.stored = !r.stored, true
	a.moved = a.moved || len(a.nodes) > 0 || len(a.slots) > 0
	r.pending[a.NID], r.pendingID[ev.ID()] = a.Stored, a.Stored
	return a, nil
}

// setState makes the state after the event.
func (r *room) setState(a *addition, k Key) error {
	slot, isNew, err := r.takeSlot(k)
	if err != nil {
		return err
	}
	if isNew {
		a.slots = append(a.slots, storage.Slot{Slot: slot, Type: k.Type, StateKey: k.StateKey})
	}
	a.After, err = r.array.Set(a.Before, map[int64]int64{slot: a.NID})
	if err != nil {
		return fmt.Errorf("set the state after %s: %w", a.ID(), err)
	}
	return nil
}

func (r *room) numberAuth(a *addition) error {
	events, err := r.eventsByID(a.AuthEvents())
	if err != nil {
		return err
	}
	for _, v := range a.AuthEvents() {
		if ev, ok := events[v]; ok {
			a.auth = append(a.auth, ev.NID)
		}
	}
	return nil
}

// accept gives the event its place, moves the extremities and the room's current state, and
// says what that means for members, redactions, relations and those who listen.
func (r *room) accept(a *addition, h how) error {
	if len(a.missing) > 0 && r.high > firstOrd {
		r.high += gapRoom // what is missing below gets its place here later; below the first event all is free
	}
	r.high++
	a.Ord, a.Placed = r.high, true

	if err := r.moveEnds(a, h); err != nil {
		return err
	}
	if err := r.noteReplaced(a); err != nil {
		return err
	}
	if err := r.noteRedaction(a); err != nil {
		return err
	}
	r.noteRelation(a)
	if err := r.noteNotifications(a); err != nil {
		return err
	}

	fact := r.factOf(a)
	if h.own {
		if err := r.nameServers(a, &fact); err != nil {
			return err
		}
	}
	// The event's own fact comes first: what it brings about is told after it.
	a.facts = append([]storage.Fact{fact}, a.facts...)
	if h.once != nil {
		a.txn = r.useTxn(a, *h.once)
	}
	return nil
}

// noteReplaced tells that another room replaces this one: a tombstone that says the same again says nothing.
func (r *room) noteReplaced(a *addition) error {
	key := Key{"m.room.tombstone", ""}
	if !a.IsState(key.Type, key.StateKey) {
		return nil
	}
	before, err := r.stateAt(a.Before, []Key{key})
	if err != nil {
		return err
	}
	if was := before[key]; was == nil || replacement(was.Event) != replacement(a.Event) {
		a.facts = append(a.facts, storage.Fact{Kind: sql.FactReplaced, Room: r.row.NID, Event: a.NID})
	}
	return nil
}

func replacement(tombstone *event.Event) string {
	return text(gjson.GetBytes(tombstone.Content(), "replacement_room"))
}

// gapRoom is how many events can be filled in later at an open gap.
const gapRoom = 1 << 20

func memberRow(room int64, user string, ev *Stored) storage.Member {
	content := gjson.ParseBytes(ev.Content())
	return storage.Member{Room: room, User: user, Server: id.UserID(user).Homeserver(), Membership: ev.Membership(),
		Event: ev.NID, DisplayName: text(content.Get("displayname")), AvatarURL: text(content.Get("avatar_url"))}
}

func text(v gjson.Result) string {
	if v.Type == gjson.String {
		return v.Str
	}
	return ""
}

// countMember keeps the number of joined members of each server; a server that comes or goes
// makes the stored set stale.
func (r *room) countMember(server string, before, after bool) {
	switch {
	case !before && after:
		r.joined++
		r.servers[server]++
		if r.servers[server] == 1 {
			r.set = 0
		}
	case before && !after:
		r.joined--
		r.servers[server]--
		if r.servers[server] <= 0 {
			delete(r.servers, server)
			r.set = 0
		}
	}
}

// Extra members of an own event's fact.
type ownEvent struct {
	Set  int64    `json:"set"`            // the server set it goes to
	Also []string `json:"also,omitempty"` // and the server that it just put out, or whose invite it ends
	Not  string   `json:"not,omitempty"`  // but the server that gave it to us
}

// nameServers says in the fact who gets an own event: the servers in the state before or after it. A server whose
// join, leave or knock we took has it: a transaction with it would meet there a room that is not yet made.
//
// spec: s2s#joining-rooms
func (r *room) nameServers(a *addition, fact *storage.Fact) error {
	if r.set == 0 {
		servers := make([]string, 0, len(r.servers))
		for s := range r.servers {
			if s != r.s.ServerName {
				servers = append(servers, s)
			}
		}
		slices.Sort(servers)
		nid, err := r.s.DB.NewServerSetNumber()
		if err != nil {
			return err
		}
		r.set = nid
		a.set = &serverSet{nid, servers}
	}
	own := ownEvent{Set: r.set}
	if a.Type() == "m.room.member" {
		key, _ := a.StateKey()
		if s := a.Sender().Homeserver(); key == string(a.Sender()) && s != r.s.ServerName {
			own.Not = s // not so an invite by an address, which we make for a sender of another server
		}
		if s := id.UserID(key).Homeserver(); s != r.s.ServerName && s != own.Not && r.servers[s] == 0 && a.Membership() != "invite" && a.Membership() != "knock" {
			own.Also = append(own.Also, s)
		}
	}
	extra, err := json.Marshal(own)
	fact.Extra = string(extra)
	return err
}

// noteRelation finds what the event relates to.
//
// spec: c2s#forming-relationships-between-events
func (r *room) noteRelation(a *addition) {
	if _, isState := a.StateKey(); isState {
		return
	}
	rel := gjson.GetBytes(a.Content(), `m\.relates_to`)
	target, relType := text(rel.Get("event_id")), text(rel.Get("rel_type"))
	if target == "" || relType == "" || len(target) > 255 || len(relType) > 255 {
		return
	}
	a.relation = &storage.Relation{Room: r.row.NID, Event: a.NID, Target: target, RelType: relType,
		Type: a.Type(), Sender: string(a.Sender()), Key: text(rel.Get("key"))}
}

// errEarlier says that an event was not stored because one before it in its room was not: that was not its own fault.
var errEarlier = errors.New("an earlier event of the room was not stored")

// maxEarlier is how often work is done again whose room failed under it.
const maxEarlier = 3

// evenSo does work again of which nothing was stored because of an earlier event of the room.
func evenSo(work func() error) (err error) {
	for range maxEarlier {
		if err = work(); !errors.Is(err, errEarlier) {
			return err
		}
	}
	return err
}

// leaning waits for the commit of somebody else, on which an answer leans.
type leaning struct{ on *committed }

func (l leaning) Wait(ctx context.Context) error {
	err := l.on.Wait(ctx)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("%w: %w", errEarlier, err)
	}
	return err
}

// factOf tells of an event that has its place.
func (r *room) factOf(a *addition) storage.Fact {
	fact := storage.Fact{Kind: sql.FactEvent, Room: r.row.NID, Event: a.NID, Ord: a.Ord, Root: r.row.Root}
	if a.Type() == "m.room.member" {
		fact.User, _ = a.StateKey()
	}
	return fact
}
