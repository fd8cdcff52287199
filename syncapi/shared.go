package syncapi

import (
	"sync"

	"maunium.net/go/mautrix/id"
)

// recent is a cache bounded in bytes, of two generations: when the young one is full it becomes
// the old one and the old one is dropped; what is asked for moves to the young one.
type recent[K comparable, V any] struct {
	mu         sync.Mutex // guards the rest; a leaf
	limit      int
	size       int
	young, old map[K]sized[V]
}

type sized[V any] struct {
	value V
	size  int
}

func newRecent[K comparable, V any](limit int) *recent[K, V] {
	return &recent[K, V]{limit: limit, young: map[K]sized[V]{}, old: map[K]sized[V]{}}
}

func (c *recent[K, V]) get(k K) (V, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.young[k]; ok {
		return v.value, true
	}
	v, ok := c.old[k]
	if ok {
		delete(c.old, k)
		c.add(k, v)
	}
	return v.value, ok
}

func (c *recent[K, V]) put(k K, v V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.old, k)
	c.add(k, sized[V]{v, size})
}

func (c *recent[K, V]) add(k K, v sized[V]) {
	c.size += v.size - c.young[k].size
	c.young[k] = v
	if c.size > c.limit/2 {
		c.old, c.young, c.size = c.young, map[K]sized[V]{}, 0
	}
}

// shared is what many syncs ask alike: it never changes, so it is read once and kept a while.
type shared struct {
	filters   *recent[filterKey, *filter]
	bases     *recent[baseKey, base]
	timelines *recent[timelineKey, *timeline]
	numbers   *recent[id.RoomID, int64]
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
		filters:   newRecent[filterKey, *filter](2 << 20),
		bases:     newRecent[baseKey, base](2 << 20),
		timelines: newRecent[timelineKey, *timeline](8 << 20),
		numbers:   newRecent[id.RoomID, int64](1 << 20),
	}
}
