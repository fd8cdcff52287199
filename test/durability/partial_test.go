package durability

import (
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"chancery/test/homeserver"
	"chancery/test/largeroom"

	"github.com/nats-io/nats-server/v2/server"
)

// NATS goes while a room is made whole: it becomes so, who waits for it hears of it, and nothing of what was said meanwhile
// is missing when NATS is back.
func TestRoomBecomesWholeWithoutNATS(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca, dir := homeserver.NewCA(t), t.TempDir()
		n := startNATS(t, server.RANDOM_PORT, dir)
		t.Cleanup(func() { stopNATS(n) })
		port := n.Addr().(*net.TCPAddr).Port
		room := largeroom.New(t, ca, largeroom.Options{Members: 300, Servers: 3})
		asked, gone := make(chan struct{}, 10), make(chan struct{})
		room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
			if kind == "state" {
				asked <- struct{}{}
				select {
				case <-gone:
				case <-r.Context().Done():
				}
			}
			return false
		}
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Settings: map[string]string{"CHANCERY_NATS_URL": "nats://127.0.0.1:" + strconv.Itoa(port)}})
		alice := s.Register(t, "alice")
		since := alice.Sync("").Get("next_batch").Str
		alice.Join(string(room.ID), room.Servers[0].Name)
		<-asked
		stopNATS(n)
		said := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "is anybody there?"})
		room.Tell(t, s, said)
		close(gone)
		members := alice.OK("GET", homeserver.Room(string(room.ID), "members"), nil) // waits until the room is whole
		if n := len(members.Get("chunk").Array()); n != 301 {
			t.Errorf("%d members, want 301", n)
		}
		path := "rooms.join." + strings.ReplaceAll(string(room.ID), ".", `\.`)
		// A room without lazy loading is shown when it is whole.
		whole := ""
		for whole == "" {
			a := alice.OK("GET", "/_matrix/client/v3/sync?timeout=10000&since="+url.QueryEscape(since), nil)
			since = a.Get("next_batch").Str
			whole = a.Get(path).Raw
		}
		n = startNATS(t, port, dir)
		again := room.Add(t, 6, "m.room.message", nil, J{"msgtype": "m.text", "body": "yes"})
		room.Tell(t, s, again)
		for _, ev := range []string{string(said.ID()), string(again.ID())} {
			alice.OK("GET", homeserver.Room(string(room.ID), "event", ev), nil)
		}
		for found := false; !found; {
			a := alice.OK("GET", "/_matrix/client/v3/sync?timeout=10000&since="+url.QueryEscape(since), nil)
			since = a.Get("next_batch").Str
			for _, ev := range a.Get(path + ".timeline.events").Array() {
				found = found || ev.Get("event_id").Str == string(again.ID())
			}
		}
	})
}
