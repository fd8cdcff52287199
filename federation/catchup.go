package federation

import (
	"cmp"
	"context"
	"slices"

	"chancery/storage"
)

const (
	scanBatch  = 2000
	scanRooms  = 500
	maxHeads   = 5    // open ends of a room that a server gets of which we do not know what it missed
	maxOfRoom  = 1000 // events of one room that a server gets after an outage; of more it gets the last, and asks for the rest
	maxCatchUp = 8000
)

// catchUp reads what a server is owed from the facts above its position. It ends when it has read all that the
// reader of the log has seen: from there on the server's work comes to it again as it happens. To a server that
// may not answer it only brings the first of its work: reading a month of facts again and again for somebody who
// is not there would cost more than all others together.
func (o *Outbox) catchUp(ctx context.Context, d *destination, failing bool) error {
	select {
	case o.scanning <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-o.scanning }()
	o.mu.Lock()
	from := d.acked
	o.mu.Unlock()
	owed := &owed{rooms: map[int64][]item{}}
	if done, err := o.owedOfOld(ctx, d, from, failing, owed); err != nil || done {
		return err
	}
	sets := map[int64]bool{} // does it hold the server?
	for {
		var facts []storage.Fact
		var top int64
		err := o.DB.Read(ctx, func(tx storage.Tx) (err error) {
			if facts, err = tx.OwnEventFacts(from, scanBatch); err != nil {
				return err
			}
			if top, err = tx.MaxPos(); err != nil {
				return err
			}
			return readSets(tx, facts, d.name, sets)
		})
		if err != nil {
			return err
		}
		for _, f := range facts {
			if own := readOwn(f); own != nil && own.Not != d.name && (sets[own.Set] || slices.Contains(own.Also, d.name)) {
				owed.add(item{f.Pos, f.Event, f.Room})
			}
		}
		if failing && o.firstOf(d, owed) {
			return nil
		}
		if len(facts) == scanBatch {
			from = facts[len(facts)-1].Pos
			continue
		}
		from = top
		o.mu.Lock()
		if o.pos <= top {
			d.queue, d.behind, d.scanned = owed.list(), false, top
			o.mu.Unlock()
			return nil
		}
		o.mu.Unlock() // more happened meanwhile
	}
}

// owedOfOld adds, when facts above a position were trimmed, the open ends of the rooms that the server is in:
// what it missed in them it finds from there, and whether it missed anything nobody knows any more. They have the
// position where it stopped, since only what comes after them moves it on.
func (o *Outbox) owedOfOld(ctx context.Context, d *destination, from int64, failing bool, owed *owed) (done bool, err error) {
	first := int64(0)
	if err := o.DB.Read(ctx, func(tx storage.Tx) (err error) { first, err = tx.FirstPos(); return err }); err != nil {
		return false, err
	}
	if first <= from+1 {
		return false, nil
	}
	for room := int64(0); ; {
		var heads []storage.Fact
		err := o.DB.Read(ctx, func(tx storage.Tx) (err error) {
			heads, room, err = tx.HeadsFor(d.name, o.ServerName, room, scanRooms, maxHeads)
			return err
		})
		if err != nil {
			return false, err
		}
		for _, h := range heads {
			owed.heads = append(owed.heads, item{from, h.Event, h.Room})
		}
		if failing && o.firstOf(d, owed) {
			return true, nil
		}
		if room == 0 {
			return false, nil
		}
	}
}

// firstOf gives the destination the first of what it is owed, and says whether there is anything. More remains to
// be read when it has that.
func (o *Outbox) firstOf(d *destination, owed *owed) bool {
	list := owed.list()
	if len(list) == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	d.queue = list[:min(len(list), maxPDUs)]
	return true
}

func readSets(tx storage.Tx, facts []storage.Fact, server string, known map[int64]bool) error {
	var unknown []int64
	for _, f := range facts {
		if own := readOwn(f); own != nil {
			if _, ok := known[own.Set]; !ok {
				known[own.Set] = false
				unknown = append(unknown, own.Set)
			}
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	found, err := tx.ServerSets(unknown)
	for nid, servers := range found {
		known[nid] = slices.Contains(servers, server)
	}
	return err
}

// owed is what a server missed, bounded: of a room with too much only the last event remains, from which the
// server finds the others.
type owed struct {
	rooms map[int64][]item
	heads []item         // open ends, not bounded: few for each room
	many  map[int64]bool // of these only the last
	all   bool           // of all rooms only the last
	count int
}

func (w *owed) add(i item) {
	list := w.rooms[i.room]
	if len(list) >= maxOfRoom {
		w.lastOnly(i.room)
		list = w.rooms[i.room]
	}
	if len(list) > 0 && (w.all || w.many[i.room]) {
		list[0] = i
		return
	}
	w.rooms[i.room] = append(list, i)
	if w.count++; w.count > maxCatchUp && !w.all {
		w.all = true
		for room := range w.rooms {
			w.lastOnly(room)
		}
	}
}

func (w *owed) lastOnly(room int64) {
	if w.many == nil {
		w.many = map[int64]bool{}
	}
	list := w.rooms[room]
	w.many[room] = true
	w.count -= len(list) - 1
	w.rooms[room] = []item{list[len(list)-1]}
}

// list gives all of it in order, each event once.
func (w *owed) list() []item {
	all := make([]item, 0, w.count+len(w.heads))
	among := make(map[int64]bool, w.count)
	for _, list := range w.rooms {
		all = append(all, list...)
		for _, i := range list {
			among[i.event] = true
		}
	}
	for _, i := range w.heads {
		if !among[i.event] {
			all = append(all, i)
		}
	}
	slices.SortFunc(all, func(a, b item) int { return cmp.Or(cmp.Compare(a.pos, b.pos), cmp.Compare(a.event, b.event)) })
	return all
}
