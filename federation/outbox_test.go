package federation_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"chancery/roomserver"
	"chancery/storage"
)

// posted is what was sent to a node that does not answer: the bodies of each transaction, without the time.
type posted struct {
	mu   sync.Mutex // guards the rest
	deaf bool
	seen map[string][]string
	all  int
}

// listen has a node note transactions, and answer none of them, while it is deaf.
func (p *posted) listen(b *node) {
	p.seen = map[string][]string{}
	b.before = func(w http.ResponseWriter, r *http.Request) bool {
		txnID, ok := strings.CutPrefix(r.URL.Path, "/_matrix/federation/v1/send/")
		p.mu.Lock()
		defer p.mu.Unlock()
		if !ok || !p.deaf {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		p.seen[txnID] = append(p.seen[txnID], regexp.MustCompile(`"origin_server_ts":\d+,"pdus"`).ReplaceAllString(string(body), `"pdus"`))
		p.all++
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
}

func (p *posted) be(deaf bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deaf = deaf
}

func (p *posted) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all
}

// A transaction that was not answered goes out again under its own ID and as it was, after a restart too and
// though more waits by then: a receiver that had taken it knows it.
//
// spec: s2s#transactions
func TestTheSameTransactionKeepsItsID(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		p := &posted{}
		p.listen(b)
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		p.be(true)
		a.queue(b, "one")
		a.say(alice, room, "once")
		eventually(t, "it is sent, and how far it goes is stored", func() bool {
			rows := a.owed()
			return p.count() > 0 && len(rows) == 1 && (rows[0].SentPos > 0 || rows[0].SentEDU > 0)
		})
		a.say(alice, room, "twice")
		a.queue(b, "two", "three")
		for range 2 {
			a.halt()
			a.again()
			before := p.count()
			_, _ = b.peer.QueryProfile(t.Context(), a.name, alice, "") // whoever speaks is worth trying at once
			eventually(t, "it is sent again", func() bool { return p.count() > before })
		}
		p.be(false)
		if len(p.seen) != 1 {
			t.Errorf("it was sent as %.3000q", p.seen)
		}
		for _, bodies := range p.seen {
			// The very first attempt may also tell what need not arrive.
			if same := slices.Compact(bodies[1:]); len(same) > 1 {
				t.Errorf("under one ID went %.600q", same)
			}
		}
		b.hears(room, []string{"once", "twice"})
		a.owesNothing()
	})
}

// A server has the join that it handed us: were it sent there too, it could come before the answer to the handshake,
// into a room that is not yet made. Another server in the room gets it, and the joining one all that comes after it,
// after an outage too.
//
// spec: s2s#joining-rooms
func TestAJoinIsNotSentBackToItsServer(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		var mu sync.Mutex
		var came []string
		b.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasPrefix(r.URL.Path, "/_matrix/federation/v1/send/") {
				body, _ := io.ReadAll(r.Body)
				r.Body = io.NopCloser(bytes.NewReader(body))
				mu.Lock()
				defer mu.Unlock()
				for _, pdu := range gjson.GetBytes(body, "pdus").Array() {
					if pdu.Get("type").Str == "m.room.member" {
						came = append(came, pdu.Get("state_key").Str)
					}
				}
			}
			return false
		}
		alice, bob, dora := a.user("alice"), b.user("bob"), b.user("dora")
		room := a.room(alice, nil)
		c := newNode(t, a.authority, sqliteOf(t))
		c.join(c.user("carol"), room, a)
		b.join(bob, room, a)
		eventually(t, "carol's server knows of bob", func() bool { return c.membership(room, bob) == "join" })
		want := []string{"hello"}
		a.say(alice, room, want[0])
		b.hears(room, want)
		if err := b.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: bob, Target: bob, Membership: "leave"}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "alice's server knows that bob went", func() bool { return a.membership(room, bob) == "leave" })
		other := a.room(alice, nil)
		b.join(bob, other, a)
		b.deaf.Store(true)
		a.say(alice, other, "owed before the join")
		b.join(dora, room, a)
		want = append(want, "and again")
		a.say(alice, room, want[1])
		a.fallsBehind()
		a.halt()
		a.again()
		b.deaf.Store(false)
		eventually(t, "dora's server hears what came after her join", func() bool { return slices.Contains(b.said(room), want[1]) })
		mu.Lock()
		defer mu.Unlock()
		if len(came) > 0 {
			t.Errorf("the joining server was sent the joins of %q", came)
		}
	})
}

// queue leaves EDUs for another server in the outbox.
func (n *node) queue(to *node, edus ...any) {
	n.t.Helper()
	if err := n.db.Write(n.t.Context(), nil, func(tx storage.Tx) error {
		for _, edu := range edus {
			tx.QueueEDU(to.name, storage.EDU{Type: "m.x", Content: content(edu)})
		}
		return nil
	}); err != nil {
		n.t.Fatal(err)
	}
}

// owesNothing waits until the others have everything.
func (n *node) owesNothing() {
	n.t.Helper()
	eventually(n.t, "nothing is owed any more", func() bool { return len(n.owed()) == 0 && !n.keeps() })
}

// choke has a server answer with a status to whatever names poison.
func (n *node) choke(status int) {
	n.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != "PUT" {
			return false
		}
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		if !bytes.Contains(body, []byte("poison")) {
			return false
		}
		w.WriteHeader(status)
		return true
	}
}

// owed reads what is stored of servers that are owed something or do not answer.
func (n *node) owed() (rows []storage.Destination) {
	n.t.Helper()
	if err := n.db.Read(context.Background(), func(tx storage.Tx) (err error) { rows, err = tx.Destinations(); return err }); err != nil {
		n.t.Fatal(err)
	}
	return rows
}

// fallsBehind waits until it is stored where the one other server stopped hearing us.
func (n *node) fallsBehind() {
	n.t.Helper()
	eventually(n.t, "what is owed is stored", func() bool { rows := n.owed(); return len(rows) == 1 && rows[0].Behind })
}

func (n *node) backsOff(from *node) {
	n.t.Helper()
	eventually(n.t, "the peer is backed off", func() bool { return n.peer.Destination(from.name).Failures > 0 })
}

// keeps says whether EDUs wait for anybody.
func (n *node) keeps() bool {
	n.t.Helper()
	var left []string
	if err := n.db.Read(context.Background(), func(tx storage.Tx) (err error) { left, err = tx.DestinationsWithEDUs(); return err }); err != nil {
		n.t.Fatal(err)
	}
	return len(left) > 0
}

// A transaction stays below a megabyte, whatever the size of its pieces: proxies let no more through.
func TestTransactionsAreBoundedInBytes(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		var largest atomic.Int64
		b.before = func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == "PUT" && r.ContentLength > largest.Load() {
				largest.Store(r.ContentLength)
			}
			return false
		}
		b.deaf.Store(true)
		var want []string
		for i := range 30 {
			want = append(want, strings.Repeat(string(rune('a'+i%26)), 50<<10))
			a.say(alice, room, want[i])
		}
		large := strings.Repeat("x", 100<<10)
		a.queue(b, large, large, large, large, large, large, large)
		b.deaf.Store(false)
		b.hears(room, want)
		a.owesNothing()
		if n := largest.Load(); n > 1<<20 || n < 512<<10 {
			t.Errorf("the largest transaction had %d bytes", n)
		}
	})
}

// A server that answers with nonsense, or that asks us to wait, is not asked as fast as it answers, and gets what it
// is owed when it has come to its senses.
//
// spec: s2s#transactions
func TestNonsenseAndRateLimitsAreWaitedOut(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		type answer struct {
			status       int
			header, body string
		}
		answers := []answer{{200, "", "<html>the portal of your provider</html>"}, {200, "", "[]"}, {429, "0", "{}"},
			{429, "", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1500}`}}
		var asked atomic.Int64
		var mad atomic.Pointer[answer]
		b.before = func(w http.ResponseWriter, r *http.Request) bool {
			says := mad.Load()
			if r.Method != "PUT" || says == nil {
				return false
			}
			asked.Add(1)
			if says.header != "" {
				w.Header().Set("Retry-After", says.header)
			}
			w.WriteHeader(says.status)
			io.WriteString(w, says.body)
			return true
		}
		var want []string
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		a.owesNothing()
		for _, answer := range answers {
			asked.Store(0)
			mad.Store(&answer)
			began := time.Now()
			want = append(want, fmt.Sprint(answer))
			a.say(alice, room, want[len(want)-1])
			eventually(t, "it is asked again", func() bool { return asked.Load() > 1 })
			if took := time.Since(began); answer.status == 429 && took < 900*time.Millisecond || asked.Load() > 5+int64(took/a.retry) {
				t.Errorf("%+v: asked %d times in %v", answer, asked.Load(), took)
			}
			mad.Store(nil)
			b.hears(room, want)
		}
	})
}

// Servers that take their time for an answer do not keep the others waiting, however many they are.
func TestSlowServersDelayNobody(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		release := make(chan struct{})
		t.Cleanup(func() { close(release) })
		slow := func() *node {
			n := newNode(t, a.authority, sqliteOf(t))
			n.before = func(_ http.ResponseWriter, r *http.Request) bool {
				if r.Method == "PUT" {
					select {
					case <-release:
					case <-r.Context().Done():
					}
				}
				return r.Method == "PUT"
			}
			return n
		}
		a.halt()
		a.places = 2 // and two servers that never answer
		a.again()
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		for _, n := range []*node{slow(), slow()} {
			n.join(n.user("carol"), room, a)
		}
		want := a.numbered(alice, room, "m", 5)
		b.hears(room, want)
	})
}

// A server that cannot take one event, or fails on it, gets the others.
func TestAnEventThatAServerCannotTakeDoesNotStopTheOthers(t *testing.T) {
	for _, status := range []int{http.StatusBadRequest, http.StatusInternalServerError} {
		onSQLite(t, func(t *testing.T, a, b *node) {
			a.halt()
			a.retry = time.Millisecond
			a.again()
			alice, bob := a.user("alice"), b.user("bob")
			room := a.room(alice, nil)
			b.join(bob, room, a)
			b.choke(status)
			b.deaf.Store(true)
			for _, body := range []string{"one", "poison", "two"} {
				a.say(alice, room, body)
			}
			if status == http.StatusBadRequest { // what is kept is passed over only where it is refused
				a.queue(b, "poison", "fine")
			}
			b.deaf.Store(false)
			eventually(t, "the others arrive", func() bool { return slices.Contains(b.said(room), "two") && slices.Contains(b.said(room), "one") })
			a.owesNothing()
		})
	}
}
