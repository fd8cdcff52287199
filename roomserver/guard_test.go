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
