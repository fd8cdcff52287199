package syncapi

import (
	"context"
	"fmt"
	"sync"
	"time"

	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// watch knows for each of our users who syncs what the latest fact is that concerns them. It errs on
// one side only: it may wake somebody for nothing, and never leaves anybody asleep.
type watch struct {
	s     *Server
	stop  func()
	heard chan struct{} // facts were heard that are not told yet

	inMu sync.Mutex // guards in; a leaf
	in   []sql.Fact

	mu    sync.Mutex    // guards what follows, and the fields of listeners
	end   int64         // listeners know of all facts up to here
	moved chan struct{} // closed when end moves
	users map[string]*listener
	rooms map[int64]map[*listener]struct{} // who hears of a room
	typed int64                            // how many changes of who types the listeners know of
}

// listener is one of our users with a sync under way, or not long ago.
type listener struct {
	user   string
	loadMu sync.Mutex // held while rooms are read; taken before watch.mu
	loaded bool
	from   int64 // last is right for tokens from here on; for older ones SQL must tell
	last   int64 // the latest fact that concerns the user
	rooms  map[int64]struct{}
	used   time.Time
	polls  int
	wake   chan struct{} // closed when last moves

	// What has no position is counted by this process; see page.Sync.
	typed   map[int64]int64 // by room, the latest change of who is typing
	present int64           // the latest change of a presence that the user may see

	ownAt     int64 // the latest fact about the user's own memberships and invites
	exactAt   int64 // at this position rooms were those that the user was in; later for as long as ownAt is not above it
	ignoreAt  int64 // the latest fact about whom the user ignores
	ignored   map[id.UserID]bool
	ignoredAt int64 // the position at which ignored was read; 0: never

	keysAt  map[id.DeviceID]int64 // the latest fact about the keys of each device; "": of all
	devices map[id.DeviceID]*device
}

// device is what is known of a device that syncs.
type device struct {
	keys *storage.KeyCounts // nil: to be counted
	// Up to where the latest answer gave to-device messages, and whether there were more. A token with
	// another number is of an answer that may have been lost: no fact above it tells what it had.
	given int64
	more  bool
}

// A listener without a poll is forgotten after this time; the next sync of its user asks SQL once.
const idleAfter = 15 * time.Minute

func newWatch(s *Server) *watch {
	w := &watch{s: s, heard: make(chan struct{}, 1), moved: make(chan struct{}), users: map[string]*listener{}, rooms: map[int64]map[*listener]struct{}{}}
	w.stop = s.Tail.OnFacts(w.hear)
	w.end = s.Tail.End()
	return w
}

// hear takes note of facts; it is called by the log's own goroutine.
func (w *watch) hear(facts []sql.Fact) {
	w.inMu.Lock()
	w.in = append(w.in, facts...)
	w.inMu.Unlock()
	select {
	case w.heard <- struct{}{}:
	default:
	}
}

// follow tells the listeners what was heard.
func (w *watch) follow(ctx context.Context) {
	w.inMu.Lock()
	facts := w.in
	w.in = nil
	w.inMu.Unlock()
	if len(facts) == 0 {
		return
	}
	for _, f := range facts {
		if f.Kind == sql.FactRedaction {
			w.s.Reader.Forget(f.Room, f.Event) // before anybody is woken to read it
		}
	}
	about, err := w.readAbout(ctx, facts)
	for err != nil && ctx.Err() == nil {
		w.s.Log.Warn("whom facts concern could not be read, trying again", zap.Error(err))
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
		about, err = w.readAbout(ctx, facts)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	woken := map[*listener]struct{}{}
	for i := range facts {
		w.tell(&facts[i], about, woken)
	}
	w.end = max(w.end, facts[len(facts)-1].Pos)
	close(w.moved)
	w.moved = make(chan struct{})
	for l := range woken {
		l.stir()
	}
}

// catchUp waits until the listeners know of what this process has committed: the log may be some
// milliseconds behind, and who has just sent something must not be told that nothing happened.
func (w *watch) catchUp(ctx context.Context) {
	seen := w.s.DB.Seen()
	late := time.NewTimer(catchUpFor)
	defer late.Stop()
	for {
		w.mu.Lock()
		end, moved := w.end, w.moved
		w.mu.Unlock()
		if end >= seen {
			return
		}
		select {
		case <-moved:
		case <-late.C:
			return
		case <-w.s.stopped:
			return
		case <-ctx.Done():
			return
		}
	}
}

const catchUpFor = 200 * time.Millisecond

func (l *listener) stir() {
	close(l.wake)
	l.wake = make(chan struct{})
}

// about is what facts do not say themselves.
type about struct {
	rooms   map[string][]int64 // of those whose devices changed: who is in one of them must know
	members map[int64][]string // of ours, in rooms of which nothing is missing any more
}

func (w *watch) readAbout(ctx context.Context, facts []sql.Fact) (about, error) {
	a := about{map[string][]int64{}, map[int64][]string{}}
	for _, f := range facts {
		switch f.Kind {
		case sql.FactDeviceList:
			a.rooms[f.User] = nil
		case sql.FactRoomComplete:
			a.members[f.Room] = nil
		}
	}
	if len(a.rooms)+len(a.members) == 0 {
		return a, nil
	}
	err := w.s.DB.Read(ctx, func(tx storage.Tx) error {
		for user := range a.rooms {
			rooms, err := tx.JoinedBy([]string{user})
			if err != nil {
				return err
			}
			a.rooms[user] = rooms
		}
		for room := range a.members {
			members, err := tx.LocalMembers(room, w.s.ServerName, []string{"join"})
			if err != nil {
				return err
			}
			for _, m := range members {
				a.members[room] = append(a.members[room], m.User)
			}
		}
		return nil
	})
	return a, err
}

// tell marks those whom a fact concerns. watch.mu is held.
func (w *watch) tell(f *sql.Fact, about about, woken map[*listener]struct{}) {
	mark := func(l *listener) {
		l.last = max(l.last, f.Pos)
		woken[l] = struct{}{}
	}
	own := w.users[f.User]
	switch f.Kind {
	case sql.FactEvent, sql.FactState, sql.FactRoomComplete, sql.FactPurge:
		if own != nil && f.User != "" {
			w.enter(own, f.Room) // whether they came or left is found out when they are told
			own.ownAt = f.Pos
			mark(own)
		}
		for _, user := range about.members[f.Room] { // the whole state may have them where a part had not
			if l := w.users[user]; l != nil {
				w.enter(l, f.Room)
			}
		}
		for l := range w.rooms[f.Room] {
			if f.Kind == sql.FactRoomComplete || f.Kind == sql.FactPurge {
				l.ownAt = f.Pos
			}
			mark(l)
		}
	case sql.FactReceipt:
		for l := range w.rooms[f.Room] {
			mark(l)
		}
		if own != nil {
			mark(own)
		}
	case sql.FactDeviceList:
		if own != nil {
			mark(own)
		}
		for _, room := range about.rooms[f.User] {
			for l := range w.rooms[room] {
				mark(l)
			}
		}
	case sql.FactOneTimeKeys:
		if own != nil {
			own.forgetKeys(f)
			mark(own)
		}
	case sql.FactInvite, sql.FactToDevice, sql.FactAccountData:
		if own != nil {
			switch {
			case f.Kind == sql.FactInvite:
				own.ownAt = f.Pos
			case f.Kind == sql.FactAccountData && f.Extra == ignoredType:
				own.ignoreAt = f.Pos
			}
			mark(own)
		}
	case sql.FactEpoch:
		for _, l := range w.users {
			l.ownAt, l.ignoreAt = f.Pos, f.Pos
			mark(l)
		}
	}
}

// enter has a listener hear of a room. watch.mu is held.
func (w *watch) enter(l *listener, room int64) {
	if _, ok := l.rooms[room]; ok {
		return
	}
	l.rooms[room] = struct{}{}
	in := w.rooms[room]
	if in == nil {
		in = map[*listener]struct{}{}
		w.rooms[room] = in
	}
	in[l] = struct{}{}
}

// exit has a listener no longer hear of a room. watch.mu is held.
func (w *watch) exit(l *listener, room int64) {
	delete(l.rooms, room)
	delete(l.typed, room)
	if in := w.rooms[room]; in != nil {
		delete(in, l)
		if len(in) == 0 {
			delete(w.rooms, room)
		}
	}
}

// listen gives the listener of a user who syncs, with its rooms. done must be called.
func (w *watch) listen(ctx context.Context, user string) (l *listener, done func(), err error) {
	w.mu.Lock()
	l = w.users[user]
	if l == nil {
		l = &listener{user: user, rooms: map[int64]struct{}{}, wake: make(chan struct{}),
			typed: map[int64]int64{}, keysAt: map[id.DeviceID]int64{}, devices: map[id.DeviceID]*device{}}
		w.users[user] = l
	}
	l.polls++
	w.mu.Unlock()
	done = func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		l.polls--
		l.used = time.Now()
	}
	if err := w.load(ctx, l); err != nil {
		done()
		return nil, nil, err
	}
	return l, done, nil
}

// load reads the rooms of a listener. It is registered already, so that a room entered meanwhile is
// heard of; of what happens in the others meanwhile SQL tells, for l.from lies above it.
func (w *watch) load(ctx context.Context, l *listener) error {
	l.loadMu.Lock()
	defer l.loadMu.Unlock()
	if l.loaded {
		return nil
	}
	var rooms []int64
	var pos int64
	err := w.s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		if pos, err = tx.MaxPos(); err != nil {
			return err
		}
		rooms, err = tx.JoinedBy([]string{l.user})
		return err
	})
	if err != nil {
		return fmt.Errorf("read the rooms of a user who syncs: %w", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range rooms {
		w.enter(l, r)
	}
	l.from = max(w.end, pos)
	l.loaded = true
	return nil
}

// news says whether there may be something to tell above a token; if not, the client has everything up to
// end. changed is closed when there may be more.
func (w *watch) news(l *listener, q *query) (something bool, end int64, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	since := &q.since
	something = !q.incremental || q.full || since.Pos < l.from || l.last > since.Pos || since.Process != w.s.process || l.present > since.Presence
	if d := l.devices[q.device]; d == nil || d.more || d.given != since.ToDevice {
		something = true
	}
	for _, at := range l.typed {
		something = something || at > since.Typing
	}
	return something, max(since.Pos, w.end), l.wake
}

// told takes note of an answer: what it left out, and the rooms in which the user was not. It says whether
// the counts of the device's keys are others than they were when the client last heard of them.
func (w *watch) told(l *listener, of id.DeviceID, since, pos int64, n *pending) (keysChanged bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := l.devices[of]
	if d == nil {
		d = &device{}
		l.devices[of] = d
	}
	d.given, d.more = n.toDevice, n.more
	changed := max(l.keysAt[of], l.keysAt[""])
	if changed <= pos {
		d.keys = n.keys
	}
	if n.read && l.ownAt <= pos { // else later, when that is told
		for _, room := range n.gone {
			w.exit(l, room)
		}
		l.exactAt = max(l.exactAt, pos)
	}
	if n.ignored != nil && l.ignoreAt <= pos && pos > l.ignoredAt {
		l.ignored, l.ignoredAt = n.ignored, pos
	}
	return changed > since && changed <= pos
}

// roomsOf lists the rooms that a user is in, if they are known: all that changed them is heard, up to the
// end and so up to the token, and what lies above is for the caller to look at.
func (w *watch) roomsOf(l *listener, since int64) ([]int64, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.exactAt == 0 || l.ownAt > l.exactAt || since > w.end {
		return nil, false
	}
	rooms := make([]int64, 0, len(l.rooms))
	for room := range l.rooms {
		rooms = append(rooms, room)
	}
	return rooms, true
}

// ignoredBy gives whom a user ignores, if it is known up to a position.
func (w *watch) ignoredBy(l *listener, pos int64) (map[id.UserID]bool, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if l.ignoredAt == 0 || l.ignoreAt > l.ignoredAt || pos > max(w.end, l.ignoredAt) {
		return nil, false
	}
	return l.ignored, true
}

// owed says whether to-device messages may wait for a device of which no fact tells.
func (w *watch) owed(l *listener, of id.DeviceID, since int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := l.devices[of]
	return d == nil || d.more || d.given != since
}

// keysOf gives the counts of a device's keys, if they are known.
func (w *watch) keysOf(l *listener, of id.DeviceID) (*storage.KeyCounts, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	d := l.devices[of]
	if d == nil || d.keys == nil {
		return nil, false
	}
	return d.keys, true
}

func (w *watch) dropIdle(before time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for user, l := range w.users {
		if l.polls == 0 && l.used.Before(before) {
			for room := range l.rooms {
				w.exit(l, room)
			}
			delete(w.users, user)
		}
	}
}

// forgetKeys drops what is known of the keys of a device, or of all. watch.mu is held.
func (l *listener) forgetKeys(f *sql.Fact) {
	l.keysAt[id.DeviceID(f.Device)] = f.Pos
	for name, d := range l.devices {
		if f.Device == "" || f.Device == string(name) {
			d.keys = nil
		}
	}
}
