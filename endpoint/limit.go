package endpoint

import (
	"sync"
	"time"

	"golang.org/x/time/rate"

	"chancery"
)

// LimitClass says with which other operations a row shares its rate limit.
type LimitClass string

const (
	Unlimited     LimitClass = ""
	LimitRead     LimitClass = "read"     // cheap questions
	LimitSend     LimitClass = "send"     // events
	LimitWrite    LimitClass = "write"    // everything else that is written and cheap
	LimitJoin     LimitClass = "join"     // joins, invites, knocks: work for other servers too
	LimitLogin    LimitClass = "login"    // guesses at a password or a token
	LimitRegister LimitClass = "register" // new accounts
	LimitSearch   LimitClass = "search"   // expensive questions
	LimitMedia    LimitClass = "media"    // up and down
	LimitKeys     LimitClass = "keys"     // end-to-end keys and their backup
	LimitRemote   LimitClass = "remote"   // questions without a token that make us ask another server
	LimitServer   LimitClass = "server"   // requests of servers, by address: before the signature is checked
	LimitNotary   LimitClass = "notary"   // keys of third servers
)

// Budget is what one caller may do in a class.
type Budget struct {
	PerSecond float64
	Burst     int
}

// DefaultBudgets are generous to people and hard on guessing.
var DefaultBudgets = map[LimitClass]Budget{
	LimitRead:     {50, 500},
	LimitSend:     {10, 100},
	LimitJoin:     {2, 30},
	LimitWrite:    {20, 300},
	LimitLogin:    {1, 30}, // a whole office may share one address
	LimitRegister: {0.5, 20},
	LimitSearch:   {2, 20},
	LimitMedia:    {20, 200},
	LimitKeys:     {20, 200},
	LimitRemote:   {5, 100},
	LimitServer:   {300, 3000}, // a proxy that is not listed as trusted is one address for all
	LimitNotary:   {5, 50},
}

// Limits holds a bucket for each caller and class. It is bounded: buckets live in two
// generations, and when the younger is full the elder is forgotten. A caller who is
// forgotten starts with a full bucket, which is worth less than the memory.
type Limits struct {
	budgets map[LimitClass]Budget
	size    int

	mu           sync.Mutex // guards young and old
	young, elder map[limitKey]*rate.Limiter
}

type limitKey struct {
	class LimitClass
	who   string
}

const limitTable = 20_000

// NewLimits makes a limiter; nil budgets are DefaultBudgets.
func NewLimits(budgets map[LimitClass]Budget) *Limits {
	if budgets == nil {
		budgets = DefaultBudgets
	}
	return &Limits{budgets: budgets, size: limitTable, young: map[limitKey]*rate.Limiter{}}
}

// Allow is for a handler whose work turns out to be of another class than its row's.
func (l *Limits) Allow(class LimitClass, c Caller) error { return l.allow(class, c) }

// allow takes one from the caller's bucket, or says when there will be one.
// Application services are never limited.
//
// spec: c2s#rate-limiting
func (l *Limits) allow(class LimitClass, c Caller) error {
	if l == nil || class == Unlimited || c.AppService != "" {
		return nil
	}
	budget, ok := l.budgets[class]
	if !ok {
		return nil
	}
	who := string(c.User)
	switch {
	case who != "":
	case c.Origin != "":
		who = "server " + c.Origin
	default:
		who = "address " + network(c.IP)
	}
	bucket := l.bucket(limitKey{class, who}, budget)
	now := time.Now()
	taken := bucket.ReserveN(now, 1)
	if wait := taken.DelayFrom(now); wait > 0 {
		taken.CancelAt(now)
		return chancery.LimitExceeded(wait)
	}
	return nil
}

func (l *Limits) bucket(key limitKey, b Budget) *rate.Limiter {
	l.mu.Lock()
	defer l.mu.Unlock()
	if bucket := l.young[key]; bucket != nil {
		return bucket
	}
	bucket := l.elder[key]
	if bucket == nil {
		bucket = rate.NewLimiter(rate.Limit(b.PerSecond), b.Burst)
	}
	if len(l.young) >= l.size/2 {
		l.elder, l.young = l.young, make(map[limitKey]*rate.Limiter)
	}
	l.young[key] = bucket
	return bucket
}
