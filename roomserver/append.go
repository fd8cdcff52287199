package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
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
	r.high++
	if len(a.missing) > 0 {
		r.high += gapRoom // what is missing below gets its place here later
	}
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

	fact := storage.Fact{Kind: sql.FactEvent, Room: r.row.NID, Event: a.NID, Ord: a.Ord, Root: r.row.Root}
	if a.Type() == "m.room.member" {
		fact.User, _ = a.StateKey()
	}
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

// moveEnds replaces the extremities that the event builds on by the event, and the room's current
// state by the state resolved over all extremities. An event on which another one builds is no extremity, yet what it
// builds on itself is none either, whatever became of the event.
//
// spec: s2s#pdus
func (r *room) moveEnds(a *addition, h how) error {
	isEnd := h.status == storage.Accepted && h.history == nil && !h.referenced
	if !isEnd && !h.referenced {
		return nil
	}
	var lost []int64
	kept := make([]*Stored, 0, len(r.exts)+1)
	for _, e := range r.exts {
		if h.replace || slices.Contains(a.builtOn, e.ID()) {
			lost = append(lost, e.NID)
		} else {
			kept = append(kept, e)
		}
	}
	if !isEnd && (len(lost) == 0 || len(kept) == 0) {
		return nil
	}
	if isEnd {
		for len(kept) >= maxEnds {
			lost = append(lost, kept[0].NID)
			kept = kept[1:]
		}
		a.gained = append(a.gained, a.NID)
		kept = append(kept, a.Stored)
	}
	r.exts, a.lost = kept, append(a.lost, lost...)
	// The event itself is looked up while states are compared.
	r.pending[a.NID], r.pendingID[a.ID()] = a.Stored, a.Stored
	was := state.Root(r.row.Root)
	root, err := r.resolve(r.endRoots())
	if err != nil {
		return fmt.Errorf("resolve the state of %s: %w", r.id, err)
	}
	if r.row.Root = int64(root); root == was {
		return nil
	}
	a.moved = true
	if a.moves, err = r.moveMembers(a.NID, was, root); err != nil {
		return err
	}
	if was == 0 || h.replace {
		a.moves.begin()
	}
	if r.partial != nil { // that members become known moves nothing
		a.moves.silent, a.left = 0, r.servers[r.s.ServerName] == 0
	}
	a.facts = append(a.facts, a.moves.facts...)
	return nil
}

// endRoots are the states after the room's open ends: the current state is what they resolve to.
func (r *room) endRoots() []state.Root {
	roots := make([]state.Root, 0, len(r.exts))
	for _, e := range r.exts {
		if !slices.Contains(roots, e.After) {
			roots = append(roots, e.After)
		}
	}
	return roots
}

// maxUnderneath bounds the events that were not accepted through which we look for ends.
const maxUnderneath = 100

// noteBuiltOn finds the events that an event builds on: its prev events, and where one of these was not accepted, and so
// is no end itself, what that builds on. What is missing there is missing below the event, and where the event itself is
// not accepted, below those that build on it.
func (r *room) noteBuiltOn(a *addition, h how) error {
	a.builtOn = slices.Clone(a.PrevEvents())
	isRefused := func(p *Stored) bool { return p.Status == storage.SoftFailed || p.Status == storage.Rejected }
	refused := slices.DeleteFunc(slices.Clone(h.prev), func(p *Stored) bool { return !isRefused(p) })
	for seen := len(refused); len(refused) > 0 && seen <= maxUnderneath; seen += len(refused) {
		var next []id.EventID
		for _, p := range refused {
			for _, v := range p.PrevEvents() {
				if !slices.Contains(a.builtOn, v) {
					a.builtOn, next = append(a.builtOn, v), append(next, v)
				}
			}
		}
		found, err := r.eventsByID(next)
		if err != nil {
			return err
		}
		refused = nil
		for _, v := range next {
			switch p := found[v]; {
			case p == nil || !p.isJudged():
				a.missing = append(slices.Clone(a.missing), v)
			case isRefused(p):
				refused = append(refused, p)
			}
		}
	}
	above := h.waiting
	if h.status == storage.Accepted {
		above = []int64{a.NID}
	} else {
		a.waiting = h.waiting
	}
	for _, v := range a.missing {
		for _, n := range above {
			r.beneath[a.NID] = append(r.beneath[a.NID], beneath{n, v})
		}
	}
	return nil
}

// beneath is an accepted event and what is missing below it, not in storage yet.
type beneath struct {
	above   int64
	missing id.EventID
}

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

// Above this many open ends an event of our own ties them together; above maxEnds the oldest are let go.
const (
	manyEnds = 20
	maxEnds  = 200
)

// tieEnds bounds the room's open ends: every further event resolves the states of all of them, so a server that
// forks the room without end would make each message dearer than the last. A member of ours sends an event
// without content that builds on them.
func (r *room) tieEnds() error {
	if len(r.exts) <= manyEnds || r.servers[r.s.ServerName] == 0 {
		return nil
	}
	sender, err := r.localSender(dummyType)
	if err != nil || sender == "" {
		return err
	}
	a, err := r.make(NewEvent{Sender: sender, Type: dummyType, Content: json.RawMessage(`{}`)}, how{own: true})
	if err != nil {
		return err
	}
	r.submit(a)
	return nil
}

// tieLater is tieEnds where the room's policy server must be asked.
func (s *Server) tieLater(r *room) {
	if r.tying.Swap(true) {
		return
	}
	go func() {
		defer r.tying.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), 2*policyWait)
		defer cancel()
		err := s.guarded("tie the open ends of a room", func() error {
			return s.inOwn(ctx, r.id, func(r *room) error { return r.tieEnds() })
		})
		if err != nil {
			s.Log.Info("could not tie the open ends of a room", zap.String("room", string(r.id)), zap.Error(err))
		}
	}()
}

// What other servers too send to tie open ends; clients show nothing of it.
const dummyType = "org.matrix.dummy_event"

// submit hands the additions to storage: together or not at all, in order with the room's other commits.
func (r *room) submit(list ...*addition) {
	r.commit(&additions{list: list}, func(tx storage.Tx) error { return writeAll(tx, list) })
}

func writeAll(tx storage.Tx, list []*addition) error {
	for _, a := range list {
		if err := a.write(tx); err != nil {
			return err
		}
	}
	return nil
}

// commit submits one function of the room, and of what else it names by keys. When it fails, everything submitted after
// it fails too and the room is read again before it is used.
func (r *room) commit(all *additions, write func(storage.Tx) error, keys ...string) {
	r.inFlight.Add(1)
	p := r.s.DB.Submit(append(r.key(), keys...), func(tx storage.Tx) error {
		if failed := r.broken.Load(); failed != nil {
			return fmt.Errorf("%w: %w", errEarlier, *failed)
		}
		if err := r.checkFence(tx); err != nil {
			return err
		}
		return write(tx)
	}, func(err error) {
		if errors.Is(err, sql.ErrUnknownOutcome) {
			r.s.doubt(r.shard)
		}
		r.broken.CompareAndSwap(nil, &err)
	})
	c, named, nid := &committed{done: make(chan struct{})}, r.named(all), r.row.NID
	r.waits, r.last = append(r.waits, c), c
	go func() {
		defer close(c.done)
		defer r.inFlight.Add(-1)
		defer r.s.names.release(named, nid)
		if c.err = p.Wait(context.Background()); c.err != nil {
			return
		}
		for _, nid := range all.changed {
			r.s.Reader.Forget(nid)
		}
		r.doneMu.Lock()
		r.done = append(r.done, all)
		r.doneMu.Unlock()
		for _, a := range all.list {
			r.tellMoves(a.moves, zap.String("event", string(a.ID())))
			if a.moves != nil && a.moves.shut {
				r.s.putGuestsOutLater(r.id)
			}
			if a.redacts != nil {
				r.s.Reader.Forget(a.redacts.target)
			}
			if a.left {
				r.s.partials.stir(r.id)
			}
			if a.restated {
				r.s.Reader.Forget(a.NID)
			}
			if len(a.missing) > 0 {
				r.s.gaps.note(r.id)
			}
			if a.partial != nil && !a.room.Partial {
				r.s.unsure.noteSoon(r.id)
			}
		}
	}()
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

// committed is a commit of which the room has taken note: who waited for it finds it in memory.
type committed struct {
	done chan struct{}
	err  error
}

// Wait returns the outcome; a caller that gives up leaves early.
func (c *committed) Wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (r *room) key() []string { return []string{"room:" + strconv.FormatInt(r.row.NID, 10)} }

// write is the event's part of the transaction. It only queues statements.
func (a *addition) write(tx storage.Tx) error {
	if a.first {
		tx.InsertRoom(a.room)
	} else if a.moved {
		tx.UpdateRoom(a.room)
	}
	row := a.Stored.row(a.notify)
	if a.known {
		tx.PlaceEvent(row)
	} else {
		tx.InsertEvent(row)
		tx.InsertAuth(a.NID, a.auth)
		for i := range a.places {
			places, links := placeRows(a.places[i : i+1])
			tx.InsertPlace(a.Room, places[0], links)
		}
	}
	if a.partial != nil {
		tx.InsertPartialEvent(a.Room, *a.partial)
	}
	for _, s := range a.slots {
		tx.InsertSlot(a.Room, s)
	}
	for _, n := range a.nodes {
		tx.InsertStateNode(a.Room, n.ID, n.Data)
	}
	if a.loose > 0 {
		tx.NoteLoose(a.Room, a.loose)
	}
	for _, n := range a.lost {
		tx.RemoveExtremity(a.Room, n)
	}
	for _, n := range a.gained {
		tx.AddExtremity(a.Room, n)
	}
	if a.awaited {
		tx.RemoveMissing(a.Room, string(a.ID()))
	}
	for _, v := range a.missing {
		tx.AddMissing(a.Room, a.NID, string(v))
		for _, above := range a.waiting {
			tx.AddMissing(a.Room, above, string(v))
		}
	}
	if a.moves != nil {
		a.moves.write(tx, a.Room, a.room.ID)
	}
	if a.txn != nil {
		tx.InsertTransaction(*a.txn)
	}
	if err := a.writeBearing(tx); err != nil {
		return err
	}
	if a.set != nil {
		if err := tx.InsertServerSet(a.set.nid, a.Room, a.set.servers); err != nil {
			return err
		}
	}
	for _, f := range a.facts {
		tx.Announce(f)
	}
	if a.also != nil {
		return a.also(tx)
	}
	return nil
}

// writeBearing writes what the event means to people and to other events.
func (a *addition) writeBearing(tx storage.Tx) error {
	if len(a.notifications) > 0 {
		if err := tx.InsertNotifications(a.notifications); err != nil {
			return err
		}
	}
	if a.relation != nil {
		tx.InsertRelation(*a.relation)
	}
	if a.redacts != nil {
		tx.RedactEvent(a.redacts.target, string(a.redacts.by), a.redacts.text)
		tx.DeleteRelation(a.redacts.target)
	}
	if a.Placed && a.Redacts() != "" {
		tx.InsertRedaction(a.Room, string(a.Redacts()), string(a.ID()), a.NID)
	}
	return nil
}

// row gives the event as storage keeps it.
func (s *Stored) row(notify bool) *storage.Event {
	v := &storage.Event{NID: s.NID, Room: s.Room, ID: string(s.ID()), Type: s.Type(), Sender: string(s.Sender()),
		Depth: s.Depth(), TS: s.OriginServerTS(), Status: s.Status, RootBefore: int64(s.Before), RootAfter: int64(s.After),
		Notify: notify, RedactedBy: string(s.RedactedBy), JSON: s.JSON()}
	if key, ok := s.StateKey(); ok {
		v.StateKey = &key
	}
	if s.Placed {
		ord := s.Ord
		v.Ord = &ord
	}
	return v
}
