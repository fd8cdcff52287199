package federation

import "time"

// Places bounds the requests under way, as a test wants it.
func (o *Outbox) Places(n int, slowAfter time.Duration) {
	o.healthy, o.failing, o.slowAfter = make(chan struct{}, n), make(chan struct{}, n), slowAfter
}
