// Package recent keeps in memory what was used lately, up to a number of bytes.
package recent

import "sync"

// Cache is bounded in bytes. It has two generations: when the young one is full it becomes the old one and the old
// one is dropped; what is asked for moves to the young one.
type Cache[K comparable, V any] struct {
	mu         sync.Mutex // guards the rest; a leaf
	limit      int
	size       int
	young, old map[K]sized[V]
	dropped    map[K]struct{} // never cached again, see Drop
}

type sized[V any] struct {
	value V
	size  int
}

// New makes an empty cache of at most limit bytes.
func New[K comparable, V any](limit int) *Cache[K, V] {
	return &Cache[K, V]{limit: limit, young: map[K]sized[V]{}, old: map[K]sized[V]{}, dropped: map[K]struct{}{}}
}

// Get gives what is kept for a key.
func (c *Cache[K, V]) Get(k K) (V, bool) {
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

// Put keeps a value of about so many bytes, unless its key was dropped.
func (c *Cache[K, V]) Put(k K, v V, size int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.dropped[k]; ok {
		return
	}
	delete(c.old, k)
	c.add(k, sized[V]{v, size})
}

func (c *Cache[K, V]) add(k K, v sized[V]) {
	c.size += v.size - c.young[k].size
	c.young[k] = v
	if c.size > c.limit/2 {
		c.old, c.young, c.size = c.young, make(map[K]sized[V], len(c.young)), 0
	}
}

// Drop forgets a key for good: a reader with an older snapshot must not bring the old value back.
func (c *Cache[K, V]) Drop(k K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v, ok := c.young[k]; ok {
		c.size -= v.size
		delete(c.young, k)
	}
	delete(c.old, k)
	if len(c.dropped) > 100_000 {
		clear(c.dropped)
	}
	c.dropped[k] = struct{}{}
}
