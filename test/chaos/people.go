package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"chancery/test/homeserver"

	"github.com/tidwall/gjson"
)

type J = homeserver.J

// person is a user with a client. Steady ones have all power and never leave, and nobody can put them out: what they say
// must reach everybody. The others come, go, and are put out.
type person struct {
	*homeserver.User
	steady bool
	r      *rand.Rand
	w      *world
	watch  *watcher
	// lost are messages without an answer: they are sent again with the same transaction ID, as a client does.
	lost []lostMessage
	said int
}

type lostMessage struct {
	room *room
	txn  string
}

// room is a room of the test.
type room struct {
	id, version string
	owner       *person
}

// acked is an event that a server said yes to.
type acked struct {
	id, kind, redacts string
	room              *room
	by                *person
}

// ledger is what was promised.
type ledger struct {
	mu     sync.Mutex // guards the rest
	acks   []acked
	bad    []string
	doings map[string][2]int // by kind: tried, done
}

func (l *ledger) note(kind string, done bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.doings[kind]
	n[0]++
	if done {
		n[1]++
	}
	l.doings[kind] = n
}

func (l *ledger) fault(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bad = append(l.bad, fmt.Sprintf(format, args...))
}

// some gives an event that was acknowledged in a room.
func (l *ledger) some(r *rand.Rand, room *room) (acked, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var in []acked
	for _, a := range l.acks {
		if a.room == room {
			in = append(in, a)
		}
	}
	if len(in) == 0 {
		return acked{}, false
	}
	return in[r.IntN(len(in))], true
}

// requestTime is how long a client waits for an answer.
const requestTime = 15 * time.Second

// try sends a request; only an answer of 200 counts, and only what a server in trouble may answer is no fault.
func (p *person) try(ctx context.Context, kind, method, path string, body any) (homeserver.Answer, bool) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	a, err := p.Try(ctx, method, path, body)
	done := err == nil && a.Status == http.StatusOK
	p.w.ledger.note(kind, done)
	if err == nil && a.Status >= 500 && a.Status != http.StatusBadGateway && a.Status != http.StatusServiceUnavailable && a.Status != http.StatusGatewayTimeout {
		p.w.ledger.fault("%s %s: %s", kind, path, a)
	}
	return a, done
}

// event sends a request that makes an event.
func (p *person) event(ctx context.Context, room *room, kind, method, path string, body any) bool {
	a, done := p.try(ctx, kind, method, path, body)
	if id := a.Get("event_id").Str; done && id != "" {
		p.w.ledger.mu.Lock()
		defer p.w.ledger.mu.Unlock()
		p.w.ledger.acks = append(p.w.ledger.acks, acked{id: id, kind: kind, room: room, by: p})
	}
	return done
}

// say sends a message, again if it has been sent without an answer.
func (p *person) say(ctx context.Context, room *room, txn string) {
	a, done := p.try(ctx, "message", "PUT", homeserver.Room(room.id, "send", "m.room.message", txn), J{"msgtype": "m.text", "body": p.ID + " " + txn})
	if !done {
		if a.Status == 0 {
			p.lost = append(p.lost, lostMessage{room, txn})
		}
		return
	}
	p.w.ledger.mu.Lock()
	defer p.w.ledger.mu.Unlock()
	p.w.ledger.acks = append(p.w.ledger.acks, acked{id: a.Get("event_id").Str, kind: "message", room: room, by: p})
}

// repeat sends again what had no answer.
func (p *person) repeat(ctx context.Context) {
	lost := p.lost
	p.lost = nil
	for _, m := range lost {
		p.say(ctx, m.room, m.txn)
	}
}

// act does one thing at random.
func (p *person) act(ctx context.Context) {
	room := p.w.rooms[p.r.IntN(len(p.w.rooms))]
	if p.r.IntN(4) == 0 {
		p.repeat(ctx)
	}
	state := func(kind, key string, content any) {
		p.event(ctx, room, kind, "PUT", homeserver.Room(room.id, "state", kind, key), content)
	}
	wild := p.w.wild[p.r.IntN(len(p.w.wild))]
	on := func(what string) {
		p.try(ctx, what, "POST", homeserver.Room(room.id, what), J{"user_id": wild.ID})
	}
	switch n := p.r.IntN(24); {
	case n < 10:
		p.said++
		p.say(ctx, room, fmt.Sprint("m", p.said))
	case n == 10:
		state("m.room.name", "", J{"name": fmt.Sprint("name ", p.r.Int32())})
	case n == 11:
		state("m.room.topic", "", J{"topic": fmt.Sprint("topic ", p.r.Int32())})
	case n == 12:
		if target, ok := p.w.ledger.some(p.r, room); ok {
			a, done := p.try(ctx, "redact", "PUT", homeserver.Room(room.id, "redact", target.id, homeserver.Txn()), J{})
			if done {
				p.w.ledger.mu.Lock()
				p.w.ledger.acks = append(p.w.ledger.acks, acked{id: a.Get("event_id").Str, kind: "redact", redacts: target.id, room: room, by: p})
				p.w.ledger.mu.Unlock()
			}
		}
	case n == 13 && p.steady:
		state("m.room.power_levels", "", p.w.levels(room, p.r))
	case n == 14 && p.steady && !p.w.late: // who comes late may be refused else, where that is heard first
		state("m.room.join_rules", "", J{"join_rule": []string{"public", "public", "invite"}[p.r.IntN(3)]})
	case n == 15:
		if p.steady {
			on("kick")
		} else {
			p.try(ctx, "leave", "POST", homeserver.Room(room.id, "leave"), J{})
		}
	case n == 16:
		on("ban")
	case n == 17:
		on("unban")
	case n == 18:
		on("invite")
	case n == 19 || n == 20:
		if !p.steady {
			p.join(ctx, room)
		}
	case n == 21:
		state("org.example.note", fmt.Sprint(p.r.IntN(3)), J{"by": p.ID, "n": p.r.IntN(1000)})
	case n == 22:
		if a, ok := p.try(ctx, "member", "GET", homeserver.Room(room.id, "state", "m.room.member", p.ID), nil); ok && a.Get("membership").Str == "join" {
			state("m.room.member", p.ID, J{"membership": "join", "displayname": fmt.Sprint("Name ", p.r.IntN(100))})
		}
	case n == 23:
		p.try(ctx, "messages", "GET", homeserver.Room(room.id, "messages")+"?dir=b&limit=20", nil)
	}
}

func (p *person) join(ctx context.Context, room *room) bool {
	via := url.Values{}
	for _, s := range p.w.servers {
		if s != p.Server {
			via.Add("via", s.Name)
			via.Add("server_name", s.Name)
		}
	}
	_, done := p.try(ctx, "join", "POST", "/_matrix/client/v3/join/"+url.PathEscape(room.id)+"?"+via.Encode(), J{})
	return done
}

// watcher is a client that syncs all the time, and goes back where a sync left something out.
type watcher struct {
	p    *person
	stop func()

	mu    sync.Mutex // guards the rest
	token string
	rooms map[string]*seenRoom
}

// seenRoom is what a client was told of a room.
type seenRoom struct {
	times map[string]int // by event ID, in timelines
	gaps  []string       // where to go back from
	story []string       // each timeline, for whoever looks for a fault
}

func watch(p *person) *watcher {
	w := &watcher{p: p, rooms: map[string]*seenRoom{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if !w.once(ctx, 1000) {
				pause(ctx, 50*time.Millisecond)
			}
		}
	}()
	w.stop = sync.OnceFunc(func() { cancel(); <-done })
	return w
}

// once syncs once, as clients do: few events at a time. A server that is down is no fault.
func (w *watcher) once(ctx context.Context, timeout int) bool {
	q := url.Values{"timeout": {fmt.Sprint(timeout)}, "filter": {`{"room":{"timeline":{"limit":10}},"presence":{"types":[]}}`}}
	if w.token != "" {
		q.Set("since", w.token)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	a, err := w.p.Try(ctx, "GET", "/_matrix/client/v3/sync?"+q.Encode(), nil)
	if err != nil {
		return false
	}
	if a.Status != http.StatusOK {
		w.p.w.ledger.fault("sync of %s: %s", w.p.ID, a)
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, section := range []string{"join", "leave"} {
		a.Get("rooms." + section).ForEach(func(id, in gjson.Result) bool {
			w.take(id.Str, in.Get("timeline"))
			return true
		})
	}
	w.token = a.Get("next_batch").Str
	return true
}

func (w *watcher) take(roomID string, timeline gjson.Result) {
	room := w.rooms[roomID]
	if room == nil {
		room = &seenRoom{times: map[string]int{}}
		w.rooms[roomID] = room
	}
	limited := timeline.Get("limited").Bool()
	if limited {
		room.gaps = append(room.gaps, timeline.Get("prev_batch").Str)
	}
	in := map[string]bool{}
	room.story = append(room.story, fmt.Sprintf("since %s limited %v prev %s %s", w.token, limited, timeline.Get("prev_batch").Str, timeline.Get("events.#.event_id").Raw))
	for _, ev := range timeline.Get("events").Array() {
		id := ev.Get("event_id").Str
		if in[id] {
			w.p.w.ledger.fault("%s was told %s twice in one sync", w.p.ID, id)
		}
		in[id] = true
		// A timeline with something left out begins anew: it may repeat, after the user was away.
		if room.times[id]++; room.times[id] > 1 && !limited {
			w.p.w.ledger.fault("%s was told %s twice", w.p.ID, ev.Raw)
		}
	}
}

// pages walks back through a room from a token until stop or the end, and gives the events' IDs.
func (p *person) pages(roomID, from string, stop func(id string) bool) []string {
	var ids []string
	for {
		path := homeserver.Room(roomID, "messages") + "?dir=b&limit=50"
		if from != "" {
			path += "&from=" + url.QueryEscape(from)
		}
		page := p.OK("GET", path, nil)
		for _, ev := range page.Get("chunk").Array() {
			id := ev.Get("event_id").Str
			if stop != nil && stop(id) {
				return ids
			}
			ids = append(ids, id)
		}
		if from = page.Get("end").Str; from == "" {
			return ids
		}
	}
}

// told is all that a client has of a room after it has filled what syncs left out.
func (w *watcher) told(roomID string) map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	room := w.rooms[roomID]
	if room == nil {
		return nil
	}
	all := map[string]bool{}
	for id := range room.times {
		all[id] = true
	}
	for _, gap := range slices.Backward(room.gaps) {
		if gap == "" {
			continue
		}
		for _, id := range w.p.pages(roomID, gap, func(id string) bool { return room.times[id] > 0 }) {
			all[id] = true
		}
	}
	return all
}
