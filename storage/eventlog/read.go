package eventlog

import (
	"context"
	"errors"
	"time"

	"chancery/storage/sql"

	"go.uber.org/zap"
)

// ErrStop, wrapped by what handle returns, ends Read instead of being tried again:
// "my cursor was moved by another instance" is no fault that passes.
var ErrStop = errors.New("reader stops")

const (
	firstRetry = 50 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// Read hands every fact above from to handle, in ascending order, each once, without a gap,
// in batches of what is ready, until ctx ends or handle returns ErrStop. name is for the log.
//
// The cursor belongs to the reader: handle writes its effects and moves its cursor to the last
// position of the batch in one transaction, and the next start calls Read with that cursor.
// A batch whose handle failed is given to it again, the same facts, later and later, at most
// 30 s apart; so handle either did all or nothing.
func (l *Log) Read(ctx context.Context, name string, from int64, handle func(context.Context, []sql.Fact) error) error {
	r := &reader{log: l, name: name, pos: from, handle: handle}
	for {
		if err := r.step(ctx); err != nil {
			return err
		}
	}
}

type reader struct {
	log      *Log
	name     string
	pos      int64
	handle   func(context.Context, []sql.Fact) error
	noReplay int64 // below this position the stream has nothing for us
	failures int   // reads of Source that failed in a row
}

// step gives the next batches from the nearest place that has them: memory, stream, SQL.
func (r *reader) step(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	l := r.log
	facts, _, ok := l.tail.Since(r.pos)
	if ok {
		if len(facts) == 0 {
			return l.tail.Wait(ctx, r.pos)
		}
		return r.give(ctx, facts)
	}
	if start := l.tail.Start(); start-r.pos > l.ReplayAbove && r.pos >= r.noReplay {
		var stopped error
		covered, err := l.replay(ctx, r.pos, start, func(facts []sql.Fact) error {
			stopped = r.give(ctx, facts)
			return stopped
		})
		if stopped != nil {
			return stopped
		}
		if err != nil && ctx.Err() == nil {
			l.log.Debug("stream could not be replayed, reading SQL", zap.String("reader", r.name), zap.Error(err))
		}
		r.noReplay = max(r.pos+1, covered)
		return ctx.Err()
	}
	rows, err := l.source.FactsAfter(ctx, r.pos, l.Batch)
	if err != nil || len(rows) == 0 {
		if err != nil && ctx.Err() == nil {
			l.log.Warn("facts could not be read", zap.String("reader", r.name), zap.Int64("after", r.pos), zap.Error(err))
		}
		r.failures++
		return pause(ctx, backoff(r.failures, l.Poll))
	}
	r.failures = 0
	return r.give(ctx, rows)
}

// give hands facts over in batches; each is tried until handle takes it.
func (r *reader) give(ctx context.Context, facts []sql.Fact) error {
	for len(facts) > 0 {
		batch := facts[:min(len(facts), r.log.Batch)]
		for failures := 1; ; failures++ {
			err := r.handle(ctx, batch)
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if errors.Is(err, ErrStop) {
				return err
			}
			wait := backoff(failures, lastRetry)
			r.log.log.Warn("reader failed and tries again", zap.String("reader", r.name), zap.Int64("from", batch[0].Pos),
				zap.Int("facts", len(batch)), zap.Int("failures", failures), zap.Duration("after", wait), zap.Error(err))
			if err := pause(ctx, wait); err != nil {
				return err
			}
		}
		r.pos = batch[len(batch)-1].Pos
		facts = facts[len(batch):]
	}
	return nil
}

func backoff(failures int, last time.Duration) time.Duration {
	return min(last, firstRetry<<min(failures-1, 16))
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
