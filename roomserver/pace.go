package roomserver

import (
	"errors"
	"sync/atomic"
	"time"
)

// pace holds an answer that comes in a stream to a least speed, counted in what is of use to us: a server that trickles, or
// sends what nobody wants, does not keep us from asking the next. The time that we ourselves take does not count.
type pace struct {
	least int64 // of use
	per   time.Duration

	useful atomic.Int64
	waited time.Duration
	since  time.Time // we wait for the server; zero before the first event
}

// Of a state so many events must come in this time, and the first after firstEvent at the latest: large states take their
// server long to gather.
const (
	paceLeast  = 250
	paceTime   = 30 * time.Second
	firstEvent = 4 * time.Minute
)

var errTooSlow = errors.New("the server gives too little of it in too long")

// came is called when something has come; it fails when that was too slow.
func (p *pace) came(now time.Time) error {
	if p.since.IsZero() {
		return nil
	}
	if p.waited += now.Sub(p.since); p.waited < p.per {
		return nil
	}
	if p.useful.Swap(0) < p.least {
		return errTooSlow
	}
	p.waited = 0
	return nil
}

// goOn is called when we wait for more.
func (p *pace) goOn(now time.Time) { p.since = now }
