package roomserver

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"unique"

	"chancery/storage"
	"chancery/storage/sql"
)

// Unread is how many events in a room, or in one of its threads, a user has been notified of and not read.
type Unread struct {
	Room         int64
	Thread       string // main, or the root's event ID
	Notification int64
	Highlight    int64
}

// UnreadCounts counts, in a Read, what a user has not read in some rooms, by thread, without the messages of ignored users.
// Nothing is counted when a message arrives: the count is what lies above the user's receipts, their own latest
// event and their joining, by each event's default outcome and what the notifications say otherwise. It is
// bounded: of what lies deeper than the room's newest storage.UnreadDepth events only highlights count.
//
// spec: c2s#receiving-notifications, c2s#marking-notifications-as-read
func (rd *Reader) UnreadCounts(tx storage.Tx, user string, rooms []int64, ignored []string) ([]Unread, error) {
	return rd.unreadCounts(tx, user, rooms, ignored, storage.UnreadDepth)
}

func (rd *Reader) unreadCounts(tx storage.Tx, user string, rooms []int64, ignored []string, depth int) (counts []Unread, err error) {
	readings, err := tx.Readings(user, rooms)
	if err != nil {
		return nil, fmt.Errorf("read how far somebody has read: %w", err)
	}
	var withOwn []int64
	of := make(map[int64]*counting, len(readings))
	for _, v := range readings {
		c := of[v.Room]
		if c == nil {
			c = &counting{user: unique.Make(user), read: map[name]int64{}}
			of[v.Room] = c
		}
		if v.Thread != "" {
			thread := unique.Make(v.Thread)
			c.read[thread] = max(c.read[thread], v.Ord)
		} else if v.Own {
			withOwn = append(withOwn, v.Room)
		}
	}
	if len(withOwn) > 0 {
		list, err := tx.OwnNotifications(user, withOwn, depth)
		if err != nil {
			return nil, fmt.Errorf("read somebody's notifications: %w", err)
		}
		for _, n := range list {
			of[n.Room].own = append(of[n.Room].own, n)
		}
	}
	passed := make(map[name]bool, len(ignored))
	for _, v := range ignored {
		passed[unique.Make(v)] = true
	}
	for _, v := range readings {
		if v.Thread != "" {
			continue
		}
		events, err := rd.newestEvents(tx, v.Room, v.Newest, v.Ord, depth+1)
		if err != nil {
			return nil, fmt.Errorf("read what may be unread: %w", err)
		}
		c := of[v.Room]
		c.ignored = passed
		c.count(events, v.Ord, depth)
		for _, n := range c.counts {
			n.Room = v.Room
			counts = append(counts, *n)
		}
	}
	return counts, nil
}

// name is a user's or a thread's, of which a few stand at many events.
type name = unique.Handle[string]

// counting counts what somebody has not read in one room.
type counting struct {
	user    name
	ignored map[name]bool
	read    map[name]int64 // up to which place, by thread
	own     []storage.OwnNotification
	counts  map[name]*Unread // by thread
}

// count looks at the newest events above a place, at so many at most, and for highlights below them.
func (c *counting) count(events []placed, above int64, depth int) {
	c.counts = map[name]*Unread{}
	own := make(map[int64]*storage.OwnNotification, len(c.own))
	for i := range c.own {
		own[c.own[i].Ord] = &c.own[i]
	}
	floor := above
	for i, seen := len(events)-1, 0; i >= 0 && events[i].ord > above; i, seen = i-1, seen+1 {
		ev := &events[i]
		if seen == depth {
			floor = ev.ord
			break
		}
		if ev.sender == c.user {
			c.read[ev.thread] = max(c.read[ev.thread], ev.ord) // who writes has read
			continue
		}
		n := own[ev.ord]
		notify := ev.notify
		if n != nil {
			notify = n.Notify
		}
		if notify && !ev.redacted && !c.ignored[ev.sender] && ev.ord > c.read[ev.thread] {
			c.add(ev.thread, n != nil && n.Highlight)
		}
	}
	for i := range c.own {
		n := &c.own[i]
		thread := unique.Make(n.Thread)
		if n.Far && n.Ord <= floor && n.Ord > c.read[thread] && !c.ignored[unique.Make(n.Sender)] {
			c.add(thread, true)
		}
	}
}

func (c *counting) add(thread name, highlight bool) {
	n := c.counts[thread]
	if n == nil {
		n = &Unread{Thread: thread.Value()}
		c.counts[thread] = n
	}
	n.Notification++
	if highlight {
		n.Highlight++
	}
}

// window is what counting asks of a room's newest events, whoever counts. Whatever changes one of them is told with a
// fact of the room. When it was read, first was the room's newest fact; up to last only newer events came. So it is right
// for every snapshot of which the newest fact of the room is one of those.
type window struct {
	mu          sync.Mutex // guards the rest; held while storage is read, by who has a connection already
	first, last int64
	above       int64    // all events above this place are there
	events      []placed // the lowest first; who got them reads them without mu: they are not changed in place
}

// placed is an event in a window.
type placed struct {
	ord              int64
	pos              int64 // of its fact; 0: it was there when the window was read
	sender, thread   name
	notify, redacted bool
}

const (
	placedBytes = 100 // with its share of names
	maxGrowth   = 500 // facts that a window takes in; after more it is read anew
)

// newestEvents gives the newest events of a room above a place, as a snapshot sees them of which the newest fact of the
// room is given: all, or at least so many, and maybe some below them. The lowest is the first.
func (rd *Reader) newestEvents(tx storage.Tx, room, newest, above int64, enough int) ([]placed, error) {
	if newest == 0 { // no fact is left that another would follow
		return readPlaced(tx, room, above, math.MaxInt64, enough)
	}
	w, ok := rd.windows.Get(room)
	if !ok {
		w = &window{}
		rd.windows.Put(room, w, 200)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if newest < w.first {
		return readPlaced(tx, room, above, math.MaxInt64, enough)
	}
	if newest > w.last {
		grown, err := w.grow(tx, room, newest)
		if err != nil {
			return nil, err
		}
		if !grown {
			events, err := readPlaced(tx, room, above, math.MaxInt64, enough)
			if err != nil {
				return nil, err
			}
			w.first, w.last, w.events = newest, newest, events
			w.above = reached(events, above, enough)
		}
	}
	events := w.at(newest)
	if len(events) < enough && above < w.above {
		rest := enough - len(events)
		deeper, err := readPlaced(tx, room, above, w.above+1, rest)
		if err != nil {
			return nil, err
		}
		w.events = append(deeper, w.events...)
		w.above = reached(deeper, above, rest)
		events = w.at(newest)
	}
	if drop := len(w.events) - enough; drop > enough {
		w.above = w.events[drop-1].ord
		w.events = slices.Clone(w.events[drop:])
	}
	rd.windows.Put(room, w, 200+placedBytes*len(w.events))
	return events, nil
}

// reached says above which place all events are among those that were read, when at most so many were asked for.
func reached(events []placed, above int64, limit int) int64 {
	if len(events) < limit {
		return above
	}
	return events[0].ord - 1
}

// at gives the events that had come when a fact was the room's newest.
func (w *window) at(newest int64) []placed {
	n := len(w.events)
	for n > 0 && w.events[n-1].pos > newest {
		n--
	}
	return w.events[:n]
}

// grow takes in what came up to a fact, if that is known and nothing but newer events.
func (w *window) grow(tx storage.Tx, room, newest int64) (bool, error) {
	if w.last == 0 {
		return false, nil
	}
	facts, err := tx.FactsOfRoom(room, w.last, maxGrowth)
	if err != nil || len(facts) == 0 || facts[0].Pos != w.last || facts[len(facts)-1].Pos != newest {
		return false, err
	}
	var came []storage.Fact
	for _, f := range facts[1:] {
		switch f.Kind {
		case sql.FactEvent:
			came = append(came, f)
		case sql.FactState, sql.FactReceipt, sql.FactAccountData: // of no event
		default:
			return false, nil
		}
	}
	top := w.above
	if n := len(w.events); n > 0 {
		top = w.events[n-1].ord
	}
	if len(came) > 0 {
		events, err := readPlaced(tx, room, top, math.MaxInt64, len(came)+1)
		if err != nil || len(events) != len(came) {
			return false, err
		}
		for i := range events {
			if events[i].ord != came[i].Ord {
				return false, nil
			}
			events[i].pos = came[i].Pos
		}
		w.events = append(w.events, events...)
	}
	w.last = newest
	return true, nil
}

// readPlaced reads the newest events between two places, the lowest first.
func readPlaced(tx storage.Tx, room, above, below int64, limit int) ([]placed, error) {
	rows, err := tx.PlacedEvents(room, above, below, limit)
	if err != nil {
		return nil, err
	}
	events := make([]placed, len(rows))
	for i, v := range rows {
		events[len(rows)-1-i] = placed{ord: v.Ord, sender: unique.Make(v.Sender), thread: unique.Make(v.Thread), notify: v.Notify, redacted: v.Redacted}
	}
	return events, nil
}
