package roomserver

import (
	"context"
	"testing"
	"time"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// What panics over something that a server sent ends neither the process nor the work on others.
func TestPanicsOverAnswersAreCaught(t *testing.T) {
	s := &Server{Options: Options{Log: zap.NewNop()}}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	g := newReminders(time.Millisecond, time.Millisecond, 5)
	g.note("!room:x")
	visits := 0
	if err := s.visit(ctx, g, "panic", func(context.Context, id.RoomID) (bool, error) {
		if visits++; visits == 1 {
			panic("the first visit")
		}
		cancel()
		return true, nil
	}); err != nil || visits != 2 {
		t.Errorf("after a panic: %d visits, %v", visits, err)
	}

	var took string
	var failed error
	inTurn(t.Context(), []string{"bad", "good"}, func(_ context.Context, server string) (string, error) {
		if server == "bad" {
			panic("its answer")
		}
		return "from " + server, nil
	}, func(_ string, answer string, err error) bool {
		if err != nil {
			failed = err
			return false
		}
		took = answer
		return true
	})
	if took != "from good" || failed == nil {
		t.Errorf("took %q after the error %v", took, failed)
	}
}

// What is noted while somebody is in the room may have come too late for them: the room is visited again, soon.
func TestARoomIsVisitedAgainForWhatIsNotedDuringAVisit(t *testing.T) {
	for _, whole := range []bool{true, false} {
		g := newReminders(time.Second, time.Hour, 40)
		g.note("!r")
		for range 30 { // and nobody could help
			g.due(time.Now().Add(time.Hour))
			g.tried("!r", false)
		}
		now := time.Now()
		if got := g.due(now.Add(time.Hour)); len(got) != 1 {
			t.Fatalf("%d rooms are due", len(got))
		}
		g.noteSoon("!r")
		g.tried("!r", whole)
		if got := g.due(now.Add(time.Minute)); len(got) != 1 {
			t.Errorf("whole %v: %d rooms are due", whole, len(got))
		}
		g.tried("!r", true)
		if got := g.due(now.Add(time.Hour)); len(got) != 0 {
			t.Errorf("whole %v: %d rooms are due in the end", whole, len(got))
		}
	}
}
