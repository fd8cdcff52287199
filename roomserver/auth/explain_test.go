package auth_test

import (
	"errors"
	"testing"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// explainAgrees holds what the rules are said to say against what they decide: every story of these tests is
// asked. Each rule has a text in the specification.
func explainAgrees(t testing.TB, ev *event.Event, state auth.State) {
	t.Helper()
	said, err := auth.Explain(ev, state)
	var no, direct *auth.Rejection
	if errors.As(err, &no) != errors.As(auth.Check(ev, state), &direct) || no != nil && *no != *direct {
		t.Fatalf("explained as %v, decided as %v", no, direct)
	}
	last := said[len(said)-1]
	switch {
	case no == nil && last.Says != "allows":
		t.Errorf("allowed, and the last rule is said to say %+v", last)
	case no != nil && (last.Says != "rejects" || last.Rule != no.Rule || last.Why != no.Why):
		t.Errorf("%v, and the last rule is said to say %+v", no, last)
	}
	for _, s := range said {
		if s.Text == "" {
			t.Errorf("rule %s of version %s has no text", s.Rule, ev.Version().Name)
		}
	}
}
