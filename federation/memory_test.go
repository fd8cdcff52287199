package federation_test

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver/event"

	"maunium.net/go/mautrix/id"
)

// Whatever a server brings, for as long as it wants, we remember no more of it than we must: what is alive after a
// minute of junk is what was alive after a few seconds.
func TestJunkDoesNotGrowInMemory(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		e.hasNot("state_ids", "state", "event_auth", "event", "get_missing_events", "backfill")
		var n, sent atomic.Int64
		fresh := func() string { return fmt.Sprintf("%d%s", n.Add(1), strings.Repeat("x", 30)) }
		server := func() string { return fmt.Sprintf("127.0.0.1:%d", 1+n.Add(1)%1000) } // nobody is there
		junk := func() (txn peer.Transaction) {
			for range 10 {
				orphan := e.says(fresh(), func(p *event.Proto) { p.PrevEvents = []id.EventID{id.EventID("$" + fresh())} })
				forged := e.says(fresh(), func(p *event.Proto) { p.Sender = id.UserID("@x:" + server()) })
				state := e.says(fresh(), func(p *event.Proto) { key := fresh(); p.Type, p.StateKey = "x", &key }) // mallory may not
				elsewhere := fmt.Sprintf(`{"room_id":"!%s:%s","type":"m.room.message","sender":"@x:y","content":{}}`, fresh(), server())
				txn.PDUs = append(txn.PDUs, orphan.JSON(), forged.JSON(), state.JSON(), []byte(elsewhere))
			}
			for range 20 {
				user := fmt.Sprintf("@%s:%s", fresh(), e.name)
				for typ, content := range map[string]any{
					"m.device_list_update": map[string]any{"user_id": user, "device_id": "D", "stream_id": n.Add(1), "prev_id": []int64{1}},
					"m.presence":           map[string]any{"push": []any{map[string]any{"user_id": user, "presence": "online", "last_active_ago": 1}}},
					"m.typing":             map[string]any{"room_id": e.room, "user_id": user, "typing": true},
					"m.receipt":            map[string]any{e.room.String(): map[string]any{"m.read": map[string]any{user: map[string]any{"event_ids": []string{"$" + fresh()}, "data": map[string]any{"ts": 1}}}}},
					"m.direct_to_device":   map[string]any{"sender": user, "type": "m.x", "message_id": fresh(), "messages": map[string]any{string(e.bob): map[string]any{fresh(): map[string]any{}}}},
				} {
					text, err := json.Marshal(content)
					if err != nil {
						t.Error(err)
					}
					txn.EDUs = append(txn.EDUs, peer.EDU{Type: typ, Content: text})
				}
			}
			return txn
		}
		load := func(for_ time.Duration) {
			var all sync.WaitGroup
			end := time.Now().Add(for_)
			for range 4 {
				all.Go(func() {
					for time.Now().Before(end) {
						_, err := e.peer.SendTransaction(t.Context(), e.victim.name, fmt.Sprint("junk", evilTxns.Add(1)), junk(), peer.Opts{IgnoreBackoff: true, Timeout: 3 * time.Minute})
						if err != nil {
							t.Errorf("the transaction failed: %v", err)
							return
						}
						sent.Add(1)
					}
				})
			}
			all.Wait()
		}
		alive := func() (heap uint64, rss string) {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			status, _ := os.ReadFile("/proc/self/status")
			for line := range strings.Lines(string(status)) {
				if strings.HasPrefix(line, "VmRSS:") || strings.HasPrefix(line, "VmHWM:") {
					rss += strings.Join(strings.Fields(line), " ") + " "
				}
			}
			return m.HeapAlloc, rss
		}
		third := time.Duration(sized(3, 20)) * time.Second
		load(third)
		before, rss := alive()
		t.Logf("after %d transactions of 40 events and 100 EDUs: %d MB alive, %s", sent.Load(), before>>20, rss)
		load(2 * third)
		after, rss := alive()
		t.Logf("after %d: %d MB alive, %s", sent.Load(), after>>20, rss)
		const more = 48 << 20 // caches fill
		if after > before+more {
			t.Errorf("%d MB were alive and now %d", before>>20, after>>20)
		}
	})
}
