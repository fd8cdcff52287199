package eventlog

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/storage/sql"
)

func facts(from, to int64) []sql.Fact {
	var f []sql.Fact
	for pos := from; pos <= to; pos++ {
		f = append(f, sql.Fact{Pos: pos})
	}
	return f
}

func TestTailAnswersFromItsStart(t *testing.T) {
	tail := newTail(10*factBytes(sql.Fact{}), 100)
	if got, end, ok := tail.Since(100); !ok || end != 100 || len(got) != 0 {
		t.Fatalf("empty tail: %v %d %v", got, end, ok)
	}
	if _, _, ok := tail.Since(99); ok {
		t.Fatal("answered for what it never had")
	}
	tail.grow(facts(101, 108))
	early, _, _ := tail.Since(100)
	tail.grow(facts(109, 130))
	if !slices.Equal(early, facts(101, 108)) {
		t.Fatal("facts handed out have changed")
	}
	if tail.Start() != 120 || tail.End() != 130 {
		t.Fatalf("holds (%d, %d], want (120, 130]", tail.Start(), tail.End())
	}
	if _, _, ok := tail.Since(119); ok {
		t.Fatal("answered below its start")
	}
	if got, _, ok := tail.Since(120); !ok || !slices.Equal(got, facts(121, 130)) {
		t.Fatalf("since its start: %v %v", got, ok)
	}
	if got, end, ok := tail.Since(125); !ok || end != 130 || !slices.Equal(got, facts(126, 130)) {
		t.Fatalf("since 125: %v %d %v", got, end, ok)
	}
	if got, end, ok := tail.Since(131); !ok || end != 130 || len(got) != 0 {
		t.Fatalf("since a position not seen yet: %v %d %v", got, end, ok)
	}
}

func TestTailWait(t *testing.T) {
	tail := newTail(1<<20, 100)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := tail.Wait(ctx, 100); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("waited for nothing: %v", err)
	}
	done := make(chan error)
	go func() { done <- tail.Wait(t.Context(), 105) }()
	for pos := int64(101); pos <= 106; pos++ {
		tail.grow(facts(pos, pos))
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestTailHookStops(t *testing.T) {
	tail := newTail(1<<20, 0)
	var told []sql.Fact
	stop := tail.OnFacts(func(f []sql.Fact) {
		if end := tail.End(); end < f[len(f)-1].Pos {
			t.Errorf("told of %d before Since knows it", end)
		}
		told = append(told, f...)
	})
	tail.grow(facts(1, 2))
	tail.grow(facts(3, 5))
	stop()
	tail.grow(facts(6, 6))
	if !slices.Equal(told, facts(1, 5)) {
		t.Fatalf("told %v", told)
	}
}

// However facts arrive, what comes out ascends without a hole, and reading the source closes it.
func TestOrderOfAnyArrival(t *testing.T) {
	for seed := range uint64(300) {
		random := rand.New(rand.NewPCG(seed, 2))
		all := slices.Concat(facts(1, 40), facts(1000, 1040)) // an epoch's jump between
		o := &order{}
		var out []sql.Fact
		arrivals := append(slices.Clone(all), all[random.IntN(len(all))])
		random.Shuffle(len(arrivals), func(i, j int) { arrivals[i], arrivals[j] = arrivals[j], arrivals[i] })
		for len(arrivals) > 0 {
			n := 1 + random.IntN(min(5, len(arrivals)))
			if random.IntN(8) > 0 {
				out = append(out, o.arrive(arrivals[:n])...)
			}
			arrivals = arrivals[n:]
			if !slices.Equal(out, all[:len(out)]) {
				t.Fatalf("seed %d: gave %v", seed, out)
			}
			if random.IntN(10) == 0 {
				rows := all[len(out):]
				out = append(out, o.fill(rows[:min(7, len(rows))])...)
			}
		}
		for len(out) < len(all) {
			rows := all[len(out):]
			out = append(out, o.fill(rows[:min(7, len(rows))])...)
		}
		if !slices.Equal(out, all) || o.gap() {
			t.Fatalf("seed %d: %d facts of %d, gap %v", seed, len(out), len(all), o.gap())
		}
	}
}

func TestOrderHoldsBoundedFacts(t *testing.T) {
	o := &order{}
	o.arrive(facts(2, maxWaiting*2))
	if len(o.waiting) > maxWaiting {
		t.Fatalf("%d facts wait", len(o.waiting))
	}
	if ready := o.fill(facts(1, 1)); len(ready) != maxWaiting+1 || o.gap() {
		t.Fatalf("the gap's end gave %d facts", len(ready))
	}
}

func TestMessagesAreSplit(t *testing.T) {
	in := facts(1, 50)
	for i := range in {
		in[i].Extra = strings.Repeat("x", 1000)
	}
	in[30].Extra = strings.Repeat("x", 20_000)
	messages, tooLarge := encode(in, 10_000)
	if tooLarge != 1 {
		t.Fatalf("%d facts too large, want 1", tooLarge)
	}
	var out []sql.Fact
	for _, m := range messages {
		if len(m) > 10_000 {
			t.Fatalf("a message of %d bytes", len(m))
		}
		part, err := decode(m)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, part...)
	}
	if !slices.Equal(out, slices.Delete(in, 30, 31)) {
		t.Fatal("facts changed on the wire")
	}
}
