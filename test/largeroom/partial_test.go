package largeroom_test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"chancery/roomserver/event"
	"chancery/test/homeserver"
	"chancery/test/largeroom"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// shown says whether a user finds an event.
func shown(u *homeserver.User, room *largeroom.Room, v id.EventID) bool {
	return u.Ask("GET", homeserver.Room(string(room.ID), "event", string(v)), nil).Status == 200
}

func TestPartialJoinGoesOnAfterKill(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, small)
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		alice := s.Register(t, "alice")
		half := newGate()
		t.Cleanup(half.Open)
		var asked atomic.Int32
		room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
			if kind != "state" || asked.Add(1) > 1 {
				return false
			}
			// The first answer stops in the middle.
			whole := &recorded{header: http.Header{}}
			room.Whole(whole, r)
			w.Header().Set("Content-Type", "application/json")
			io.WriteString(w, whole.text.String()[:whole.text.Len()*2/3])
			http.NewResponseController(w).Flush()
			half.wait(r)
			return true
		}
		alice.Join(string(room.ID), room.Servers[0].Name)
		<-half.asked
		s.Kill()
		s.Start()
		members := awaitWhole(t, alice, room)
		if n := len(members.Get("chunk").Array()); n != 1011 {
			t.Errorf("%d member events, want 1011", n)
		}
		if n := room.Requests("state"); n > 2 {
			t.Errorf("the state was asked for %d times", n)
		}
		last := room.Add(t, 3, "m.room.message", nil, J{"msgtype": "m.text", "body": "hello"})
		room.Tell(t, s, last)
		sameState(t, s, room, last.ID(), room.State())
	})
}

// recorded keeps an answer.
type recorded struct {
	header http.Header
	text   strings.Builder
}

func (r *recorded) Header() http.Header         { return r.header }
func (r *recorded) Write(p []byte) (int, error) { return r.text.Write(p) }
func (r *recorded) WriteHeader(int)             {}

func TestWhatWasJudgedInPartIsJudgedAgain(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3, Left: 2})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		gone := 20 // left before we came, and says that they are there
		join := room.JoinOf(t, room.User(gone))
		lie := room.Make(t, gone, "m.room.message", nil, J{"msgtype": "m.text", "body": "I am still here"}, func(p *event.Proto) {
			p.AuthEvents = []id.EventID{p.AuthEvents[0], p.AuthEvents[1], join}
		})
		room.Tell(t, s, lie)
		if !shown(alice, room, lie.ID()) {
			t.Error("what a part of the state allows is not shown")
		}
		said := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "and I am"})
		room.Tell(t, s, said)
		held.Open()
		awaitWhole(t, alice, room)
		if shown(alice, room, lie.ID()) {
			t.Error("what the whole state forbids is still shown")
		}
		if !shown(alice, room, said.ID()) {
			t.Error("what the whole state allows is shown no more")
		}
		sameState(t, s, room, said.ID(), room.State())
		// The room goes on: the event that was rejected is no end to build on.
		room.Await(t, id.EventID(alice.Send(string(room.ID), "good to know")))
	})
}

// What a part of the state refuses is kept until the room is whole, and nobody is asked for it when something builds on it.
func TestWhatAPartOfTheStateRefusesIsHeld(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3, Left: 1})
		room.Live = true
		gone, empty := 20, "" // with power, left before we came, and says that they are there
		room.Add(t, 0, "m.room.power_levels", &empty, J{"users": J{string(room.User(0)): 100, string(room.User(gone)): 100}, "state_default": 50, "kick": 50})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		want := room.State()
		out := string(room.User(5))
		joined, left := room.JoinOf(t, room.User(gone)), id.EventID("")
		for v := range want {
			if room.Event(v).IsState("m.room.member", string(room.User(gone))) {
				left = v
			}
		}
		kick := room.Make(t, gone, "m.room.member", &out, J{"membership": "leave"}, func(p *event.Proto) {
			p.AuthEvents[slices.Index(p.AuthEvents, left)] = joined
		})
		on := func(sender int, body string, prev *event.Event) *event.Event {
			return room.Make(t, sender, "m.room.message", nil, J{"msgtype": "m.text", "body": body}, func(p *event.Proto) {
				p.PrevEvents, p.Depth = []id.EventID{prev.ID()}, prev.Depth()+1
			})
		}
		refused := on(5, "no, he is not", kick)
		room.Tell(t, s, kick, refused)
		if shown(alice, room, refused.ID()) {
			t.Error("what the part of the state refuses is shown")
		}
		s.Kill()
		s.Start()
		child := on(6, "who is right?", refused)
		room.Tell(t, s, child)
		if !shown(alice, room, child.ID()) {
			t.Error("what builds on it is not shown")
		}
		held.Open()
		awaitWhole(t, alice, room)
		if shown(alice, room, kick.ID()) || !shown(alice, room, refused.ID()) {
			t.Error("the whole state did not judge again what the part of it allowed and refused")
		}
		sameState(t, s, room, child.ID(), want)
		if n := room.Requests("get_missing_events") + room.Requests("backfill"); n > 0 {
			t.Errorf("others were asked %d times for what is here", n)
		}
		if n := room.Requests("state_ids"); n > 2 {
			t.Errorf("states were asked for %d times, want those before our join alone", n)
		}
	})
}

// The servers do not know an event yet that builds on something from before our join, and tell the states below it.
func TestStatesBelowAnEventServeWhereItIsNotKnown(t *testing.T) {
	// spec: s2s/getRoomStateIds, msc3902
	for name, isPartial := range map[string]bool{"whole": false, "partial": true} {
		t.Run(name, func(t *testing.T) {
			homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
				ca := homeserver.NewCA(t)
				room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
				said := room.Add(t, 3, "m.room.message", nil, J{"msgtype": "m.text", "body": "who else comes?"})
				newcomer := string(room.User(20))
				came := room.Add(t, 20, "m.room.member", &newcomer, J{"membership": "join"})
				want := room.State()
				s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
				alice := s.Register(t, "alice")
				held := holdState(t, room)
				alice.Join(string(room.ID), room.Servers[0].Name)
				if !isPartial {
					held.Open()
					awaitWhole(t, alice, room)
				}
				over := func(prev ...id.EventID) *event.Event {
					ev := room.Make(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "welcome"}, func(p *event.Proto) {
						p.PrevEvents, p.Depth = prev, came.Depth()+1
					})
					room.Tell(t, s, ev)
					return ev
				}
				one, two := over(came.ID()), over(came.ID(), said.ID())
				held.Open()
				awaitWhole(t, alice, room)
				sameState(t, s, room, one.ID(), want)
				sameState(t, s, room, two.ID(), want)
			})
		})
	}
}

// lazySync asks for what happened after a token without waiting; a partial room is in it.
func lazySync(u *homeserver.User, since string) homeserver.Answer {
	q := url.Values{"filter": {`{"room":{"state":{"lazy_load_members":true}}}`}}
	if since != "" {
		q.Set("since", since)
	}
	return u.OK("GET", "/_matrix/client/v3/sync?"+q.Encode(), nil)
}

// tellEDU sends an EDU to a server.
func tellEDU(t *testing.T, from *homeserver.Peer, to *homeserver.Server, typ string, content J) {
	t.Helper()
	a := from.As(t).Ask(to, homeserver.Signed{Method: "PUT", Path: "/_matrix/federation/v1/send/" + homeserver.Txn(),
		Body: J{"origin": from.Name, "origin_server_ts": 1, "pdus": []J{}, "edus": []J{{"edu_type": typ, "content": content}}}})
	if a.Status != 200 {
		t.Fatalf("a transaction with %s: %s", typ, a)
	}
}

func TestMembersNotKnownYetTypeAndRead(t *testing.T) {
	// spec: msc3902, s2s#typing-notifications, s2s#receipts
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3, Left: 1})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		// One of the room's servers, by its member and by one who left before we came and says so himself, and one that is not in it.
		here, stranger := room.Servers[7%3], homeserver.NewPeer(t, ca)
		leave := room.Add(t, 10, "m.room.member", ptr(string(room.User(10))), J{"membership": "leave"})
		room.Tell(t, s, leave)
		message := room.Add(t, 0, "m.room.message", nil, J{"msgtype": "m.text", "body": "hello"})
		room.Tell(t, s, message)
		for from, user := range map[*homeserver.Peer]id.UserID{stranger: id.UserID("@mallory:" + stranger.Name), here: room.User(10)} {
			tellEDU(t, from, s, "m.typing", J{"room_id": room.ID, "user_id": user, "typing": true})
			tellEDU(t, from, s, "m.receipt", J{string(room.ID): J{"m.read": J{string(user): J{"event_ids": []id.EventID{message.ID()}, "data": J{"ts": 1}}}}})
		}
		user := room.User(7)
		tellEDU(t, here, s, "m.typing", J{"room_id": room.ID, "user_id": user, "typing": true})
		tellEDU(t, here, s, "m.receipt", J{string(room.ID): J{"m.read": J{string(user): J{"event_ids": []id.EventID{message.ID()}, "data": J{"ts": 1436451550453}}}}})
		shown := lazySync(alice, "").Get("rooms.join." + escape(string(room.ID)) + ".ephemeral.events")
		if got := shown.Get(`#(type="m.typing").content.user_ids`).Raw; got != `["`+string(user)+`"]` {
			t.Errorf("%s type, want %s: %s", got, user, shown)
		}
		if got := shown.Get(`#(type="m.receipt").content`).Map()[string(message.ID())].Get(`m\.read`).Map(); len(got) != 1 || got[string(user)].Get("ts").Int() != 1436451550453 {
			t.Errorf("%v have read the message, want %s, and when: %s", got, user, shown)
		}
		held.Open()
		awaitWhole(t, alice, room)
	})
}

// A member whom the part of the state does not know changes their devices: whoever asks for the keys gets the newest, before
// the room is whole and after, and is told to ask again.
func TestDevicesOfMembersNotKnownYet(t *testing.T) {
	// spec: msc3902, s2s#device-management
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
		here, user := room.Servers[7%3], string(room.User(7))
		var device atomic.Value
		keys := func() string {
			return fmt.Sprintf(`{"algorithms":["m.olm"],"device_id":%q,"keys":{"ed25519:%s":"k"},"signatures":{},"user_id":%q}`, device.Load(), device.Load(), user)
		}
		here.Handle("POST /_matrix/federation/v1/user/keys/query", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprintf(w, `{"device_keys":{%q:{%q:%s}}}`, user, device.Load(), keys())
		}))
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		holds := room.Intercept
		room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
			if kind != "user" {
				return holds(kind, w, r)
			}
			fmt.Fprintf(w, `{"user_id":%q,"stream_id":3,"devices":[{"device_id":%q,"keys":%s}]}`, user, device.Load(), keys())
			return true
		}
		alice.Join(string(room.ID), room.Servers[0].Name)
		want := func(name string) {
			t.Helper()
			a := alice.OK("POST", "/_matrix/client/v3/keys/query", J{"device_keys": J{user: []string{}}})
			if got := a.Get("device_keys." + escape(user)).Map(); len(got) != 1 || !got[name].Exists() {
				t.Errorf("devices are %v, want %s", got, name)
			}
		}
		device.Store("OLD")
		want("OLD")
		device.Store("NEW")
		tellEDU(t, here, s, "m.device_list_update", J{"user_id": user, "device_id": "NEW", "stream_id": 2, "prev_id": []int{1}, "keys": json.RawMessage(keys())})
		want("NEW")
		since := lazySync(alice, "").Get("next_batch").Str
		held.Open()
		awaitWhole(t, alice, room)
		if told := lazySync(alice, since).Get("device_lists.changed").Raw; !strings.Contains(told, user) {
			t.Errorf("lists that changed are %s, want %s among them", told, user)
		}
		want("NEW")
		device.Store("NEWER")
		tellEDU(t, here, s, "m.device_list_update", J{"user_id": user, "device_id": "NEWER", "stream_id": 3, "prev_id": []int{2}, "keys": json.RawMessage(keys())})
		want("NEWER")
	})
}

func ptr(text string) *string { return &text }

func TestMembersAtATokenOfAPartialRoomAreThoseOfTheWhole(t *testing.T) {
	// spec: c2s/getMembersByRoom, msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		token := lazySync(alice, "").Get("next_batch").Str
		room.Tell(t, s, room.Add(t, 10, "m.room.member", ptr(string(room.User(10))), J{"membership": "leave"}))
		later := lazySync(alice, token).Get("next_batch").Str
		held.Open()
		awaitWhole(t, alice, room)
		for at, want := range map[string]int{token: 21, later: 20} {
			joined := alice.OK("GET", homeserver.Room(string(room.ID), "members")+"?membership=join&at="+url.QueryEscape(at), nil).Get("chunk").Array()
			if len(joined) != want {
				t.Errorf("%d members are in the room at a token, want %d", len(joined), want)
			}
		}
	})
}

func TestServersHearOfDevicesThoughTheySeemedToBeOut(t *testing.T) {
	// spec: msc3902, s2s#device-management
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 2, Servers: 3})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		// One who may put others out has gone before alice comes, and two come after her.
		levels := room.Add(t, 0, "m.room.power_levels", ptr(""), J{"users": J{string(room.User(0)): 100, string(room.User(1)): 100}})
		join := room.JoinOf(t, room.User(1))
		room.Add(t, 1, "m.room.member", ptr(string(room.User(1))), J{"membership": "leave"})
		held := holdState(t, room)
		heard, late := make(chan string, 100), room.Servers[2]
		state := room.Intercept
		room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
			if kind != "send" || r.Host != late.Name {
				return state(kind, w, r)
			}
			text, _ := io.ReadAll(r.Body) // a broken one has no EDUs
			for _, edu := range gjson.GetBytes(text, "edus").Array() {
				if edu.Get("edu_type").Str == "m.device_list_update" {
					heard <- edu.Get("content.device_display_name").Str
				}
			}
			io.WriteString(w, `{"pdus":{}}`)
			return true
		}
		alice.Join(string(room.ID), room.Servers[0].Name)
		came := room.Add(t, 2, "m.room.member", ptr(string(room.User(2))), J{"membership": "join"})
		room.Tell(t, s, came)
		device := alice.OK("GET", "/_matrix/client/v3/account/whoami", nil).Get("device_id").Str
		rename := func(name string) {
			alice.OK("PUT", "/_matrix/client/v3/devices/"+url.PathEscape(device), J{"display_name": name})
		}
		hears := func(name string) {
			t.Helper()
			for timeout := time.After(time.Minute); ; {
				select {
				case got := <-heard:
					if got == name {
						return
					}
				case <-timeout:
					t.Fatalf("the server did not hear of %s", name)
				}
			}
		}
		rename("while it is in the room")
		hears("while it is in the room")
		// By a part of the state they are out again; by the whole they never were.
		out := room.Make(t, 1, "m.room.member", ptr(string(room.User(2))), J{"membership": "leave"}, func(p *event.Proto) {
			p.AuthEvents = []id.EventID{p.AuthEvents[0], levels.ID(), join, came.ID()}
		})
		room.Tell(t, s, out)
		if !shown(alice, room, out.ID()) {
			t.Fatal("what a part of the state allows is not shown")
		}
		rename("while it seems to be out")
		said := room.Make(t, 2, "m.room.message", nil, J{"msgtype": "m.text", "body": "I am not out"}, func(p *event.Proto) {
			p.PrevEvents, p.Depth = []id.EventID{out.ID()}, out.Depth()+1
		})
		if a := room.Tell(t, s, said); a.Get("pdus").Map()[string(said.ID())].Get("error").Exists() {
			t.Errorf("what waits for the whole state is refused: %s", a)
		}
		if shown(alice, room, said.ID()) {
			t.Error("what a part of the state refuses is shown")
		}
		held.Open()
		awaitWhole(t, alice, room)
		hears("while it seems to be out")
		for late := time.Now().Add(time.Minute); !shown(alice, room, said.ID()); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatal("what the whole state allows is not shown")
			}
		}
	})
}

func TestLeavingAndComingBackWhilePartial(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 30, Servers: 3})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		room.Live = true
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		leave := func() {
			alice.OK("POST", homeserver.Room(string(room.ID), "leave"), J{})
			room.AwaitMember(t, alice.ID, "leave")
			alice.OK("POST", homeserver.Room(string(room.ID), "leave"), J{}) // its answer might have been lost
		}
		leave()
		alice.Join(string(room.ID), room.Servers[1].Name)
		bob.Join(string(room.ID), room.Servers[2].Name)
		leave()
		// A kick, too, ends it.
		key := bob.ID
		kick := room.Add(t, 0, "m.room.member", &key, J{"membership": "leave"})
		room.Tell(t, s, kick)
		bob.Refused(403, "M_FORBIDDEN", "PUT", homeserver.Room(string(room.ID), "send", "m.room.message", homeserver.Txn()), J{"body": "x", "msgtype": "m.text"})
		bob.Join(string(room.ID), room.Servers[0].Name)
		held.Open()
		awaitWhole(t, bob, room)
		if n := bob.OK("GET", homeserver.Room(string(room.ID), "joined_members"), nil).Get("joined").Map(); len(n) != 31 {
			t.Errorf("%d joined members, want 31", len(n))
		}
	})
}

// Somebody has been banned, which we do not know before the room is whole, and a server brings what they said beforehand on a
// branch of its own. What is missing below that is missing below what builds on it when it turns out to be refused.
func TestWhatIsMissingBelowARefusedEventIsStillAskedFor(t *testing.T) {
	// spec: msc3902, s2s#backfilling-and-retrieving-missing-events
	ca := homeserver.NewCA(t)
	room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
	s := homeserver.Start(t, homeserver.Options{CA: ca})
	alice := s.Register(t, "alice")
	base := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "where the branch begins"})
	on := func(prev *event.Event) func(p *event.Proto) {
		return func(p *event.Proto) {
			p.PrevEvents, p.Depth = []id.EventID{prev.ID()}, prev.Depth()+1
			p.ReferenceHashes[prev.ID()] = prev.ReferenceHash()
		}
	}
	say := func(sender int, prev *event.Event) *event.Event {
		return room.Make(t, sender, "m.room.message", nil, J{"msgtype": "m.text", "body": "on a branch"}, on(prev))
	}
	below := say(5, base)
	refused := say(9, below)
	above := say(5, refused)
	next := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "has the state that the branch has"})
	room.Add(t, 0, "m.room.member", ptr(string(room.User(9))), J{"membership": "ban"})
	held := newGate()
	t.Cleanup(held.Open)
	room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
		switch kind {
		case "state_ids":
			held.wait(r)
			if v := r.URL.Query().Get("event_id"); v == string(refused.ID()) || v == string(below.ID()) {
				r.URL.RawQuery = url.Values{"event_id": {string(next.ID())}}.Encode()
			}
		case "get_missing_events":
			io.WriteString(w, `{"events":[]}`)
			return true
		case "backfill":
			json.NewEncoder(w).Encode(J{"origin": "", "origin_server_ts": 1, "pdus": []json.RawMessage{refused.JSON(), below.JSON()}})
			return true
		}
		return false
	}
	alice.Join(string(room.ID), room.Servers[0].Name)
	room.Tell(t, s, refused)
	room.Tell(t, s, above)
	if !shown(alice, room, above.ID()) {
		t.Fatal("what builds on it is not there")
	}
	held.Open()
	awaitWhole(t, alice, room)
	if shown(alice, room, refused.ID()) {
		t.Fatal("what a banned member said is still there")
	}
	alice.OK("GET", homeserver.Room(string(room.ID), "messages")+"?dir=b&limit=100", nil)
	if !shown(alice, room, below.ID()) {
		t.Error("what is missing below it did not come")
	}
}

// A room that is not whole is not shown to clients who do not load members lazily. Who leaves it then is told of it from its
// beginning: their client has nothing of it.
func TestWhoLeavesAPartialRoomIsToldOfIt(t *testing.T) {
	// spec: msc3902, c2s/sync
	ca := homeserver.NewCA(t)
	room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 2})
	s := homeserver.Start(t, homeserver.Options{CA: ca})
	alice := s.Register(t, "alice")
	room.Live = true
	held := holdState(t, room)
	since := alice.Sync("").Get("next_batch").Str
	alice.Join(string(room.ID), room.Servers[0].Name)
	got := alice.Sync(since)
	if got.Get("rooms.join." + escape(string(room.ID))).Exists() {
		t.Error("the room is shown before it is whole")
	}
	alice.OK("POST", homeserver.Room(string(room.ID), "leave"), J{})
	left := alice.Sync(got.Get("next_batch").Str).Get("rooms.leave." + escape(string(room.ID)) + ".timeline")
	if !left.Get("limited").Bool() || left.Get("prev_batch").Str == "" || left.Get("events.#").Int() < 2 {
		t.Errorf("of the room that she left alice is told %s", left)
	}
	held.Open()
}

func TestHostileResidentDoesNotStopTheServer(t *testing.T) {
	// spec: msc3902
	ca := homeserver.NewCA(t)
	s := homeserver.Start(t, homeserver.Options{CA: ca, Settings: map[string]string{"CHANCERY_FEDERATION_RETRY_MIN": "100ms"}})
	alice := s.Register(t, "alice")
	for name, spoil := range map[string]func(room *largeroom.Room, kind string, w http.ResponseWriter, r *http.Request) bool{
		"nonsense for names": func(_ *largeroom.Room, kind string, w http.ResponseWriter, _ *http.Request) bool {
			if kind == "state_ids" {
				io.WriteString(w, `{}`)
			}
			return kind == "state_ids"
		},
		"names of what is not there": func(_ *largeroom.Room, kind string, w http.ResponseWriter, _ *http.Request) bool {
			if kind == "state_ids" {
				fmt.Fprintf(w, `{"pdu_ids":["$%s"],"auth_chain_ids":["$a","$b"]}`, strings.Repeat("x", 43))
			}
			return kind == "state_ids"
		},
		"events without signatures": func(room *largeroom.Room, kind string, w http.ResponseWriter, r *http.Request) bool {
			if kind != "state" && kind != "event" {
				return false
			}
			whole := &recorded{header: http.Header{}}
			if kind == "event" {
				room.One(whole, r)
			} else {
				room.Whole(whole, r)
			}
			io.WriteString(w, strings.ReplaceAll(whole.text.String(), `"ed25519:a`, `"ed25519:b`))
			return true
		},
		"an answer that does not end": func(_ *largeroom.Room, kind string, w http.ResponseWriter, _ *http.Request) bool {
			if kind != "state" {
				return false
			}
			io.WriteString(w, `{"pdus":[`)
			for range 50 << 20 / 1024 {
				if _, err := io.WriteString(w, `{"type":"`+strings.Repeat("x", 1000)+`"},`); err != nil {
					break
				}
			}
			return true
		},
		"a refusal": func(_ *largeroom.Room, kind string, w http.ResponseWriter, _ *http.Request) bool {
			if kind == "state_ids" {
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, `{"errcode":"M_FORBIDDEN","error":"no"}`)
			}
			return kind == "state_ids"
		},
	} {
		t.Run(name, func(t *testing.T) {
			room := largeroom.New(t, ca, largeroom.Options{Members: 400, Servers: 3})
			bad := room.Servers[0].Name
			room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
				return r.Host == bad && spoil(room, kind, w, r)
			}
			alice := alice.As(t)
			alice.Join(string(room.ID), bad)
			// The room can be used, whatever its resident does, and another server gives the rest.
			room.Await(t, id.EventID(alice.Send(string(room.ID), "hello")))
			members := awaitWhole(t, alice, room)
			if n := len(members.Get("chunk").Array()); n != 401 {
				t.Errorf("%d member events, want 401", n)
			}
		})
	}
}

func TestOurServersJoinEachOtherInPart(t *testing.T) {
	// spec: msc3902, msc3706
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice, bob := a.Register(t, "alice"), b.Register(t, "bob")
		for _, of := range []struct{ owner, guest *homeserver.User }{{alice, bob}, {bob, alice}} {
			room := of.owner.CreateRoom(J{"preset": "private_chat", "name": "inner circle"})
			of.owner.Invite(room, of.guest.ID)
			of.guest.Join(room, of.owner.Server.Name)
			sent := of.guest.Send(room, "I am here")
			members := of.guest.OK("GET", homeserver.Room(room, "members"), nil).Get("chunk").Array()
			if len(members) != 2 {
				t.Errorf("%d members", len(members))
			}
			want := of.owner.OK("GET", homeserver.Room(room, "state"), nil).Get("#.event_id").Array()
			got := of.guest.OK("GET", homeserver.Room(room, "state"), nil).Get("#.event_id").Array()
			if len(want) != len(got) {
				t.Errorf("%d pieces of state with who joined, %d where they joined", len(got), len(want))
			}
			if a := of.owner.Ask("GET", homeserver.Room(room, "event", sent), nil); a.Status != 200 && a.Status != 404 {
				t.Errorf("%s", a)
			}
		}
	})
}

func TestEventsOverGapsHaveTheirStateOnceTheRoomIsWhole(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		before, around := newGate(), newGate()
		t.Cleanup(before.Open)
		t.Cleanup(around.Open)
		var asked atomic.Int32
		unheard := &refusals{}
		room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case kind == "get_missing_events" || kind == "backfill" || kind == "event" && unheard.has(r):
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, `{"errcode":"M_FORBIDDEN","error":"no"}`)
				return true
			case kind == "state_ids" && asked.Add(1) == 1:
				before.wait(r)
			case kind == "state_ids":
				around.wait(r)
			}
			return false
		}
		alice.Join(string(room.ID), room.Servers[0].Name)
		// Newcomers of whom we hear only by what others build on their joins.
		over := func(newcomer int) *event.Event {
			key := string(room.User(newcomer))
			unheard.refuse("M_FORBIDDEN", room.Add(t, newcomer, "m.room.member", &key, J{"membership": "join"}).ID())
			ev := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "welcome"})
			room.Tell(t, s, ev)
			return ev
		}
		first := over(20)
		want := room.State()
		before.Open()
		<-around.asked
		second := over(21) // while the state around the first is asked for
		around.Open()
		awaitWhole(t, alice, room)
		sameState(t, s, room, first.ID(), want)
		sameState(t, s, room, second.ID(), room.State())
	})
}

// A second user of ours joins through another server while the room is partial, after somebody of whom we have not heard:
// what the join builds on is not here before the room is whole.
func TestSecondJoinWhilePartialHasItsTrueState(t *testing.T) {
	// spec: msc3902
	for name, refusals := range map[string]int32{"told at once": 0, "told late": 4} {
		t.Run(name, func(t *testing.T) {
			homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
				ca := homeserver.NewCA(t)
				room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
				room.Live = true
				s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
				alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
				held := newGate()
				t.Cleanup(held.Open)
				var second atomic.Value // Bob's join
				var refused atomic.Int32
				room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
					if kind != "state_ids" {
						return false
					}
					held.wait(r)
					if r.URL.Query().Get("event_id") == second.Load() && refused.Add(1) <= refusals {
						w.WriteHeader(http.StatusForbidden)
						io.WriteString(w, `{"errcode":"M_UNABLE_DUE_TO_PARTIAL_STATE","error":"not yet"}`)
						return true
					}
					return false
				}
				alice.Join(string(room.ID), room.Servers[0].Name)
				newcomer := string(room.User(20))
				came := room.Add(t, 20, "m.room.member", &newcomer, J{"membership": "join"})
				said := room.Add(t, 20, "m.room.message", nil, J{"msgtype": "m.text", "body": "is this the right room?"})
				before := room.State()
				bob.Join(string(room.ID), room.Servers[1].Name)
				join := room.JoinOf(t, id.UserID(bob.ID))
				second.Store(string(join))
				held.Open()
				awaitWhole(t, alice, room)
				sameState(t, s, room, join, before)
				last := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "it is"})
				room.Tell(t, s, last)
				sameState(t, s, room, last.ID(), room.State())
				if n := alice.OK("GET", homeserver.Room(string(room.ID), "joined_members"), nil).Get("joined").Map(); len(n) != 23 {
					t.Errorf("%d joined members, want 23", len(n))
				}
				// What the join builds on comes when the room is whole.
				room.Tell(t, s, came, said)
				next := room.Add(t, 20, "m.room.message", nil, J{"msgtype": "m.text", "body": "good"})
				if a := room.Tell(t, s, next); a.Get("pdus").Map()[string(next.ID())].Get("error").Exists() || !shown(alice, room, next.ID()) {
					t.Errorf("what the newcomer says is not taken: %s", a)
				}
				sameState(t, s, room, next.ID(), room.State())
			})
		})
	}
}

// A user of ours who was banned before another one's join is let in again after it, and joins while the room is partial.
// That they may is true of what their join builds on, whether it has come by then or not.
func TestWhoIsLetInAgainWhilePartialStaysIn(t *testing.T) {
	// spec: msc3902
	for _, given := range []bool{true, false} {
		t.Run(fmt.Sprint("given ", given), func(t *testing.T) {
			homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
				ca := homeserver.NewCA(t)
				room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
				room.Live = true
				s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
				alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
				held := newGate()
				t.Cleanup(held.Open)
				room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
					if kind == "state_ids" {
						held.wait(r)
					}
					if !given && (kind == "get_missing_events" || kind == "backfill") {
						refuse(w, "M_FORBIDDEN")
						return true
					}
					return false
				}
				room.Add(t, 0, "m.room.member", &bob.ID, J{"membership": "ban"})
				alice.Join(string(room.ID), room.Servers[0].Name)
				unban := room.Add(t, 0, "m.room.member", &bob.ID, J{"membership": "leave"})
				bob.Join(string(room.ID), room.Servers[1].Name)
				if given {
					for deadline := time.Now().Add(time.Minute); !shown(bob, room, unban.ID()); time.Sleep(10 * time.Millisecond) {
						if time.Now().After(deadline) {
							t.Fatal("what Bob's join builds on does not come")
						}
					}
				}
				said := id.EventID(bob.Send(string(room.ID), "I am back"))
				alice.Send(string(room.ID), "and I am still here")
				held.Open()
				awaitWhole(t, alice, room)
				if !shown(alice, room, said) {
					t.Error("what Bob said is not shown any more")
				}
				if !alice.OK("GET", homeserver.Room(string(room.ID), "joined_members"), nil).Get("joined").Map()[bob.ID].Exists() {
					t.Error("Bob is not in the room any more")
				}
			})
		})
	}
}

// refusals answers what is asked about some events with a code, until it is told to give it.
type refusals struct {
	mu   sync.Mutex
	code map[string]string // by event ID
}

func (r *refusals) refuse(code string, events ...id.EventID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if events == nil {
		r.code = nil
	} else if r.code == nil {
		r.code = map[string]string{}
	}
	for _, v := range events {
		r.code[string(v)] = code
	}
}

func (r *refusals) of(req *http.Request) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.code[req.URL.Query().Get("event_id")]
}

// has says that what a request names in its path is refused.
func (r *refusals) has(req *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.code[req.PathValue("event")] != ""
}

// stateIDs asks a server for the state before an event.
func stateIDs(t *testing.T, s *homeserver.Server, room *largeroom.Room, at id.EventID) homeserver.Answer {
	t.Helper()
	return room.Servers[0].As(t).Ask(s, homeserver.Signed{Method: "GET",
		Path: "/_matrix/federation/v1/state_ids/" + url.PathEscape(string(room.ID)) + "?event_id=" + url.QueryEscape(string(at))})
}

// awaitKnown waits until a server tells the state before an event.
func awaitKnown(t *testing.T, s *homeserver.Server, room *largeroom.Room, at id.EventID) {
	t.Helper()
	for late := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		a := stateIDs(t, s, room, at)
		if a.Status == 200 {
			return
		}
		if time.Now().After(late) {
			t.Fatalf("the state before %s is still not known: %s", at, a)
		}
	}
}

// Nobody tells the state before an event over a gap: the room becomes whole without it, nobody is told what we made of
// it, and the true one is learned when somebody tells it.
func TestStateThatNobodyToldIsLearnedLater(t *testing.T) {
	// spec: msc3902
	for name, code := range map[string]string{"nobody knows": "M_NOT_FOUND", "nobody knows yet": "M_UNABLE_DUE_TO_PARTIAL_STATE"} {
		t.Run(name, func(t *testing.T) {
			homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
				ca := homeserver.NewCA(t)
				room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
				room.Live = true
				s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
				alice := s.Register(t, "alice")
				held := newGate()
				t.Cleanup(held.Open)
				no, unheard := &refusals{}, &refusals{}
				room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
					switch {
					case kind == "get_missing_events" || kind == "backfill" || kind == "event" && unheard.has(r):
						refuse(w, "M_FORBIDDEN")
						return true
					case kind == "state_ids":
						held.wait(r)
						if code := no.of(r); code != "" {
							refuse(w, code)
							return true
						}
					}
					return false
				}
				alice.Join(string(room.ID), room.Servers[0].Name)
				newcomer := string(room.User(20))
				came := room.Add(t, 20, "m.room.member", &newcomer, J{"membership": "join"}).ID()
				unheard.refuse("M_FORBIDDEN", came)
				want := room.State()
				over := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "welcome"})
				no.refuse(code, came, over.ID())
				room.Tell(t, s, over)
				// What we make of the state does not have the newcomer, nor does what follows from it.
				between := room.Add(t, 7, "m.room.message", nil, J{"msgtype": "m.text", "body": "who are you?"})
				room.Tell(t, s, between)
				hers := room.Add(t, 20, "m.room.message", nil, J{"msgtype": "m.text", "body": "I am new here"})
				room.Tell(t, s, hers)
				held.Open()
				awaitWhole(t, alice, room)
				last := room.Add(t, 6, "m.room.message", nil, J{"msgtype": "m.text", "body": "yes, welcome"})
				room.Tell(t, s, last)
				if !shown(alice, room, over.ID()) || !shown(alice, room, last.ID()) {
					t.Error("what was said over the gap is not shown")
				}
				if a := stateIDs(t, s, room, over.ID()); a.Code() != "M_UNABLE_DUE_TO_PARTIAL_STATE" {
					t.Errorf("who asks for a state that we do not know gets %s", a)
				}
				no.refuse("")
				awaitKnown(t, s, room, over.ID())
				sameState(t, s, room, over.ID(), want)
				sameState(t, s, room, last.ID(), want)
				for late := time.Now().Add(2 * time.Minute); !shown(alice, room, hers.ID()); time.Sleep(50 * time.Millisecond) {
					if time.Now().After(late) {
						t.Fatal("what the newcomer said is not shown when it is known that she is here")
					}
				}
				members := alice.OK("GET", homeserver.Room(string(room.ID), "joined_members"), nil).Get("joined").Map()
				if _, ok := members[newcomer]; !ok || len(members) != 22 {
					t.Errorf("%d joined members, want 22 and %s among them", len(members), newcomer)
				}
			})
		})
	}
}

// What came into a room that we left before it was whole has its true state when we come back.
func TestStatesFromBeforeLeavingAreLearnedAfterComingBack(t *testing.T) {
	// spec: msc3902
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		room := largeroom.New(t, ca, largeroom.Options{Members: 20, Servers: 3})
		room.Live = true
		s := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice := s.Register(t, "alice")
		held := holdState(t, room)
		alice.Join(string(room.ID), room.Servers[0].Name)
		want := room.State()
		said := room.Add(t, 5, "m.room.message", nil, J{"msgtype": "m.text", "body": "stay a while"})
		room.Tell(t, s, said)
		alice.OK("POST", homeserver.Room(string(room.ID), "leave"), J{})
		room.AwaitMember(t, alice.ID, "leave")
		alice.Join(string(room.ID), room.Servers[1].Name)
		held.Open()
		awaitWhole(t, alice, room)
		awaitKnown(t, s, room, said.ID())
		sameState(t, s, room, said.ID(), want)
		last := room.Add(t, 6, "m.room.message", nil, J{"msgtype": "m.text", "body": "welcome back"})
		room.Tell(t, s, last)
		sameState(t, s, room, last.ID(), room.State())
	})
}

func refuse(w http.ResponseWriter, code string) {
	status := http.StatusForbidden
	if code == "M_NOT_FOUND" {
		status = http.StatusNotFound
	}
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"errcode":%q,"error":"no"}`, code)
}

// A member whose join no server gives, though all name it: the room becomes whole without them, and they are learned when
// somebody gives it.
func TestWhatAllServersWithholdIsLearnedLater(t *testing.T) {
	// spec: msc3902
	ca := homeserver.NewCA(t)
	room := largeroom.New(t, ca, largeroom.Options{Members: 60, Servers: 3})
	room.Live = true
	s := homeserver.Start(t, homeserver.Options{CA: ca, Settings: map[string]string{"CHANCERY_FEDERATION_RETRY_MIN": "100ms"}})
	alice := s.Register(t, "alice")
	withheld := room.JoinOf(t, room.User(50))
	var given atomic.Bool
	room.Intercept = func(kind string, w http.ResponseWriter, r *http.Request) bool {
		switch {
		case given.Load():
		case kind == "event" && strings.HasSuffix(r.URL.Path, string(withheld)):
			refuse(w, "M_NOT_FOUND")
			return true
		case kind == "state":
			whole := &recorded{header: http.Header{}}
			room.Whole(whole, r)
			io.WriteString(w, strings.Replace(whole.text.String(), string(room.Event(withheld).JSON()), "{}", 1))
			return true
		}
		return false
	}
	alice.Join(string(room.ID), room.Servers[0].Name)
	want := room.State()
	join := room.JoinOf(t, id.UserID(alice.ID))
	delete(want, join)
	members := awaitWhole(t, alice, room)
	if n := len(members.Get("chunk").Array()); n != 60 {
		t.Errorf("%d member events, want 60", n)
	}
	given.Store(true)
	awaitKnown(t, s, room, join)
	sameState(t, s, room, join, want)
	said := room.Add(t, 50, "m.room.message", nil, J{"msgtype": "m.text", "body": "I am here"})
	room.Tell(t, s, said)
	if !shown(alice, room, said.ID()) {
		t.Error("what the member says is not shown")
	}
	room.Await(t, id.EventID(alice.Send(string(room.ID), "good to know")))
}
