package endpoint

import (
	"io"
	"sync"
	"time"

	"chancery"
)

// Bodies are read whole, those of servers before anybody knows whose they are: all of them together, and those of one
// address, hold so many bytes in memory. A body counts as its bytes come, so what is only announced costs nothing.
const (
	maxHeld   = 256 << 20
	maxHeldBy = 64 << 20
)

// bodies counts what the requests under way hold.
type bodies struct {
	mu  sync.Mutex // guards the rest; a leaf
	all int64
	by  map[string]int64 // by the address that they came from
}

// hold adds bytes to what an address holds; false when it is too much.
func (b *bodies) hold(address string, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.all+n > maxHeld || b.by[address]+n > maxHeldBy {
		return false
	}
	if b.by == nil {
		b.by = map[string]int64{}
	}
	b.all += n
	b.by[address] += n
	return true
}

func (b *bodies) free(address string, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.all -= n
	if b.by[address] -= n; b.by[address] == 0 {
		delete(b.by, address)
	}
}

// held is what one request holds, until it is done.
type held struct {
	*bodies
	address string
	n       int64
}

func (h *held) done() {
	if h.n > 0 {
		h.free(h.address, h.n)
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
		if !c.hold(c.address, int64(n)) {
			return 0, chancery.LimitExceeded(time.Second)
		}
		c.n += int64(n)
	}
	return n, err
}
