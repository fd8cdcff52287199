package roomserver

import (
	"maps"
	"sync"
	"time"
)

// vain is what was asked of others a moment ago, most times over, and nothing came of it: for a pause it is not asked
// again, however often somebody has us do it.
type vain[K comparable] struct {
	pause time.Duration
	most  int

	mu    sync.Mutex // guards asked; a leaf
	asked map[K]tries
}

type tries struct {
	last  time.Time
	count int
}

const maxVain = 1000

func (v *vain[K]) is(k K, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	t, ok := v.asked[k]
	return ok && t.count >= v.most && now.Sub(t.last) < v.pause
}

func (v *vain[K]) note(k K, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.asked) >= maxVain {
		maps.DeleteFunc(v.asked, func(_ K, t tries) bool { return now.Sub(t.last) >= v.pause })
	}
	if v.asked == nil {
		v.asked = map[K]tries{}
	}
	t, ok := v.asked[k]
	if !ok && len(v.asked) >= maxVain {
		return
	}
	if now.Sub(t.last) >= v.pause {
		t.count = 0
	}
	v.asked[k] = tries{now, t.count + 1}
}

func (v *vain[K]) forget(k K) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.asked, k)
}
