package federation

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/eventlog"
	"chancery/storage/sql"
	"chancery/users"

	"go.uber.org/zap"
)

// OutboxOptions are what an Outbox needs.
type OutboxOptions struct {
	DB         *storage.DB
	Facts      *eventlog.Log
	Peer       *peer.Client  // its Options.Changed tells BackoffChanged
	Users      *users.Server // who types and who is there, and who fetches device lists; nil tells only what is stored
	Presence   bool          // tell presence too
	ServerName string
	Log        *zap.Logger
}

// Outbox tells other servers what happened here. It is a reader of the log with one cursor: a fact about an
// event of ours names the servers that get it. Servers that answer have their work in memory, bounded. Of one
// that does not only a position is kept, and when it is back its work is read from the facts above that. So a
// dead server costs nothing, and a restart loses nothing. What has no event, to-device messages and device
// lists, has rows of its own that are deleted when the server has them.
type Outbox struct {
	OutboxOptions

	mu       sync.Mutex // guards what follows and every destination; never held while waiting
	pos      int64      // all facts up to here were looked at
	all      map[string]*destination
	backoff  map[string]peer.Destination // servers that fail, or that asked us to wait
	receipts []readReceipt               // to be told
	ctx      context.Context             // of Run, for the goroutines of destinations

	cursor int64                          // as stored; of flush alone
	tried  int64                          // what the last flush was to store; of flush alone
	stored map[string]storage.Destination // rows as stored; of flush alone

	sets     map[int64][]string // server sets lately read; of the reader alone
	bodies   *bodies
	healthy  chan struct{} // requests under way to servers that answer
	failing  chan struct{} // and to those that may not: they must not delay the others
	slow     chan struct{} // those of both that take longer than slowAfter
	scanning chan struct{}

	slowAfter time.Duration
	running   sync.WaitGroup
	counter   atomic.Int64 // of transactions that nobody needs to recognise
}

const (
	parallelHealthy = 256
	parallelFailing = 64
	parallelSlow    = 1024
	slowAfter       = 5 * time.Second
	parallelScans   = 4
	maxSets         = 5000
	outboxName      = "outbox"

	// So many failing servers are remembered that are owed nothing: anybody can make us ask for the keys of
	// names that nobody has.
	maxStrangers = 1000
	flushEvery   = time.Second
)

// NewOutbox makes an Outbox. Nothing is sent before Run.
func NewOutbox(o OutboxOptions) *Outbox {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	return &Outbox{
		OutboxOptions: o,
		all:           map[string]*destination{}, backoff: map[string]peer.Destination{},
		stored: map[string]storage.Destination{}, sets: map[int64][]string{}, bodies: newBodies(),
		healthy: make(chan struct{}, parallelHealthy), failing: make(chan struct{}, parallelFailing),
		slow: make(chan struct{}, parallelSlow), slowAfter: slowAfter,
		scanning: make(chan struct{}, parallelScans),
	}
}

// Run sends until ctx ends.
func (o *Outbox) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := o.load(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("read the outbox: %w", err)
	}
	from := o.cursor
	flushed := make(chan error, 1)
	go func() { flushed <- o.keepFlushing(ctx, cancel) }()
	o.running.Go(func() { o.keepTelling(ctx) })
	err := o.Facts.Read(ctx, outboxName, from, o.take)
	cancel()
	o.mu.Lock()
	o.ctx = nil // nothing new begins
	o.mu.Unlock()
	o.running.Wait()
	if flushErr := <-flushed; flushErr != nil {
		return flushErr
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// load takes up the work where the last run left it.
func (o *Outbox) load(ctx context.Context) error {
	var rows []storage.Destination
	var waiting []string
	err := o.DB.Read(ctx, func(tx storage.Tx) (err error) {
		if o.cursor, err = tx.Cursor(outboxName); err != nil {
			return err
		}
		if rows, err = tx.Destinations(); err != nil {
			return err
		}
		waiting, err = tx.DestinationsWithEDUs()
		return err
	})
	if err != nil {
		return err
	}
	var failed []peer.Destination
	for _, row := range rows {
		if row.Failures > 0 || row.RetryAt > 0 {
			failed = append(failed, peer.Destination{Server: row.Name, Failures: row.Failures, RetryAt: time.UnixMilli(row.RetryAt)})
		}
	}
	o.Peer.Restore(failed)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ctx, o.pos = ctx, o.cursor
	for _, d := range failed {
		o.backoff[d.Server] = d
	}
	for _, row := range rows {
		o.stored[row.Name] = row
		if resume := (sent{row.SentPos, row.SentEDU}); row.Behind || resume != (sent{}) {
			d := o.destination(row.Name)
			d.behind, d.acked, d.resume = row.Behind, row.Acked, resume
			o.kick(d)
		}
	}
	for _, name := range waiting {
		d := o.destination(name)
		d.kept = true
		o.kick(d)
	}
	return nil
}

// ownEvent is what the fact of an event of ours says about who gets it.
type ownEvent struct {
	Set  int64    `json:"set"`
	Also []string `json:"also"`
	Not  string   `json:"not"`
}

// take looks at facts: what cannot fail comes last, since all of them come again after an error.
func (o *Outbox) take(ctx context.Context, facts []storage.Fact) error {
	owns, err := o.owns(ctx, facts)
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, f := range facts {
		switch {
		case f.Kind == sql.FactOutgoing && f.Extra != "" && f.Extra != o.ServerName:
			d := o.destination(f.Extra)
			d.kept = true
			o.kick(d)
		case f.Kind == sql.FactReceipt:
			o.noteReceipt(f)
		case f.Kind == sql.FactRedaction:
			o.bodies.drop(f.Event)
		case owns[i] != nil:
			for _, name := range owns[i] {
				o.owe(name, item{f.Pos, f.Event, f.Room})
			}
		}
	}
	o.pos = facts[len(facts)-1].Pos
	return nil
}

// owns gives for each fact of an event of ours the servers that get it.
func (o *Outbox) owns(ctx context.Context, facts []storage.Fact) ([][]string, error) {
	read := make([]*ownEvent, len(facts))
	var unknown []int64
	for i, f := range facts {
		if read[i] = readOwn(f); read[i] != nil {
			if _, ok := o.sets[read[i].Set]; !ok && !slices.Contains(unknown, read[i].Set) {
				unknown = append(unknown, read[i].Set)
			}
		}
	}
	if len(unknown) > 0 {
		if len(o.sets) > maxSets {
			clear(o.sets)
			for _, own := range read {
				if own != nil && !slices.Contains(unknown, own.Set) {
					unknown = append(unknown, own.Set)
				}
			}
		}
		err := o.DB.Read(ctx, func(tx storage.Tx) error {
			found, err := tx.ServerSets(unknown)
			for _, nid := range unknown {
				o.sets[nid] = found[nid] // one that is gone is of a purged room
			}
			return err
		})
		if err != nil {
			for _, nid := range unknown {
				delete(o.sets, nid)
			}
			return nil, err
		}
	}
	out := make([][]string, len(facts))
	for i, own := range read {
		if own != nil {
			out[i] = own.servers(o.sets[own.Set])
		}
	}
	return out, nil
}

func readOwn(f storage.Fact) *ownEvent {
	if f.Kind != sql.FactEvent || f.Extra == "" {
		return nil
	}
	var own ownEvent
	if json.Unmarshal([]byte(f.Extra), &own) != nil {
		return nil
	}
	return &own
}

func (own *ownEvent) servers(set []string) []string {
	if len(own.Also) == 0 && own.Not == "" {
		return set
	}
	all := slices.DeleteFunc(slices.Clone(set), func(name string) bool { return name == own.Not })
	for _, name := range own.Also {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// BackoffChanged learns from the client that a server fails, or that it does no more.
func (o *Outbox) BackoffChanged(d peer.Destination) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ctx := o.ctx; ctx != nil && o.Users != nil && d.Failures == 0 && o.backoff[d.Server].Failures > 0 {
		o.running.Go(func() {
			err := guarded(o.Log, "greet a server that is back", func() error { return o.Users.ServerIsBack(ctx, d.Server) })
			if err != nil && ctx.Err() == nil {
				o.Log.Warn("device lists of a server that is back could not be asked for", zap.String("server", d.Server), zap.Error(err))
			}
		})
	}
	_, kept := o.backoff[d.Server]
	switch {
	case d.Failures == 0 && !time.Now().Before(d.RetryAt):
		delete(o.backoff, d.Server)
	case kept || o.all[d.Server] != nil || len(o.backoff) < maxStrangers:
		o.backoff[d.Server] = d
	}
	if known := o.all[d.Server]; known != nil {
		select {
		case known.again <- struct{}{}:
		default:
		}
	}
}

// keepFlushing stores once a second how far we are.
func (o *Outbox) keepFlushing(ctx context.Context, stop context.CancelFunc) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	trim := time.NewTicker(time.Hour)
	defer trim.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			return o.flush(last, true)
		case <-trim.C:
			o.trim(ctx)
		case <-tick.C:
			switch err := o.flush(ctx, false); {
			case err == eventlog.ErrStop:
				stop()
				return fmt.Errorf("another process sends for this server: %w", err)
			case err != nil && ctx.Err() == nil:
				o.Log.Warn("the outbox could not store how far it is", zap.Error(err))
			}
		}
	}
}

// flush stores the cursor, and a row for each server that is owed something below it or that fails. A server
// without a row has everything up to the cursor: both move in one transaction. The last flush also says what is
// under way.
func (o *Outbox) flush(ctx context.Context, last bool) error {
	o.mu.Lock()
	pos := o.pos
	rows := map[string]storage.Destination{}
	for name, d := range o.all {
		row := storage.Destination{Name: name}
		if d.owes() {
			row.Behind, row.Acked = true, d.acked
		}
		// Most transactions are answered at once and need no row.
		known := o.stored[name]
		if last || time.Since(d.since) >= flushEvery/2 || d.sent == (sent{known.SentPos, known.SentEDU}) {
			row.SentPos, row.SentEDU = d.sent.pos, d.sent.edu
		}
		if row != (storage.Destination{Name: name}) {
			rows[name] = row
		}
	}
	for name, b := range o.backoff {
		row := rows[name]
		row.Name, row.Failures, row.RetryAt = name, b.Failures, b.RetryAt.UnixMilli()
		rows[name] = row
	}
	o.mu.Unlock()
	var changed []storage.Destination
	var gone []string
	for name, row := range rows {
		if o.stored[name] != row {
			changed = append(changed, row)
		}
	}
	for name := range o.stored {
		if _, ok := rows[name]; !ok {
			gone = append(gone, name)
		}
	}
	if pos == o.cursor && len(changed) == 0 && len(gone) == 0 {
		return nil
	}
	moved, tried := true, o.tried
	o.tried = pos
	err := o.DB.Write(ctx, []string{"reader:" + outboxName}, func(tx storage.Tx) (err error) {
		if pos != o.cursor {
			if moved, err = o.moveCursor(tx, tried, pos); err != nil || !moved {
				return err
			}
		}
		for _, row := range changed {
			tx.SetDestination(row)
		}
		if len(gone) > 0 {
			tx.DeleteDestinations(gone)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if !moved {
		return eventlog.ErrStop
	}
	o.cursor, o.stored = pos, rows
	return nil
}

// moveCursor moves the cursor from where we know it to be, or from where a flush was to bring it whose outcome
// we did not wait for.
func (o *Outbox) moveCursor(tx storage.Tx, tried, pos int64) (bool, error) {
	moved, err := tx.MoveCursor(outboxName, o.cursor, pos)
	if err != nil || moved || tried == 0 {
		return moved, err
	}
	now, err := tx.Cursor(outboxName)
	if err != nil || now != tried {
		return false, err
	}
	if now == pos {
		return true, nil
	}
	return tx.MoveCursor(outboxName, tried, pos)
}

const (
	keptFor         = 30 * 24 * time.Hour // what a server did not fetch
	transactionsFor = 24 * time.Hour      // our answers; a repetition after that brings what is known by its own ID
	trimPiece       = 500
)

// trim deletes in pieces what is too old to be of use.
func (o *Outbox) trim(ctx context.Context) {
	for _, piece := range []func(storage.Tx) (int64, error){
		func(tx storage.Tx) (int64, error) { return tx.TrimEDUs(time.Now().Add(-keptFor), trimPiece) },
		func(tx storage.Tx) (int64, error) {
			return tx.TrimReceivedTransactions(time.Now().Add(-transactionsFor).UnixMilli(), trimPiece)
		},
	} {
		for n := int64(1); n > 0; {
			err := o.DB.Write(ctx, nil, func(tx storage.Tx) (err error) {
				n, err = piece(tx)
				return err
			})
			if err != nil {
				o.Log.Warn("what is too old could not be deleted", zap.Error(err))
				return
			}
		}
	}
}
