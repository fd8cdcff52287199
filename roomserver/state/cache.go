package state

import (
	"container/list"
	"sync"
)

// Cache holds nodes of all rooms, the least recently used leaving when it is full. Only
// nodes that are stored enter it: a number of a commit that failed is given out again.
type Cache struct {
	mu    sync.Mutex // guards all below; taken last
	limit int
	size  int
	order *list.List // front: used last
	nodes map[nodeKey]*list.Element
}

type nodeKey struct{ room, node int64 }

type cached struct {
	key  nodeKey
	node *node
}

// NewCache makes a cache of at most limit bytes.
func NewCache(limit int) *Cache {
	return &Cache{limit: limit, order: list.New(), nodes: make(map[nodeKey]*list.Element)}
}

// Size says how many bytes the cache holds.
func (c *Cache) Size() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.size
}

func (c *Cache) get(room, id int64) *node {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.nodes[nodeKey{room, id}]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*cached).node
}

func (c *Cache) put(room, id int64, n *node) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	key := nodeKey{room, id}
	if c.nodes[key] != nil {
		return
	}
	c.nodes[key] = c.order.PushFront(&cached{key, n})
	c.size += n.size()
	for c.size > c.limit && c.order.Len() > 0 {
		old := c.order.Remove(c.order.Back()).(*cached)
		delete(c.nodes, old.key)
		c.size -= old.node.size()
	}
}
