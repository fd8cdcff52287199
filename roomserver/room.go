package roomserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"chancery"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// room is a room in memory: what is needed to append the next event without asking SQL. All of it
// belongs to the goroutine that holds turn, but for the fields marked otherwise.
type room struct {
	s     *Server
	id    id.RoomID
	shard int64
	turn  turn // the exclusion

	gone   bool // left memory
	stored bool // its row is in storage, or on the way there
	loaded bool
	used   time.Time
	ctx    context.Context // of the present holder

	row         storage.Room
	partial     *partial // nil: the room is whole, or nobody makes it so
	seq         int64    // of the last event that was judged by a part of the state, or by a guess; 0: none was
	version     *event.Version
	array       *state.Array
	create      *event.Event
	owners      *ruleOwners // nil: to be read
	exts        []*Stored
	low, high   int64 // bounds of the history's order
	slots       map[Key]int64
	keys        map[int64]Key
	pending     map[int64]*Stored       // submitted, not known to be committed
	pendingID   map[id.EventID]*Stored  // the same by ID
	servers     map[string]int64        // joined members by server
	joined      int64                   // all of them
	set         int64                   // the server set last stored, 0: stale
	txns        map[deviceKey]*usedTxns // of recent senders
	memo        map[string]state.Root   // resolved states by what they were resolved from
	cover       *state.Cover
	pendingAuth map[int64][]int64 // auth events of those in pending
	beneath     map[int64][]beneath
	newSlots    []storage.Slot      // given, and not yet part of an addition
	waits       []waiter            // of the present holder
	last        *committed          // the last commit that was submitted
	leans       bool                // the present holder has looked at what is not known to be stored
	claimed     map[id.EventID]bool // by the present holder, see names
	asked       *unasked            // of the present holder: its event, of which a policy server has been asked
	loose       int64               // nodes made for states that no event may ever stand on, and not yet part of an addition
	collection  *collection         // of unused nodes, while one runs
	foreseen    *foreseen           // of the present turn
	absent      int                 // keys in slots that have none

	known    atomic.Pointer[event.Version] // set when loaded, for those who do not hold the room
	inFlight atomic.Int64                  // commits under way
	tying    atomic.Bool                   // somebody outside is at work to tie its open ends
	broken   atomic.Pointer[error]         // a commit failed: what was built on it fails too, and memory is stale

	doneMu sync.Mutex // guards done; a leaf
	done   []*additions
}

type deviceKey struct {
	user   id.UserID
	device id.DeviceID
}

// No slot: the room has never had this piece of state.
const noSlot = -1

// Order in a room begins in the middle, so that backfill can go below the first event.
const firstOrd = int64(1) << 40

func newRoom(s *Server, roomID id.RoomID) *room {
	return &room{s: s, id: roomID, shard: shardOf(roomID), claimed: map[id.EventID]bool{}}
}

// reset begins with nothing known.
func (r *room) reset(row storage.Room, version *event.Version) {
	r.row, r.version, r.partial, r.seq = row, version, nil, 0
	r.array = state.NewArray(row.NID, roomNodes{r}, r.s.Reader.nodes, func() int64 {
		r.row.NextNode++
		return r.row.NextNode
	})
	r.exts, r.low, r.high = nil, firstOrd, firstOrd
	r.slots, r.keys = map[Key]int64{}, map[int64]Key{}
	r.pending, r.pendingID = map[int64]*Stored{}, map[id.EventID]*Stored{}
	r.servers, r.set, r.joined = map[string]int64{}, 0, 0
	r.txns = map[deviceKey]*usedTxns{}
	r.memo, r.pendingAuth, r.beneath = map[string]state.Root{}, map[int64][]int64{}, map[int64][]beneath{}
	r.cover = state.NewCover(roomPlaces{r})
	r.foreseen, r.absent = nil, 0
	r.broken.Store(nil)
	r.known.Store(version)
	r.create, r.newSlots, r.owners = nil, nil, nil
	r.loose, r.collection = 0, nil
	r.doneMu.Lock()
	r.done = nil
	r.doneMu.Unlock()
	r.loaded = true
}

// roomNodes reads the room's nodes for its array.
type roomNodes struct{ r *room }

func (n roomNodes) Nodes(ids []int64) (nodes map[int64][]byte, err error) {
	err = n.r.read(func(tx storage.Tx) error {
		nodes, err = tx.StateNodes(n.r.row.NID, ids)
		return err
	})
	return nodes, err
}

func (r *room) read(fn func(storage.Tx) error) error { return storageFailed(r.s.DB.Read(r.ctx, fn)) }

// ErrStorage is the cause when storage failed us: another time the same may succeed.
var ErrStorage = errors.New("storage failed")

func storageFailed(err error) error {
	switch e := (*chancery.Error)(nil); {
	case err == nil, errors.As(err, &e), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, ErrStorage):
		return err
	}
	return fmt.Errorf("%w: %w", ErrStorage, err)
}

// load reads the room from storage. Commits still under way are awaited first: after a failure
// memory must not be read again while an older commit is on its way.
func (r *room) load() error {
	for r.inFlight.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	r.loaded = false
	if err := r.s.settleDoubts(r.ctx, r.shard); err != nil {
		return err
	}
	return r.read(func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(r.id))
		if err != nil {
			return fmt.Errorf("load room %s: %w", r.id, err)
		}
		if !ok {
			return errUnknownRoom
		}
		version, ok := event.Lookup(row.Version)
		if !ok {
			return fmt.Errorf("room %s has the unknown version %q", r.id, row.Version)
		}
		r.reset(row, version)
		r.loaded = false
		nids, err := tx.Extremities(row.NID)
		if err != nil {
			return err
		}
		// Not from the cache: the states of events may have been moved while somebody read them.
		rows, err := tx.Events(nids)
		if err != nil {
			return err
		}
		ends, err := r.s.Reader.StoredRows(row, rows)
		if err != nil {
			return err
		}
		for _, n := range nids {
			for _, ev := range ends {
				if ev.NID == n {
					r.exts = append(r.exts, ev)
				}
			}
		}
		if low, high, err := tx.OrdBounds(row.NID); err != nil {
			return err
		} else if high != 0 {
			r.low, r.high = low, high
		}
		counts, err := tx.ServersIn(row.NID)
		if err != nil {
			return err
		}
		for _, c := range counts {
			r.servers[c.Server] = c.Count
			r.joined += c.Count
		}
		if err := r.readPartial(tx); err != nil {
			return err
		}
		if r.seq > 0 && r.partial == nil {
			r.s.unsure.note(r.id)
		}
		if gap, err := tx.HighestGap(row.NID, r.high); err != nil {
			return err
		} else if gap > r.low {
			r.s.gaps.note(r.id)
		}
		r.loaded, r.stored = true, true
		return nil
	})
}

// settle takes note of commits that are done.
func (r *room) settle() {
	r.doneMu.Lock()
	done := r.done
	r.done = nil
	r.doneMu.Unlock()
	for _, a := range done {
		for _, add := range a.list {
			r.array.Stored(add.nodes)
			r.cover.Stored(add.places)
			if add.moves != nil && len(add.moves.members) > 0 {
				r.owners = nil // they were read before these members were there
			}
			delete(r.pending, add.NID)
			if auth, ok := r.pendingAuth[add.NID]; ok {
				r.s.Reader.keepAuth(add.NID, auth)
				delete(r.pendingAuth, add.NID)
			}
			delete(r.beneath, add.NID)
			delete(r.pendingID, add.ID())
			if add.Placed && add.Status == storage.Accepted {
				r.s.Reader.events.Put(add.NID, add.Stored, add.Size()+400)
			}
		}
	}
}

// settled waits until everything under way is stored.
func (r *room) settled() error {
	for r.inFlight.Load() > 0 {
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	if failed := r.broken.Load(); failed != nil {
		return *failed
	}
	r.settle()
	return nil
}

// slot finds the slot of a piece of state; noSlot when the room has never had it.
func (r *room) slot(k Key) (int64, error) {
	if n, ok := r.slots[k]; ok {
		return n, nil
	}
	if err := r.learnSlots(k); err != nil {
		return noSlot, err
	}
	return r.slots[k], nil
}

// learnSlots reads slots, in one query for each type; what is not there is remembered as absent.
func (r *room) learnSlots(keys ...Key) error {
	unknown, count := map[string][]string{}, 0
	for _, k := range keys {
		if _, ok := r.slots[k]; !ok {
			unknown[k.Type] = append(unknown[k.Type], k.StateKey)
			count++
		}
	}
	if count == 0 {
		return nil
	}
	return r.read(func(tx storage.Tx) error {
		r.forgetAbsent(count)
		for typ, of := range unknown {
			found, err := tx.SlotsByKey(r.row.NID, typ, of)
			if err != nil {
				return err
			}
			for _, k := range of {
				r.slots[Key{typ, k}] = noSlot
			}
			for _, s := range found {
				r.slots[Key{s.Type, s.StateKey}] = s.Slot
				r.keys[s.Slot] = Key{s.Type, s.StateKey}
			}
		}
		return nil
	})
}

// maxAbsent is how many keys are remembered that the room has not: each event of a stranger asks for one.
const maxAbsent = 20_000

func (r *room) forgetAbsent(more int) {
	if r.absent += more; r.absent > maxAbsent {
		maps.DeleteFunc(r.slots, func(_ Key, slot int64) bool { return slot == noSlot })
		r.absent = more
	}
}

// keyOf is the reverse of slot.
func (r *room) keysOf(slots []int64) (map[int64]Key, error) {
	out := make(map[int64]Key, len(slots))
	var unknown []int64
	for _, n := range slots {
		if k, ok := r.keys[n]; ok {
			out[n] = k
		} else {
			unknown = append(unknown, n)
		}
	}
	if len(unknown) == 0 {
		return out, nil
	}
	err := r.read(func(tx storage.Tx) error {
		found, err := tx.SlotsByNumber(r.row.NID, unknown)
		for _, s := range found {
			k := Key{s.Type, s.StateKey}
			out[s.Slot], r.keys[s.Slot], r.slots[k] = k, k, s.Slot
		}
		return err
	})
	return out, err
}

// maxSlots is how many pieces of state a room has had at most, ten times the largest that we know of: each is kept for as
// long as the room is.
const maxSlots = 1 << 20

var errManySlots = chancery.Forbidden("the room has had more different pieces of state than this server keeps")

// slotOrPlace is slot for a piece of state that is to have one: its error says that there is no place for it.
func (r *room) slotOrPlace(k Key) (int64, error) {
	n, err := r.slot(k)
	if err == nil && n == noSlot && r.row.NextSlot >= r.s.maxSlots {
		return noSlot, errManySlots
	}
	return n, err
}

// takeSlot gives a piece of state its slot, a new one when it has none.
func (r *room) takeSlot(k Key) (n int64, isNew bool, err error) {
	n, err = r.slotOrPlace(k)
	if err != nil || n != noSlot {
		return n, false, err
	}
	n = r.row.NextSlot
	r.row.NextSlot++
	r.slots[k], r.keys[n] = n, k
	return n, true, nil
}

// keptSlot is takeSlot for a state that is made apart from an addition: a new slot goes with the next one.
func (r *room) keptSlot(k Key) (int64, error) {
	n, isNew, err := r.takeSlot(k)
	if isNew {
		r.newSlots = append(r.newSlots, storage.Slot{Slot: n, Type: k.Type, StateKey: k.StateKey})
	}
	return n, err
}

// events finds events of the room by number, those being committed too.
//
// Outliers are kept here and not by the Reader: most of the state of a room that was joined at another server are such, and
// each message needs some of it, but only the writer of rooms knows when one gets its place.
func (r *room) events(nids []int64) (map[int64]*Stored, error) {
	out := make(map[int64]*Stored, len(nids))
	var stored []int64
	for _, n := range nids {
		if ev, ok := r.pending[n]; ok {
			out[n], r.leans = ev, true
		} else if ev, ok := r.s.Reader.events.Get(n); ok {
			out[n] = ev
		} else if ev, ok := r.s.outliers.Get(n); ok {
			out[n] = ev
		} else if n != 0 {
			stored = append(stored, n)
		}
	}
	if len(stored) == 0 {
		return out, nil
	}
	err := r.read(func(tx storage.Tx) error {
		found, err := r.s.Reader.ByNumber(tx, r.row, stored)
		for n, ev := range found {
			out[n] = ev
			if ev.Status == storage.Outlier {
				r.s.outliers.Put(n, ev, ev.Size()+400)
			}
		}
		return err
	})
	return out, err
}

const outliersBytes = 16 << 20

// eventsByID finds events of the room by ID, those being committed too.
func (r *room) eventsByID(ids []id.EventID) (map[id.EventID]*Stored, error) {
	out := make(map[id.EventID]*Stored, len(ids))
	var stored []id.EventID
search:
	for _, v := range ids {
		if ev, ok := r.pendingID[v]; ok {
			out[v], r.leans = ev, true
			continue
		}
		for _, ev := range r.exts {
			if ev.ID() == v {
				out[v] = ev
				continue search
			}
		}
		if r.foreseen != nil {
			if ev, ok := r.foreseen.events[v]; ok {
				if ev != nil {
					out[v] = ev
				}
				continue
			}
		}
		stored = append(stored, v)
	}
	if len(stored) == 0 {
		return out, nil
	}
	err := r.read(func(tx storage.Tx) error {
		found, err := r.s.Reader.ByID(tx, r.row, stored)
		for k, ev := range found {
			out[k] = ev
		}
		return err
	})
	return out, err
}

// stateAt reads pieces of a state; those that are absent are left out.
func (r *room) stateAt(root state.Root, keys []Key) (map[Key]*Stored, error) {
	if err := r.learnSlots(keys...); err != nil {
		return nil, err
	}
	slots := make([]int64, 0, len(keys))
	have := make([]Key, 0, len(keys))
	for _, k := range keys {
		n, err := r.slot(k)
		if err != nil {
			return nil, err
		}
		if n != noSlot {
			slots, have = append(slots, n), append(have, k)
		}
	}
	nids, err := r.array.Get(root, slots...)
	if err != nil {
		return nil, fmt.Errorf("read the state of %s: %w", r.id, err)
	}
	events, err := r.events(nids)
	if err != nil {
		return nil, err
	}
	out := make(map[Key]*Stored, len(have))
	for i, k := range have {
		if ev, ok := events[nids[i]]; ok {
			out[k] = ev
		}
	}
	return out, nil
}

// authState is a state as the auth rules see it. Errors of reading are kept and must be looked at.
type authState struct {
	found map[Key]*Stored
}

func (a authState) Get(typ, key string) *event.Event {
	if ev, ok := a.found[Key{typ, key}]; ok {
		return ev.Event
	}
	return nil
}

// authStateFor reads what the auth rules need to judge an event by a state: the selected auth
// events, and the create event, which from version 12 on is part of every auth state without
// being named in auth_events.
func (r *room) authStateFor(root state.Root, typ string, stateKey *string, sender id.UserID, content []byte) (authState, error) {
	needed := auth.Needed(r.version, typ, stateKey, sender, content)
	keys := make([]Key, 0, len(needed)+1)
	keys = append(keys, Key{"m.room.create", ""})
	for _, k := range needed {
		if k.Type != "m.room.create" {
			keys = append(keys, Key{k.Type, k.StateKey})
		}
	}
	found, err := r.stateAt(root, keys)
	return authState{found}, err
}
