package federation

import (
	"testing"

	"go.uber.org/zap"
)

// What panics over an answer ends the work on it and nothing else.
func TestPanicsAreErrors(t *testing.T) {
	if err := guarded(zap.NewNop(), "work", func() error { panic("an answer") }); err == nil || err.Error() != "panic: an answer" {
		t.Fatal(err)
	}
}
