package federation

import (
	"context"
	"encoding/json"
	"sync"

	"chancery/storage"
)

// bodies holds the JSON of events lately sent, since each goes to many servers. It is bounded in bytes by two
// generations: when the younger is full the elder is forgotten.
type bodies struct {
	reading sync.Mutex // one reads, the others find it read; taken before mu

	mu           sync.Mutex // guards what follows; a leaf
	young, elder map[int64]json.RawMessage
	bytes        int
}

const bodyBytes = 4 << 20 // of one generation

func newBodies() *bodies { return &bodies{young: map[int64]json.RawMessage{}} }

// read gives the JSON of events in their order, nil for those that are gone.
func (b *bodies) read(ctx context.Context, db *storage.DB, nids []int64) ([]json.RawMessage, error) {
	found := make(map[int64]json.RawMessage, len(nids))
	if missing := b.get(nids, found); len(missing) > 0 {
		b.reading.Lock()
		defer b.reading.Unlock()
		if missing = b.get(missing, found); len(missing) > 0 {
			err := db.Read(ctx, func(tx storage.Tx) error {
				rows, err := tx.Events(missing)
				for _, row := range rows {
					found[row.NID] = row.JSON
					b.put(row.NID, row.JSON)
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
	}
	out := make([]json.RawMessage, len(nids))
	for i, n := range nids {
		out[i] = found[n]
	}
	return out, nil
}

func (b *bodies) get(nids []int64, into map[int64]json.RawMessage) (missing []int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range nids {
		if text, ok := b.young[n]; ok {
			into[n] = text
		} else if text, ok := b.elder[n]; ok {
			into[n] = text
		} else {
			missing = append(missing, n)
		}
	}
	return missing
}

func (b *bodies) put(nid int64, text json.RawMessage) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.bytes += len(text); b.bytes > bodyBytes {
		b.elder, b.young, b.bytes = b.young, map[int64]json.RawMessage{}, len(text)
	}
	b.young[nid] = text
}

// drop forgets an event that was redacted.
func (b *bodies) drop(nid int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.young, nid)
	delete(b.elder, nid)
}
