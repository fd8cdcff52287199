package roomserver

import (
	"errors"
	"testing"
	"time"
)

func TestPaceEndsWhatComesTooSlowly(t *testing.T) {
	start := time.Now()
	for name, c := range map[string]struct {
		every, ours time.Duration // between two events, and what we take for each
		useful      int64         // of each
		events      int
		slow        bool
	}{
		"as fast as it should be": {100 * time.Millisecond, 0, 1, 1000, false},
		"in drops":                {200 * time.Millisecond, 0, 1, 1000, true},
		"nothing of use":          {time.Millisecond, 0, 0, 40_000, true},
		"we are slow":             {time.Millisecond, time.Second, 1, 1000, false},
		"a short one in drops":    {2 * time.Second, 0, 1, 10, false},
	} {
		p := &pace{least: paceLeast, per: paceTime}
		now := start.Add(time.Hour) // the first event takes its time
		var err error
		for range c.events {
			if err = p.came(now); err != nil {
				break
			}
			p.useful.Add(c.useful)
			now = now.Add(c.ours)
			p.goOn(now)
			now = now.Add(c.every)
		}
		if errors.Is(err, errTooSlow) != c.slow {
			t.Errorf("%s: %v", name, err)
		}
	}
}
