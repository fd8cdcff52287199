package largeroom_test

import (
	"fmt"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"
	"chancery/test/largeroom"

	"maunium.net/go/mautrix/id"
)

type J = homeserver.J

// small is a room that has something of everything.
var small = largeroom.Options{Members: 1000, Servers: 5, Renamed: 20, Left: 10, LevelChanges: 5}

// gate holds back answers of one kind until it is opened.
type gate struct {
	once  sync.Once
	open  chan struct{}
	asked chan struct{}
	first sync.Once
}

func newGate() *gate { return &gate{open: make(chan struct{}), asked: make(chan struct{})} }

func (g *gate) Open() { g.once.Do(func() { close(g.open) }) }

func (g *gate) wait(r *http.Request) {
	g.first.Do(func() { close(g.asked) })
	select {
	case <-g.open:
	case <-r.Context().Done():
	}
}

// holdState holds back the whole state of a room: what it gives with the join is all that there is before.
func holdState(t *testing.T, room *largeroom.Room) *gate {
	t.Helper()
	g := newGate()
	t.Cleanup(g.Open)
	room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
		if kind == "state_ids" {
			g.wait(r)
		}
		return false
	}
	return g
}

// awaitWhole waits until nothing of a room is missing: /members waits for that. Then as many are counted as are there.
func awaitWhole(t *testing.T, u *homeserver.User, room *largeroom.Room) homeserver.Answer {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) { // somebody may come in between
		members := u.OK("GET", homeserver.Room(string(room.ID), "members"), nil)
		var joined int64
		for _, m := range members.Get("chunk").Array() {
			if m.Get("content.membership").Str == "join" {
				joined++
			}
		}
		counted := u.OK("GET", "/_matrix/client/v1/room_summary/"+url.PathEscape(string(room.ID)), nil).Get("num_joined_members").Int()
		if counted == joined {
			return members
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d are joined, %d are counted", joined, counted)
		}
	}
}

// sameState holds the state that a server tells before an event against the room's own.
func sameState(t *testing.T, s *homeserver.Server, room *largeroom.Room, at id.EventID, want map[id.EventID]bool) {
	t.Helper()
	a := room.Servers[0].As(t).Ask(s, homeserver.Signed{Method: "GET",
		Path: "/_matrix/federation/v1/state_ids/" + url.PathEscape(string(room.ID)) + "?event_id=" + url.QueryEscape(string(at))})
	if a.Status != 200 {
		t.Fatalf("the state at %s: %s", at, a)
	}
	got := map[id.EventID]bool{}
	for _, v := range a.Get("pdu_ids").Array() {
		got[id.EventID(v.Str)] = true
	}
	for v := range want {
		if !got[v] {
			t.Errorf("the state lacks %s", room.Event(v).JSON())
		}
	}
	for v := range got {
		if !want[v] {
			t.Errorf("the state has %s", v)
		}
	}
}

func TestLargeRoomIsUsedBeforeItIsWhole(t *testing.T) {
	// spec: msc3902, msc3706
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, small)
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		sent := id.EventID(alice.Send(string(room.ID), "I am here already"))
		room.Await(t, sent)
		if err := room.Adopt(sent); err != nil {
			t.Fatal(err)
		}
		// A member who says something becomes known by it.
		said := room.Add(t, 17, "m.room.message", nil, J{"msgtype": "m.text", "body": "welcome"})
		if a := room.Tell(t, s, said); a.Get("pdus").Map()[string(said.ID())].Get("error").Exists() {
			t.Fatalf("%s", a)
		}
		if n := room.Requests("event_auth"); n != 0 {
			t.Errorf("a whole auth chain was asked for, %d times, and all but who speaks is here", n)
		}
		lazy := alice.OK("GET", "/_matrix/client/v3/sync?filter="+url.QueryEscape(`{"room":{"state":{"lazy_load_members":true},"timeline":{"limit":50}}}`), nil)
		path := "rooms.join." + escape(string(room.ID))
		if n := len(lazy.Get(path + ".timeline.events").Array()); n < 3 {
			t.Errorf("%d events are in the timeline: %s", n, lazy)
		}
		if !lazy.Get(path + `.state.events.#(state_key="` + string(room.User(17)) + `")`).Exists() {
			t.Errorf("the sync does not have who spoke")
		}
		if a := alice.OK("GET", "/_matrix/client/v3/sync", nil); a.Get(path).Exists() {
			t.Errorf("a sync without lazy loading has a room that is not whole")
		}
		refused := room.Servers[0].As(t).Ask(s, homeserver.Signed{Method: "GET",
			Path: "/_matrix/federation/v1/state_ids/" + url.PathEscape(string(room.ID)) + "?event_id=" + url.QueryEscape(string(said.ID()))})
		if refused.Status != 403 || refused.Code() != "M_UNABLE_DUE_TO_PARTIAL_STATE" {
			t.Errorf("who asks for the state gets %s", refused)
		}
		held.Open()
		members := awaitWhole(t, alice, room)
		if n := len(members.Get("chunk").Array()); n != 1011 {
			t.Errorf("%d member events, want 1011", n)
		}
		sameState(t, s, room, said.ID(), room.State())
		if n := alice.OK("GET", homeserver.Room(string(room.ID), "joined_members"), nil).Get("joined").Map(); len(n) != 1001 {
			t.Errorf("%d joined members, want 1001", len(n))
		}
		if a := alice.OK("GET", "/_matrix/client/v3/sync", nil); len(a.Get(path+".state.events").Array()) < 1000 {
			t.Errorf("a sync without lazy loading has %d state events", len(a.Get(path+".state.events").Array()))
		} else if n := a.Get(path + ".unread_notifications.notification_count"); n.Raw != "1" { // what was said while it was partial
			t.Errorf("%s messages are unread, want 1", n.Raw)
		}
	})
}

// What is nearest to a time lies far below our join: another server says so, and its history is asked for down to there.
// Where no server has anything nearer, none is asked for history.
func TestEventsFromLongBeforeOurJoinAreFoundByTime(t *testing.T) {
	// spec: c2s/getEventByTimestamp, s2s/getEventByTimestamp
	ca := homeserver.NewCA(t)
	room := largeroom.New(t, ca, largeroom.Options{Members: 500, Servers: 3})
	s := homeserver.Start(t, homeserver.Options{CA: ca})
	alice := s.Register(t, "alice")
	alice.Join(string(room.ID), room.Servers[0].Name)
	awaitWhole(t, alice, room)
	near := func(dir string, ts int64) homeserver.Answer {
		return alice.Ask("GET", fmt.Sprintf("/_matrix/client/v1/rooms/%s/timestamp_to_event?dir=%s&ts=%d", url.PathEscape(string(room.ID)), dir, ts), nil)
	}
	first := room.Event(room.JoinOf(t, room.User(0))).OriginServerTS()
	if a := near("b", first-10_000); a.Status != 404 || room.Requests("backfill") != 0 {
		t.Errorf("before the room's beginning: %s, and %d times others were asked for history", a, room.Requests("backfill"))
	}
	long := room.Event(room.JoinOf(t, room.User(20))).OriginServerTS()
	a := near("f", long)
	if a.Status != 200 || a.Get("origin_server_ts").Int() != long {
		t.Fatalf("long before our join, at %d: %s", long, a)
	}
	around := alice.OK("GET", homeserver.Room(string(room.ID), "context", a.Get("event_id").Str), nil)
	// It may be the oldest that is here: what comes before it is asked for when somebody reads on.
	before := alice.OK("GET", homeserver.Room(string(room.ID), "messages")+"?dir=b&from="+around.Get("start").Str, nil)
	if len(before.Get("chunk").Array()) == 0 || len(around.Get("events_after").Array()) == 0 {
		t.Errorf("around it is %s, before that %s", around, before)
	}
}

func escape(path string) string {
	out := ""
	for _, c := range path {
		if c == '.' || c == '*' || c == '?' {
			out += `\`
		}
		out += string(c)
	}
	return out
}
