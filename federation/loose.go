package federation

import "chancery/federation/peer"

// loose is what a server is told if it answers, and else never: receipts, typing, presence. The latest of each
// kind about the same takes the place of the one before.
type loose struct {
	order []string
	of    map[string]peer.EDU
}

const maxLoose = 500 // for one server; more is not told

func (l *loose) put(key string, e peer.EDU) {
	if _, ok := l.of[key]; !ok {
		if len(l.order) >= maxLoose {
			return
		}
		l.order = append(l.order, key)
	}
	if l.of == nil {
		l.of = map[string]peer.EDU{}
	}
	l.of[key] = e
}

func (l *loose) take(limit int) []peer.EDU {
	n := min(limit, len(l.order))
	out := make([]peer.EDU, n)
	for i, key := range l.order[:n] {
		out[i] = l.of[key]
		delete(l.of, key)
	}
	l.order = l.order[n:]
	return out
}

func (l *loose) clear() { *l = loose{} }
