package eventlog

import (
	"context"
	"sort"
	"sync"

	"chancery/storage/sql"
)

// Tail holds the newest facts in memory, in order, bounded in bytes.
// What Since returns is shared and never changes: read it, do not write to it.
type Tail struct {
	limit int64

	mu    sync.RWMutex // guards everything below
	facts []sql.Fact   // ascending; only ever appended to and cut at the front, so parts of it may be handed out
	start int64        // facts holds all there is above start and up to end
	end   int64
	bytes int64
	grown chan struct{} // closed when end moves
	hooks []*hook
}

type hook struct{ told func([]sql.Fact) }

func newTail(limit, start int64) *Tail {
	return &Tail{limit: limit, start: start, end: start, grown: make(chan struct{})}
}

// Since gives every fact above pos and the position up to which the tail knows: an answer made
// from them is an answer at end. ok is false when pos is older than the tail; ask SQL then.
// A pos above end (another process has seen more) gives no facts and an end below pos.
func (t *Tail) Since(pos int64) (facts []sql.Fact, end int64, ok bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if pos < t.start {
		return nil, t.end, false
	}
	if pos >= t.end {
		return nil, t.end, true
	}
	i := sort.Search(len(t.facts), func(i int) bool { return t.facts[i].Pos > pos })
	return t.facts[i:len(t.facts):len(t.facts)], t.end, true
}

// End is the highest position that the tail knows.
func (t *Tail) End() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.end
}

// Start is the lowest position that Since answers for.
func (t *Tail) Start() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.start
}

// Wait returns when the tail has grown beyond pos, or with the context's error.
func (t *Tail) Wait(ctx context.Context, pos int64) error {
	for {
		t.mu.RLock()
		end, grown := t.end, t.grown
		t.mu.RUnlock()
		if end > pos {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-grown:
		}
	}
}

// OnFacts has told called with all facts from now on, in order, each once, after Since knows
// them. Calls come one after the other and hold up the log for everybody in this process, so
// told must only note what to do and return. stop ends the calls; one may still be under way.
func (t *Tail) OnFacts(told func([]sql.Fact)) (stop func()) {
	h := &hook{told}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hooks = append(t.hooks[:len(t.hooks):len(t.hooks)], h)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		kept := make([]*hook, 0, len(t.hooks))
		for _, k := range t.hooks {
			if k != h {
				kept = append(kept, k)
			}
		}
		t.hooks = kept
	}
}

// grow appends facts that follow the end. Only the log's own goroutine calls it.
func (t *Tail) grow(facts []sql.Fact) {
	if len(facts) == 0 {
		return
	}
	t.mu.Lock()
	t.facts = append(t.facts, facts...)
	t.end = facts[len(facts)-1].Pos
	for _, f := range facts {
		t.bytes += factBytes(f)
	}
	cut := 0
	for ; cut < len(t.facts) && t.bytes > t.limit; cut++ {
		t.bytes -= factBytes(t.facts[cut])
		t.start = t.facts[cut].Pos
	}
	t.facts = t.facts[cut:] // the front's memory goes when append next moves the array
	close(t.grown)
	t.grown = make(chan struct{})
	hooks := t.hooks
	t.mu.Unlock()
	for _, h := range hooks {
		h.told(facts)
	}
}

func factBytes(f sql.Fact) int64 {
	return 96 + int64(len(f.User)+len(f.Device)+len(f.Extra))
}
