package federation

import (
	"context"
	"errors"
	"net/http"
	"sync"
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
	sent    sent          // how far the transaction under way goes
	since   time.Time     // when that was made
	resume  sent          // how far the first one goes: a restart sends again what was under way
	again   chan struct{} // its back-off changed
}

// sent is how far a transaction goes: the position of its last event and the ID of its last EDU, 0 where it has none.
type sent struct{ pos, edu int64 }

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
		if err := guarded(o.Log, "send to a server", func() error { o.deliver(ctx, d, t); return nil }); err != nil {
			o.mu.Lock()
			o.giveBack(d, t)
			o.mu.Unlock()
			wait(ctx, nil, panicPause)
		}
	}
}

// panicPause is how long a server waits over whose answer we have stumbled.
const panicPause = time.Minute

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
	if t.pieces() == 0 && len(t.loose) == 0 && !t.lists {
		o.acknowledged(ctx, d, t) // its events were purged
		return
	}
	for ctx.Err() == nil {
		leave, ok := o.enter(ctx, o.waitOut(ctx, d))
		if !ok {
			return
		}
		began := time.Now()
		refused, err := o.Peer.SendTransaction(ctx, d.name, t.id, t.body(), peer.Opts{})
		leave()
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

// enter waits for a place among the requests under way, and gives what leaves it. A request that takes long makes
// room for the others: a few hundred servers that take a minute for each answer must not delay the quick ones.
func (o *Outbox) enter(ctx context.Context, failing bool) (leave func(), ok bool) {
	places := o.healthy
	if failing {
		places = o.failing
	}
	select {
	case places <- struct{}{}:
	case <-ctx.Done():
		return nil, false
	}
	var mu sync.Mutex // guards in; a leaf
	in := places
	late := time.AfterFunc(o.slowAfter, func() {
		mu.Lock()
		defer mu.Unlock()
		if in == nil {
			return
		}
		select {
		case o.slow <- struct{}{}:
			<-in
			in = o.slow
		default: // too many are slow: the rest has to wait after all
		}
	})
	return func() {
		late.Stop()
		mu.Lock()
		defer mu.Unlock()
		<-in
		in = nil
	}, true
}

const (
	// maxRefusals is how often a server may refuse the same transaction before we look for the piece it cannot take.
	maxRefusals = 3
	// maxCrashes is how often it may fail on one event, with status 500, before that is passed over: within hours.
	// The server finds it by the events after it. It may also just be ill, so what is kept in storage is not passed over.
	maxCrashes = 10
)

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
	if t.pieces() == 0 && !t.lists {
		d.flying, d.sent = 0, sent{}
		return goOn
	}
	switch peer.StatusOf(err) {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		t.refused++
	case http.StatusInternalServerError:
		t.crashed++
	default:
		return sendAgain
	}
	switch {
	case t.refused+t.crashed < maxRefusals:
		return sendAgain
	case t.pieces() > 1:
		d.single = t.pieces()
		o.giveBack(d, t)
		return goOn
	case t.refused < maxRefusals && (len(t.kept) > 0 || t.crashed < maxCrashes):
		return sendAgain
	}
	o.Log.Warn("a server refuses what it is owed; it is passed over", zap.String("server", d.name), zap.Error(err))
	return passOver
}

// acknowledged goes on after a transaction that arrived.
func (o *Outbox) acknowledged(ctx context.Context, d *destination, t *transaction) {
	o.drop(ctx, d, t)
	o.mu.Lock()
	defer o.mu.Unlock()
	d.flying, d.sent = 0, sent{}
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
	if len(t.kept) == 0 && !t.lists {
		return
	}
	ids := make([]int64, 0, len(t.kept)+1)
	for _, e := range t.kept {
		ids = append(ids, e.ID)
	}
	if t.lists {
		if err := o.Users.AnnounceTo(ctx, d.name); err != nil {
			if ctx.Err() == nil {
				o.Log.Warn("device lists could not be announced to a server that missed some", zap.String("server", d.name), zap.Error(err))
			}
		} else {
			ids = append(ids, 0) // the mark
		}
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
