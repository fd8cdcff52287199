package eventlog

import (
	"context"
	"fmt"
	"time"

	"chancery/storage/sql"

	"go.uber.org/zap"
)

const sourceTimeout = 10 * time.Second

// warm reads the newest facts from SQL, so that clients that come back after a restart are
// answered from memory. Positions below the first row may have been trimmed, so the tail
// begins there and claims nothing about what is older.
func (l *Log) warm(ctx context.Context) error {
	end, err := l.source.MaxPos(ctx)
	if err != nil {
		return fmt.Errorf("read the end of the log: %w", err)
	}
	o := &order{end: max(end-int64(l.Warm), 0)}
	for {
		rows, err := l.source.FactsAfter(ctx, o.end, l.Warm)
		if err != nil {
			return fmt.Errorf("read the newest facts: %w", err)
		}
		if l.tail == nil && len(rows) > 0 {
			l.tail = newTail(l.TailBytes, rows[0].Pos-1)
		}
		if len(rows) > 0 {
			l.tail.grow(o.fill(rows))
		}
		if len(rows) < l.Warm {
			break
		}
	}
	if l.tail == nil {
		l.tail = newTail(l.TailBytes, end)
	}
	return nil
}

// runHead puts in order what arrives and feeds the tail.
func (l *Log) runHead(ctx context.Context) {
	o := &order{end: l.tail.End()}
	var (
		seen     int64
		due      time.Time // when the gap at the end is read from SQL; zero without a gap
		failures int
	)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		facts, known := l.take()
		seen = max(seen, known)
		ready := o.arrive(facts)
		l.tail.grow(ready)
		if len(ready) > 0 {
			due, failures = time.Time{}, 0 // a gap that is there now is another one
		}
		wait := time.Hour
		if o.gap() || seen > o.end {
			if due.IsZero() {
				due = time.Now().Add(l.Grace)
			}
			if wait = time.Until(due); wait <= 0 {
				complete := l.catchUp(ctx, o)
				if complete {
					seen = o.end // what was noted above it is not in SQL
				}
				due = time.Time{}
				if !o.gap() && complete {
					failures = 0
					continue
				}
				failures++
				wait = backoff(failures, l.Poll)
				due = time.Now().Add(wait)
			}
		} else {
			due, failures = time.Time{}, 0
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
	}
}

func (l *Log) take() ([]sql.Fact, int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	facts, seen := l.arrived, l.seen
	l.arrived, l.seen = nil, 0
	return facts, seen
}

// catchUp reads from SQL all that follows the end.
func (l *Log) catchUp(ctx context.Context, o *order) (complete bool) {
	for {
		query, cancel := context.WithTimeout(ctx, sourceTimeout)
		rows, err := l.source.FactsAfter(query, o.end, l.Batch)
		cancel()
		if err != nil {
			if ctx.Err() == nil {
				l.log.Warn("facts could not be read", zap.Int64("after", o.end), zap.Error(err))
			}
			return false
		}
		l.tail.grow(o.fill(rows))
		if len(rows) < l.Batch {
			return true
		}
	}
}

// runPoll compares the log with SQL, so that a lost publish costs at most one interval.
func (l *Log) runPoll(ctx context.Context) {
	tick := time.NewTicker(l.Poll)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := l.compare(ctx); err == nil {
			failing = false
		} else if ctx.Err() == nil && !failing {
			failing = true // one line for an outage, however long
			l.log.Warn("the log could not be compared with SQL", zap.Error(err))
		}
	}
}

func (l *Log) compare(ctx context.Context) error {
	// What was told before the question was committed before it, so SQL must know it.
	l.mu.Lock()
	told := max(l.heard, l.tail.End())
	epoch := l.epoch
	l.mu.Unlock()
	query, cancel := context.WithTimeout(ctx, sourceTimeout)
	defer cancel()
	end, err := l.source.MaxPos(query)
	if err != nil {
		return err
	}
	if now := l.source.Epoch(); now != epoch {
		if err := l.subscribe(now); err != nil {
			return err
		}
		l.log.Info("the log follows a new epoch", zap.Int64("epoch", now))
		l.keepStreamOnce(ctx, now)
	}
	if end < told {
		l.log.Error("the database is behind what it has told", zap.Int64("told", told), zap.Int64("end", end))
		if l.Rewound != nil {
			l.Rewound(told, end)
		}
		return nil
	}
	l.mu.Lock()
	l.seen = max(l.seen, end)
	l.mu.Unlock()
	l.stir()
	return nil
}
