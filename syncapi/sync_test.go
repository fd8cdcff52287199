package syncapi_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/storage"
)

// spec: c2s/sync
func TestInitialSyncTellsRoomsWithTimelineAndState(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, object{"preset": "public_chat", "name": "Town hall"})
		for i := range 12 {
			s.Say(alice, room, fmt.Sprint(i))
		}
		a := s.get(alice, "")
		r := a.room("join", room)
		same(s.T, "timeline", a.bodies("join", room), []string{"2", "3", "4", "5", "6", "7", "8", "9", "10", "11"})
		if !r.Get("timeline.limited").Bool() || r.Get("timeline.prev_batch").Str == "" {
			s.T.Errorf("the timeline is not limited: %s", r.Get("timeline"))
		}
		got := strings.Join(states(r.Get("state.events")), " ")
		for _, want := range []string{"m.room.create|", "m.room.member|" + alice, "m.room.power_levels|", "m.room.join_rules|", "m.room.name|"} {
			if !strings.Contains(got, want) {
				s.T.Errorf("the state lacks %s: %s", want, got)
			}
		}
		if r.Get(`summary.m\.joined_member_count`).Int() != 1 || r.Get(`summary.m\.heroes`).Exists() {
			s.T.Errorf("summary %s", r.Get("summary"))
		}
		if ev := r.Get("timeline.events.0"); ev.Get("room_id").Exists() || !ev.Get("unsigned.age").Exists() || ev.Get("unsigned.transaction_id").Str == "" {
			s.T.Errorf("an event has the form %s", ev)
		}
		if !a.Get(`account_data.events.#(type=="m.push_rules")`).Exists() {
			s.T.Errorf("no push rules: %s", a.Get("account_data"))
		}
	})
}

// spec: c2s#syncing
func TestIncrementalSyncTellsWhatIsNewOnce(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		first := s.get(bob, "")
		s.Say(alice, room, "one")
		second := s.get(bob, first.next())
		same(s.T, "first news", second.bodies("join", room), []string{"one"})
		r := second.room("join", room)
		if r.Get("timeline.limited").Bool() || len(r.Get("state.events").Array()) != 0 || r.Get("summary").Exists() {
			s.T.Errorf("more than the message is told: %s", r)
		}
		s.Set(alice, room, "m.room.topic", "", object{"topic": "x"})
		for i := range 3 {
			s.Say(alice, room, fmt.Sprint("two ", i))
		}
		third := s.get(bob, second.next(), "filter", `{"room":{"timeline":{"limit":2}}}`)
		same(s.T, "limited news", third.bodies("join", room), []string{"two 1", "two 2"})
		r = third.room("join", room)
		same(s.T, "state of the gap", states(r.Get("state.events")), []string{"m.room.topic|"})
		if !r.Get("timeline.limited").Bool() {
			s.T.Error("the timeline is not limited")
		}
		again := s.get(bob, second.next(), "filter", `{"room":{"timeline":{"limit":2}}}`)
		same(s.T, "the same question again", again.bodies("join", room), third.bodies("join", room))
		last := s.get(bob, third.next())
		if last.Get("rooms").Exists() {
			s.T.Errorf("something is told twice: %s", last.Text)
		}
	})
}

// spec: c2s/sync (use_state_after), msc4222
func TestStateAfterHoldsAtTheEndOfTheTimeline(t *testing.T) {
	for _, name := range []string{"use_state_after", "org.matrix.msc4222.use_state_after"} {
		s := onSQLite(t)
		member := strings.Replace(name, "use_state_after", "state_after", 1)
		member = strings.ReplaceAll(member, ".", `\.`)
		room := s.Create(alice, nil)
		first := s.get(alice, "", name, "true")
		if first.room("join", room).Get("state").Exists() || len(first.room("join", room).Get(member+".events").Array()) < 5 {
			t.Errorf("first: %s", first.room("join", room))
		}
		s.Set(alice, room, "m.room.topic", "", object{"topic": "x"})
		s.Say(alice, room, "hello")
		r := s.get(alice, first.next(), name, "true").room("join", room)
		same(t, "state after", states(r.Get(member+".events")), []string{"m.room.topic|"})
		same(t, "timeline", states(r.Get("timeline.events")), []string{"m.room.topic|"})
		s.Say(alice, room, "again")
	}
}

// spec: c2s/sync (timeout)
func TestLongPollEndsWithTheFirstNews(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		since := s.get(bob, "").next()
		since = s.get(bob, since).next()
		began := time.Now()
		got := make(chan answer)
		go func() {
			a, _ := s.Try(bob, "GET", syncPath(since, "timeout", longPoll), nil)
			got <- a
		}()
		s.waiting(1)
		s.Say(alice, room, "wake up")
		a := synced{<-got}
		same(s.T, "news", a.bodies("join", room), []string{"wake up"})
		if d := time.Since(began); d > woken {
			s.T.Errorf("it took %s", d)
		}
		began = time.Now()
		empty := s.get(bob, a.next(), "timeout", "300")
		if d := time.Since(began); d < 250*time.Millisecond || d > woken || empty.Get("rooms").Exists() {
			s.T.Errorf("nothing happened for %s: %s", d, empty.Text)
		}
	})
}

// spec: c2s/sync (rooms.invite, rooms.leave)
func TestInvitesAndLeavingHaveTheirSections(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, object{"preset": "private_chat", "name": "Secret"})
		since := s.get(bob, "").next()
		s.Invite(alice, room, bob)
		a := s.get(bob, since)
		invite := a.room("invite", room).Get("invite_state.events")
		got := strings.Join(states(invite), " ")
		for _, want := range []string{"m.room.create|", "m.room.name|", "m.room.join_rules|", "m.room.member|" + alice, "m.room.member|" + bob} {
			if !strings.Contains(got, want) {
				s.T.Errorf("the invite lacks %s: %s", want, got)
			}
		}
		for _, ev := range invite.Array() {
			if ev.Get("event_id").Exists() || ev.Get("unsigned").Exists() {
				s.T.Errorf("stripped state with more than four members: %s", ev)
			}
		}
		if initial := s.get(bob, ""); !initial.room("invite", room).Exists() {
			s.T.Errorf("an initial sync does not tell the invite: %s", initial.Text)
		}
		s.Leave(bob, room)
		a = s.get(bob, a.next())
		same(s.T, "the refused invite", states(a.room("leave", room).Get("timeline.events")), []string{"m.room.member|" + bob})
		s.Invite(alice, room, bob)
		s.Join(bob, room)
		s.Say(alice, room, "in between")
		a = s.get(bob, a.next())
		if !a.room("join", room).Get(`state.events.#(type=="m.room.create")`).Exists() && !a.room("join", room).Get(`timeline.events.#(type=="m.room.create")`).Exists() {
			s.T.Errorf("a room that was joined comes without its state: %s", a.room("join", room))
		}
		s.OK(alice, "POST", at(room, "kick"), object{"user_id": bob, "reason": "out"})
		s.Say(alice, room, "not for bob")
		a = s.get(bob, a.next())
		left := a.room("leave", room)
		same(s.T, "the kick", states(left.Get("timeline.events")), []string{"m.room.member|" + bob})
		if strings.Contains(a.Text, "not for bob") || a.room("join", room).Exists() {
			s.T.Errorf("what came after the kick is told: %s", a.Text)
		}
		if a = s.get(bob, a.next()); a.Get("rooms").Exists() {
			s.T.Errorf("a kick is told twice: %s", a.Text)
		}
		if a = s.get(bob, ""); a.Get("rooms").Exists() {
			s.T.Errorf("an initial sync tells of a room that was left: %s", a.Text)
		}
		a = s.get(bob, "", "filter", `{"room":{"include_leave":true}}`)
		if !a.room("leave", room).Exists() || strings.Contains(a.Text, "not for bob") {
			s.T.Errorf("with include_leave: %s", a.Text)
		}
		s.OK(bob, "POST", at(room, "forget"), object{})
		if a = s.get(bob, "", "filter", `{"room":{"include_leave":true}}`); a.room("leave", room).Exists() {
			s.T.Errorf("a forgotten room is told: %s", a.Text)
		}
	})
}

// An invite to a room that this server is not in, and that ended, is a room that the user left.
//
// spec: c2s/sync
func TestEndedInvitesAreRoomsThatWereLeft(t *testing.T) {
	eachEngine(t, func(s *server) {
		const room, inviter = "!r:elsewhere", "@carol:elsewhere"
		ended := `{"auth_events":[],"content":{"membership":"leave"},"depth":2,"hashes":{"sha256":""},"origin_server_ts":1,"prev_events":[],` +
			`"room_id":"` + room + `","sender":"` + inviter + `","signatures":{},"state_key":"` + bob + `","type":"m.room.member"}`
		if err := s.DB.Write(s.T.Context(), nil, func(tx storage.Tx) error {
			tx.SetInvite(storage.Invite{User: bob, RoomID: room, Version: "11", Membership: "leave", Sender: inviter, EventID: "$ended",
				Event: []byte(ended), Stripped: []byte("[]")})
			return nil
		}); err != nil {
			s.T.Fatal(err)
		}
		if a := s.get(bob, ""); a.Get("rooms").Exists() {
			s.T.Errorf("an initial sync tells of an invite that ended: %s", a.Text)
		}
		a := s.get(bob, "", "filter", `{"room":{"include_leave":true}}`)
		same(s.T, "left", states(a.room("leave", room).Get("timeline.events")), []string{"m.room.member|" + bob})
		if a = s.get(bob, a.next(), "filter", `{"room":{"include_leave":true}}`); a.Get("rooms").Exists() {
			s.T.Errorf("it is told again: %s", a.Text)
		}
	})
}

// spec: c2s#room-history-visibility
func TestHistoryBeforeTheJoinIsHidden(t *testing.T) {
	s := onSQLite(t)
	for visibility, want := range map[string][]string{"joined": {"after"}, "shared": {"before", "after"}, "invited": {"after"}, "world_readable": {"before", "after"}} {
		room := s.Create(alice, object{"preset": "public_chat", "initial_state": []object{{"type": "m.room.history_visibility", "content": object{"history_visibility": visibility}}}})
		s.Say(alice, room, "before")
		since := s.get(bob, "").next()
		s.Join(bob, room)
		s.Say(alice, room, "after")
		same(t, visibility+", initial", s.get(bob, "").bodies("join", room), want)
		same(t, visibility+", incremental", s.get(bob, since).bodies("join", room), want)
	}
}

// spec: c2s#lazy-loading-room-members
func TestLazyLoadingSendsSendersOnce(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, object{"preset": "public_chat", "name": "n"})
	s.Join(bob, room)
	s.Join(carol, room)
	for i := range 10 {
		s.Say(alice, room, fmt.Sprint(i))
	}
	const lazy = `{"room":{"state":{"lazy_load_members":true}}}`
	members := func(a synced) []string {
		out := []string{}
		for _, v := range states(a.room("join", room).Get("state.events")) {
			if user, ok := strings.CutPrefix(v, "m.room.member|"); ok {
				out = append(out, user)
			}
		}
		return out
	}
	a := s.get(carol, "", "filter", lazy)
	same(t, "members of the first sync", members(a), []string{alice, carol})
	s.Say(bob, room, "I am here")
	b := s.get(carol, a.next(), "filter", lazy)
	same(t, "a new sender", members(b), []string{bob})
	same(t, "the answer asked for again", members(s.get(carol, a.next(), "filter", lazy)), []string{bob})
	s.Say(bob, room, "again")
	s.Say(alice, room, "yes")
	c := s.get(carol, b.next(), "filter", lazy)
	same(t, "known senders", members(c), []string{})
	s.Say(bob, room, "third")
	same(t, "redundant members wanted", members(s.get(carol, c.next(), "filter", `{"room":{"state":{"lazy_load_members":true,"include_redundant_members":true}}}`)), []string{bob})
	same(t, "another device", members(s.get(carol+"/OTHER", "", "filter", lazy)), []string{alice, bob, carol})
}

// spec: c2s#filtering
func TestFiltersChooseEvents(t *testing.T) {
	s := onSQLite(t)
	room, other := s.Create(alice, nil), s.Create(alice, nil)
	s.Join(bob, room)
	s.Say(alice, room, "a1")
	s.Say(bob, room, "b1")
	s.Set(alice, room, "org.example.thing", "", object{"url": "mxc://x/y"})
	s.Say(alice, room, "a2")
	timeline := func(filter string) []string {
		t.Helper()
		out := []string{}
		for _, ev := range s.get(alice, "", "filter", filter).room("join", room).Get("timeline.events").Array() {
			out = append(out, ev.Get("type").Str+ev.Get("content.body").Str)
		}
		return out
	}
	same(t, "types", timeline(`{"room":{"timeline":{"types":["m.room.mess*"]}}}`), []string{"m.room.messagea1", "m.room.messageb1", "m.room.messagea2"})
	same(t, "senders", timeline(`{"room":{"timeline":{"types":["m.room.message"],"senders":["`+bob+`"]}}}`), []string{"m.room.messageb1"})
	same(t, "not_senders", timeline(`{"room":{"timeline":{"types":["m.room.message"],"not_senders":["`+bob+`"],"limit":1}}}`), []string{"m.room.messagea2"})
	same(t, "contains_url", timeline(`{"room":{"timeline":{"contains_url":true}}}`), []string{"org.example.thing"})
	same(t, "no types", timeline(`{"room":{"timeline":{"types":[]}}}`), []string{})
	a := s.get(alice, "", "filter", `{"room":{"rooms":["`+other+`"],"state":{"types":["m.room.create"]}},"presence":{"types":[]},"account_data":{"not_types":["m.push_rules"]}}`)
	if a.room("join", room).Exists() || !a.room("join", other).Exists() || a.Get("account_data").Exists() {
		t.Errorf("rooms: %s", a.Text)
	}
	stored := s.OK(alice, "POST", v3+"/user/"+alice+"/filter", object{"room": object{"timeline": object{"limit": 1}}}).Get("filter_id").Str
	same(t, "a stored filter", timeline(stored), []string{"m.room.messagea2"})
	for _, bad := range []string{"999", "x", `{"room":1}`, `{"event_format":"odd"}`, "{"} {
		if a := s.Ask(alice, "GET", syncPath("", "filter", bad), nil); a.Status != 400 {
			t.Errorf("the filter %s: %d %s", bad, a.Status, a.Text)
		}
	}
	if ev := s.get(alice, "", "filter", `{"event_format":"federation"}`).room("join", room).Get("timeline.events.0"); !ev.Get("prev_events").Exists() {
		t.Errorf("the federation format: %s", ev)
	}
}

// spec: c2s/sync (since)
func TestTokensOfTheWrongFormAreRefused(t *testing.T) {
	s := onSQLite(t)
	s.Create(alice, nil)
	for _, bad := range []string{"x", "s", "t12", "s1_2_3", "s1_-2", "-1", "s1_2 "} {
		if a := s.Ask(alice, "GET", syncPath(bad), nil); a.Status != 400 || a.Get("errcode").Str != "M_INVALID_PARAM" {
			t.Errorf("%q: %d %s", bad, a.Status, a.Text)
		}
	}
	for _, query := range []string{"timeout=-1", "timeout=x", "full_state=1", "set_presence=asleep", "use_state_after=yes"} {
		if a := s.Ask(alice, "GET", v3+"/sync?"+query, nil); a.Status != 400 {
			t.Errorf("%s: %d %s", query, a.Status, a.Text)
		}
	}
}

// spec: c2s#ignoring-users
func TestIgnoredUsersAreNotHeard(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Join(bob, room)
	since := s.get(alice, "").next()
	s.OK(alice, "PUT", v3+"/user/"+alice+"/account_data/m.ignored_user_list", object{"ignored_users": object{bob: object{}}})
	s.Say(bob, room, "noise")
	s.Set(alice, room, "org.example.power", "", object{})
	secret := s.Create(bob, object{"preset": "private_chat"})
	s.Invite(bob, secret, alice)
	s.Say(carolIn(s, room), room, "music")
	a := s.get(alice, since)
	same(t, "heard", a.bodies("join", room), []string{"music"})
	if a.room("invite", secret).Exists() {
		t.Error("an ignored user's invite is told")
	}
	if !a.Get(`account_data.events.#(type=="m.ignored_user_list")`).Exists() {
		t.Errorf("account data: %s", a.Get("account_data"))
	}
}

func carolIn(s *server, room string) string {
	s.Join(carol, room)
	return carol
}

// spec: c2s#extensions-to-sync
func TestToDeviceMessagesComeOnceAndInOrder(t *testing.T) {
	eachEngine(t, func(s *server) {
		since := s.get(bob, "").next()
		for i := range 130 {
			s.OK(alice, "PUT", v3+"/sendToDevice/m.test/"+fmt.Sprint("x", i), object{"messages": object{bob: object{"DEVICE": object{"n": i}}}})
		}
		next := 0
		for range 4 {
			lost := s.get(bob, since, "timeout", "100")
			a := s.get(bob, since, "timeout", "100")
			same(s.T, "asked for again", a.Get("to_device").Raw, lost.Get("to_device").Raw)
			for _, ev := range a.Get("to_device.events").Array() {
				if ev.Get("content.n").Int() != int64(next) || ev.Get("sender").Str != alice || ev.Get("type").Str != "m.test" {
					s.T.Fatalf("message %d is %s", next, ev)
				}
				next++
			}
			since = a.next()
		}
		if next != 130 {
			s.T.Errorf("%d messages came, want 130", next)
		}
	})
}

// spec: c2s#e2e-extensions-to-sync
func TestDeviceListsFollowRoomsAndKeys(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		a := s.get(alice, "")
		b := s.get(bob, "")
		if a.Get("device_lists").Exists() {
			s.T.Errorf("an initial sync has device lists: %s", a.Text)
		}
		s.Join(bob, room)
		a, b = s.get(alice, a.next()), s.get(bob, b.next())
		same(s.T, "who joined", a.Get("device_lists").Raw, `{"changed":["@bob:test"],"left":[]}`)
		same(s.T, "whom bob met", b.Get("device_lists").Raw, `{"changed":["@alice:test","@bob:test"],"left":[]}`)
		s.Say(bob, room, "x")
		if a = s.get(alice, a.next()); a.Get("device_lists").Exists() {
			s.T.Errorf("a message changes device lists: %s", a.Text)
		}
		s.Leave(bob, room)
		a, b = s.get(alice, a.next()), s.get(bob, b.next())
		same(s.T, "who left", a.Get("device_lists").Raw, `{"changed":[],"left":["@bob:test"]}`)
		same(s.T, "whom bob left", b.Get("device_lists").Raw, `{"changed":[],"left":["@alice:test"]}`)
	})
}

// spec: c2s#receipts, c2s#typing-notifications, c2s#room-tagging
func TestEphemeralAndAccountDataOfRooms(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		event := s.Say(alice, room, "read me")
		a, b := s.get(alice, ""), s.get(bob, "")
		if n := b.room("join", room).Get("unread_notifications.notification_count").Int(); n != 1 {
			s.T.Errorf("bob has %d unread: %s", n, b.room("join", room))
		}
		s.OK(bob, "POST", at(room, "receipt", "m.read", event), object{})
		s.OK(bob, "PUT", v3+"/user/"+bob+"/rooms/"+room+"/account_data/org.example.note", object{"k": "v"})
		a, b = s.get(alice, a.next()), s.get(bob, b.next())
		content := a.room("join", room).Get(`ephemeral.events.#(type=="m.receipt").content`)
		if !content.Get(strings.ReplaceAll(event, ".", `\.`) + `.m\.read.@bob:test.ts`).Exists() {
			s.T.Errorf("the receipt: %s", a.Text)
		}
		if b.room("join", room).Get("unread_notifications.notification_count").Int() != 0 || b.room("join", room).Get("account_data.events.0.content.k").Str != "v" {
			s.T.Errorf("bob's own: %s", b.Text)
		}
		if strings.Contains(a.Text, "org.example.note") {
			s.T.Error("account data is told to others")
		}
		s.OK(bob, "POST", at(room, "receipt", "m.read.private", s.Say(alice, room, "2")), object{})
		a = s.get(alice, a.next())
		if len(a.room("join", room).Get("ephemeral.events").Array()) != 0 {
			s.T.Errorf("a private receipt is told to others: %s", a.Text)
		}
		a = s.get(alice, a.next(), "timeout", "50")
		s.OK(bob, "PUT", at(room, "typing", bob), object{"typing": true, "timeout": 20000})
		a = s.get(alice, a.next(), "timeout", "5000")
		same(s.T, "typing", a.room("join", room).Get(`ephemeral.events.#(type=="m.typing").content.user_ids`).Raw, `["@bob:test"]`)
		if again := s.get(alice, a.next(), "timeout", "50"); again.Get("rooms").Exists() {
			s.T.Errorf("typing is told twice: %s", again.Text)
		}
		s.OK(bob, "PUT", at(room, "typing", bob), object{"typing": false})
		a = s.get(alice, a.next(), "timeout", "5000")
		same(s.T, "typing ended", a.room("join", room).Get(`ephemeral.events.#(type=="m.typing").content.user_ids`).Raw, `[]`)
	})
}

// order.md 3: what was restored goes on, what was lost begins anew.
func TestTokensOfAnOlderEpoch(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Say(alice, room, "kept")
		old := s.get(alice, "").next()
		s.Say(alice, room, "after the token")
		if err := s.DB.BeginEpoch(s.T.Context(), "test"); err != nil {
			s.T.Fatal(err)
		}
		s.Say(alice, room, "in the new epoch")
		same(s.T, "goes on", s.get(alice, old).bodies("join", room), []string{"after the token", "in the new epoch"})
		lost := strings.Replace(old, old[strings.Index(old, "_")+1:strings.Index(old, "_")+17], "1999999999999999", 1)
		if a := s.get(alice, lost); !a.room("join", room).Get(`state.events.#(type=="m.room.create")`).Exists() && !a.room("join", room).Get(`timeline.events.#(type=="m.room.create")`).Exists() {
			s.T.Errorf("a token above what was restored gets no initial sync: %s", a.Text)
		}
		unknown := "s7_" + old[strings.Index(old, "_")+1:]
		if a := s.get(alice, unknown); !strings.Contains(a.Text, "kept") {
			s.T.Errorf("a token of an unknown epoch gets no initial sync: %s", a.Text)
		}
	})
}
