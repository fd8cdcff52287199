package roomserver

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestOneServerHasFewLargeQuestionsAtOnce(t *testing.T) {
	a := newAnswering()
	var leaves []func()
	for range largeAtOnce {
		leave, err := a.enter(t.Context(), "greedy")
		if err != nil {
			t.Fatal(err)
		}
		leaves = append(leaves, leave)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := a.enter(short, "greedy"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("one more: %v", err)
	}
	other, err := a.enter(t.Context(), "other")
	if err != nil {
		t.Errorf("another server: %v", err)
	}
	other()
	next := make(chan func())
	go func() {
		leave, _ := a.enter(t.Context(), "greedy")
		next <- leave
	}()
	for _, leave := range leaves {
		leave()
	}
	(<-next)()
	if len(a.by) > 0 {
		t.Errorf("remembered: %v", a.by)
	}
}
