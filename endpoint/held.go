package endpoint

import (
	"io"
	"sync"
	"time"

	"chancery"
)

// Bodies are read whole, those of servers before anybody knows whose they are: all of them together, and those of one
// network, hold so many bytes in memory. A body counts as its bytes come, so what is only announced costs nothing.
const (
	maxHeld   = 256 << 20
	maxHeldBy = 64 << 20
)

// bodies counts what the requests under way hold.
type bodies struct {
	mu  sync.Mutex // guards the rest; a leaf
	all int64
	by  map[string]int64 // by the network that they came from
}

// hold adds bytes to what a network holds; false when it is too much.
func (b *bodies) hold(network string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all+n > maxHeld || b.by[network]+n > maxHeldBy {
		return false
	}
	if b.by == nil {
		b.by = map[string]int64{}
	}
	b.all += n
	b.by[network] += n
	return true
}

func (b *bodies) free(network string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all -= n
	if b.by[network] -= n; b.by[network] == 0 {
		delete(b.by, network)
	}
}

// held is what one request holds, until it is done.
type held struct {
	*bodies
	network string
	n       int64
}

func (h *held) done() {
	if h.n > 0 {
		h.free(h.network, h.n)
	}
}

// counting counts what is read of a body.
type counting struct {
	io.ReadCloser
	*held
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 {
		if !c.hold(c.network, int64(n)) {
			return 0, chancery.LimitExceeded(time.Second)
		}
		c.n += int64(n)
	}
	return n, err
}
