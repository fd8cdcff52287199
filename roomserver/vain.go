package roomserver

import (
	"maps"
	"sync"
	"time"
)

// vain are the gaps of which all servers were asked a moment ago, and nothing came: nobody who reads there waits
// for them again, however many gaps a peer makes.
type vain struct {
	mu    sync.Mutex          // guards asked; a leaf
	asked map[int64]time.Time // by the event above the gap
}

const (
	vainPause = 10 * time.Second
	maxVain   = 1000
)

func (v *vain) is(event int64, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	at, ok := v.asked[event]
	return ok && now.Sub(at) < vainPause
}

func (v *vain) note(event int64, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.asked) >= maxVain {
		maps.DeleteFunc(v.asked, func(_ int64, at time.Time) bool { return now.Sub(at) >= vainPause })
	}
	if v.asked == nil {
		v.asked = map[int64]time.Time{}
	}
	if len(v.asked) < maxVain {
		v.asked[event] = now
	}
}
