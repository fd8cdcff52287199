package roomserver

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"chancery"
	"chancery/recent"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Stored is an event and where it stands.
type Stored struct {
	*event.Event
	NID        int64
	Room       int64
	Ord        int64 // meaningful when Placed
	Placed     bool  // part of the room's history
	Status     storage.EventStatus
	Before     state.Root
	After      state.Root
	RedactedBy id.EventID
}

// isJudged says that an event was judged where it stands in the room, so that the state before it is known. One that
// came only as part of a state or of an auth chain was not, even when its own auth events have refused it.
func (s *Stored) isJudged() bool {
	return s.Status != storage.Outlier && (s.Before != 0 || s.Type() == "m.room.create")
}

// Reader reads rooms from storage, in any process: no read needs a call to the room's owner.
// Events and state nodes never change and are cached; a redaction drops the event (Forget).
type Reader struct {
	events   *recent.Cache[int64, *Stored]
	auths    *recent.Cache[int64, []int64] // the numbers of auth events
	outliers *recent.Cache[int64, *Stored] // for Lookup alone: they may have got a place since
	slots    *recent.Cache[slotKey, int64] // a key keeps its slot for as long as we have the room
	nodes    *state.Cache

	summaries *recent.Cache[int64, summaryAt]
	previews  *recent.Cache[int64, previewAt]
	redacted  redactions
	windows   *recent.Cache[int64, *window]
}

// NewReader makes a reader whose caches hold about the given bytes.
func NewReader(cacheBytes int) *Reader {
	return &Reader{
		events:    recent.New[int64, *Stored](cacheBytes * 3 / 8),
		outliers:  recent.New[int64, *Stored](cacheBytes / 8),
		auths:     recent.New[int64, []int64](cacheBytes / 16),
		slots:     recent.New[slotKey, int64](cacheBytes / 16),
		nodes:     state.NewCache(cacheBytes / 4),
		summaries: recent.New[int64, summaryAt](cacheBytes / 16),
		previews:  recent.New[int64, previewAt](cacheBytes / 8),
		windows:   recent.New[int64, *window](cacheBytes / 8),
	}
}

// Key names a piece of state.
type Key struct{ Type, StateKey string }

// Forget drops an event of a room that was redacted, and what was made of it.
func (rd *Reader) Forget(room, nid int64) {
	rd.events.Drop(nid)
	rd.outliers.Drop(nid)
	rd.redacted.note(room)
}

// redactions knows when something was last redacted in a room, or in one of those that share its place: a state with a
// redacted piece has the same root as before. Times are nanoseconds since began.
type redactions [4096]atomic.Int64

var began = time.Now()

// longestRead is longer than any read transaction takes.
const longestRead = time.Minute

func (l *redactions) of(room int64) *atomic.Int64 { return &l[uint64(room)%uint64(len(l))] }

func (l *redactions) note(room int64) { l.of(room).Store(int64(time.Since(began))) }

// since says whether something was redacted after a time.
func (l *redactions) since(room, at int64) bool { return l.of(room).Load() >= at }

// keeps gives the time at which something is made of a room's state, and whether it may be kept: who reads may see the room
// as it was before a redaction that has just taken effect.
func (l *redactions) keeps(room int64) (at int64, ok bool) {
	at = int64(time.Since(began))
	last := l.of(room).Load()
	return at, last == 0 || at-last > int64(longestRead)
}

// Stored parses a row.
func (rd *Reader) stored(version *event.Version, row *storage.Event) (*Stored, error) {
	ev, err := event.ParseStored(version, id.EventID(row.ID), row.JSON)
	if err != nil {
		return nil, fmt.Errorf("read stored event %s: %w", row.ID, err)
	}
	if row.RedactedBy != "" {
		ev = ev.AsRedacted()
	}
	s := &Stored{Event: ev, NID: row.NID, Room: row.Room, Status: row.Status,
		Before: state.Root(row.RootBefore), After: state.Root(row.RootAfter), RedactedBy: id.EventID(row.RedactedBy)}
	if row.Ord != nil {
		s.Ord, s.Placed = *row.Ord, true
	}
	// What is not yet placed may be later, and what is redacted may be seen under its old form.
	if s.Placed && s.Status == storage.Accepted {
		rd.events.Put(row.NID, s, len(row.JSON)+400)
	}
	return s, nil
}

// StoredRows parses rows of one room's version.
func (rd *Reader) StoredRows(room storage.Room, rows []storage.Event) ([]*Stored, error) {
	version, ok := event.Lookup(room.Version)
	if !ok {
		return nil, fmt.Errorf("room %s has the unknown version %q", room.ID, room.Version)
	}
	out := make([]*Stored, 0, len(rows))
	for i := range rows {
		s, err := rd.stored(version, &rows[i])
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// ByNumber reads events of one room by number.
func (rd *Reader) ByNumber(tx storage.Tx, room storage.Room, nids []int64) (map[int64]*Stored, error) {
	out := make(map[int64]*Stored, len(nids))
	var missing []int64
	for _, n := range nids {
		if n == 0 {
			continue
		}
		if s, ok := rd.events.Get(n); ok {
			out[n] = s
		} else {
			missing = append(missing, n)
		}
	}
	for len(missing) > 0 {
		part := missing[:min(len(missing), 5000)]
		missing = missing[len(part):]
		rows, err := tx.Events(part)
		if err != nil {
			return nil, fmt.Errorf("read events: %w", err)
		}
		stored, err := rd.StoredRows(room, rows)
		if err != nil {
			return nil, err
		}
		for _, s := range stored {
			out[s.NID] = s
		}
	}
	return out, nil
}

// readAuth reads the numbers of the auth events of state events.
func (rd *Reader) readAuth(tx storage.Tx, nids []int64) (map[int64][]int64, error) {
	edges, err := tx.AuthEdges(nids)
	if err != nil {
		return nil, fmt.Errorf("read auth events: %w", err)
	}
	out := make(map[int64][]int64, len(nids))
	for _, e := range edges {
		out[e.Event] = append(out[e.Event], e.Auth)
	}
	for _, n := range nids {
		rd.keepAuth(n, out[n])
	}
	return out, nil
}

func (rd *Reader) keepAuth(nid int64, auth []int64) { rd.auths.Put(nid, auth, 100+8*len(auth)) }

// ByID reads events by ID that belong to the room.
func (rd *Reader) ByID(tx storage.Tx, room storage.Room, ids []id.EventID) (map[id.EventID]*Stored, error) {
	out := make(map[id.EventID]*Stored, len(ids))
	if len(ids) == 0 {
		return out, nil
	}
	text := make([]string, len(ids))
	for i, v := range ids {
		text[i] = string(v)
	}
	rows, err := tx.EventsByID(text)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	for i := range rows {
		if rows[i].Room != room.NID {
			continue
		}
		stored, err := rd.StoredRows(room, rows[i:i+1])
		if err != nil {
			return nil, err
		}
		out[stored[0].ID()] = stored[0]
	}
	return out, nil
}

// One reads an event of a room by ID.
func (rd *Reader) One(tx storage.Tx, room storage.Room, eventID id.EventID) (*Stored, bool, error) {
	found, err := rd.ByID(tx, room, []id.EventID{eventID})
	if err != nil {
		return nil, false, err
	}
	s, ok := found[eventID]
	return s, ok, nil
}

// inOrder reads events of one room in the order of their numbers; what is not there is left out.
func (rd *Reader) inOrder(tx storage.Tx, room storage.Room, nids []int64) ([]*Stored, error) {
	events, err := rd.ByNumber(tx, room, nids)
	if err != nil {
		return nil, err
	}
	out := make([]*Stored, 0, len(nids))
	for _, n := range nids {
		if s, ok := events[n]; ok {
			out = append(out, s)
		}
	}
	return out, nil
}

// nodeSource reads the nodes of one room's state in one transaction.
type nodeSource struct {
	tx   storage.Tx
	room int64
}

func (n nodeSource) Nodes(ids []int64) (map[int64][]byte, error) { return n.tx.StateNodes(n.room, ids) }

// IsGone says that state could not be read because its room was purged meanwhile, or because nothing has led to it
// for so long that it was collected.
func IsGone(err error) bool { return errors.Is(err, state.ErrMissing) }

// asGone tells a client so: what is not there any more is no failure of the server.
func asGone(err error) error {
	if IsGone(err) {
		return chancery.NotFound("this state of the room is not kept any more").Because(err)
	}
	return err
}

// Array gives the room's states for reading.
func (rd *Reader) Array(tx storage.Tx, room int64) *state.Array {
	return state.NewArray(room, nodeSource{tx, room}, rd.nodes, nil)
}

// State reads the events of a whole state.
func (rd *Reader) State(tx storage.Tx, room storage.Room, root state.Root) ([]*Stored, error) {
	entries, err := rd.Array(tx, room.NID).All(root)
	if err != nil {
		return nil, asGone(err)
	}
	nids := make([]int64, len(entries))
	for i, e := range entries {
		nids[i] = e.NID
	}
	return rd.inOrder(tx, room, nids)
}

// StateOf reads some slots of a state.
func (rd *Reader) stateOf(tx storage.Tx, room storage.Room, root state.Root, slots []storage.Slot) ([]*Stored, error) {
	numbers := make([]int64, len(slots))
	for i, s := range slots {
		numbers[i] = s.Slot
	}
	nids, err := rd.Array(tx, room.NID).Get(root, numbers...)
	if err != nil {
		return nil, asGone(err)
	}
	return rd.inOrder(tx, room, nids)
}

// StateOfType reads all state events of one type in a state.
func (rd *Reader) StateOfType(tx storage.Tx, room storage.Room, root state.Root, typ string) ([]*Stored, error) {
	slots, err := tx.SlotsByType(room.NID, typ)
	if err != nil {
		return nil, err
	}
	return rd.stateOf(tx, room, root, slots)
}

// StateExcept reads the state events of every other type than one: the state without its members.
func (rd *Reader) StateExcept(tx storage.Tx, room storage.Room, root state.Root, typ string) ([]*Stored, error) {
	slots, err := tx.SlotsExcept(room.NID, typ)
	if err != nil {
		return nil, err
	}
	return rd.stateOf(tx, room, root, slots)
}

// StateKeys reads the state events of one type with some state keys.
func (rd *Reader) StateKeys(tx storage.Tx, room storage.Room, root state.Root, typ string, keys []string) ([]*Stored, error) {
	asked := make([]Key, len(keys))
	for i, k := range keys {
		asked[i] = Key{typ, k}
	}
	known, err := rd.slotsOf(tx, room.NID, asked)
	if err != nil {
		return nil, err
	}
	slots := make([]storage.Slot, 0, len(keys))
	for _, k := range asked {
		if slot, ok := known[k]; ok {
			slots = append(slots, storage.Slot{Slot: slot, Type: k.Type, StateKey: k.StateKey})
			delete(known, k) // asked for twice, it is told once
		}
	}
	return rd.stateOf(tx, room, root, slots)
}

// StateEvent reads one piece of a state; nil when it is not there.
func (rd *Reader) StateEvent(tx storage.Tx, room storage.Room, root state.Root, typ, key string) (*Stored, error) {
	found, err := rd.StateKeys(tx, room, root, typ, []string{key})
	if err != nil || len(found) == 0 {
		return nil, err
	}
	return found[0], nil
}

// Changes compares two states by numbers alone.
func (rd *Reader) Changes(tx storage.Tx, room storage.Room, was, is state.Root) ([]state.Change, error) {
	return rd.Array(tx, room.NID).Diff(was, is)
}

// Differences reads what changed between two states: the events of the second where they differ from
// the first. What is gone altogether is in gone.
func (rd *Reader) Differences(tx storage.Tx, room storage.Room, was, is state.Root) (changed []*Stored, gone []storage.Slot, err error) {
	changes, err := rd.Array(tx, room.NID).Diff(was, is)
	if err != nil {
		return nil, nil, asGone(err)
	}
	var nids, lost []int64
	for _, c := range changes {
		if c.Is == 0 {
			lost = append(lost, c.Slot)
		} else {
			nids = append(nids, c.Is)
		}
	}
	events, err := rd.ByNumber(tx, room, nids)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range nids {
		if s, ok := events[n]; ok {
			changed = append(changed, s)
		}
	}
	if len(lost) > 0 {
		gone, err = tx.SlotsByNumber(room.NID, lost)
	}
	return changed, gone, err
}
