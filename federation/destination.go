package federation

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"net/http"
	"slices"
	"time"

	"chancery/federation/peer"
	"chancery/storage"

	"go.uber.org/zap"
)

// destination is a server that we have something for. All of it is guarded by Outbox.mu, but for the
// transaction, which belongs to the destination's one goroutine.
type destination struct {
	name    string
	queue   []item // events that it gets, in their order
	flying  int    // events in the transaction under way
	acked   int64  // it has all that it gets up to here; meaningful while something is owed
	behind  bool   // after the queue there is more, to be read from the facts above acked
	scanned int64  // the queue has all up to here, whatever the reader of the log brings again
	kept    bool   // EDUs wait in storage
	loose   loose
	working bool
	single  int           // so many pieces go alone: a transaction of several was refused
	again   chan struct{} // its back-off changed
}

// item is an event that a server gets.
type item struct{ pos, event, room int64 }

const (
	maxQueued  = 10_000 // events for a server that answers
	maxPatient = 200    // events for one that does not
)

func (d *destination) owes() bool { return d.behind || len(d.queue) > 0 || d.flying > 0 }

// destination finds or makes one; o.mu is held.
func (o *Outbox) destination(name string) *destination {
	d := o.all[name]
	if d == nil {
		d = &destination{name: name, again: make(chan struct{}, 1)}
		o.all[name] = d
	}
	return d
}

// owe gives a server one more event; o.mu is held.
func (o *Outbox) owe(name string, i item) {
	if name == o.ServerName {
		return
	}
	d := o.destination(name)
	if i.pos <= d.scanned || d.behind {
		return
	}
	if !d.owes() {
		d.acked = i.pos - 1
	}
	limit := maxQueued
	if o.backoff[name].Failures > 0 {
		limit = maxPatient
	}
	if len(d.queue) >= limit {
		d.forget()
	} else {
		d.queue = append(d.queue, i)
	}
	o.kick(d)
}

// forget leaves the work to be read again later.
func (d *destination) forget() { d.queue, d.behind = nil, true }

// kick sees to it that somebody works for the destination; o.mu is held.
func (o *Outbox) kick(d *destination) {
	ctx := o.ctx
	if d.working || ctx == nil || ctx.Err() != nil {
		return
	}
	d.working = true
	o.running.Go(func() { o.work(ctx, d) })
}

// work sends what there is for a destination, one transaction after the other.
func (o *Outbox) work(ctx context.Context, d *destination) {
	for failures := 0; ctx.Err() == nil; {
		t, err := o.next(ctx, d)
		switch {
		case err != nil:
			failures++
			if ctx.Err() == nil {
				o.Log.Warn("the outbox could not read", zap.String("server", d.name), zap.Error(err))
			}
			wait(ctx, nil, min(time.Duration(failures)*time.Second, 30*time.Second))
			continue
		case t == nil:
			return
		}
		failures = 0
		o.deliver(ctx, d, t)
	}
}

// transaction is what goes to a destination at once. Sent again it is the same.
type transaction struct {
	id      string
	items   []item
	pdus    []json.RawMessage
	kept    []storage.EDU
	loose   []peer.EDU
	refused int // how often
}

func (t *transaction) pieces() int { return len(t.pdus) + len(t.kept) }

// next makes the next transaction; nil when there is nothing more to do, and the goroutine ends.
func (o *Outbox) next(ctx context.Context, d *destination) (*transaction, error) {
	o.mu.Lock()
	for d.behind && len(d.queue) == 0 {
		o.mu.Unlock()
		// Whoever does not answer needs no work: wait first, read then.
		o.waitOut(ctx, d)
		if err := o.catchUp(ctx, d); err != nil {
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
	t := &transaction{items: d.queue[:min(len(d.queue), pdus)]}
	readKept := d.kept && edus > 0
	if d.single == 0 {
		t.loose = d.loose.take(maxEDUs / 4)
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

	if err := o.fill(ctx, d, t, readKept, edus-len(t.loose)); err != nil {
		o.mu.Lock()
		o.giveBack(d, t)
		o.mu.Unlock()
		return nil, err
	}
	return t, nil
}

// giveBack puts a transaction's work where it came from; o.mu is held.
func (o *Outbox) giveBack(d *destination, t *transaction) {
	d.flying, d.kept = 0, true
	d.queue = append(append(make([]item, 0, len(t.items)+len(d.queue)), t.items...), d.queue...)
}

// fill reads what a transaction carries.
func (o *Outbox) fill(ctx context.Context, d *destination, t *transaction, readKept bool, limit int) error {
	nids := make([]int64, len(t.items))
	for i, v := range t.items {
		nids[i] = v.event
	}
	var err error
	if t.pdus, err = o.bodies.read(ctx, o.DB, nids); err != nil {
		return err
	}
	if readKept {
		err = o.DB.Read(ctx, func(tx storage.Tx) error {
			t.kept, err = tx.EDUs(d.name, limit)
			return err
		})
		if err != nil {
			return err
		}
		if len(t.kept) == limit { // there may be more
			o.mu.Lock()
			d.kept = true
			o.mu.Unlock()
		}
	}
	t.name(o)
	return nil
}

// name gives the transaction an ID that is its own: the same work, sent again after a restart, has the same
// one, and other work another, since a peer takes an ID it knows for a repetition.
//
// spec: s2s#transactions
func (t *transaction) name(o *Outbox) {
	last := int64(0)
	h := fnv.New64a()
	for _, i := range t.items {
		last = i.pos
		fmt.Fprintf(h, "%d ", i.pos)
	}
	for _, e := range t.kept {
		last = max(last, e.ID)
		fmt.Fprintf(h, "e%d ", e.ID)
	}
	if last == 0 {
		fmt.Fprintf(h, "%d %d", time.Now().UnixNano(), o.counter.Add(1))
	}
	t.id = fmt.Sprintf("%d-%d-%x", o.DB.Epoch(), last, h.Sum64())
}

// wait waits for a time, or less when woken.
func wait(ctx context.Context, woken <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-woken:
	case <-timer.C:
	}
}

// waitOut returns when the destination may be asked.
func (o *Outbox) waitOut(ctx context.Context, d *destination) (failing bool) {
	for ctx.Err() == nil {
		state := o.Peer.Destination(d.name)
		left := time.Until(state.RetryAt)
		if left <= 0 {
			return state.Failures > 0
		}
		wait(ctx, d.again, left)
	}
	return true
}

// deliver sends a transaction until the destination has it.
func (o *Outbox) deliver(ctx context.Context, d *destination, t *transaction) {
	if len(t.pdus) == 0 && len(t.kept) == 0 && len(t.loose) == 0 {
		o.acknowledged(ctx, d, t) // its events were purged
		return
	}
	for ctx.Err() == nil {
		slots := o.healthy
		if o.waitOut(ctx, d) {
			slots = o.failing
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		began := time.Now()
		refused, err := o.Peer.SendTransaction(ctx, d.name, t.id, t.body(), peer.Opts{})
		<-slots
		if err == nil {
			for eventID, why := range refused {
				o.Log.Debug("a server did not want an event", zap.String("server", d.name), zap.String("event", string(eventID)), zap.String("why", why))
			}
			o.acknowledged(ctx, d, t)
			return
		}
		if ctx.Err() != nil {
			return
		}
		switch o.failed(d, t, err, time.Since(began)) {
		case goOn:
			return
		case passOver:
			o.acknowledged(ctx, d, t)
			return
		}
	}
}

func (t *transaction) body() peer.Transaction {
	body := peer.Transaction{TS: time.Now().UnixMilli(), PDUs: t.pdus, EDUs: slices.Clone(t.loose)}
	for _, e := range t.kept {
		body.EDUs = append(body.EDUs, peer.EDU{Type: e.Type, Content: e.Content})
	}
	return body
}

// maxRefusals is how often a server may refuse the same transaction before we look for the piece it cannot take.
const maxRefusals = 3

// verdict says what becomes of a transaction that did not arrive.
type verdict int

const (
	sendAgain verdict = iota
	goOn              // it is no more, or its pieces go alone
	passOver          // the server does not take it, ever
)

func (o *Outbox) failed(d *destination, t *transaction, err error, took time.Duration) verdict {
	if errors.Is(err, peer.ErrBackedOff) {
		return sendAgain
	}
	state := o.Peer.Destination(d.name)
	if state.Failures == 1 {
		o.Log.Info("destination backed off", zap.String("server", d.name), zap.Time("until", state.RetryAt),
			zap.Duration("after", took), zap.Error(err))
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	t.loose = nil // by then nobody types any more
	d.loose.clear()
	if len(d.queue) > maxPatient {
		d.forget()
	}
	if t.pieces() == 0 {
		d.flying = 0
		return goOn
	}
	switch peer.StatusOf(err) {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		t.refused++
	default:
		return sendAgain
	}
	switch {
	case t.refused < maxRefusals:
		return sendAgain
	case t.pieces() > 1:
		d.single = t.pieces()
		o.giveBack(d, t)
		return goOn
	}
	o.Log.Warn("a server refuses what it is owed; it is passed over", zap.String("server", d.name), zap.Error(err))
	return passOver
}

// acknowledged goes on after a transaction that arrived.
func (o *Outbox) acknowledged(ctx context.Context, d *destination, t *transaction) {
	o.drop(ctx, d, t)
	o.mu.Lock()
	defer o.mu.Unlock()
	d.flying = 0
	if n := len(t.items); n > 0 {
		d.acked = t.items[n-1].pos
	}
	if d.single > 0 {
		d.single--
	}
}

// drop deletes the EDUs that need not be sent again. When that fails they go out twice, and the receiver
// knows them by their IDs.
func (o *Outbox) drop(ctx context.Context, d *destination, t *transaction) {
	if len(t.kept) == 0 {
		return
	}
	ids := make([]int64, len(t.kept))
	for i, e := range t.kept {
		ids[i] = e.ID
	}
	err := o.DB.Write(ctx, nil, func(tx storage.Tx) error {
		tx.DeleteEDUs(d.name, ids)
		return nil
	})
	if err != nil {
		o.Log.Warn("delivered messages could not be deleted", zap.String("server", d.name), zap.Error(err))
		o.mu.Lock()
		d.kept = true
		o.mu.Unlock()
	}
}
