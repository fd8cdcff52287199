package roomserver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// Who waits is let in by rank, but nobody waits for ever.
func TestATurnGoesToOurUsersFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var own turn
		own.try()
		var order []rank
		wait := func(who rank) {
			go func() {
				if err := own.take(t.Context(), who); err != nil {
					t.Error(err)
				}
				order = append(order, who)
				own.leave()
			}()
			synctest.Wait()
		}
		wait(theirs)
		wait(theirs)
		wait(moderation)
		for range 2 * maxPassed {
			wait(ours)
		}
		if !own.wanted(theirs) || own.wanted(ours) {
			t.Error("who waits is not known")
		}
		own.leave()
		synctest.Wait()
		for i, who := range order {
			if want := map[bool]rank{true: theirs, false: ours}[i == maxPassed || i == 2*maxPassed+1]; i < 2*maxPassed+2 && who != want {
				t.Fatalf("turn %d went to rank %d: %v", i, who, order)
			}
		}
		if last := order[len(order)-1]; len(order) != 2*maxPassed+3 || last != moderation {
			t.Errorf("%d turns, the last of rank %d", len(order), last)
		}
		if own.held {
			t.Error("it is held by nobody")
		}
	})
}

func TestATurnIsHeldByOne(t *testing.T) {
	var own turn
	var in, gone atomic.Int64
	var all sync.WaitGroup
	for i := range 400 {
		all.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			if i%5 == 0 {
				go cancel()
			}
			defer cancel()
			if err := own.take(ctx, rank(i%int(ranks))); err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				gone.Add(1)
				return
			}
			if in.Add(1) != 1 {
				t.Error("two hold it")
			}
			in.Add(-1)
			own.leave()
		})
	}
	all.Wait()
	if !own.try() {
		t.Errorf("nobody holds it and it is not free (%d gave up)", gone.Load())
	}
}
