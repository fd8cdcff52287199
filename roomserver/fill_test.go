package roomserver

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestWhoWaitsForAFillGoesWhenTheyGiveUp(t *testing.T) {
	f := newFills()
	began, end := make(chan struct{}), make(chan error)
	first := make(chan error, 1)
	go func() {
		first <- f.once(t.Context(), "k", func() error { close(began); return <-end })
	}()
	<-began
	gone, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := f.once(gone, "k", func() error { return nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("who gave up: %v", err)
	}
	second := make(chan error, 1)
	go func() { second <- f.once(t.Context(), "k", func() error { return errNothingCame }) }()
	time.Sleep(10 * time.Millisecond)
	end <- context.Canceled // the first one's client has gone: the second does it for itself
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-second; !errors.Is(err, errNothingCame) {
		t.Errorf("who waited: %v", err)
	}
	if len(f.running) > 0 {
		t.Error("something is still under way")
	}
}

// What somebody else finds out at one gap says nothing of another one in the room.
func TestWhoWaitsToBeAloneDoesTheirOwnWork(t *testing.T) {
	f := newFills()
	began, end := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- f.alone(t.Context(), "k", func() error { close(began); <-end; return errNothingCame })
	}()
	<-began
	second, did := make(chan error, 1), false
	go func() { second <- f.alone(t.Context(), "k", func() error { did = true; return nil }) }()
	close(end)
	if err := <-first; !errors.Is(err, errNothingCame) {
		t.Error(err)
	}
	if err := <-second; err != nil || !did {
		t.Errorf("the second did their own work: %v, %v", did, err)
	}
}

func TestBackfillAsksTheLikeliestFirst(t *testing.T) {
	got := ranked(map[string]int64{"small": 1, "large": 9, "dead": 50, "middle": 3, "also": 3}, func(s string) bool { return s == "dead" })
	if want := []string{"large", "also", "middle", "small", "dead"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
