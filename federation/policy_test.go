package federation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// judge answers for a policy server in its place: it refuses what says "spam", and counts what it is asked.
type judge struct {
	asked atomic.Int64
	mode  atomic.Value                  // "" as the server itself does, "spam" refuse spam, "away", "nonsense"
	held  atomic.Pointer[chan struct{}] // answers wait for it
}

func (j *judge) set(mode string) { j.mode.Store(mode) }

func (j *judge) before(w http.ResponseWriter, r *http.Request) bool {
	if r.URL.Path != "/_matrix/policy/v1/sign" {
		return false
	}
	j.asked.Add(1)
	if held := j.held.Load(); held != nil {
		select {
		case <-*held:
		case <-r.Context().Done():
		}
	}
	switch mode, _ := j.mode.Load().(string); mode {
	case "spam":
		w.WriteHeader(http.StatusBadRequest)
		fmt.Fprint(w, `{"errcode":"M_FORBIDDEN","error":"this is spam","policy.example":1}`)
	case "away":
		w.WriteHeader(http.StatusBadGateway)
	case "nonsense":
		fmt.Fprint(w, `{"elsewhere":{"ed25519:policy_server":"AAAA"}}`)
	default:
		return false
	}
	return true
}

// policed makes a room of a with a policy server that has a member in it; before that some messages are sent.
func policed(t *testing.T, a, p *node, before ...string) (room id.RoomID, j *judge) {
	t.Helper()
	j = &judge{}
	p.before = j.before
	alice, warden := a.user("alice"), p.user("warden")
	room = a.room(alice, nil)
	for _, text := range before {
		a.say(alice, room, text)
	}
	p.join(warden, room, a)
	key, ok := p.rooms.PolicyKey()
	if !ok {
		t.Fatal("the server has no key for policies")
	}
	a.set(alice, room, "m.room.policy", "", map[string]any{"via": p.name, "public_keys": map[string]any{"ed25519": key}})
	eventually(t, "the policy server knows that it is one", func() bool {
		found := false
		_ = p.db.Read(context.Background(), func(tx storage.Tx) error {
			row, _, err := tx.Room(string(room))
			if err != nil {
				return err
			}
			ev, err := p.reader.StateEvent(tx, row, stateRoot(row), "m.room.policy", "")
			found = ev != nil
			return err
		})
		return found
	})
	return room, j
}

func recommendedBy(p *node, pdu []byte) bool {
	return gjson.GetBytes(pdu, "signatures").Map()[p.name].Get("ed25519:policy_server").Str != ""
}

// unasked makes an event as a server does that knows nothing of policy servers.
func (n *node) unasked(last id.EventID, body string) *event.Event {
	n.t.Helper()
	version, _ := event.Lookup("12")
	was, err := event.Parse(version, n.pdu(last))
	if err != nil {
		n.t.Fatal(err)
	}
	key := n.keys.Key()
	ev, err := event.Build(version, event.Proto{RoomID: was.RoomID(), Sender: was.Sender(), Type: "m.room.message", Content: content(map[string]any{"msgtype": "m.text", "body": body}),
		PrevEvents: []id.EventID{last}, AuthEvents: was.AuthEvents(), Depth: was.Depth() + 1}, n.name, key.ID, key.Private, time.Now())
	if err != nil {
		n.t.Fatal(err)
	}
	return ev
}

// spec: s2s#asking-for-a-policy-server-signature-on-an-event, s2s/askPolicyServerToSign
func TestEventsAreRecommendedBeforeTheyAreSent(t *testing.T) {
	pair(t, func(t *testing.T, a, p *node) {
		room, j := policed(t, a, p)
		alice := a.user("alice")
		said := a.say(alice, room, "good")
		if !recommendedBy(p, a.pdu(said)) {
			t.Errorf("sent as %s", a.pdu(said))
		}
		p.hears(room, []string{"good"})
		if !recommendedBy(p, p.pdu(said)) {
			t.Error("the signature did not come with the event")
		}
		if j.asked.Load() != 1 {
			t.Errorf("%d questions for one event", j.asked.Load())
		}
		if own := p.say(p.user("warden"), room, "mine"); !recommendedBy(p, p.pdu(own)) {
			t.Error("the policy server does not recommend what it says itself")
		}
		a.hears(room, []string{"good", "mine"})

		j.set("spam")
		send := func(typ string, key *string, v any) error {
			_, err := a.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: typ, StateKey: key, Content: content(v)})
			return err
		}
		err := send("m.room.message", nil, map[string]any{"body": "bad"})
		if e := chancery.As(err); err == nil || e.Status != 400 || e.Code != chancery.CodeForbidden || e.Message != "this is spam" {
			t.Errorf("refused with %v", err)
		}
		if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: "@x:example.org", Membership: "ban"}); !chancery.IsCode(err, chancery.CodeForbidden) {
			t.Errorf("a ban that is not recommended: %v", err)
		}
		if err := send("m.room.name", new(string), map[string]any{"name": "bad"}); !chancery.IsCode(err, chancery.CodeForbidden) {
			t.Errorf("a name that is not recommended: %v", err)
		}
		j.set("nonsense")
		if err := send("m.room.message", nil, map[string]any{"body": "what"}); err == nil || chancery.As(err).Status != 500 {
			t.Errorf("a policy server that does not sign: %v", err)
		}
		j.set("away")
		if err := send("m.room.message", nil, map[string]any{"body": "hello"}); err == nil || chancery.As(err).Status != 500 {
			t.Errorf("a policy server that is away: %v", err)
		}
		// A room can always free itself of its policy server.
		if err := send("m.room.policy", new(string), map[string]any{}); err != nil {
			t.Fatal(err)
		}
		before := j.asked.Load()
		a.say(alice, room, "free")
		p.hears(room, []string{"good", "mine", "free"})
		if j.asked.Load() != before {
			t.Error("it is asked on")
		}
	})
}

// A room does not wait for its policy server: while that thinks about one message, the room takes others.
//
// spec: s2s#asking-for-a-policy-server-signature-on-an-event
func TestARoomDoesNotWaitForItsPolicyServer(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, p *node) {
		room, j := policed(t, a, p)
		alice := a.user("alice")
		slow := make(chan struct{})
		j.held.Store(&slow)
		goOn := sync.OnceFunc(func() { close(slow) })
		defer goOn()
		sent := make(chan error, 1)
		go func() {
			_, err := a.rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.message", Content: content(map[string]any{"body": "wait", "msgtype": "m.text"})})
			sent <- err
		}()
		eventually(t, "the policy server is asked", func() bool { return j.asked.Load() == 1 })
		p.say(p.user("warden"), room, "from elsewhere")           // comes with its signature
		a.hears(room, []string{"from elsewhere"})                 // others' events
		a.set(alice, room, "m.room.policy", "", map[string]any{}) // our own that needs no signature
		select {
		case err := <-sent:
			t.Errorf("the message did not wait for the policy server: %v", err)
		default:
		}
		goOn()
		if err := <-sent; err != nil {
			t.Errorf("the message: %v", err)
		}
		a.hears(room, []string{"from elsewhere", "wait"})
	})
}

// spec: s2s#validating-policy-server-signatures, s2s#checks-performed-on-receipt-of-a-pdu
func TestWhatIsNotRecommendedFailsSoftly(t *testing.T) {
	pair(t, func(t *testing.T, a, p *node) {
		b := newNode(t, a.authority, sqliteOf(t))
		room, j := policed(t, a, p)
		bob := b.user("bob")
		b.join(bob, room, a)
		last := b.say(bob, room, "asked")
		a.hears(room, []string{"asked"})
		p.hears(room, []string{"asked"})
		status := func(ev *event.Event) (storage.EventStatus, []byte) {
			var row storage.Event
			if err := a.db.Read(t.Context(), func(tx storage.Tx) error {
				found, ok, err := tx.Event(string(ev.ID()))
				if err == nil && !ok {
					err = fmt.Errorf("%s is not there", ev.ID())
				}
				row = found
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return row.Status, row.JSON
		}
		send := func(events ...*event.Event) {
			var pdus []json.RawMessage
			for _, ev := range events {
				pdus = append(pdus, ev.JSON())
			}
			for eventID, err := range a.rooms.Receive(t.Context(), b.name, pdus) {
				if err != nil {
					t.Errorf("%s: %v", eventID, err)
				}
			}
		}
		// Who sends it did not ask, so we do; several at once are asked side by side.
		one, two := b.unasked(last, "one"), b.unasked(last, "two")
		send(one, two)
		for _, ev := range []*event.Event{one, two} {
			if got, text := status(ev); got != storage.Accepted || !recommendedBy(p, text) {
				t.Errorf("after asking it is %v: %s", got, text)
			}
		}
		asked := j.asked.Load()
		for _, mode := range []string{"spam", "nonsense", "away"} {
			j.set(mode)
			ev := b.unasked(last, mode)
			send(ev, ev)
			if got, _ := status(ev); got != storage.SoftFailed {
				t.Errorf("%s: the event is %v", mode, got)
			}
		}
		if n := j.asked.Load() - asked; n != 3 {
			t.Errorf("%d questions for three events", n)
		}
		j.set("spam")
		// A false signature is as none.
		forged, err := b.unasked(last, "forged").AddSignature(p.name, "ed25519:policy_server", strings.Repeat("A", 86))
		if err != nil {
			t.Fatal(err)
		}
		send(forged)
		if got, _ := status(forged); got != storage.SoftFailed {
			t.Errorf("with a false signature the event is %v", got)
		}
		said := a.said(room)
		slices.Sort(said)
		if fmt.Sprint(said) != "[asked one two]" {
			t.Errorf("the room says %v", said)
		}
		// Who joins through us must be recommended too.
		c := newNode(t, a.authority, sqliteOf(t))
		eventually(t, "a join is refused that is not recommended", func() bool { // the server was away a moment ago
			err := c.rooms.Join(t.Context(), roomserver.Join{User: c.user("carol"), Room: room, Via: []string{a.name}})
			return chancery.IsCode(err, chancery.CodeForbidden)
		})
		j.set("")
		c.join(c.user("carol"), room, a)
		if err := a.rooms.Invite(t.Context(), roomserver.Invite{Room: room, Sender: a.user("alice"), Target: c.user("dave")}); err != nil {
			t.Fatal(err)
		}
		if got := a.membership(room, c.user("dave")); got != "invite" {
			t.Errorf("dave is %q", got)
		}
		// A policy server without a member in the room is none.
		j.set("spam")
		if err := a.rooms.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: a.user("alice"), Target: p.user("warden"), Membership: "leave"}); !chancery.IsCode(err, chancery.CodeForbidden) {
			t.Errorf("putting out the policy server: %v", err)
		}
		if err := p.rooms.Leave(t.Context(), p.user("warden"), room, nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "it has gone", func() bool { return a.membership(room, p.user("warden")) == "leave" })
		a.say(a.user("alice"), room, "alone")
	})
}

// What a server fetches of the past is asked about too. Only what the policy server refuses is kept from the room: the past
// must be readable when it is away.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 7
func TestThePastIsRecommendedToo(t *testing.T) {
	pair(t, func(t *testing.T, a, p *node) {
		old := []string{"old 1", "old 2", "old 3"}
		room, j := policed(t, a, p, old...)
		if err := a.rooms.Join(t.Context(), roomserver.Join{User: a.user("another"), Room: room}); err != nil { // so a is asked first
			t.Fatal(err)
		}
		a.say(a.user("alice"), room, "asked")
		p.hears(room, []string{"asked"})
		all := fmt.Sprint(append(old, "asked"))
		for _, c := range [][2]string{{"", all}, {"away", all}, {"spam", "[asked]"}} {
			mode, want := c[0], c[1]
			j.set("")
			b := newNode(t, a.authority, sqliteOf(t))
			b.join(b.user("bob"), room, a)
			j.set(mode)
			if _, err := b.rooms.Backfill(t.Context(), room, b.lowest(room)+1<<30, 100); err != nil {
				t.Fatal(err)
			}
			if said := fmt.Sprint(b.said(room)); said != want {
				t.Errorf("mode %q: the room says %s, want %s", mode, said, want)
			}
		}
	})
}

// spec: s2s/askPolicyServerToSign
func TestAPolicyServerSignsOnlyForItsRooms(t *testing.T) {
	pair(t, func(t *testing.T, a, p *node) {
		room, _ := policed(t, a, p)
		alice, warden := a.user("alice"), p.user("warden")
		ask := func(pdu []byte) (int, string) {
			return a.request(p, "POST", "/_matrix/policy/v1/sign", pdu, func(method, uri string, body []byte) string {
				return peer.SignRequest(a.keys.Key(), a.name, p.name, method, uri, body)
			})
		}
		last := a.say(alice, room, "x")
		p.hears(room, []string{"x"})
		next := a.unasked(last, "next")
		if status, code := ask(next.JSON()); status != 200 {
			t.Errorf("its own room: %d %s", status, code)
		}
		if status, code := ask([]byte(strings.Replace(string(next.JSON()), "next", "text", 1))); status != 400 || code != "M_BAD_JSON" {
			t.Errorf("a false hash: %d %s", status, code)
		}
		if status, code := ask([]byte(strings.Replace(string(next.JSON()), "m.room.message", "m.room.massage", 1))); status != 400 {
			t.Errorf("a false signature: %d %s", status, code)
		}
		if status, code := ask([]byte(`{"room_id":"` + string(room) + `"}`)); status != 400 || code != "M_BAD_JSON" {
			t.Errorf("no event: %d %s", status, code)
		}
		other := a.room(alice, nil)
		p.join(warden, other, a)
		elsewhere := a.say(alice, other, "y")
		if status, code := ask(a.unasked(elsewhere, "z").JSON()); status != 404 || code != "M_NOT_FOUND" {
			t.Errorf("a room that has no policy server: %d %s", status, code)
		}
		// Nobody has us ask a third server for its keys over such a room.
		stranger, asked := newNode(t, a.authority, sqliteOf(t)), atomic.Int64{}
		stranger.before = func(w http.ResponseWriter, r *http.Request) bool { asked.Add(1); return false }
		foreign := strings.ReplaceAll(string(a.unasked(elsewhere, "z").JSON()), "@alice:"+a.name, "@alice:"+stranger.name)
		if status, code := ask(rehashed(foreign)); status != 404 || code != "M_NOT_FOUND" || asked.Load() != 0 {
			t.Errorf("an event of a stranger's in a room that has no policy server: %d %s, and %d questions to its server", status, code, asked.Load())
		}
		if status, code := ask([]byte(`{"room_id":"!unknown:x"}`)); status != 404 || code != "M_NOT_FOUND" {
			t.Errorf("an unknown room: %d %s", status, code)
		}
		a.set(alice, room, "m.room.server_acl", "", map[string]any{"allow": []string{"*"}, "deny": []string{strings.Split(a.name, ":")[0]}})
		eventually(t, "the policy server knows of the ACL", func() bool {
			status, code := ask(next.JSON())
			return status == 403 && code == "M_FORBIDDEN"
		})
	})
}
