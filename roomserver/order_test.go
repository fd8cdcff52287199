package roomserver_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	stdlog "log"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"
	"maunium.net/go/mautrix/id"
)

// world is a generated room with the servers that have it, and an engine that has joined it.
type world struct {
	*dag
	engine *roomserver.Server
	mu     sync.Mutex // guards dag while servers answer, and lazy
	lazy   int        // one answer in so many is none, or half of one; 0: all are whole
	mute   []string   // what is not answered
	asked  map[string]int
}

// server is an origin that can be asked about the room.
func (w *world) serve(rw http.ResponseWriter, r *http.Request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	give := func(v any) {
		rw.Header().Set("Content-Type", "application/json")
		json.NewEncoder(rw).Encode(v)
	}
	path := strings.Split(strings.TrimPrefix(r.URL.Path, "/_matrix/federation/"), "/")
	w.asked[path[1]]++
	if slices.Contains(w.mute, path[1]) {
		http.Error(rw, `{"errcode":"M_FORBIDDEN"}`, http.StatusForbidden)
		return
	}
	if w.lazy > 0 && path[1] != "make_join" && path[1] != "send_join" && w.r.IntN(w.lazy) == 0 {
		http.Error(rw, `{"errcode":"M_UNKNOWN"}`, http.StatusInternalServerError)
		return
	}
	texts := func(nodes []*node) []json.RawMessage {
		out := make([]json.RawMessage, len(nodes))
		for i, n := range nodes {
			out[i] = n.JSON()
		}
		return out
	}
	ids := func(nodes []*node) []id.EventID {
		out := make([]id.EventID, len(nodes))
		for i, n := range nodes {
			out[i] = n.ID()
		}
		return out
	}
	switch path[1] {
	case "make_join":
		user := id.UserID(path[3])
		p := map[string]any{"type": "m.room.member", "room_id": w.room, "sender": user, "state_key": user, "content": map[string]any{"membership": "join"},
			"depth": w.ends[0].Depth() + 1, "origin_server_ts": time.Now().UnixMilli()}
		refs := func(list []*node) any {
			if w.v.EventFormat != event.FormatReferences {
				return ids(list)
			}
			out := []any{}
			for _, n := range list {
				out = append(out, []any{n.ID(), map[string]any{"sha256": n.ReferenceHash()}})
			}
			return out
		}
		p["prev_events"] = refs(w.ends)
		key := string(user)
		var auths []*node
		for _, k := range auth.Needed(w.v, "m.room.member", &key, user, []byte(`{"membership":"join"}`)) {
			if n := w.nodes[w.ends[0].after[k]]; n != nil {
				auths = append(auths, n)
			}
		}
		p["auth_events"] = refs(auths)
		give(map[string]any{"room_version": w.v.Name, "event": p})
	case "send_join":
		ev, err := event.Parse(w.v, body)
		if err != nil {
			w.t.Error(err)
			return
		}
		n := w.put(ev)
		st := w.all(n.before)
		give(map[string]any{"event": json.RawMessage(ev.JSON()), "state": texts(st), "auth_chain": texts(w.chain(st)), "origin": r.Host, "servers_in_room": w.homes})
	case "get_missing_events":
		var in struct {
			Limit    int          `json:"limit"`
			Earliest []id.EventID `json:"earliest_events"`
			Latest   []id.EventID `json:"latest_events"`
		}
		json.Unmarshal(body, &in)
		found := w.walk(in.Latest, in.Earliest, in.Limit, false)
		if w.lazy > 0 { // some are lost
			found = slices.DeleteFunc(found, func(*node) bool { return w.r.IntN(w.lazy) == 0 })
		}
		slices.SortStableFunc(found, func(a, b *node) int { return int(a.Depth() - b.Depth()) })
		give(map[string]any{"events": texts(found)})
	case "backfill":
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		var from []id.EventID
		for _, v := range r.URL.Query()["v"] {
			from = append(from, id.EventID(v))
		}
		give(map[string]any{"origin": r.Host, "origin_server_ts": 1, "pdus": texts(w.walk(from, nil, limit, true))})
	case "state", "state_ids":
		n := w.byID[id.EventID(r.URL.Query().Get("event_id"))]
		if n == nil {
			http.Error(rw, `{"errcode":"M_NOT_FOUND"}`, http.StatusNotFound)
			return
		}
		st := w.all(n.before)
		if path[1] == "state" {
			give(map[string]any{"pdus": texts(st), "auth_chain": texts(w.chain(st))})
			return
		}
		give(map[string]any{"pdu_ids": ids(st), "auth_chain_ids": ids(w.chain(st))})
	case "event":
		n := w.byID[id.EventID(path[2])]
		if n == nil {
			http.Error(rw, `{"errcode":"M_NOT_FOUND"}`, http.StatusNotFound)
			return
		}
		give(map[string]any{"origin": r.Host, "origin_server_ts": 1, "pdus": texts([]*node{n})})
	case "event_auth":
		n := w.byID[id.EventID(path[3])]
		give(map[string]any{"auth_chain": texts(w.chain([]*node{n}))})
	default:
		http.Error(rw, `{"errcode":"M_UNRECOGNIZED"}`, http.StatusNotFound)
	}
}

func (d *dag) all(s stateMap) []*node {
	var out []*node
	for _, n := range s {
		out = append(out, d.nodes[n])
	}
	return out
}

// chain is the auth chain of events, in any order.
func (d *dag) chain(of []*node) []*node {
	seen := map[int64]bool{}
	var out []*node
	for walk := of; len(walk) > 0; {
		var next []*node
		for _, n := range walk {
			for _, a := range n.auth {
				if !seen[a] {
					seen[a] = true
					next, out = append(next, d.nodes[a]), append(out, d.nodes[a])
				}
			}
		}
		walk = next
	}
	return out
}

// walk goes back from events, as servers do.
func (d *dag) walk(from, stop []id.EventID, limit int, withFrom bool) []*node {
	var out []*node
	seen := map[id.EventID]bool{}
	for level, first := from, true; len(level) > 0 && len(out) < limit; first = false {
		var next []id.EventID
		for _, v := range level {
			n := d.byID[v]
			if n == nil || seen[v] {
				continue
			}
			seen[v] = true
			if (withFrom || !first) && len(out) < limit {
				out = append(out, n)
			}
			for _, p := range n.PrevEvents() {
				if !slices.Contains(stop, p) {
					next = append(next, p)
				}
			}
		}
		level = next
	}
	return out
}

// keyStore has the keys of all servers.
type keyStore map[string]peer.SigningKey

func (k keyStore) LoadKeys(_ context.Context, server string) ([]peer.ServerKey, error) {
	key, ok := k[server]
	if !ok {
		return nil, nil
	}
	return []peer.ServerKey{{Server: server, ID: key.ID, Public: key.Public(), ValidUntil: time.Now().Add(24 * time.Hour)}}, nil
}

func (k keyStore) SaveKeys(context.Context, []peer.ServerKey, []peer.ServerKey) error { return nil }

// newWorld founds a room on three servers, and has an engine join it.
func newWorld(t *testing.T, version string, seed uint64, o sql.Options) *world {
	w := &world{asked: map[string]int{}}
	pool := x509.NewCertPool()
	var homes []string
	keys := keyStore{}
	for range 3 {
		s := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
		s.Config.ErrorLog = stdlog.New(io.Discard, "", 0)
		s.StartTLS()
		t.Cleanup(s.Close)
		pool.AddCert(s.Certificate())
		name := s.Listener.Addr().String()
		homes = append(homes, name)
		keys[name] = peer.NewSigningKey()
	}
	w.dag = newDAG(t, version, seed, homes, keys)
	own, err := peer.LoadKeys(t.TempDir()+"/signing.key", "a.example")
	if err != nil {
		t.Fatal(err)
	}
	keys["a.example"] = own.Key()
	client, err := peer.New(peer.Options{ServerName: "a.example", Key: own.Key(), RootCAs: pool, AllowPrivate: true, RetryMin: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	db, err := storage.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	log := zap.NewNop()
	if os.Getenv("ROOMSERVER_LOG") != "" {
		log = zaptest.NewLogger(t)
	}
	w.engine = roomserver.New(roomserver.Options{DB: db, Reader: roomserver.NewReader(8 << 20), ServerName: "a.example", KeyID: own.Key().ID,
		Key: own.Key().Private, Peer: client, Keys: peer.NewKeyRing(client, own, keys, nil), Log: log})
	ownShards(t, w.engine)
	if err := w.engine.Join(t.Context(), roomserver.Join{User: alice, Room: w.room, Via: homes[:1]}); err != nil {
		t.Fatal(err)
	}
	return w
}

// tell sends events to the engine in transactions of some size, as from one of the servers.
func (w *world) tell(r *rand.Rand, origin string, events []*node, most int) {
	for len(events) > 0 {
		n := min(1+r.IntN(most), len(events))
		var pdus []json.RawMessage
		for _, ev := range events[:n] {
			pdus = append(pdus, ev.JSON())
		}
		w.engine.Receive(context.Background(), origin, pdus)
		events = events[n:]
	}
}

// Ways in which events come to a server. All of them end in the same room.
var deliveries = []struct {
	name string
	tell func(w *world, r *rand.Rand, events []*node)
}{
	{"in order", func(w *world, r *rand.Rand, events []*node) { w.tell(r, w.homes[0], events, 1) }},
	{"in reverse", func(w *world, r *rand.Rand, events []*node) {
		slices.Reverse(events)
		w.tell(r, w.homes[0], events, 1)
	}},
	{"mixed, some twice", func(w *world, r *rand.Rand, events []*node) {
		for range len(events) / 3 {
			events = append(events, events[r.IntN(len(events))])
		}
		r.Shuffle(len(events), func(i, j int) { events[i], events[j] = events[j], events[i] })
		w.tell(r, w.homes[1], events, 8)
	}},
	{"from two servers at once", func(w *world, r *rand.Rand, events []*node) {
		var all sync.WaitGroup
		for i, origin := range w.homes[:2] {
			mixed := slices.Clone(events)
			r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
			own := rand.New(rand.NewPCG(r.Uint64(), uint64(i)))
			all.Go(func() { w.tell(own, origin, mixed, 8) })
		}
		all.Wait()
	}},
	{"from servers that answer badly, then in order", func(w *world, r *rand.Rand, events []*node) {
		mixed := slices.Clone(events)
		r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		w.lazy = 3
		w.tell(r, w.homes[2], mixed, 5)
		w.mu.Lock()
		w.lazy = 0
		w.mu.Unlock()
		w.tell(r, w.homes[0], events, 5)
	}},
}

// orderSeeds is how many rooms of each version are told in each way.
func orderSeeds(t *testing.T) (first, n uint64) {
	n = 1
	if v, err := strconv.ParseUint(os.Getenv("ORDER_SEEDS"), 10, 64); err == nil {
		n = v
	}
	first, _ = strconv.ParseUint(os.Getenv("ORDER_FIRST"), 10, 64)
	return first, n
}

// Whatever the order in which a server is told of events, and whatever it has to ask for, it comes to the state that
// the definitions give: before each event, and at the end.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu, rooms/v1#state-resolution, rooms/v2#state-resolution, rooms/v12#state-resolution
func TestOrderOfDeliveryDoesNotMatter(t *testing.T) {
	first, n := orderSeeds(t)
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		for i, v := range event.Versions() {
			for seed := first; seed < first+n; seed++ {
				for j, way := range deliveries {
					if n == 1 && (i+j)%len(deliveries) > 1 && j != 3 { // a part of all in a short run
						continue
					}
					t.Run(fmt.Sprintf("version %s, %s, seed %d", v.Name, way.name, seed), func(t *testing.T) {
						w := newWorld(t, v.Name, seed, fresh())
						since := len(w.order)
						w.play(30)
						last := w.tie()
						r := rand.New(rand.NewPCG(seed, 9))
						events := slices.Clone(w.order[since : len(w.order)-1])
						way.tell(w, r, events)
						w.tell(r, w.homes[0], w.order[since:], 5) // what was refused for want of an answer comes again
						w.check(last)
					})
				}
			}
		}
	})
}

// check holds what the engine has against the model.
func (w *world) check(last *node) {
	t := w.t
	t.Helper()
	var byState map[auth.Key]id.EventID
	faults := 0
	fault := func(format string, args ...any) {
		if faults++; faults < 6 {
			t.Errorf(format, args...)
		}
	}
	err := w.engine.DB.Read(context.Background(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(w.room))
		if err != nil {
			return err
		}
		states := map[int64]map[auth.Key]id.EventID{}
		at := func(root int64) (map[auth.Key]id.EventID, error) {
			if s, ok := states[root]; ok {
				return s, nil
			}
			events, err := w.engine.Reader.State(tx, row, state.Root(root))
			s := map[auth.Key]id.EventID{}
			for _, ev := range events {
				key, _ := ev.StateKey()
				s[auth.Key{Type: ev.Type(), StateKey: key}] = ev.ID()
			}
			states[root] = s
			return s, err
		}
		ends, err := tx.Extremities(row.NID)
		if err != nil {
			return err
		}
		stored, err := tx.EventsByID([]string{string(last.ID())})
		if err != nil {
			return err
		}
		if len(stored) != 1 || len(ends) != 1 || ends[0] != stored[0].NID {
			fault("%d open ends, the last event is stored %d times", len(ends), len(stored))
		}
		if byState, err = at(row.Root); err != nil {
			return err
		}
		if want := w.names(last.after); !maps.Equal(byState, want) {
			fault("the current state is\n%v\nwant\n%v", w.tellState(byState), w.tellState(want))
		}
		softly := 0
		for _, n := range w.order[2*len(w.homes)+4:] {
			found, err := tx.EventsByID([]string{string(n.ID())})
			if err != nil {
				return err
			}
			if len(found) == 0 {
				fault("%s %s is not there", n.Type(), n.ID())
				continue
			}
			got := found[0]
			if (got.Status == storage.Rejected) != n.rejected {
				fault("%s of %s (%s) has status %d, rejected should be %v", n.Type(), n.Sender(), n.Content(), got.Status, n.rejected)
				continue
			}
			if got.Status == storage.SoftFailed {
				softly++
			}
			if got.Status == storage.Outlier {
				fault("%s %s has no place", n.Type(), n.ID())
				continue
			}
			if got.Status == storage.Rejected && got.RootBefore == 0 {
				continue // by its own auth events
			}
			before, err := at(got.RootBefore)
			if err != nil {
				return err
			}
			if want := w.names(n.before); !maps.Equal(before, want) {
				fault("before the %s of %s, status %d, the state is\n%v\nwant\n%v", n.Type(), n.Sender(), got.Status, w.tellState(before), w.tellState(want))
			}
		}
		t.Logf("%d events, %d rejected, %d failed softly; asked for %v", len(w.order), w.refused, softly, w.asked)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	table, current := members(t.(*testing.T), w.engine, w.room)
	if fmt.Sprint(table) != fmt.Sprint(current) {
		t.Errorf("the table of members says %v, the state says %v", table, current)
	}
}

func (d *dag) names(s stateMap) map[auth.Key]id.EventID {
	out := map[auth.Key]id.EventID{}
	for k, n := range s {
		out[k] = d.nodes[n].ID()
	}
	return out
}

func (d *dag) tellState(s map[auth.Key]id.EventID) string {
	var lines []string
	for k, v := range s {
		lines = append(lines, fmt.Sprintf("  %s %q: %d %s", k.Type, k.StateKey, d.byID[v].nid, d.byID[v].Content()))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}
