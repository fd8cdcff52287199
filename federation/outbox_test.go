package federation_test

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"chancery/storage"
)

// A transaction that was not answered goes out again under its own ID, after a restart too: a receiver that
// had taken it knows it.
//
// spec: s2s#transactions
func TestTheSameTransactionKeepsItsID(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		var mu sync.Mutex
		seen := map[string]int{}
		deaf := false
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			txnID, ok := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/send/")
			mu.Lock()
			defer mu.Unlock()
			if ok && deaf {
				seen[txnID]++
				w.WriteHeader(http.StatusBadGateway)
			}
			return ok && deaf
		}
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		eventually(t, "bob's server hears of its join", func() bool { return b.taken.Load() > 0 })
		mu.Lock()
		deaf = true
		mu.Unlock()
		a.say(alice, room, "once")
		for range 2 {
			a.halt()
			a.again()
			before := func() int { mu.Lock(); defer mu.Unlock(); return sum(seen) }()
			eventually(t, "it is sent again", func() bool { mu.Lock(); defer mu.Unlock(); return sum(seen) > before })
		}
		mu.Lock()
		deaf = false
		if len(seen) != 1 {
			t.Errorf("it was sent as %v", seen)
		}
		mu.Unlock()
		b.hears(room, []string{"once"})
	})
}

func sum(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// A server that cannot take one event gets the others.
func TestAnEventThatIsRefusedDoesNotStopTheOthers(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != "PUT" {
				return false
			}
			body, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(body))
			if !bytes.Contains(body, []byte("poison")) {
				return false
			}
			w.WriteHeader(http.StatusBadRequest)
			return true
		}
		b.deaf.Store(true)
		for _, body := range []string{"one", "poison", "two"} {
			a.say(alice, room, body)
		}
		if err := a.db.Write(t.Context(), nil, func(tx storage.Tx) error {
			tx.QueueEDU(b.name, storage.EDU{Type: "m.x", Content: content("poison")}, storage.EDU{Type: "m.x", Content: content("fine")})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		b.deaf.Store(false)
		eventually(t, "the others arrive", func() bool { return slices.Contains(b.said(room), "two") && slices.Contains(b.said(room), "one") })
		eventually(t, "nothing waits", func() bool {
			var left []string
			if err := a.db.Read(t.Context(), func(tx storage.Tx) (err error) {
				left, err = tx.DestinationsWithEDUs()
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return len(left) == 0
		})
	})
}
