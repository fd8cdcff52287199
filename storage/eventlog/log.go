// Package eventlog is the log of facts on the wire: it publishes what SQL has committed and
// gives readers every fact once, in the order of positions. It stores nothing that matters:
// a lost message, stream or NATS server costs latency, and what is missing is read from SQL.
// It knows nothing of rooms, users or tokens.
//
// One goroutine per process, the head, puts facts in order and keeps the newest in memory
// (Tail). It hears of them in three ways: from this process's own commits by a call, from
// other processes by a plain NATS subscription, and from SQL, where it reads a missing
// position as soon as a higher one is seen and compares the highest position once a second.
// Readers follow the tail; one that is behind reads the JetStream stream or SQL first.
//
// The live subscription is plain NATS, not a JetStream consumer: gaps are found by position
// and filled from SQL anyway, so a consumer's sequence, acknowledgements and state would be
// a second, weaker promise to keep alive through every reconnect.
package eventlog

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"chancery/storage/sql"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
	"go.uber.org/zap"
)

// Source is SQL, where facts are kept and their order is decided.
type Source interface {
	FactsAfter(ctx context.Context, pos int64, limit int) ([]sql.Fact, error) // ascending, without leaving one out
	MaxPos(ctx context.Context) (int64, error)
	Epoch() int64
}

// Options of a Log; the zero value works.
type Options struct {
	Log         *zap.Logger
	TailBytes   int64         // memory for the newest facts; 16 MB
	Warm        int           // how many positions the tail begins with; 2,000
	StreamBytes int64         // the stream on disk; 256 MB
	StreamAge   time.Duration // and its age; 24 h
	Batch       int           // facts given to a reader at once; 500
	Poll        time.Duration // how often the end is compared with SQL; 1 s
	// Grace is how long a gap may close by itself before SQL is asked; 2 ms. Two commits that
	// leave together arrive in either order, and a query for each such pair is dear.
	Grace       time.Duration
	ReplayAbove int64 // a reader further behind than this asks the stream before SQL; 5,000
	// Rewound is called when SQL's end lies below what the log has told: the database was
	// rolled back under us, and positions would be used twice. The caller stops the process.
	Rewound func(told, end int64)
}

const (
	maxQueued   = 100_000 // facts waiting to be published or put in order; more are found in SQL
	maxTogether = 2_000   // facts in one publish
	fromHeader  = "Chancery-From"
)

// Log carries the facts of one database.
type Log struct {
	Options
	nats   *NATS
	js     jetstream.JetStream
	source Source
	log    *zap.Logger
	tail   *Tail
	id     string // tells our own messages from those of other processes

	mu      sync.Mutex // guards what follows
	arrived []sql.Fact
	seen    int64 // a position known to exist, from SQL or from a fact that found no place
	heard   int64 // the highest position told by anyone
	epoch   int64
	sub     *nats.Subscription

	wake    chan struct{}
	queue   chan told
	queued  atomic.Int64
	dropped atomic.Int64
	cancel  context.CancelFunc
	running sync.WaitGroup
}

// told is what one commit has to tell, in the epoch it was made in.
type told struct {
	epoch int64
	facts []sql.Fact
}

// Open starts the log at the database's present end. It needs SQL, but it starts without
// NATS, and without a stream when that cannot be made.
func Open(ctx context.Context, n *NATS, source Source, o Options) (*Log, error) {
	l := &Log{
		Options: o.withDefaults(),
		nats:    n, source: source, id: nuid.Next(), epoch: source.Epoch(),
		wake: make(chan struct{}, 1), queue: make(chan told, 4096),
	}
	l.log = l.Options.Log
	var err error
	if l.js, err = jetstream.New(n.conn); err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	if err := l.subscribe(l.epoch); err != nil {
		return nil, err
	}
	if err := l.warm(ctx); err != nil {
		_ = l.sub.Unsubscribe()
		return nil, err
	}
	l.keepStreamOnce(ctx, l.epoch)
	ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	for _, run := range []func(context.Context){l.runHead, l.runPoll, l.runPublish, l.runStream} {
		l.running.Go(func() { run(ctx) })
	}
	return l, nil
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	def(&o.TailBytes, 16<<20)
	def(&o.Warm, 2000)
	def(&o.StreamBytes, 256<<20)
	def(&o.StreamAge, 24*time.Hour)
	def(&o.Batch, 500)
	def(&o.Poll, time.Second)
	def(&o.Grace, 2*time.Millisecond)
	def(&o.ReplayAbove, 5000)
	return o
}

func def[T ~int | ~int64](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Tail is the newest facts in memory.
func (l *Log) Tail() *Tail { return l.tail }

// Dropped counts facts that found no place in a queue and were left to be read from SQL.
func (l *Log) Dropped() int64 { return l.dropped.Load() }

// Close publishes what is queued and stops. Read returns when its own context ends.
func (l *Log) Close() {
	l.cancel()
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	_ = l.sub.Unsubscribe() // fails only when the connection is closed already
}

// Publish tells what a commit made, in position order. It never blocks and never fails: what
// cannot be told is found in SQL. The facts must not be changed afterwards.
func (l *Log) Publish(facts []sql.Fact) {
	if len(facts) == 0 {
		return
	}
	l.arrive(facts) // readers in this process need no network to hear of their own commits
	n := int64(len(facts))
	if l.queued.Add(n) > maxQueued {
		l.queued.Add(-n)
		l.dropped.Add(n)
		return
	}
	select {
	case l.queue <- told{l.source.Epoch(), facts}:
	default:
		l.queued.Add(-n)
		l.dropped.Add(n)
	}
}

func (l *Log) runPublish(ctx context.Context) {
	for {
		select {
		case t := <-l.queue:
			l.send(t)
		case <-ctx.Done():
			for {
				select {
				case t := <-l.queue:
					l.send(t)
				default:
					return
				}
			}
		}
	}
}

// send publishes one commit's facts together with those of the commits that queued behind it.
func (l *Log) send(t told) {
	for {
		var next *told
		facts := t.facts
		for next == nil && len(facts) < maxTogether {
			select {
			case u := <-l.queue:
				if u.epoch != t.epoch {
					next = &u
					continue
				}
				facts = append(facts[:len(facts):len(facts)], u.facts...)
				continue
			default:
			}
			break
		}
		l.queued.Add(-int64(len(facts)))
		messages, tooLarge := encode(facts, maxMessage)
		if tooLarge > 0 {
			l.dropped.Add(int64(tooLarge))
			l.log.Warn("facts too large for the log", zap.Int("facts", tooLarge))
		}
		for _, m := range messages {
			// Without a reply subject: nobody waits for JetStream's word, SQL has the fact already.
			msg := &nats.Msg{Subject: subject(t.epoch), Header: nats.Header{fromHeader: {l.id}}, Data: m}
			if err := l.nats.conn.PublishMsg(msg); err != nil {
				l.log.Debug("facts not published", zap.Error(err))
			}
		}
		if next == nil {
			return
		}
		t = *next
	}
}

func (l *Log) subscribe(epoch int64) error {
	sub, err := l.nats.conn.Subscribe(subject(epoch), func(m *nats.Msg) {
		if m.Header.Get(fromHeader) == l.id {
			return
		}
		facts, err := decode(m.Data)
		if err != nil {
			l.log.Warn("a message in the log is not ours", zap.Error(err))
			return
		}
		l.arrive(facts)
	})
	if err != nil {
		return fmt.Errorf("subscribe to the log: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sub != nil {
		_ = l.sub.Unsubscribe()
	}
	l.sub, l.epoch = sub, epoch
	return nil
}

// arrive leaves facts for the head.
func (l *Log) arrive(facts []sql.Fact) {
	if len(facts) == 0 {
		return
	}
	l.mu.Lock()
	last := facts[len(facts)-1].Pos
	l.heard = max(l.heard, last)
	switch {
	case len(l.arrived) == 0:
		l.arrived = facts[:len(facts):len(facts)]
	case len(l.arrived)+len(facts) <= maxQueued:
		l.arrived = append(l.arrived, facts...)
	default:
		l.seen = max(l.seen, last)
	}
	l.mu.Unlock()
	l.stir()
}

func (l *Log) stir() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}
