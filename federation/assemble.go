package federation

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
)

// What a transaction holds of each kind: it stays below a megabyte, which is what proxies let through when nobody
// told them otherwise. A single piece goes whatever its size.
const (
	maxPDUBytes = 640 << 10
	maxEDUBytes = 320 << 10 // of those that are kept; the others are small
)

// transaction is what goes to a destination at once. Sent again it is the same.
type transaction struct {
	id      string
	items   []item
	pdus    []json.RawMessage
	kept    []storage.EDU
	loose   []peer.EDU
	lists   bool // updates of device lists for the server are lost: when it answers it is told of all
	refused int  // how often
	crashed int  // how often the server failed on it
}

func (t *transaction) pieces() int { return len(t.pdus) + len(t.kept) }

func (t *transaction) body() peer.Transaction {
	body := peer.Transaction{TS: time.Now().UnixMilli(), PDUs: t.pdus, EDUs: slices.Clone(t.loose)}
	for _, e := range t.kept {
		body.EDUs = append(body.EDUs, peer.EDU{Type: e.Type, Content: e.Content})
	}
	return body
}

// next makes the next transaction; nil when there is nothing more to do, and the goroutine ends.
func (o *Outbox) next(ctx context.Context, d *destination) (*transaction, error) {
	o.mu.Lock()
	for d.behind && len(d.queue) == 0 {
		o.mu.Unlock()
		// Whoever does not answer needs no work: wait first, read then, and no more than shows whether it answers.
		failing := o.waitOut(ctx, d)
		if err := o.catchUp(ctx, d, failing); err != nil {
			return nil, err
		}
		o.mu.Lock()
	}
	pdus, edus := maxPDUs, maxEDUs
	if d.single > 0 {
		pdus, edus = 1, 0
		if len(d.queue) == 0 {
			edus = 1
		}
	}
	again := d.resume
	d.resume = sent{}
	if again != (sent{}) {
		// What was under way when we stopped may have arrived: it goes again as it was, and alone.
		pdus = 0
		for pdus < min(maxPDUs, len(d.queue)) && d.queue[pdus].pos <= again.pos {
			pdus++
		}
		if again.edu == 0 {
			edus = 0
		}
	}
	t := &transaction{items: d.queue[:min(len(d.queue), pdus)]}
	readKept := d.kept && edus > 0
	if d.single == 0 && again == (sent{}) {
		t.loose = d.loose.take(maxEDUs / 4)
	}
	if again != (sent{}) && len(t.items) == 0 && !readKept {
		o.mu.Unlock()
		return o.next(ctx, d) // nothing of it is left
	}
	if len(t.items) == 0 && !readKept && len(t.loose) == 0 {
		d.working = false
		if !d.owes() && !d.kept {
			delete(o.all, d.name)
		}
		o.mu.Unlock()
		return nil, nil
	}
	if readKept {
		d.kept = false // before reading: what comes later wakes us again
	}
	d.queue = d.queue[len(t.items):]
	d.flying = len(t.items)
	o.mu.Unlock()

	if err := o.fill(ctx, d, t, readKept, edus-len(t.loose), again.edu); err != nil {
		o.mu.Lock()
		o.giveBack(d, t)
		d.resume = again
		o.mu.Unlock()
		return nil, err
	}
	return t, nil
}

// giveBack puts a transaction's work where it came from; o.mu is held.
func (o *Outbox) giveBack(d *destination, t *transaction) {
	d.flying, d.kept, d.sent = 0, true, sent{}
	d.queue = append(append(make([]item, 0, len(t.items)+len(d.queue)), t.items...), d.queue...)
}

// fill reads what a transaction carries, and leaves for the next what would make it too large. No EDUs above upTo
// go with it, unless that is 0.
func (o *Outbox) fill(ctx context.Context, d *destination, t *transaction, readKept bool, limit int, upTo int64) error {
	nids := make([]int64, len(t.items))
	for i, v := range t.items {
		nids[i] = v.event
	}
	texts, err := o.bodies.read(ctx, o.DB, nids)
	if err != nil {
		return err
	}
	more := false // EDUs may wait for the next
	if readKept {
		err = o.DB.Read(ctx, func(tx storage.Tx) error {
			t.kept, err = tx.EDUs(d.name, limit)
			return err
		})
		if err != nil {
			return err
		}
		more = len(t.kept) == limit
		if len(t.kept) > 0 && t.kept[0].Type == storage.EDUListsLost {
			t.lists, t.kept = o.Users != nil, t.kept[1:]
		}
	}
	size, n := 0, 0
	for ; n < len(texts); n++ {
		if size += len(texts[n]); size > maxPDUBytes && len(t.pdus) > 0 {
			break
		}
		if texts[n] != nil { // else it was purged
			t.pdus = append(t.pdus, texts[n])
		}
	}
	rest := t.items[n:]
	t.items = t.items[:n]
	size = 0
	for i, e := range t.kept {
		size += len(e.Content)
		if i > 0 && size > maxEDUBytes || upTo > 0 && e.ID > upTo {
			t.kept, more = t.kept[:i], true
			break
		}
	}
	t.name(o)
	o.mu.Lock()
	defer o.mu.Unlock()
	d.queue = append(append(make([]item, 0, len(rest)+len(d.queue)), rest...), d.queue...)
	d.flying, d.sent, d.since = n, t.reach(), time.Now()
	d.kept = d.kept || more
	return nil
}

// reach says how far the transaction goes.
func (t *transaction) reach() (s sent) {
	if n := len(t.items); n > 0 {
		s.pos = t.items[n-1].pos
	}
	if n := len(t.kept); n > 0 {
		s.edu = t.kept[n-1].ID
	}
	return s
}

// name gives the transaction an ID that is its own: the same work, sent again after a restart, has the same
// one, and other work another, since a peer takes an ID it knows for a repetition.
//
// spec: s2s#transactions
func (t *transaction) name(o *Outbox) {
	h := fnv.New64a()
	for _, i := range t.items {
		fmt.Fprintf(h, "%d-%d ", i.pos, i.event)
	}
	for _, e := range t.kept {
		fmt.Fprintf(h, "e%d ", e.ID)
	}
	s := t.reach()
	last := max(s.pos, s.edu)
	if last == 0 {
		fmt.Fprintf(h, "%d %d", time.Now().UnixNano(), o.counter.Add(1))
	}
	t.id = fmt.Sprintf("%d-%d-%x", o.DB.Epoch(), last, h.Sum64())
}
