// Package chaos lets several of our servers live through bad weather: partitions, delays, lost and repeated requests,
// SIGKILL. Afterwards they must agree on each room, and everybody must be able to read what was said, once.
package chaos

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/homeserver"
)

// quiet is where servers of the test log to.
var quiet = log.New(io.Discard, "", 0)

// plan is what a seed decides.
type plan struct {
	seed     uint64
	servers  int
	versions []string // of the rooms
	postgres []bool   // which servers keep their data in PostgreSQL
	history  []string // of each room
	flood    int      // messages in a burst
	banned   int      // strangers who are banned from each room: members enough that others join it in part
	late     bool     // the people of the last server come while the weather is bad, and states are slow to get
	acts     int      // of each person
	calm     time.Duration
}

func planOf(seed uint64) plan {
	r := rand.New(rand.NewPCG(seed, 0))
	p := plan{seed: seed, servers: 3, acts: 40, calm: 60 * time.Millisecond}
	if r.IntN(5) == 0 {
		p.servers = 4
	}
	for range p.servers {
		p.postgres = append(p.postgres, r.IntN(2) == 0)
	}
	versions := []string{"1", "2", "6", "10", "11", "12"}
	r.Shuffle(len(versions), func(i, j int) { versions[i], versions[j] = versions[j], versions[i] })
	p.versions = versions[:2]
	for range p.versions {
		p.history = append(p.history, []string{"shared", "shared", "joined", "invited", "world_readable"}[r.IntN(5)])
	}
	p.flood = []int{0, 30, 120}[r.IntN(3)]
	if seed%4 != 2 {
		p.banned = 60
	}
	if seed%5 == 0 {
		p.late, p.banned = true, 60
		for i := range p.history { // who comes late reads what was before
			p.history[i] = []string{"shared", "world_readable"}[i%2]
		}
	}
	return p
}

func (p plan) String() string {
	return fmt.Sprintf("seed %d: %d servers (PostgreSQL %v), rooms of versions %v with history %v, floods of %d, %d banned, the last server late: %v", p.seed, p.servers, p.postgres, p.versions, p.history, p.flood, p.banned, p.late)
}

// world is one run.
type world struct {
	plan
	t       *testing.T
	r       *rand.Rand
	net     *network
	servers []*homeserver.Server
	gates   []*gate
	places  []string // of the databases: URLs, empty for SQLite
	steady  []*person
	wild    []*person
	rooms   []*room
	ledger  ledger
	up      []sync.RWMutex // held for reading by who needs the server, for writing while it is killed
}

// begin starts the servers and brings everybody into the rooms.
func begin(t *testing.T, p plan) *world {
	w := &world{plan: p, t: t, r: rand.New(rand.NewPCG(p.seed, 2)), net: newNetwork(p.seed), ledger: ledger{doings: map[string][2]int{}}}
	ca := homeserver.NewCA(t)
	for i := range p.servers {
		g := w.net.gate(t, ca)
		place := ""
		if p.postgres[i] {
			place = sqltest.PostgreSQL(t).URL
		}
		s := homeserver.Start(t, homeserver.Options{CA: ca, Name: g.name, Database: place, Process: true,
			Settings: map[string]string{"CHANCERY_LOG_LEVEL": "debug"}})
		g.leadTo(s.Listens)
		w.servers, w.gates, w.places = append(w.servers, s), append(w.gates, g), append(w.places, place)
	}
	w.up = make([]sync.RWMutex, p.servers)
	for i, s := range w.servers {
		for _, steady := range []bool{true, false} {
			name := map[bool]string{true: "steady", false: "wild"}[steady]
			u := &person{User: s.Register(t, fmt.Sprint(name, i)), steady: steady, r: rand.New(rand.NewPCG(p.seed, uint64(10+2*i))), w: w}
			if steady {
				w.steady = append(w.steady, u)
			} else {
				u.r = rand.New(rand.NewPCG(p.seed, uint64(11+2*i)))
				w.wild = append(w.wild, u)
			}
			u.watch = watch(u)
			t.Cleanup(func() { u.watch.stop() })
		}
	}
	for i, version := range p.versions {
		owner := w.steady[i%len(w.steady)]
		r := &room{version: version}
		r.id = owner.CreateRoom(J{"preset": "public_chat", "room_version": version,
			"initial_state": []J{{"type": "m.room.history_visibility", "state_key": "", "content": J{"history_visibility": p.history[i]}}}})
		w.rooms = append(w.rooms, r)
		for n := range p.banned {
			owner.OK("PUT", homeserver.Room(r.id, "state", "m.room.member", fmt.Sprintf("@stranger%d:elsewhere.example", n)), J{"membership": "ban"})
		}
		for _, u := range slices.Concat(w.steady, w.wild) {
			if w.isLate(u) {
				continue
			}
			if u.Server == owner.Server {
				if u != owner {
					u.Join(r.id)
				}
			} else {
				u.Join(r.id, owner.Server.Name)
			}
		}
		r.creator(owner, w)
	}
	return w
}

// isLate says that somebody comes only when the weather is bad.
func (w *world) isLate(p *person) bool { return w.late && p.Server == w.servers[len(w.servers)-1] }

// arrive brings somebody into all rooms, however often it takes, until ctx ends.
func (p *person) arrive(ctx context.Context) {
	for _, r := range p.w.rooms {
		for ctx.Err() == nil && !p.join(ctx, r) {
			pause(ctx, 100*time.Millisecond)
		}
	}
}

// creator gives the steady users their power.
func (r *room) creator(owner *person, w *world) {
	levels := w.levels(r, rand.New(rand.NewPCG(w.seed, 3)))
	if r.version == "12" {
		delete(levels["users"].(J), owner.ID)
	}
	r.owner = owner
	owner.OK("PUT", homeserver.Room(r.id, "state", "m.room.power_levels", ""), levels)
}

// levels are power levels in which the steady users have all power and some of the others a little.
func (w *world) levels(r *room, rnd *rand.Rand) J {
	users := J{}
	for _, u := range w.steady {
		if r.version != "12" || u != r.owner {
			users[u.ID] = 100
		}
	}
	for _, u := range w.wild {
		if n := rnd.IntN(3); n > 0 {
			users[u.ID] = []int{0, 25, 50}[n]
		}
	}
	return J{"users": users, "invite": []int{0, 50}[rnd.IntN(2)], "events": J{"m.room.name": []int{0, 50}[rnd.IntN(2)], "m.room.power_levels": 100},
		"state_default": 50, "ban": 50, "kick": 50, "redact": 50, "events_default": 0}
}

// storm lets everybody act while the weather is bad.
func (w *world) storm() {
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	var people, weather, arrivals sync.WaitGroup
	if w.late {
		w.net.slowStates(3 * time.Second)
	}
	for _, p := range slices.Concat(w.steady, w.wild) {
		if w.isLate(p) {
			arrivals.Go(func() { p.arrive(ctx) })
		}
		people.Go(func() {
			for range w.acts {
				p.act(ctx)
				pause(ctx, time.Duration(p.r.Int64N(int64(2*w.calm))))
			}
		})
	}
	weather.Go(func() {
		for ctx.Err() == nil {
			w.blow(ctx)
			pause(ctx, time.Duration(200+w.r.IntN(600))*time.Millisecond)
		}
	})
	people.Wait()
	cancel()
	weather.Wait()
	arrivals.Wait()
}

// blow is one change of the weather.
func (w *world) blow(ctx context.Context) {
	i, j := w.r.IntN(len(w.servers)), w.r.IntN(len(w.servers))
	a, b := w.servers[i].Name, w.servers[j].Name
	switch w.r.IntN(10) {
	case 0, 1: // one server is alone
		silent := w.r.IntN(2) == 0
		for _, s := range w.servers {
			if s.Name != a {
				w.net.set(a, s.Name, way{cut: true, silent: silent})
				w.net.set(s.Name, a, way{cut: true, silent: silent})
			}
		}
		if w.flood > 0 && w.r.IntN(2) == 0 {
			w.steady[i].extra(ctx, w.flood)
		}
	case 2: // two do not hear each other
		w.net.set(a, b, way{cut: true})
		w.net.set(b, a, way{cut: true})
	case 3: // one way only
		w.net.set(a, b, way{cut: true, silent: true})
	case 4:
		w.net.set(a, b, way{delay: time.Duration(w.r.IntN(400)) * time.Millisecond})
	case 5:
		w.net.set(a, b, way{lose: 3, deaf: 4, replay: 3})
	case 6:
		w.net.set(a, b, way{deaf: 2, delay: 50 * time.Millisecond})
	case 7, 8:
		w.net.heal()
	case 9:
		w.kill(ctx, i, time.Duration(w.r.IntN(500))*time.Millisecond)
	}
}

// extra is a flood beside what the person does anyway.
func (p *person) extra(ctx context.Context, n int) {
	room := p.w.rooms[int(p.w.seed)%len(p.w.rooms)]
	for i := range n {
		if ctx.Err() != nil {
			return
		}
		id := fmt.Sprintf("flood %d %d", p.w.r.Int32(), i)
		a, done := p.try(ctx, "flood", "PUT", homeserver.Room(room.id, "send", "m.room.message", url.PathEscape(id)), J{"msgtype": "m.text", "body": id})
		if done {
			p.w.ledger.mu.Lock()
			p.w.ledger.acks = append(p.w.ledger.acks, acked{id: a.Get("event_id").Str, kind: "message", room: room, by: p})
			p.w.ledger.mu.Unlock()
		}
	}
}

// kill ends a server at once and starts it again after a time.
func (w *world) kill(ctx context.Context, i int, down time.Duration) {
	w.servers[i].Kill()
	pause(ctx, down)
	w.servers[i].Start()
	w.ledger.note("kill", true)
}

// view is what a server says of a room.
type view struct {
	state   map[string]string // "type key" to event ID
	joined  []string          // members
	inRoom  map[string]bool   // servers
	failure string
}

func (w *world) view(i int, r *room) view {
	v := view{state: map[string]string{}, inRoom: map[string]bool{}}
	u := w.steady[i]
	a, err := u.Try(w.t.Context(), "GET", homeserver.Room(r.id, "state"), nil)
	if err != nil || a.Status != 200 {
		v.failure = fmt.Sprint(a, err)
		return v
	}
	for _, ev := range a.Get("@this").Array() {
		key := ev.Get("type").Str + " " + ev.Get("state_key").Str
		v.state[key] = ev.Get("event_id").Str
		if ev.Get("type").Str == "m.room.member" && ev.Get("content.membership").Str == "join" {
			v.joined = append(v.joined, ev.Get("state_key").Str)
			v.inRoom[server(ev.Get("state_key").Str)] = true
		}
	}
	slices.Sort(v.joined)
	return v
}

func server(user string) string {
	_, name, _ := strings.Cut(user, ":")
	return name
}

// differences tells how the servers' views of a room differ.
func (w *world) differences(r *room) (out []string) {
	views := make([]view, len(w.servers))
	for i := range w.servers {
		views[i] = w.view(i, r)
		if views[i].failure != "" {
			return []string{fmt.Sprintf("server %d does not say: %s", i, views[i].failure)}
		}
	}
	for i := 1; i < len(views); i++ {
		keys := maps.Clone(views[0].state)
		maps.Copy(keys, views[i].state)
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			if a, b := views[0].state[k], views[i].state[k]; a != b {
				out = append(out, fmt.Sprintf("%s: server 0 says %q, server %d %q", k, a, i, b))
			}
		}
	}
	return out
}

// settle heals everything, lets somebody of each server speak, and waits until all say the same.
func (w *world) settle() {
	w.net.heal()
	w.net.slowStates(0)
	ctx, cancel := context.WithTimeout(w.t.Context(), settleTime)
	defer cancel()
	for _, p := range w.steady {
		if w.isLate(p) { // by now anybody may be kept out
			for _, r := range w.rooms {
				r.owner.try(ctx, "unban", "POST", homeserver.Room(r.id, "unban"), J{"user_id": p.ID})
				r.owner.try(ctx, "invite", "POST", homeserver.Room(r.id, "invite"), J{"user_id": p.ID})
			}
			if p.arrive(ctx); ctx.Err() != nil {
				w.t.Errorf("%s does not get into the rooms", p.ID)
			}
		}
	}
	for _, p := range slices.Concat(w.steady, w.wild) {
		p.repeat(w.t.Context())
	}
	for _, r := range w.rooms {
		for _, p := range w.steady {
			p.say(w.t.Context(), r, "I am here")
		}
	}
	deadline := time.Now().Add(settleTime)
	for _, r := range w.rooms {
		for {
			out := w.differences(r)
			if len(out) == 0 {
				break
			}
			if time.Now().After(deadline) {
				w.t.Errorf("the servers do not agree on the room %s of version %s:\n%s", r.id, r.version, strings.Join(out, "\n"))
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// settleTime is what servers have to agree after the weather has cleared.
const settleTime = 2 * time.Minute

// row is an event as a server keeps it.
type row struct {
	status   storage.EventStatus
	placed   bool
	redacted bool
	ev       storage.Event
}

// kept is what a server keeps of a room.
type kept struct {
	events map[string]row
	ends   []string
	gaps   []storage.Gap
	nid    int64
}

// keep writes down what a server has of a room, where CHANCERY_CHAOS_KEEP says, for whoever looks for a fault.
func (w *world) keep(i int, r *room, k kept) {
	dir := os.Getenv("CHANCERY_CHAOS_KEEP")
	if dir == "" {
		return
	}
	base := filepath.Join(dir, fmt.Sprintf("%d-%d-v%s", w.seed, i, r.version))
	rows := slices.SortedFunc(maps.Values(k.events), func(a, b row) int {
		return cmp.Or(cmp.Compare(ordOf(a), ordOf(b)), cmp.Compare(a.ev.NID, b.ev.NID))
	})
	var text strings.Builder
	for _, v := range rows {
		fmt.Fprintf(&text, "%d nid %d status %d roots %d %d redacted %v %s %s\n", ordOf(v), v.ev.NID, v.status, v.ev.RootBefore, v.ev.RootAfter, v.redacted, v.ev.ID, v.ev.JSON)
	}
	if err := errors.Join(os.WriteFile(base+".events", []byte(text.String()), 0o600), os.WriteFile(base+".log", []byte(w.servers[i].Log()), 0o600)); err != nil {
		w.t.Error(err)
	}
}

// keepStory writes down what somebody's client was told of a room by /sync, and what they read back, likewise.
func (w *world) keepStory(p *person, r *room, read []string) {
	dir := os.Getenv("CHANCERY_CHAOS_KEEP")
	seen := p.watch.rooms[r.id]
	if dir == "" || seen == nil {
		return
	}
	name, _, _ := strings.Cut(p.ID[1:], ":")
	text := strings.Join(seen.story, "\n") + "\nread " + strings.Join(read, " ") + "\n"
	if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%d-%s-v%s.told", w.seed, name, r.version)), []byte(text), 0o600); err != nil {
		w.t.Error(err)
	}
}

func ordOf(r row) int64 {
	if r.ev.Ord == nil {
		return 0
	}
	return *r.ev.Ord
}

// look reads the databases; the servers are down.
func (w *world) look() [][]kept {
	all := make([][]kept, len(w.servers))
	for i, s := range w.servers {
		o := sql.Options{URL: w.places[i], MaxConnections: 2}
		if o.URL == "" {
			o.Path = s.Dir + "/chancery.db"
		}
		db, err := storage.Open(w.t.Context(), o)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, r := range w.rooms {
			k := kept{events: map[string]row{}}
			var wanted []string
			for _, a := range w.ledger.acks {
				if a.room == r {
					wanted = append(wanted, a.id)
				}
			}
			err := db.Read(w.t.Context(), func(tx storage.Tx) error {
				found, _, err := tx.Room(r.id)
				if err != nil {
					return err
				}
				k.nid = found.NID
				events, err := tx.EventsAbove(found.NID, -1<<62, 1<<62, 100_000)
				if err != nil {
					return err
				}
				more, err := tx.EventsByID(wanted)
				if err != nil {
					return err
				}
				byNID := map[int64]string{}
				for _, ev := range append(events, more...) {
					k.events[ev.ID] = row{ev.Status, ev.Ord != nil, ev.RedactedBy != "", ev}
					byNID[ev.NID] = ev.ID
				}
				ends, err := tx.Extremities(found.NID)
				if err != nil {
					return err
				}
				for _, n := range ends {
					k.ends = append(k.ends, byNID[n])
				}
				slices.Sort(k.ends)
				k.gaps, err = tx.Gaps(found.NID, 1<<62, 1000)
				return err
			})
			if err != nil {
				w.t.Fatal(err)
			}
			w.keep(i, r, k)
			all[i] = append(all[i], k)
		}
		db.Close()
	}
	return all
}
