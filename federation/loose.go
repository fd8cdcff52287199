package federation

import (
	"encoding/json"
	"slices"

	"chancery/federation/peer"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// loose is what a server is told if it answers now: of each key the latest, in the order in which they came.
type loose struct {
	order []string
	of    map[string]news
}

// news is one receipt, one user's presence, or who types in a room.
type news struct {
	receipt  *readReceipt
	room     id.RoomID // of the receipt
	at       int64     // of the receipt: when it came, in milliseconds
	presence *userPresence
	typing   *typing
}

const (
	maxLoose = 500 // for one server; more is not told
	inOneEDU = 100 // receipts, or users
)

func (l *loose) put(key string, v news) {
	if _, ok := l.of[key]; !ok {
		if len(l.order) >= maxLoose {
			return
		}
		l.order = append(l.order, key)
	}
	if l.of == nil {
		l.of = map[string]news{}
	}
	l.of[key] = v
}

// take gives what there is as at most so many EDUs: receipts share one, and so do users of whom it is told whether they
// are there. What does not fit stays.
//
// spec: s2s#receipts, s2s#presence, s2s#typing-notifications
func (l *loose) take(limit int) (edus []peer.EDU) {
	var out []any
	read, there, receiptsIn := receipts(nil), (*presence)(nil), 0
	n := 0
	for _, key := range l.order {
		v, more := l.of[key], any(nil)
		switch {
		case v.typing != nil:
			more = v.typing
		case v.presence != nil && (there == nil || len(there.Push) == inOneEDU):
			there = &presence{}
			more = there
		case v.receipt != nil && (receiptsIn == inOneEDU || read == nil || read.has(v)):
			read, receiptsIn = receipts{}, 0
			more = read
		}
		if more != nil {
			if len(out) == limit {
				break
			}
			out = append(out, more)
		}
		switch {
		case v.presence != nil:
			there.Push = append(there.Push, *v.presence)
		case v.receipt != nil:
			read.add(v)
			receiptsIn++
		}
		delete(l.of, key)
		n++
	}
	l.order = slices.Clone(l.order[n:])
	for _, content := range out {
		typ := "m.receipt"
		switch content.(type) {
		case *typing:
			typ = "m.typing"
		case *presence:
			typ = "m.presence"
		}
		if text, err := json.Marshal(content); err == nil { // strings and numbers always marshal
			edus = append(edus, peer.EDU{Type: typ, Content: text})
		}
	}
	return edus
}

// has says that an EDU tells of the user in the room already, in another thread: it holds one receipt of each.
func (r receipts) has(v news) bool {
	_, ok := r[v.room][users.ReceiptRead][v.receipt.user]
	return ok
}

func (r receipts) add(v news) {
	if r[v.room] == nil {
		r[v.room] = map[string]map[id.UserID]receipt{users.ReceiptRead: {}}
	}
	r[v.room][users.ReceiptRead][v.receipt.user] = receipt{Events: []id.EventID{id.EventID(v.receipt.event)}, Data: receiptData{v.at, v.receipt.thread}}
}

func (l *loose) clear() { *l = loose{} }
