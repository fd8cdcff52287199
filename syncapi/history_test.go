package syncapi_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// client is what a Matrix client does with /sync: it keeps the history and the state of a room by what it
// is told, and walks back where something is missing.
type syncer struct {
	s       *server
	user    string
	room    string
	since   string
	history []string // event IDs, oldest first
	joined  bool
	state   map[string]string // type and state key to event ID
	after   bool              // by state_after
	gaps    int
}

func (c *syncer) step(t *testing.T, limit int, timeout string) {
	filter := fmt.Sprintf(`{"room":{"timeline":{"limit":%d}},"presence":{"types":[]}}`, limit)
	query := []string{"filter", filter, "timeout", timeout}
	if c.after {
		query = append(query, "use_state_after", "true")
	}
	a, err := c.s.Try(c.user, "GET", syncPath(c.since, query...), nil)
	if err != nil || a.Status != 200 {
		t.Errorf("%s syncs: %d %s %v", c.user, a.Status, a.Text, err)
		return
	}
	got := synced{a}
	c.since = got.next()
	for _, section := range []string{"leave", "join"} {
		r := got.room(section, c.room)
		if !r.Exists() {
			continue
		}
		anew := !c.joined || section == "join" && strings.Contains(r.Raw, `"type":"m.room.create"`)
		if section == "leave" {
			c.joined = false
		} else if anew {
			c.joined, c.state = true, map[string]string{}
		}
		var fresh []string
		for _, ev := range r.Get("timeline.events").Array() {
			fresh = append(fresh, ev.Get("event_id").Str)
		}
		if r.Get("timeline.limited").Bool() {
			c.gaps++
			fresh = append(c.walkBack(t, r.Get("timeline.prev_batch").Str), fresh...)
		}
		for _, v := range fresh {
			if !slices.Contains(c.history, v) {
				c.history = append(c.history, v)
			} else if !anew { // a room that they came into anew begins with what was told before
				t.Errorf("%s is told %s twice", c.user, v)
			}
		}
		apply := func(path string) {
			for _, ev := range r.Get(path).Array() {
				if ev.Get("state_key").Exists() {
					c.state[ev.Get("type").Str+"|"+ev.Get("state_key").Str] = ev.Get("event_id").Str
				}
			}
		}
		if c.after {
			apply("state_after.events")
		} else {
			apply("state.events")
			apply("timeline.events")
		}
	}
}

// walkBack fills a gap: from a token back to the newest event that is known.
func (c *syncer) walkBack(t *testing.T, from string) []string {
	var found []string
	for range 200 {
		a, err := c.s.Try(c.user, "GET", at(c.room, "messages")+"?dir=b&limit=7&from="+url.QueryEscape(from), nil)
		if err != nil || a.Status != 200 {
			t.Errorf("%s walks back: %d %s %v", c.user, a.Status, a.Text, err)
			return found
		}
		for _, ev := range a.Get("chunk").Array() {
			v := ev.Get("event_id").Str
			if len(c.history) > 0 && c.history[len(c.history)-1] == v {
				return found
			}
			found = slices.Insert(found, 0, v)
		}
		if from = a.Get("end").Str; from == "" {
			return found
		}
	}
	t.Error("the walk back does not end")
	return found
}

// Random writers, and clients that sync at random moments with random limits: what each client puts
// together is the room's history and its state, every event once and in order.
//
// spec: c2s#syncing
func TestClientsPutTogetherTheWholeRoom(t *testing.T) {
	for name, tail := range map[string]int64{"from the tail": 16 << 20, "from SQL": 2000} {
		t.Run(name, func(t *testing.T) {
			sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { wholeRoom(t, serve(t, fresh(), tail)) })
		})
	}
}

func wholeRoom(t *testing.T, s *server) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	room := s.Create(alice, nil)
	clients := []*syncer{
		{s: s, user: alice}, {s: s, user: alice + "/B", after: true},
		{s: s, user: bob}, {s: s, user: bob + "/B", after: true},
	}
	for _, c := range clients {
		c.room, c.state = room, map[string]string{}
	}
	done := make(chan struct{})
	var writers, readers sync.WaitGroup
	for w := range 3 {
		r := rand.New(rand.NewPCG(seed, uint64(w)))
		writers.Go(func() {
			for i := range 50 {
				s.write(t, r, id.RoomID(room), fmt.Sprint(w, " ", i))
				time.Sleep(time.Duration(r.IntN(4)) * time.Millisecond)
			}
		})
	}
	for i, c := range clients {
		r := rand.New(rand.NewPCG(seed, uint64(100+i)))
		readers.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				c.step(t, 1+r.IntN(12), fmt.Sprint(r.IntN(60)))
				time.Sleep(time.Duration(r.IntN(60)) * time.Millisecond)
			}
		})
	}
	writers.Wait()
	close(done)
	readers.Wait()
	if err := s.Rooms.Join(t.Context(), roomserver.Join{User: bob, Room: id.RoomID(room)}); err != nil {
		t.Fatal(err)
	}
	history, state := s.whole(t, room)
	for _, c := range clients {
		c.step(t, 5, "0")
		c.step(t, 5, "0")
		if !slices.Equal(c.history, history) {
			t.Errorf("%s put together %d events, the room has %d (%d gaps):\n%s", c.user, len(c.history), len(history), c.gaps, difference(c.history, history))
		}
		for k, v := range state {
			if c.state[k] != v {
				t.Errorf("%s has %s for %s, the room %s", c.user, c.state[k], k, v)
			}
		}
		if len(c.state) != len(state) {
			t.Errorf("%s has %d pieces of state, the room %d", c.user, len(c.state), len(state))
		}
	}
}

func (s *server) write(t *testing.T, r *rand.Rand, room id.RoomID, text string) {
	content := func(v object) json.RawMessage {
		out, err := json.Marshal(v)
		if err != nil {
			t.Error(err)
		}
		return out
	}
	send := func(sender id.UserID, typ string, key *string, c object) error {
		_, err := s.Rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: sender, Type: typ, StateKey: key, Content: content(c)})
		return err
	}
	var err error
	switch n := r.IntN(12); {
	case n < 7:
		err = send(alice, "m.room.message", nil, object{"msgtype": "m.text", "body": text})
	case n < 9:
		key := fmt.Sprint(r.IntN(4))
		err = send(alice, "org.example.thing", &key, object{"v": text})
	case n == 9:
		err = s.Rooms.Join(t.Context(), roomserver.Join{User: bob, Room: room})
	case n == 10:
		err = s.Rooms.Leave(t.Context(), bob, room, nil)
		if chancery.IsCode(err, chancery.CodeNotFound) { // was never there
			err = nil
		}
	default:
		err = s.Rooms.Join(t.Context(), roomserver.Join{User: carol, Room: room})
		if err == nil {
			err = send(carol, "m.room.message", nil, object{"msgtype": "m.text", "body": "carol " + text})
		}
	}
	if err != nil {
		t.Errorf("write: %v", err)
	}
}

// whole reads the room's history and state as storage has them.
func (s *server) whole(t *testing.T, roomID string) (history []string, state map[string]string) {
	state = map[string]string{}
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		room, _, err := tx.Room(roomID)
		if err != nil {
			return err
		}
		events, err := tx.EventsAbove(room.NID, 0, 1<<62, 10000)
		if err != nil {
			return err
		}
		for _, ev := range events {
			history = append(history, ev.ID)
			if ev.StateKey != nil { // one branch: the last event of a key is its state
				state[ev.Type+"|"+*ev.StateKey] = ev.ID
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return history, state
}

func difference(got, want []string) string {
	var b strings.Builder
	for i := range max(len(got), len(want)) {
		g, w := "-", "-"
		if i < len(got) {
			g = got[i]
		}
		if i < len(want) {
			w = want[i]
		}
		if g != w {
			fmt.Fprintf(&b, "%d: %s, want %s\n", i, g, w)
			if b.Len() > 1000 {
				break
			}
		}
	}
	return b.String()
}
