package peer

import (
	"math/rand/v2"
	"time"
)

const (
	retryMax        = time.Hour
	maxDestinations = 50_000 // failing destinations remembered at once

	// heardPause is the least time between two attempts at a peer that speaks to us but that
	// we cannot reach: each of its requests would else be a reason to try.
	heardPause = 2 * time.Second
)

// Destination is what we know of a server that did not answer. A zero Failures means that all is well.
type Destination struct {
	Server   string
	Failures int
	RetryAt  time.Time // before this only requests that ignore the back-off are made

	failed time.Time // the latest failure
}

// backoff remembers the destinations that fail.
type backoff struct {
	first   time.Duration
	failing *bounded[Destination]
	changed func(Destination) // may be nil
	now     func() time.Time
}

func newBackoff(first time.Duration, changed func(Destination), now func() time.Time) *backoff {
	return &backoff{first: first, failing: newBounded[Destination](maxDestinations), changed: changed, now: now}
}

func (b *backoff) tell(d Destination) {
	if b.changed != nil {
		b.changed(d)
	}
}

// fail counts a failed request that began at started. Requests that failed together count as
// one, and those that were made in spite of the back-off do not prolong it. It gives how many failures there
// are by now, 0 when this one did not count.
func (b *backoff) fail(server string, started time.Time) (failures int) {
	counted := false
	d := b.failing.change(server, func(d Destination, _ bool) (Destination, bool) {
		if d.Failures > 0 && started.Before(d.RetryAt) {
			return d, true
		}
		counted = true
		d.Server, d.failed = server, b.now()
		d.Failures++
		wait := min(b.first<<min(d.Failures-1, 20), retryMax)
		if wait <= 0 {
			wait = retryMax
		}
		// Jitter, so that peers of a server that comes back do not all call in one moment.
		d.RetryAt = d.failed.Add(wait - wait/10 + rand.N(wait/5+1))
		return d, true
	})
	if !counted {
		return 0
	}
	b.tell(d)
	return d.Failures
}

// pause obeys a peer that asks us to wait; it is no failure.
func (b *backoff) pause(server string, wait time.Duration) {
	until := b.now().Add(min(wait, retryMax))
	b.tell(b.failing.change(server, func(d Destination, _ bool) (Destination, bool) {
		d.Server = server
		if d.RetryAt.Before(until) {
			d.RetryAt = until
		}
		return d, true
	}))
}

// succeed forgets the failures.
func (b *backoff) succeed(server string) {
	if d, ok := b.failing.get(server); !ok || d.Failures == 0 && b.now().Before(d.RetryAt) {
		return
	}
	b.failing.change(server, func(Destination, bool) (Destination, bool) { return Destination{}, false })
	b.tell(Destination{Server: server})
}

// heard says that server spoke to us, so it is worth trying at once.
func (b *backoff) heard(server string) {
	if d, ok := b.failing.get(server); !ok || d.Failures == 0 {
		return
	}
	d := b.failing.change(server, func(d Destination, found bool) (Destination, bool) {
		next := d.failed.Add(heardPause)
		return Destination{Server: server, RetryAt: next, failed: d.failed}, found && b.now().Before(next)
	})
	b.tell(d)
}

// waiting gives the time before which server is not to be asked.
func (b *backoff) waiting(server string) (until time.Time, wait bool) {
	d, ok := b.failing.get(server)
	return d.RetryAt, ok && b.now().Before(d.RetryAt)
}
