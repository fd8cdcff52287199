package users

import (
	"sync"
	"time"

	"chancery"
)

// attempts counts wrong passwords by account, wherever they come from: a guesser with many
// addresses passes the limit on each. It is bounded in two generations: when the younger is
// full the elder is forgotten.
type attempts struct {
	mu           sync.Mutex // guards young and elder
	young, elder map[string]*allowance
}

type allowance struct {
	left float64
	at   time.Time
}

const (
	wrongBurst    = 10
	wrongEvery    = 10 * time.Second // gives one back
	attemptsTable = 10_000
)

// take pays for one try at an account's password; a right one is given back, so that many
// guesses at once cost as much as one after the other. A nil attempts counts nothing.
func (a *attempts) take(user string) error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	b := a.of(user, now)
	b.left = min(wrongBurst, b.left+float64(now.Sub(b.at))/float64(wrongEvery))
	b.at = now
	if b.left < 1 {
		return chancery.LimitExceeded(time.Duration((1 - b.left) * float64(wrongEvery)))
	}
	b.left--
	return nil
}

func (a *attempts) giveBack(user string) {
	if a == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.of(user, time.Now())
	b.left = min(wrongBurst, b.left+1)
}

func (a *attempts) of(user string, now time.Time) *allowance {
	if b := a.young[user]; b != nil {
		return b
	}
	b := a.elder[user]
	if b == nil {
		b = &allowance{left: wrongBurst, at: now}
	}
	if a.young == nil || len(a.young) >= attemptsTable {
		a.elder, a.young = a.young, map[string]*allowance{}
	}
	a.young[user] = b
	return b
}
