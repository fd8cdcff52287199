package room_test

import (
	"fmt"
	"net/url"
	"slices"
	"testing"

	"chancery/storage"
)

func bodies(a answer, list string) []string {
	var all []string
	for i := range a.array(list) {
		if a.text(list, i, "type") == "m.room.message" {
			all = append(all, a.text(list, i, "content", "body"))
		}
	}
	return all
}

func same(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// spec: c2s/getRoomEvents
func TestPagesOfHistoryFitTogether(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		var said []string
		for i := range 25 {
			said = append(said, fmt.Sprint("m", i))
			s.say(alice, room, said[i])
		}
		for _, dir := range []string{"b", "f"} {
			var got []string
			from, pages := "", 0
			for {
				a := s.ok(alice, "GET", at(room, "messages")+"?limit=7&dir="+dir+"&from="+from, nil)
				got = append(got, bodies(a, "chunk")...)
				if pages++; pages > 20 {
					t.Fatal("the pages do not end")
				}
				from = a.text("end")
				if from == "" || dir == "f" && len(a.array("chunk")) < 7 {
					break
				}
			}
			if dir == "b" {
				slices.Reverse(got)
			}
			same(t, got, said)
		}
		// A page ends where it is told to, and the other way round it begins there.
		first := s.ok(alice, "GET", at(room, "messages")+"?limit=3&dir=b", nil)
		second := s.ok(alice, "GET", at(room, "messages")+"?limit=3&dir=b&from="+first.text("end"), nil)
		same(t, bodies(second, "chunk"), []string{"m21", "m20", "m19"})
		back := s.ok(alice, "GET", at(room, "messages")+"?dir=f&from="+second.text("end")+"&to="+first.text("end"), nil)
		same(t, bodies(back, "chunk"), []string{"m19", "m20", "m21"})
		s.want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=x", nil)
		s.want(400, "M_MISSING_PARAM", alice, "GET", at(room, "messages"), nil)
		s.want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=b&from=bad", nil)
		s.want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=b&limit=-1", nil)
		for _, dir := range []string{"b", "f"} { // no event, and the next page begins at the same place
			none := s.ok(alice, "GET", at(room, "messages")+"?limit=0&dir="+dir, nil)
			if len(none.array("chunk")) != 0 || none.text("end") == "" || none.text("end") != none.text("start") {
				t.Errorf("limit=0, dir=%s: %s", dir, none.raw)
			}
		}
		s.want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=b&filter=bad", nil)
		s.want(403, "M_FORBIDDEN", bob, "GET", at(room, "messages")+"?dir=b", nil)
		s.want(403, "M_FORBIDDEN", bob, "GET", at("!nothing:test", "messages")+"?dir=b", nil)
	})
}

// spec: c2s#filtering, c2s#lazy-loading-room-members
func TestHistoryIsFiltered(t *testing.T) {
	s := onSQLite(t)
	room := s.create(alice, nil)
	s.join(bob, room)
	for i := range 30 {
		s.say(alice, room, fmt.Sprint("a", i))
	}
	s.say(bob, room, "b")
	s.send(alice, room, "m.room.message", object{"body": "picture", "msgtype": "m.image", "url": "mxc://test/x"})
	for i := range 150 {
		s.say(alice, room, fmt.Sprint("later", i))
	}
	ask := func(filter string, limit int) answer {
		return s.ok(alice, "GET", at(room, "messages")+fmt.Sprintf("?dir=b&limit=%d&filter=%s", limit, url.QueryEscape(filter)), nil)
	}
	same(t, bodies(ask(`{"senders":["@bob:test"]}`, 1), "chunk"), []string{"b"})
	same(t, bodies(ask(`{"contains_url":true}`, 10), "chunk"), []string{"picture"})
	same(t, bodies(ask(`{"not_senders":["@alice:test"],"types":["m.room.mess*"]}`, 10), "chunk"), []string{"b"})
	if a := ask(`{"types":["m.room.create"]}`, 10); len(a.array("chunk")) != 1 || a.text("end") != "" {
		t.Errorf("the first event of the room: %s", a.raw)
	}
	if a := ask(`{"not_rooms":["`+room+`"]}`, 10); len(a.array("chunk")) != 0 {
		t.Errorf("a room that is filtered out: %s", a.raw)
	}
	a := ask(`{"lazy_load_members":true,"senders":["@bob:test"],"types":["m.room.message"]}`, 10)
	if len(a.array("state")) != 1 || a.text("state", 0, "state_key") != bob {
		t.Errorf("members of the chunk: %s", a.raw)
	}
}

// spec: c2s#room-history-visibility, c2s/getRoomState
func TestWhoLeftSeesTheRoomAsItWas(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		s.say(alice, room, "before")
		s.join(bob, room)
		s.set(alice, room, "m.room.name", "", object{"name": "old"})
		during := s.say(alice, room, "during")
		s.leave(bob, room)
		s.set(alice, room, "m.room.name", "", object{"name": "new"})
		after := s.say(alice, room, "after")

		if got := s.ok(bob, "GET", at(room, "state", "m.room.name"), nil).text("name"); got != "old" {
			t.Errorf("the name is %q", got)
		}
		same(t, bodies(s.ok(bob, "GET", at(room, "messages")+"?dir=b&limit=100", nil), "chunk"), []string{"during", "before"})
		same(t, bodies(s.ok(bob, "GET", at(room, "messages")+"?dir=f&limit=100", nil), "chunk"), []string{"before", "during"})
		s.ok(bob, "GET", at(room, "event", during), nil)
		s.want(404, "M_NOT_FOUND", bob, "GET", at(room, "event", after), nil)
		s.want(404, "M_NOT_FOUND", bob, "GET", at(room, "context", after), nil)
		s.want(403, "M_FORBIDDEN", bob, "GET", at(room, "joined_members"), nil)
		if got := len(s.ok(bob, "GET", at(room, "members")+"?membership=leave", nil).array("chunk")); got != 1 {
			t.Errorf("%d members who left", got)
		}
		s.ok(bob, "POST", at(room, "forget"), object{})
		s.want(403, "M_FORBIDDEN", bob, "GET", at(room, "messages")+"?dir=b", nil)
		s.want(403, "M_FORBIDDEN", carol, "GET", at(room, "state"), nil)

		s.set(alice, room, "m.room.history_visibility", "", object{"history_visibility": "world_readable"})
		open := s.say(alice, room, "open")
		s.ok(carol, "GET", at(room, "event", open), nil)
		s.want(404, "M_NOT_FOUND", carol, "GET", at(room, "event", during), nil)
		s.ok(carol, "GET", at(room, "state"), nil)
	})
}

// spec: c2s#room-history-visibility
func TestHistoryBeforeTheJoinDependsOnVisibility(t *testing.T) {
	s := onSQLite(t)
	for _, c := range []struct {
		visibility string
		want       []string
	}{
		{"joined", []string{"joined"}},
		{"invited", []string{"joined", "invited"}},
		{"shared", []string{"joined", "invited", "before"}},
	} {
		room := s.create(alice, object{"preset": "private_chat", "initial_state": []object{
			{"type": "m.room.history_visibility", "content": object{"history_visibility": c.visibility}}}})
		s.say(alice, room, "before")
		s.ok(alice, "POST", at(room, "invite"), object{"user_id": bob})
		s.say(alice, room, "invited")
		s.want(403, "M_FORBIDDEN", bob, "GET", at(room, "messages")+"?dir=b", nil)
		s.join(bob, room)
		s.say(alice, room, "joined")
		same(t, bodies(s.ok(bob, "GET", at(room, "messages")+"?dir=b&limit=100", nil), "chunk"), c.want)
	}
}

// Who may not see what happened before the join does not see either who was there then.
//
// spec: c2s/getMembersByRoom, c2s#room-history-visibility
func TestMembersOfHiddenTimesAreHidden(t *testing.T) {
	s := onSQLite(t)
	room := s.create(alice, object{"preset": "public_chat", "initial_state": []object{
		{"type": "m.room.history_visibility", "content": object{"history_visibility": "joined"}}}})
	s.join(carol, room)
	then := s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=1", nil).text("start")
	s.leave(carol, room)
	s.join(bob, room)
	members := func(who string) int {
		return len(s.ok(who, "GET", at(room, "members")+"?membership=join&at="+then, nil).array("chunk"))
	}
	// Alice and carol were there; bob is told of today: alice and bob.
	if got := members(alice); got != 2 {
		t.Errorf("alice sees %d members", got)
	}
	for _, m := range s.ok(bob, "GET", at(room, "members")+"?membership=join&at="+then, nil).array("chunk") {
		if m.(object)["state_key"] == carol {
			t.Error("bob sees that carol was there")
		}
	}
}

// spec: c2s/getEventContext
func TestContextStandsAroundTheEvent(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		var ids []string
		for i := range 9 {
			ids = append(ids, s.say(alice, room, fmt.Sprint("m", i)))
		}
		a := s.ok(alice, "GET", at(room, "context", ids[4])+"?limit=4", nil)
		same(t, bodies(a, "events_before"), []string{"m3", "m2"})
		same(t, bodies(a, "events_after"), []string{"m5", "m6"})
		if a.text("event", "content", "body") != "m4" || len(a.array("state")) < 5 {
			t.Errorf("%s", a.raw)
		}
		same(t, bodies(s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=2&from="+a.text("start"), nil), "chunk"), []string{"m1", "m0"})
		same(t, bodies(s.ok(alice, "GET", at(room, "messages")+"?dir=f&limit=9&from="+a.text("end"), nil), "chunk"), []string{"m7", "m8"})
		lazy := s.ok(alice, "GET", at(room, "context", ids[4])+"?limit=0&filter="+url.QueryEscape(`{"lazy_load_members":true,"types":["m.room.member"]}`), nil)
		if len(lazy.array("state")) != 1 || len(lazy.array("events_before")) != 0 {
			t.Errorf("%s", lazy.raw)
		}
		s.want(404, "M_NOT_FOUND", alice, "GET", at(room, "context", "$nothing"), nil)
	})
}

// spec: c2s/getEventByTimestamp
func TestEventsAreFoundByTime(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		first := s.ok(alice, "GET", at(room, "event", s.say(alice, room, "first")), nil)
		last := s.ok(alice, "GET", at(room, "event", s.say(alice, room, "last")), nil)
		path := v1 + "/rooms/" + url.PathEscape(room) + "/timestamp_to_event"
		a := s.ok(alice, "GET", fmt.Sprintf("%s?dir=b&ts=%.0f", path, last.at("origin_server_ts").(float64)+1000), nil)
		if a.text("event_id") != last.text("event_id") {
			t.Errorf("backwards from now: %s", a.raw)
		}
		if a = s.ok(alice, "GET", path+"?dir=f&ts=0", nil); a.at("origin_server_ts").(float64) > first.at("origin_server_ts").(float64) {
			t.Errorf("forwards from the beginning: %s", a.raw)
		}
		s.want(404, "M_NOT_FOUND", alice, "GET", path+"?dir=b&ts=1", nil)
		s.want(403, "M_FORBIDDEN", bob, "GET", path+"?dir=b&ts=1", nil)
		s.want(400, "M_MISSING_PARAM", alice, "GET", path+"?dir=b", nil)
		s.join(bob, room)
		s.leave(bob, room)
		s.say(alice, room, "behind his back")
		a = s.ok(bob, "GET", path+"?dir=b&ts=9999999999999", nil)
		if left := s.ok(bob, "GET", at(room, "event", a.text("event_id")), nil); left.text("state_key") != bob {
			t.Errorf("the last that bob may see: %s", left.raw)
		}
	})
}

// spec: c2s/getMembersByRoom, c2s/getJoinedMembersByRoom
func TestMembersAreListed(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		start := s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=1", nil).text("start")
		s.join(bob, room)
		s.ok(alice, "POST", at(room, "invite"), object{"user_id": carol})
		members := func(query string) int {
			return len(s.ok(alice, "GET", at(room, "members")+query, nil).array("chunk"))
		}
		for query, want := range map[string]int{"": 3, "?membership=join": 2, "?not_membership=join": 1,
			"?membership=join&not_membership=invite": 2, "?membership=ban": 0, "?at=" + start: 1} {
			if got := members(query); got != want {
				t.Errorf("%d members with %q, want %d", got, query, want)
			}
		}
		s.want(400, "M_INVALID_PARAM", alice, "GET", at(room, "members")+"?membership=odd", nil)
		if got := s.ok(bob, "GET", at(room, "joined_members"), nil).at("joined").(object); len(got) != 2 || got[alice] == nil {
			t.Errorf("joined %v", got)
		}
	})
}

// spec: c2s/getRoomEvents
func TestHistoryGoesOnBelowAGapThatNobodyFills(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		s.say(alice, room, "below")
		above := s.say(alice, room, "above")
		s.say(alice, room, "top")
		err := s.db.Write(t.Context(), nil, func(tx storage.Tx) error {
			ev, _, err := tx.Event(above)
			tx.AddMissing(ev.Room, ev.NID, "$missing")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		first := s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=50", nil)
		same(t, bodies(first, "chunk"), []string{"top", "above"})
		second := s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=1&from="+first.text("end"), nil)
		same(t, bodies(second, "chunk"), []string{"below"})
		// A page that ends above the gap does not know of it.
		same(t, bodies(s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=1", nil), "chunk"), []string{"top"})
		context := s.ok(alice, "GET", at(room, "context", above)+"?limit=9", nil)
		same(t, bodies(context, "events_before"), nil)
	})
}

// At the beginning of a room's history are those with whom the room began.
//
// spec: c2s/getMembersByRoom
func TestMembersAtTheBeginning(t *testing.T) {
	s := onSQLite(t)
	room := s.create(alice, nil)
	s.say(alice, room, "before")
	first := s.ok(alice, "GET", at(room, "messages")+"?dir=b&limit=100", nil)
	context := s.ok(alice, "GET", at(room, "context", first.text("chunk", len(first.array("chunk"))-1, "event_id"))+"?limit=0", nil)
	s.join(bob, room)
	s.say(bob, room, "after")
	members := s.ok(alice, "GET", at(room, "members")+"?at="+url.QueryEscape(context.text("start")), nil).array("chunk")
	if len(members) != 1 || members[0].(object)["state_key"] != alice {
		t.Errorf("at the beginning are %v", members)
	}
}
