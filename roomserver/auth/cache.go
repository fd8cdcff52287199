package auth

import (
	"sync"

	"chancery/roomserver/event"
)

// cache keeps what was parsed of the events asked about last. The key is the event in memory and
// not its ID: up to version 2 a peer chooses IDs, and a redacted copy has the ID of its original
// but another content. It has two generations: when the young one is full it becomes the old one,
// and what is still asked for returns from there.
type cache[T any] struct {
	parse  func(*event.Event) *T
	budget int // bytes of events per generation, a measure of what the parsed form takes

	mu         sync.Mutex // guards all below
	young, old map[*event.Event]*T
	size       int
}

// entryCost is what an entry takes however short the event is.
const entryCost = 512

func (c *cache[T]) of(ev *event.Event) *T {
	c.mu.Lock()
	parsed, ok := c.young[ev]
	if !ok {
		if parsed, ok = c.old[ev]; ok {
			c.keep(ev, parsed)
		}
	}
	c.mu.Unlock()
	if ok {
		return parsed
	}
	parsed = c.parse(ev) // outside of the lock: others need not wait for a large one
	c.mu.Lock()
	c.keep(ev, parsed)
	c.mu.Unlock()
	return parsed
}

func (c *cache[T]) keep(ev *event.Event, parsed *T) {
	if c.size >= c.budget || c.young == nil {
		c.young, c.old, c.size = make(map[*event.Event]*T), c.young, 0
	}
	c.young[ev] = parsed
	c.size += entryCost + ev.Size()
}
