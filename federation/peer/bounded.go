package peer

import (
	"container/list"
	"sync"
)

// bounded is a map that forgets what was not asked for the longest. Everything this package
// remembers about a remote name lives in one: names are the choice of whoever sends us events.
type bounded[V any] struct {
	mu    sync.Mutex // guards all below; taken last
	max   int
	order *list.List // of *boundedItem[V], the newest in front
	items map[string]*list.Element
}

type boundedItem[V any] struct {
	key   string
	value V
}

func newBounded[V any](max int) *bounded[V] {
	return &bounded[V]{max: max, order: list.New(), items: map[string]*list.Element{}}
}

func (b *bounded[V]) get(key string) (value V, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	item, ok := b.items[key]
	if !ok {
		return value, false
	}
	b.order.MoveToFront(item)
	return item.Value.(*boundedItem[V]).value, true
}

// change replaces the value under key by what fn makes of it; keep false removes it.
func (b *bounded[V]) change(key string, fn func(old V, found bool) (value V, keep bool)) V {
	b.mu.Lock()
	defer b.mu.Unlock()
	item, found := b.items[key]
	var old V
	if found {
		old = item.Value.(*boundedItem[V]).value
	}
	value, keep := fn(old, found)
	switch {
	case !keep && found:
		b.order.Remove(item)
		delete(b.items, key)
	case keep && found:
		item.Value.(*boundedItem[V]).value = value
		b.order.MoveToFront(item)
	case keep:
		b.items[key] = b.order.PushFront(&boundedItem[V]{key, value})
		if b.order.Len() > b.max {
			last := b.order.Back()
			b.order.Remove(last)
			delete(b.items, last.Value.(*boundedItem[V]).key)
		}
	}
	return value
}

func (b *bounded[V]) set(key string, value V) {
	b.change(key, func(V, bool) (V, bool) { return value, true })
}

func (b *bounded[V]) len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.order.Len()
}
