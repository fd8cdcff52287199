package syncapi

import (
	"sync"

	"chancery/recent"

	"maunium.net/go/mautrix/id"
)

// shared is what many syncs ask alike: it never changes, so it is read once and kept a while.
type shared struct {
	filters   *recent.Cache[filterKey, *filter]
	bases     *recent.Cache[baseKey, base]
	timelines *recent.Cache[timelineKey, *timeline]
	numbers   *recent.Cache[id.RoomID, int64]
	turn      turns
}

// turns lets one goroutine at a time read what many want.
type turns struct {
	mu sync.Mutex // guards of; a leaf
	of map[timelineKey]*turn
}

type turn struct {
	sync.Mutex
	waiting int
}

func (t *turns) take(key timelineKey) (done func()) {
	t.mu.Lock()
	v := t.of[key]
	if v == nil {
		v = &turn{}
		t.of[key] = v
	}
	v.waiting++
	t.mu.Unlock()
	v.Lock()
	return func() {
		v.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if v.waiting--; v.waiting == 0 {
			delete(t.of, key)
		}
	}
}

type filterKey struct {
	user   string
	number int64
}

func newShared() *shared {
	return &shared{
		turn:      turns{of: map[timelineKey]*turn{}},
		filters:   recent.New[filterKey, *filter](2 << 20),
		bases:     recent.New[baseKey, base](2 << 20),
		timelines: recent.New[timelineKey, *timeline](8 << 20),
		numbers:   recent.New[id.RoomID, int64](1 << 20),
	}
}
