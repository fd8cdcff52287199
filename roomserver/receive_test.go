package roomserver_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const carol = id.UserID("@carol:b.example")

// other is a server whose events a test makes by hand; it answers no requests.
type other struct {
	name string
	key  peer.SigningKey
}

func (o other) LoadKeys(_ context.Context, server string) ([]peer.ServerKey, error) {
	if server != o.name {
		return nil, nil
	}
	return []peer.ServerKey{{Server: o.name, ID: o.key.ID, Public: o.key.Public(), ValidUntil: time.Now().Add(24 * time.Hour)}}, nil
}

func (o other) SaveKeys(context.Context, []peer.ServerKey, []peer.ServerKey) error { return nil }

// beside makes an engine that knows the keys of another server.
func beside(t testing.TB, options sql.Options) (*roomserver.Server, other) {
	t.Helper()
	o := other{"b.example", peer.NewSigningKey()}
	keys, err := peer.LoadKeys(t.TempDir()+"/signing.key", "a.example")
	if err != nil {
		t.Fatal(err)
	}
	client, err := peer.New(peer.Options{ServerName: "a.example", Key: keys.Key()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	db, err := storage.Open(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s := roomserver.New(roomserver.Options{DB: db, Reader: roomserver.NewReader(8 << 20), ServerName: "a.example", KeyID: keys.Key().ID,
		Key: keys.Key().Private, Peer: client, Keys: peer.NewKeyRing(client, keys, o, nil), Log: zap.NewNop()})
	ownShards(t, s)
	return s, o
}

// sign makes a proposal into an event of the other server.
func (o other) sign(t testing.TB, version string, proposal json.RawMessage, change func(*event.Proto)) *event.Event {
	t.Helper()
	v, _ := event.Lookup(version)
	g := gjson.ParseBytes(proposal)
	p := event.Proto{RoomID: id.RoomID(g.Get("room_id").Str), Sender: id.UserID(g.Get("sender").Str), Type: g.Get("type").Str,
		Content: json.RawMessage(g.Get("content").Raw), Depth: g.Get("depth").Int()}
	if k := g.Get("state_key"); k.Exists() {
		p.StateKey = &k.Str
	}
	names := func(list gjson.Result) (ids []id.EventID) {
		for _, e := range list.Array() {
			ids = append(ids, id.EventID(cmp.Or(e.Str, e.Get("0").Str))) // versions 1 and 2 add hashes
		}
		return ids
	}
	p.PrevEvents, p.AuthEvents = names(g.Get("prev_events")), names(g.Get("auth_events"))
	if change != nil {
		change(&p)
	}
	ev, err := event.Build(v, p, o.name, o.key.ID, ed25519.PrivateKey(o.key.Private), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// join brings carol in through the handshake, and gives her join.
func (o other) join(t testing.TB, s *roomserver.Server, room id.RoomID) *event.Event {
	t.Helper()
	made, err := s.MakeMembership(t.Context(), o.name, room, carol, "join", []string{"1", "11", "12"})
	if err != nil {
		t.Fatal(err)
	}
	ev := o.sign(t, made.Version, made.Event, nil)
	taken, err := s.TakeMembership(t.Context(), o.name, room, ev.ID(), ev.JSON(), "join")
	if err != nil {
		t.Fatal(err)
	}
	whole, chain := told(t, s, o.name, taken, false)
	if len(whole) < 4 || len(chain) == 0 {
		t.Fatalf("the join was answered with %d state events and %d auth events", len(whole), len(chain))
	}
	return ev
}

// told is what a join is answered with.
func told(t testing.TB, s *roomserver.Server, origin string, taken *roomserver.Taken, omitMembers bool) (state, chain []json.RawMessage) {
	t.Helper()
	what, err := s.StateFor(t.Context(), origin, taken, omitMembers)
	if err != nil {
		t.Fatal(err)
	}
	defer what.Close()
	for nids, into := range map[*[]int64]*[]json.RawMessage{&what.State: &state, &what.Chain: &chain} {
		err := what.Each(t.Context(), *nids, func(text json.RawMessage) error {
			*into = append(*into, text)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return state, chain
}

// Who can wait for the members of a room gets none of them but those by whom a room without a name is called, and all
// of a room that is small.
//
// spec: s2s/sendJoinV2, msc3706
func TestJoinIsAnsweredWithoutMembersToWhoCanWait(t *testing.T) {
	s, b := beside(t, sqltest.SQLite(t))
	room := newRoom(t, s, "11")
	b.join(t, s, room)
	small := b.answered(t, s, room, "@dave:b.example")
	if small.omitted || small.members != 2 {
		t.Errorf("of a small room %d members are told, omitted: %v", small.members, small.omitted)
	}
	if err := s.Grow(t.Context(), room, profiles(room, 0, 60, "Member")); err != nil {
		t.Fatal(err)
	}
	unnamed := b.answered(t, s, room, "@erin:b.example")
	if !unnamed.omitted || unnamed.members != 5 {
		t.Errorf("of a room without a name %d members are told, omitted: %v", unnamed.members, unnamed.omitted)
	}
	empty := ""
	send(t, s, room, "m.room.name", &empty, map[string]any{"name": "The room"})
	named := b.answered(t, s, room, "@frank:b.example")
	if !named.omitted || named.members != 0 {
		t.Errorf("of a room with a name %d members are told, omitted: %v", named.members, named.omitted)
	}
}

type joinAnswer struct {
	omitted bool
	members int
}

// answered lets somebody join who can wait for the members, and compares what is told with the whole state.
func (o other) answered(t *testing.T, s *roomserver.Server, room id.RoomID, user id.UserID) (a joinAnswer) {
	t.Helper()
	made, err := s.MakeMembership(t.Context(), o.name, room, user, "join", []string{"11"})
	if err != nil {
		t.Fatal(err)
	}
	join := o.sign(t, made.Version, made.Event, nil)
	taken, err := s.TakeMembership(t.Context(), o.name, room, join.ID(), join.JSON(), "join")
	if err != nil {
		t.Fatal(err)
	}
	v, _ := event.Lookup("11")
	ids := func(texts []json.RawMessage) map[id.EventID]*event.Event {
		out := map[id.EventID]*event.Event{}
		for _, text := range texts {
			ev, err := event.Parse(v, text)
			if err != nil {
				t.Fatal(err)
			}
			out[ev.ID()] = ev
		}
		return out
	}
	what, err := s.StateFor(t.Context(), o.name, taken, true)
	if err != nil {
		t.Fatal(err)
	}
	a.omitted = what.Omitted
	what.Close()
	whole, _ := told(t, s, o.name, taken, false)
	state, chain := told(t, s, o.name, taken, true)
	wholeEvents, stateEvents, chainEvents := ids(whole), ids(state), ids(chain)
	for v, ev := range wholeEvents {
		if ev.Type() != "m.room.member" && stateEvents[v] == nil {
			t.Errorf("the state lacks the %s", ev.Type())
		}
	}
	for v, ev := range stateEvents {
		if ev.Type() == "m.room.member" {
			a.members++
		}
		if chainEvents[v] != nil || wholeEvents[v] == nil {
			t.Errorf("%s %q stands in the auth chain too, or is no part of the state", ev.Type(), ev.JSON())
		}
	}
	for _, ev := range append(slices.Collect(maps.Values(stateEvents)), append(slices.Collect(maps.Values(chainEvents)), join)...) {
		for _, cited := range ev.AuthEvents() {
			if stateEvents[cited] == nil && chainEvents[cited] == nil {
				t.Errorf("%s cites an event that was not told", ev.Type())
			}
		}
	}
	return a
}

func (o other) message(t testing.TB, version string, room id.RoomID, after, auth []id.EventID, body string) *event.Event {
	t.Helper()
	return o.sign(t, version, nil, func(p *event.Proto) {
		p.RoomID, p.Sender, p.Type, p.Content = room, carol, "m.room.message", content(map[string]any{"body": body, "msgtype": "m.text"})
		p.PrevEvents, p.AuthEvents, p.Depth = after, auth, 50
	})
}

// joinedElsewhere makes of a room's state what it is in a room that was joined at another server: events without a place in
// its history, all but one.
func joinedElsewhere(t testing.TB, s *roomserver.Server, room id.RoomID, but id.EventID) *roomserver.Server {
	t.Helper()
	if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
		tx.Exec(`UPDATE events SET status = $1, ord = NULL, root_before = 0, root_after = 0
			WHERE room = (SELECT nid FROM rooms WHERE room_id = $2) AND state_key IS NOT NULL AND event_id <> $3`,
			int16(storage.Outlier), string(room), string(but))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return again(t, s)
}

// The state of a room that was joined at another server is read once, and not for each message.
func TestAHotRoomReadsItsStateOnce(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		var asked atomic.Int64
		o.Trace = func(statement string) {
			if strings.Contains(statement, "WHERE e.nid = ANY(") {
				asked.Add(1)
			}
		}
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		last := b.join(t, s, room).ID()
		auth := authIDs(t, s, version, room, last)
		s = joinedElsewhere(t, s, room, last)
		for i := range 5 {
			ev := b.message(t, version, room, []id.EventID{last}, auth, fmt.Sprint(i))
			if i == 1 {
				asked.Store(0)
			}
			if err := s.Receive(t.Context(), b.name, []json.RawMessage{ev.JSON()})[ev.ID()]; err != nil {
				t.Fatal(err)
			}
			last = ev.ID()
		}
		if n := asked.Load(); n > 0 {
			t.Errorf("four messages read events of the state %d times", n)
		}
		look := func() *roomserver.Stored {
			t.Helper()
			asked.Store(0)
			var found []*roomserver.Stored
			if err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
				row, _, err := tx.Room(string(room))
				if err == nil {
					found, err = s.Reader.Lookup(tx, row, []roomserver.Lookup{{Root: state.Root(row.Root), Key: roomserver.Key{Type: "m.room.join_rules"}}})
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return found[0]
		}
		rules := look()
		if again := look(); again != rules || asked.Load() > 0 {
			t.Errorf("a look at the join rules reads them %d times more", asked.Load())
		}
		s.Reader.Forget(1, rules.NID) // as when they are redacted
		if look(); asked.Load() != 1 {
			t.Errorf("redacted join rules are read %d times, want once", asked.Load())
		}
	})
}

func stateOf(t testing.TB, s *roomserver.Server, room id.RoomID, typ, key string) *roomserver.Stored {
	t.Helper()
	var found *roomserver.Stored
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		found, err = s.Reader.StateEvent(tx, row, state.Root(row.Root), typ, key)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func statusOf(t *testing.T, s *roomserver.Server, eventID id.EventID) storage.EventStatus {
	t.Helper()
	var status storage.EventStatus = -1
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, ok, err := tx.Event(string(eventID))
		if ok {
			status = row.Status
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return status
}

// authIDs are the auth events of a message of carol.
func authIDs(t testing.TB, s *roomserver.Server, version string, room id.RoomID, join id.EventID) []id.EventID {
	ids := []id.EventID{join, stateOf(t, s, room, "m.room.power_levels", "").ID()}
	if version != "12" {
		ids = append(ids, stateOf(t, s, room, "m.room.create", "").ID())
	}
	return ids
}

func send(t *testing.T, s *roomserver.Server, room id.RoomID, typ string, key *string, body any) id.EventID {
	t.Helper()
	sent, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: typ, StateKey: key, Content: content(body)})
	if err != nil {
		t.Fatal(err)
	}
	return sent.ID
}

func eachVersionAndEngine(t *testing.T, test func(t *testing.T, version string, o sql.Options)) {
	for _, version := range []string{"11", "12"} {
		t.Run(version, func(t *testing.T) {
			sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(t, version, fresh()) })
		})
	}
}

func TestForkIsMergedAndResolved(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		auth := authIDs(t, s, version, room, join.ID())
		empty := ""
		topic := send(t, s, room, "m.room.topic", &empty, map[string]any{"topic": "ours"})
		// Carol has not seen the topic: her message forks the room.
		fork := b.message(t, version, room, []id.EventID{join.ID()}, auth, "hello")
		if got := s.Receive(t.Context(), b.name, []json.RawMessage{fork.JSON(), fork.JSON()}); got[fork.ID()] != nil {
			t.Fatal(got[fork.ID()])
		}
		if statusOf(t, s, fork.ID()) != storage.Accepted {
			t.Fatalf("the message of the fork has status %d", statusOf(t, s, fork.ID()))
		}
		if got := stateOf(t, s, room, "m.room.topic", ""); got == nil || got.ID() != topic {
			t.Errorf("after the fork the topic is %v", got)
		}
		merged := send(t, s, room, "m.room.message", nil, map[string]any{"body": "both", "msgtype": "m.text"})
		err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
			row, _, err := tx.Event(string(merged))
			if err != nil {
				return err
			}
			if n := len(gjson.GetBytes(row.JSON, "prev_events").Array()); n != 2 {
				t.Errorf("the next event has %d prev events, want both ends", n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestBannedUserCannotSpeakFromThePast(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		auth := authIDs(t, s, version, room, join.ID())
		if err := s.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: carol, Membership: "ban"}); err != nil {
			t.Fatal(err)
		}
		late := b.message(t, version, room, []id.EventID{join.ID()}, auth, "I was here before")
		// Her server is not in the room any more, so it must come through another: we judge it all the same.
		if err := s.ReceiveFor(t.Context(), room, late); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, s, late.ID()); got != storage.SoftFailed {
			t.Errorf("the message has status %d, want soft-failed", got)
		}
		ban := stateOf(t, s, room, "m.room.member", string(carol))
		if ban == nil || ban.Membership() != "ban" {
			t.Errorf("carol's membership is %v", ban)
		}
	})
}

// Somebody was put out and let in again, and we have heard of the ban alone: what they say then is no softly failed event,
// but what they say on a branch without the ban is one, over a gap too.
//
// spec: s2s#soft-failure
func TestABanEndsThoughWeDoNotHearOfIt(t *testing.T) {
	for _, version := range []string{"2", "12"} { // version 1 resolves by the events that differ alone: there the ban stays
		t.Run(version, func(t *testing.T) {
			w := newWorld(t, version, 1, sqltest.SQLite(t))
			receive := func(n *node) { w.engine.Receive(t.Context(), w.homes[0], []json.RawMessage{n.JSON()}) }
			member := func(sender, user id.UserID, membership string) *node {
				return w.grow(sender, "m.room.member", string(user), map[string]any{"membership": membership})
			}
			say := func(prev ...*node) *node {
				return w.put(w.build(prev, w.users[1], "m.room.message", "-", map[string]any{"msgtype": "m.text", "body": fmt.Sprint(len(w.order))}))
			}
			join := w.order[len(w.order)-1]
			receive(member(w.users[0], w.users[1], "ban"))
			w.mute = []string{"get_missing_events", "backfill"}
			past := say(say(join))
			receive(past)
			if got := statusOf(t, w.engine, past.ID()); got != storage.SoftFailed {
				t.Errorf("what somebody says who was banned has status %d", got)
			}
			w.ends = w.ends[:1]
			member(w.users[0], w.users[1], "leave")
			member(w.users[1], w.users[1], "join")
			back := say(w.ends...)
			receive(back)
			if got := statusOf(t, w.engine, back.ID()); got != storage.Accepted {
				t.Errorf("what somebody says who was let in again has status %d", got)
			}
			if got := stateOf(t, w.engine, w.room, "m.room.member", string(w.users[1])); got == nil || got.Membership() != "join" {
				t.Errorf("who was let in again is not in the room: %v", got)
			}
		})
	}
}

// What is refused by a state that follows from a guess is not rejected: it waits until the state is learned.
//
// spec: s2s#rejection
func TestWhatStandsOnAGuessIsNotRejected(t *testing.T) {
	w := newWorld(t, "12", 1, sqltest.SQLite(t))
	receive := func(n *node) { w.engine.Receive(t.Context(), w.homes[0], []json.RawMessage{n.JSON()}) }
	member := func(sender, user id.UserID, membership string) *node {
		return w.grow(sender, "m.room.member", string(user), map[string]any{"membership": membership})
	}
	say := func(who int) *node {
		return w.grow(w.users[who], "m.room.message", "-", map[string]any{"msgtype": "m.text", "body": fmt.Sprint(len(w.order))})
	}
	receive(member(w.users[0], w.users[1], "ban"))
	member(w.users[0], w.users[1], "leave")
	member(w.users[1], w.users[1], "join")
	w.mute = []string{"get_missing_events", "backfill", "state", "state_ids", "event"}
	receive(say(0))
	back := say(1)
	receive(back)
	if got := statusOf(t, w.engine, back.ID()); got == storage.Rejected {
		t.Error("what somebody says who was let in again is rejected")
	}
	w.mute = nil
	if whole, err := w.engine.LearnStates(t.Context(), w.room); err != nil || !whole {
		t.Fatalf("the state is not learned: %v", err)
	}
	receive(back)
	if got := statusOf(t, w.engine, back.ID()); got != storage.Accepted {
		t.Errorf("it has status %d when the state is learned", got)
	}
}

func TestEventWithoutRightsIsRejectedAndKept(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		auth := authIDs(t, s, version, room, join.ID())
		empty := ""
		name := b.sign(t, version, nil, func(p *event.Proto) {
			p.RoomID, p.Sender, p.Type, p.StateKey, p.Content = room, carol, "m.room.name", &empty, content(map[string]any{"name": "mine"})
			p.PrevEvents, p.AuthEvents, p.Depth = []id.EventID{join.ID()}, auth, 50
		})
		s.Receive(t.Context(), b.name, []json.RawMessage{name.JSON()})
		if got := statusOf(t, s, name.ID()); got != storage.Rejected {
			t.Errorf("a name by somebody without the level has status %d, want rejected", got)
		}
		if got := stateOf(t, s, room, "m.room.name", ""); got != nil {
			t.Errorf("the room's name became %s", got.Content())
		}
		// What builds on a rejected event is judged by itself.
		after := b.message(t, version, room, []id.EventID{name.ID()}, auth, "still here")
		s.Receive(t.Context(), b.name, []json.RawMessage{after.JSON()})
		if got := statusOf(t, s, after.ID()); got != storage.Accepted {
			t.Errorf("the message after it has status %d, want accepted", got)
		}
	})
}

// What storage cannot say anything about is no answer for its sender, who brings it again.
func TestReceivingWithoutStorageIsAFailure(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		message := b.message(t, version, id.RoomID(map[string]string{"11": "!elsewhere:b.example", "12": "!" + strings.Repeat("x", 43)}[version]), nil, nil, "lost?")
		if got := s.Receive(t.Context(), b.name, []json.RawMessage{message.JSON()}); len(got) != 0 {
			t.Errorf("an event of a room that nobody here knows: %v", got)
		}
		if err := s.DB.Close(); err != nil {
			t.Fatal(err)
		}
		if got := s.Receive(t.Context(), b.name, []json.RawMessage{message.JSON()}); !errors.Is(got[""], roomserver.ErrStorage) {
			t.Errorf("without storage: %v", got)
		}
	})
}

// What came as a part of a state and was refused by its own auth events has no state before it: what builds on it
// waits as if it were missing, and is not judged by an empty state.
//
// spec: s2s#rejection, s2s#checks-performed-on-receipt-of-a-pdu
func TestRefusedPartOfAStateIsMissingBelowAnEvent(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		auth := authIDs(t, s, version, room, join.ID())
		empty := ""
		name := b.sign(t, version, nil, func(p *event.Proto) {
			p.RoomID, p.Sender, p.Type, p.StateKey, p.Content = room, carol, "m.room.name", &empty, content(map[string]any{"name": "mine"})
			p.PrevEvents, p.AuthEvents, p.Depth = []id.EventID{join.ID()}, auth, 50
		})
		if err := s.Outside(t.Context(), room, name); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, s, name.ID()); got != storage.Rejected {
			t.Fatalf("a name by somebody without the level has status %d, want rejected", got)
		}
		after := b.message(t, version, room, []id.EventID{name.ID()}, auth, "after it")
		if err := s.Receive(t.Context(), b.name, []json.RawMessage{after.JSON()})[after.ID()]; err == nil || statusOf(t, s, after.ID()) != -1 {
			t.Errorf("what builds on it got %v and status %d before anybody told the state", err, statusOf(t, s, after.ID()))
		}
		beside := b.message(t, version, room, []id.EventID{join.ID(), name.ID()}, auth, "beside it")
		if err := s.Receive(t.Context(), b.name, []json.RawMessage{beside.JSON()})[beside.ID()]; err == nil || statusOf(t, s, beside.ID()) != -1 {
			t.Errorf("what builds on it and another got %v and status %d before anybody told the state", err, statusOf(t, s, beside.ID()))
		}
		// Its sender sends the refused event itself: then the state before it is known.
		got := s.Receive(t.Context(), b.name, []json.RawMessage{name.JSON(), after.JSON(), beside.JSON()})
		for what, ev := range map[string]*event.Event{"after it": after, "beside it": beside} {
			if got[ev.ID()] != nil || statusOf(t, s, ev.ID()) != storage.Accepted {
				t.Errorf("the message %s got %v and status %d", what, got[ev.ID()], statusOf(t, s, ev.ID()))
			}
		}
		if got := statusOf(t, s, name.ID()); got != storage.Rejected {
			t.Errorf("the refused event has status %d", got)
		}
		if got := stored(t, s, room, name.ID()); got.Before == 0 || got.Placed {
			t.Errorf("the refused event has the state %d before it, placed: %v", got.Before, got.Placed)
		}
	})
}

// A long row of rejected events below an event is not walked to its end for whoever asks: the room would wait.
//
// spec: s2s#rejection
func TestWalkThroughRejectedEventsEnds(t *testing.T) {
	s, b := beside(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	join := b.join(t, s, room)
	auth := authIDs(t, s, "12", room, join.ID())
	empty, last := "", join.ID()
	var rejected []json.RawMessage
	for i := range 1100 {
		ev := b.sign(t, "12", nil, func(p *event.Proto) {
			p.RoomID, p.Sender, p.Type, p.StateKey, p.Content = room, carol, "m.room.name", &empty, content(map[string]any{"name": i})
			p.PrevEvents, p.AuthEvents, p.Depth = []id.EventID{last}, auth, int64(50+i)
		})
		last = ev.ID()
		rejected = append(rejected, ev.JSON())
	}
	s.Receive(t.Context(), b.name, rejected)
	if got := statusOf(t, s, last); got != storage.Rejected {
		t.Fatalf("the last of them has status %d", got)
	}
	var found []*roomserver.Stored
	if err := s.For(t.Context(), b.name, room, func(a roomserver.Asked) (err error) {
		found, err = a.Walk([]id.EventID{last}, true, 10, nil)
		return err
	}); err != nil || len(found) > 0 {
		t.Errorf("below 1100 rejected events %d were found (%v)", len(found), err)
	}
}

func TestForgedEventsAreRefused(t *testing.T) {
	s, b := beside(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	join := b.join(t, s, room)
	auth := authIDs(t, s, "12", room, join.ID())
	stranger := other{"b.example", peer.NewSigningKey()}
	forged := stranger.message(t, "12", room, []id.EventID{join.ID()}, auth, "not from b")
	got := s.Receive(t.Context(), b.name, []json.RawMessage{forged.JSON()})
	if got[forged.ID()] == nil || statusOf(t, s, forged.ID()) != -1 {
		t.Errorf("a forged event got the result %v and status %d", got[forged.ID()], statusOf(t, s, forged.ID()))
	}
	good := b.message(t, "12", room, []id.EventID{join.ID()}, auth, "from b")
	if got := s.Receive(t.Context(), b.name, []json.RawMessage{forged.JSON(), good.JSON()}); got[good.ID()] != nil {
		t.Errorf("beside a forged event a good one got %v", got[good.ID()])
	}
}

// Prev events that nobody can give now: the sender's server does not answer here.
func TestAnEventAfterWhatNobodyGivesWaits(t *testing.T) {
	s, b := beside(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	join := b.join(t, s, room)
	gap := b.message(t, "12", room, []id.EventID{"$nobodyhasthisevent"}, authIDs(t, s, "12", room, join.ID()), "after a gap")
	if err := s.Receive(t.Context(), b.name, []json.RawMessage{gap.JSON()})[gap.ID()]; err == nil || statusOf(t, s, gap.ID()) != -1 {
		t.Errorf("an event after a gap got %v and status %d", err, statusOf(t, s, gap.ID()))
	}
}

// What failed softly may be allowed later, when its server brings it again by a handshake: it is stored once,
// and nothing else that is on the way into the room fails.
//
// spec: s2s/sendJoinV2, s2s#soft-failure
func TestSoftFailedJoinMayComeAgain(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		b.join(t, s, room)
		made, err := s.MakeMembership(t.Context(), b.name, room, "@dave:b.example", "join", []string{version})
		if err != nil {
			t.Fatal(err)
		}
		join := b.sign(t, made.Version, made.Event, nil)
		empty := ""
		send(t, s, room, "m.room.join_rules", &empty, map[string]any{"join_rule": "invite"})
		if err := s.Receive(t.Context(), b.name, []json.RawMessage{join.JSON()})[join.ID()]; err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, s, join.ID()); got != storage.SoftFailed {
			t.Fatalf("the late join has status %d", got)
		}
		send(t, s, room, "m.room.join_rules", &empty, map[string]any{"join_rule": "public"})
		if _, err := s.TakeMembership(t.Context(), b.name, room, join.ID(), join.JSON(), "join"); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, s, join.ID()); got != storage.Accepted {
			t.Errorf("the join has status %d", got)
		}
		if ev := stateOf(t, s, room, "m.room.member", "@dave:b.example"); ev == nil || ev.Membership() != "join" {
			t.Error("dave is not in the room")
		}
	})
}

func TestManyForksAreTiedTogether(t *testing.T) {
	s, b := beside(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	join := b.join(t, s, room)
	auth := authIDs(t, s, "12", room, join.ID())
	var forks []json.RawMessage
	for i := range 60 {
		forks = append(forks, b.message(t, "12", room, []id.EventID{join.ID()}, auth, string(rune('a'+i))).JSON())
	}
	s.Receive(t.Context(), b.name, forks)
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		ends, err := tx.Extremities(row.NID)
		if len(ends) > 21 {
			t.Errorf("60 forks leave %d open ends", len(ends))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := stateOf(t, s, room, "m.room.member", string(carol)); got == nil || got.ID() != join.ID() {
		t.Errorf("carol's membership is %v", got)
	}
}

func TestRedactedMemberKeepsNoName(t *testing.T) {
	s, b := beside(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	b.join(t, s, room)
	key := string(bob)
	if err := s.Join(t.Context(), roomserver.Join{User: bob, Room: room, Content: content(map[string]any{"displayname": "Rude name"})}); err != nil {
		t.Fatal(err)
	}
	join := stateOf(t, s, room, "m.room.member", key)
	if _, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.redaction", Redacts: join.ID(), Content: content(map[string]any{})}); err != nil {
		t.Fatal(err)
	}
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		m, _, err := tx.Member(row.NID, key)
		if m.DisplayName != "" || m.Membership != "join" {
			t.Errorf("after the redaction bob is %q, %s", m.DisplayName, m.Membership)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Two servers bring the same at the same time: neither has its answer before it is stored.
func TestWhatComesTwiceAtOnceIsStoredWhenEitherIsAnswered(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s, b := beside(t, fresh())
		room := newRoom(t, s, "12")
		join := b.join(t, s, room)
		auths := authIDs(t, s, "12", room, join.ID())
		said := b.message(t, "12", room, []id.EventID{join.ID()}, auths, "said")
		aside := b.message(t, "12", room, []id.EventID{said.ID()}, auths, "aside")
		for ev, take := range map[*event.Event]func(context.Context, id.RoomID, *event.Event) error{
			said:  s.ReceiveFor,
			aside: func(ctx context.Context, room id.RoomID, ev *event.Event) error { return s.Outside(ctx, room, ev) },
		} {
			held, open := make(chan struct{}), make(chan struct{})
			var all sync.WaitGroup
			all.Go(func() { // nothing is committed while this is
				var once sync.Once // it may run again
				if err := s.DB.Write(t.Context(), []string{"held"}, func(storage.Tx) error {
					once.Do(func() { close(held); <-open })
					return nil
				}); err != nil {
					t.Error(err)
				}
			})
			<-held
			answered := make(chan struct{}, 2)
			for range 2 {
				all.Go(func() {
					if err := take(t.Context(), room, ev); err != nil {
						t.Error(err)
					}
					isStored := false
					if err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
						found, err := tx.EventNumbers([]string{string(ev.ID())})
						isStored = len(found) == 1
						return err
					}); err != nil {
						t.Error(err)
					}
					if !isStored {
						t.Errorf("%s is answered and not stored", ev.Content())
					}
					answered <- struct{}{}
				})
			}
			select {
			case <-answered:
			case <-time.After(200 * time.Millisecond): // both wait, as they should
			}
			close(open)
			all.Wait()
		}
	})
}
