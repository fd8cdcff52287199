package peer

import (
	"container/list"
	"sync"
)

// bounded is a map that forgets what was not asked for the longest. Everything this package
// remembers about a remote name lives in one: names are the choice of whoever sends us events.
type bounded[V any] struct {
	mu     sync.Mutex // guards all below; taken last
	max    int
	weigh  func(V) int // nil: each weighs 1
	weight int
	order  *list.List // of *boundedItem[V], the newest in front
	items  map[string]*list.Element
}

type boundedItem[V any] struct {
	key   string
	value V
}

func newBounded[V any](max int) *bounded[V] {
	return &bounded[V]{max: max, order: list.New(), items: map[string]*list.Element{}}
}

// newWeighed makes one for values whose size is somebody else's choice: all of them weigh no more than max, but for one
// that does alone.
func newWeighed[V any](max int, weigh func(V) int) *bounded[V] {
	b := newBounded[V](max)
	b.weigh = weigh
	return b
}

func (b *bounded[V]) weightOf(value V) int {
	if b.weigh == nil {
		return 1
	}
	return b.weigh(value)
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
	if found {
		b.weight -= b.weightOf(old)
	}
	switch {
	case !keep && found:
		b.order.Remove(item)
		delete(b.items, key)
	case keep && found:
		item.Value.(*boundedItem[V]).value = value
		b.order.MoveToFront(item)
	case keep:
		b.items[key] = b.order.PushFront(&boundedItem[V]{key, value})
	}
	if keep {
		b.weight += b.weightOf(value)
	}
	for b.weight > b.max && b.order.Len() > 1 {
		last := b.order.Remove(b.order.Back()).(*boundedItem[V])
		b.weight -= b.weightOf(last.value)
		delete(b.items, last.key)
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
