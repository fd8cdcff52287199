package federation_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// evil is a server that a test drives by hand against an honest one: it signs what the test wants, and answers
// what the test wants.
type evil struct {
	*node
	victim  *node
	version *event.Version
	room    id.RoomID
	mallory id.UserID // of the evil server, in the room
	bob     id.UserID // of the honest one, who made it
	join    id.EventID
	auth    []id.EventID // of a message of mallory's

	mu      sync.Mutex // guards the rest
	answers map[string]func(w http.ResponseWriter, r *http.Request)
	asked   map[string]int // requests by their endpoint
}

var evilTxns atomic.Int64

// full says that floods come in their full size; else in one that fits among the other tests.
var full = os.Getenv("HOSTILE_FULL") != ""

func sized(short, long int) int {
	if full {
		return long
	}
	return short
}

// attack makes a room of the honest server in which the evil one has a user.
func attack(t *testing.T, version string, test func(t *testing.T, e *evil)) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		e := newEvil(t, a, b, version)
		test(t, e)
		// Whatever was tried, the honest server goes on.
		b.say(e.bob, e.room, "still here")
	})
}

func newEvil(t *testing.T, a, b *node, version string) *evil {
	v, _ := event.Lookup(version)
	e := &evil{node: a, victim: b, version: v, mallory: a.user("mallory"), bob: b.user("bob"),
		answers: map[string]func(http.ResponseWriter, *http.Request){}, asked: map[string]int{}}
	a.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/_matrix/key/v2/server" {
			e.mu.Lock()
			answer := e.answers["keys"]
			e.mu.Unlock()
			if answer != nil {
				answer(w, r)
			}
			return answer != nil
		}
		for _, name := range []string{"state_ids", "state", "event_auth", "event", "get_missing_events", "backfill", "send"} {
			if !strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/"+name+"/") {
				continue
			}
			e.mu.Lock()
			e.asked[name]++
			answer := e.answers[name]
			e.mu.Unlock()
			if answer == nil {
				return false
			}
			answer(w, r)
			return true
		}
		return false
	}
	e.room = b.roomOf(version, e.bob, nil)
	a.join(e.mallory, e.room, b)
	e.join = b.stateID(e.room, "m.room.member", string(e.mallory))
	e.auth = []id.EventID{e.join, b.stateID(e.room, "m.room.power_levels", "")}
	if !v.CreateNotInAuthEvents {
		e.auth = append(e.auth, b.stateID(e.room, "m.room.create", ""))
	}
	return e
}

func (n *node) stateID(room id.RoomID, typ, key string) (eventID id.EventID) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		ev, err := n.reader.StateEvent(tx, row, stateRoot(row), typ, key)
		if ev != nil {
			eventID = ev.ID()
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return eventID
}

// answer has the evil server answer one endpoint.
func (e *evil) answer(endpoint string, with func(w http.ResponseWriter, r *http.Request)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.answers[endpoint] = with
}

// tells answers with JSON.
func (e *evil) tells(endpoint string, v any) {
	e.answer(endpoint, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(v)
	})
}

// hasNot answers that it has no such thing.
func (e *evil) hasNot(endpoints ...string) {
	for _, endpoint := range endpoints {
		e.answer(endpoint, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusNotFound)
			fmt.Fprint(w, `{"errcode":"M_NOT_FOUND","error":"no"}`)
		})
	}
}

func (e *evil) requests(endpoint string) int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked[endpoint]
}

// says makes an event of mallory's on top of her join; change makes it what the test wants.
func (e *evil) says(body string, change func(*event.Proto)) *event.Event {
	e.t.Helper()
	p := event.Proto{RoomID: e.room, Sender: e.mallory, Type: "m.room.message", Content: content(map[string]any{"body": body, "msgtype": "m.text"}),
		PrevEvents: []id.EventID{e.join}, AuthEvents: e.auth, Depth: 20, ReferenceHashes: map[id.EventID]string{}}
	if change != nil {
		change(&p)
	}
	key := e.keys.Key()
	ev, err := event.Build(e.version, p, e.name, key.ID, ed25519.PrivateKey(key.Private), time.Now())
	if err != nil {
		e.t.Fatal(err)
	}
	return ev
}

// member makes a membership event of somebody of the evil server.
func (e *evil) member(user id.UserID, membership string, prev ...id.EventID) *event.Event {
	key := string(user)
	return e.says("", func(p *event.Proto) {
		p.Sender, p.Type, p.StateKey, p.Content = user, "m.room.member", &key, content(map[string]any{"membership": membership})
		p.AuthEvents = append([]id.EventID{e.victim.stateID(e.room, "m.room.join_rules", "")}, e.auth[1:]...)
		if len(prev) > 0 {
			p.PrevEvents = prev
		}
	})
}

// sends brings events in transactions and gives what was refused of them.
func (e *evil) sends(events ...*event.Event) map[id.EventID]string {
	e.t.Helper()
	refused := map[id.EventID]string{}
	for len(events) > 0 {
		n := min(len(events), 50)
		var pdus []json.RawMessage
		for _, ev := range events[:n] {
			pdus = append(pdus, ev.JSON())
		}
		for v, why := range e.sendsRaw(peer.Transaction{PDUs: pdus}) {
			refused[v] = why
		}
		events = events[n:]
	}
	return refused
}

func (e *evil) sendsRaw(txn peer.Transaction) map[id.EventID]string {
	e.t.Helper()
	refused, err := e.peer.SendTransaction(e.t.Context(), e.victim.name, fmt.Sprint("evil", evilTxns.Add(1)), txn,
		peer.Opts{IgnoreBackoff: true, Timeout: 3 * time.Minute})
	if err != nil {
		e.t.Fatalf("the transaction failed: %v", err)
	}
	return refused
}

// status is how an event stands at the honest server, -1 when it is not there.
func (e *evil) status(ev *event.Event) storage.EventStatus {
	row, ok := e.victim.knows(ev.ID())
	if !ok {
		return -1
	}
	return row.Status
}

func (e *evil) want(what string, ev *event.Event, want storage.EventStatus) {
	e.t.Helper()
	if got := e.status(ev); got != want {
		e.t.Errorf("%s has status %d, want %d", what, got, want)
	}
}

const notThere = storage.EventStatus(-1)

// rows counts those of a table of the honest server.
func (n *node) rows(table string) (count int64) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
		return tx.QueryRow("SELECT count(*) FROM " + table).Scan(&count)
	}); err != nil {
		n.t.Fatal(err)
	}
	return count
}

// ends counts the open ends of the room.
func (n *node) ends(room id.RoomID) (count int) {
	n.t.Helper()
	if err := n.db.Read(n.t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		ends, err := tx.Extremities(row.NID)
		count = len(ends)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return count
}

// meanwhile says messages of bob's until stopped and gives the longest that one took, and how many.
func (e *evil) meanwhile() (stop func() (longest time.Duration, count int)) {
	done, ended := make(chan struct{}), make(chan struct{})
	var longest time.Duration
	count := 0
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
			began := time.Now()
			_, err := e.victim.rooms.Send(e.t.Context(), roomserver.NewEvent{Room: e.room, Sender: e.bob, Type: "m.room.message",
				Content: content(map[string]any{"msgtype": "m.text", "body": "between"})})
			if err != nil {
				e.t.Errorf("bob cannot speak: %v", err)
				return
			}
			longest, count = max(longest, time.Since(began)), count+1
		}
	}()
	return func() (time.Duration, int) {
		close(done)
		<-ended
		return longest, count
	}
}

// chosen makes an event of a room of version 1 or 2, whose ID its sender chooses.
func (e *evil) chosen(eventID string, room id.RoomID, change func(v map[string]any)) *event.Event {
	e.t.Helper()
	reference := func(list []id.EventID) (out []any) {
		for _, v := range list {
			out = append(out, []any{string(v), map[string]any{"sha256": ""}})
		}
		return out
	}
	v := map[string]any{"event_id": eventID, "room_id": string(room), "sender": string(e.mallory), "type": "m.room.message", "depth": 20,
		"content": map[string]any{"body": "chosen", "msgtype": "m.text"}, "origin_server_ts": time.Now().UnixMilli(),
		"prev_events": reference([]id.EventID{e.join}), "auth_events": reference(e.auth)}
	change(v)
	text, err := event.Canonical(content(v))
	if err != nil {
		e.t.Fatal(err)
	}
	sum := sha256.Sum256(text)
	v["hashes"], v["signatures"] = map[string]any{"sha256": base64.RawStdEncoding.EncodeToString(sum[:])}, map[string]any{}
	ev, err := event.Parse(e.version, content(v))
	if err == nil {
		key := e.keys.Key()
		ev, err = ev.Sign(e.name, key.ID, ed25519.PrivateKey(key.Private))
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return ev
}

// rehashed puts the content hash right that belongs to a changed event, if it can have one.
func rehashed(text string) []byte {
	var v map[string]json.RawMessage
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return []byte(text)
	}
	signatures := v["signatures"]
	delete(v, "hashes")
	delete(v, "signatures")
	canonical, err := event.CanonicalLenient(content(v))
	if err != nil {
		return []byte(text)
	}
	sum := sha256.Sum256(canonical)
	v["signatures"], v["hashes"] = signatures, content(map[string]any{"sha256": base64.RawStdEncoding.EncodeToString(sum[:])})
	return content(v)
}
