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
	for i := range a.List(list) {
		if a.Str(list, i, "type") == "m.room.message" {
			all = append(all, a.Str(list, i, "content", "body"))
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
		room := s.Create(alice, nil)
		var said []string
		for i := range 25 {
			said = append(said, fmt.Sprint("m", i))
			s.Say(alice, room, said[i])
		}
		for _, dir := range []string{"b", "f"} {
			var got []string
			from, pages := "", 0
			for {
				a := s.OK(alice, "GET", at(room, "messages")+"?limit=7&dir="+dir+"&from="+from, nil)
				got = append(got, bodies(a, "chunk")...)
				if pages++; pages > 20 {
					t.Fatal("the pages do not end")
				}
				from = a.Str("end")
				if from == "" || dir == "f" && len(a.List("chunk")) < 7 {
					break
				}
			}
			if dir == "b" {
				slices.Reverse(got)
			}
			same(t, got, said)
		}
		// A page ends where it is told to, and the other way round it begins there.
		first := s.OK(alice, "GET", at(room, "messages")+"?limit=3&dir=b", nil)
		second := s.OK(alice, "GET", at(room, "messages")+"?limit=3&dir=b&from="+first.Str("end"), nil)
		same(t, bodies(second, "chunk"), []string{"m21", "m20", "m19"})
		back := s.OK(alice, "GET", at(room, "messages")+"?dir=f&from="+second.Str("end")+"&to="+first.Str("end"), nil)
		same(t, bodies(back, "chunk"), []string{"m19", "m20", "m21"})
		s.Want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=x", nil)
		s.Want(400, "M_MISSING_PARAM", alice, "GET", at(room, "messages"), nil)
		s.Want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=b&from=bad", nil)
		s.Want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=b&limit=-1", nil)
		for _, dir := range []string{"b", "f"} { // no event, and the next page begins at the same place
			none := s.OK(alice, "GET", at(room, "messages")+"?limit=0&dir="+dir, nil)
			if len(none.List("chunk")) != 0 || none.Str("end") == "" || none.Str("end") != none.Str("start") {
				t.Errorf("limit=0, dir=%s: %s", dir, none.Text)
			}
		}
		s.Want(400, "M_INVALID_PARAM", alice, "GET", at(room, "messages")+"?dir=b&filter=bad", nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", at(room, "messages")+"?dir=b", nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", at("!nothing:test", "messages")+"?dir=b", nil)
	})
}

// spec: c2s#filtering, c2s#lazy-loading-room-members
func TestHistoryIsFiltered(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Join(bob, room)
	for i := range 30 {
		s.Say(alice, room, fmt.Sprint("a", i))
	}
	s.Say(bob, room, "b")
	s.Send(alice, room, "m.room.message", object{"body": "picture", "msgtype": "m.image", "url": "mxc://test/x"})
	for i := range 150 {
		s.Say(alice, room, fmt.Sprint("later", i))
	}
	ask := func(filter string, limit int) answer {
		return s.OK(alice, "GET", at(room, "messages")+fmt.Sprintf("?dir=b&limit=%d&filter=%s", limit, url.QueryEscape(filter)), nil)
	}
	same(t, bodies(ask(`{"senders":["@bob:test"]}`, 1), "chunk"), []string{"b"})
	same(t, bodies(ask(`{"contains_url":true}`, 10), "chunk"), []string{"picture"})
	same(t, bodies(ask(`{"not_senders":["@alice:test"],"types":["m.room.mess*"]}`, 10), "chunk"), []string{"b"})
	if a := ask(`{"types":["m.room.create"]}`, 10); len(a.List("chunk")) != 1 || a.Str("end") != "" {
		t.Errorf("the first event of the room: %s", a.Text)
	}
	if a := ask(`{"not_rooms":["`+room+`"]}`, 10); len(a.List("chunk")) != 0 {
		t.Errorf("a room that is filtered out: %s", a.Text)
	}
	a := ask(`{"lazy_load_members":true,"senders":["@bob:test"],"types":["m.room.message"]}`, 10)
	if len(a.List("state")) != 1 || a.Str("state", 0, "state_key") != bob {
		t.Errorf("members of the chunk: %s", a.Text)
	}
}

// spec: c2s#room-history-visibility, c2s/getRoomState
func TestWhoLeftSeesTheRoomAsItWas(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Say(alice, room, "before")
		s.Join(bob, room)
		s.Set(alice, room, "m.room.name", "", object{"name": "old"})
		during := s.Say(alice, room, "during")
		s.Leave(bob, room)
		s.Set(alice, room, "m.room.name", "", object{"name": "new"})
		after := s.Say(alice, room, "after")

		if got := s.OK(bob, "GET", at(room, "state", "m.room.name"), nil).Str("name"); got != "old" {
			t.Errorf("the name is %q", got)
		}
		same(t, bodies(s.OK(bob, "GET", at(room, "messages")+"?dir=b&limit=100", nil), "chunk"), []string{"during", "before"})
		same(t, bodies(s.OK(bob, "GET", at(room, "messages")+"?dir=f&limit=100", nil), "chunk"), []string{"before", "during"})
		s.OK(bob, "GET", at(room, "event", during), nil)
		s.Want(404, "M_NOT_FOUND", bob, "GET", at(room, "event", after), nil)
		s.Want(404, "M_NOT_FOUND", bob, "GET", at(room, "context", after), nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", at(room, "joined_members"), nil)
		if got := len(s.OK(bob, "GET", at(room, "members")+"?membership=leave", nil).List("chunk")); got != 1 {
			t.Errorf("%d members who left", got)
		}
		s.OK(bob, "POST", at(room, "forget"), object{})
		s.Want(403, "M_FORBIDDEN", bob, "GET", at(room, "messages")+"?dir=b", nil)
		s.Want(403, "M_FORBIDDEN", carol, "GET", at(room, "state"), nil)

		s.Set(alice, room, "m.room.history_visibility", "", object{"history_visibility": "world_readable"})
		open := s.Say(alice, room, "open")
		s.OK(carol, "GET", at(room, "event", open), nil)
		s.Want(404, "M_NOT_FOUND", carol, "GET", at(room, "event", during), nil)
		s.OK(carol, "GET", at(room, "state"), nil)
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
		room := s.Create(alice, object{"preset": "private_chat", "initial_state": []object{
			{"type": "m.room.history_visibility", "content": object{"history_visibility": c.visibility}}}})
		s.Say(alice, room, "before")
		s.OK(alice, "POST", at(room, "invite"), object{"user_id": bob})
		s.Say(alice, room, "invited")
		s.Want(403, "M_FORBIDDEN", bob, "GET", at(room, "messages")+"?dir=b", nil)
		s.Join(bob, room)
		s.Say(alice, room, "joined")
		same(t, bodies(s.OK(bob, "GET", at(room, "messages")+"?dir=b&limit=100", nil), "chunk"), c.want)
	}
}

// Who may not see what happened before the join does not see either who was there then.
//
// spec: c2s/getMembersByRoom, c2s#room-history-visibility
func TestMembersOfHiddenTimesAreHidden(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, object{"preset": "public_chat", "initial_state": []object{
		{"type": "m.room.history_visibility", "content": object{"history_visibility": "joined"}}}})
	s.Join(carol, room)
	then := s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=1", nil).Str("start")
	s.Leave(carol, room)
	s.Join(bob, room)
	members := func(who string) int {
		return len(s.OK(who, "GET", at(room, "members")+"?membership=join&at="+then, nil).List("chunk"))
	}
	// Alice and carol were there; bob is told of today: alice and bob.
	if got := members(alice); got != 2 {
		t.Errorf("alice sees %d members", got)
	}
	for _, m := range s.OK(bob, "GET", at(room, "members")+"?membership=join&at="+then, nil).List("chunk") {
		if m.(object)["state_key"] == carol {
			t.Error("bob sees that carol was there")
		}
	}
}

// spec: c2s/getEventContext
func TestContextStandsAroundTheEvent(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		var ids []string
		for i := range 9 {
			ids = append(ids, s.Say(alice, room, fmt.Sprint("m", i)))
		}
		a := s.OK(alice, "GET", at(room, "context", ids[4])+"?limit=4", nil)
		same(t, bodies(a, "events_before"), []string{"m3", "m2"})
		same(t, bodies(a, "events_after"), []string{"m5", "m6"})
		if a.Str("event", "content", "body") != "m4" || len(a.List("state")) < 5 {
			t.Errorf("%s", a.Text)
		}
		same(t, bodies(s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=2&from="+a.Str("start"), nil), "chunk"), []string{"m1", "m0"})
		same(t, bodies(s.OK(alice, "GET", at(room, "messages")+"?dir=f&limit=9&from="+a.Str("end"), nil), "chunk"), []string{"m7", "m8"})
		lazy := s.OK(alice, "GET", at(room, "context", ids[4])+"?limit=0&filter="+url.QueryEscape(`{"lazy_load_members":true,"types":["m.room.member"]}`), nil)
		if len(lazy.List("state")) != 1 || len(lazy.List("events_before")) != 0 {
			t.Errorf("%s", lazy.Text)
		}
		s.Want(404, "M_NOT_FOUND", alice, "GET", at(room, "context", "$nothing"), nil)
	})
}

// spec: c2s/getEventByTimestamp
func TestEventsAreFoundByTime(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		first := s.OK(alice, "GET", at(room, "event", s.Say(alice, room, "first")), nil)
		last := s.OK(alice, "GET", at(room, "event", s.Say(alice, room, "last")), nil)
		path := v1 + "/rooms/" + url.PathEscape(room) + "/timestamp_to_event"
		a := s.OK(alice, "GET", fmt.Sprintf("%s?dir=b&ts=%.0f", path, last.Value("origin_server_ts").(float64)+1000), nil)
		if a.Str("event_id") != last.Str("event_id") {
			t.Errorf("backwards from now: %s", a.Text)
		}
		if a = s.OK(alice, "GET", path+"?dir=f&ts=0", nil); a.Value("origin_server_ts").(float64) > first.Value("origin_server_ts").(float64) {
			t.Errorf("forwards from the beginning: %s", a.Text)
		}
		s.Want(404, "M_NOT_FOUND", alice, "GET", path+"?dir=b&ts=1", nil)
		s.Want(403, "M_FORBIDDEN", bob, "GET", path+"?dir=b&ts=1", nil)
		s.Want(400, "M_MISSING_PARAM", alice, "GET", path+"?dir=b", nil)
		s.Join(bob, room)
		s.Leave(bob, room)
		s.Say(alice, room, "behind his back")
		a = s.OK(bob, "GET", path+"?dir=b&ts=9999999999999", nil)
		if left := s.OK(bob, "GET", at(room, "event", a.Str("event_id")), nil); left.Str("state_key") != bob {
			t.Errorf("the last that bob may see: %s", left.Text)
		}
	})
}

// spec: c2s/getMembersByRoom, c2s/getJoinedMembersByRoom
func TestMembersAreListed(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		start := s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=1", nil).Str("start")
		s.Join(bob, room)
		s.OK(alice, "POST", at(room, "invite"), object{"user_id": carol})
		members := func(query string) int {
			return len(s.OK(alice, "GET", at(room, "members")+query, nil).List("chunk"))
		}
		for query, want := range map[string]int{"": 3, "?membership=join": 2, "?not_membership=join": 1,
			"?membership=join&not_membership=invite": 2, "?membership=ban": 0, "?at=" + start: 1} {
			if got := members(query); got != want {
				t.Errorf("%d members with %q, want %d", got, query, want)
			}
		}
		s.Want(400, "M_INVALID_PARAM", alice, "GET", at(room, "members")+"?membership=odd", nil)
		if got := s.OK(bob, "GET", at(room, "joined_members"), nil).Value("joined").(object); len(got) != 2 || got[alice] == nil {
			t.Errorf("joined %v", got)
		}
	})
}

// spec: c2s/getRoomEvents
func TestHistoryGoesOnBelowAGapThatNobodyFills(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Say(alice, room, "below")
		above := s.Say(alice, room, "above")
		s.Say(alice, room, "top")
		err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			ev, _, err := tx.Event(above)
			tx.AddMissing(ev.Room, ev.NID, "$missing")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		first := s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=50", nil)
		same(t, bodies(first, "chunk"), []string{"top", "above"})
		second := s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=1&from="+first.Str("end"), nil)
		same(t, bodies(second, "chunk"), []string{"below"})
		// A page that ends above the gap does not know of it.
		same(t, bodies(s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=1", nil), "chunk"), []string{"top"})
		context := s.OK(alice, "GET", at(room, "context", above)+"?limit=9", nil)
		same(t, bodies(context, "events_before"), nil)
	})
}

// At the beginning of a room's history are those with whom the room began.
//
// spec: c2s/getMembersByRoom
func TestMembersAtTheBeginning(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Say(alice, room, "before")
	first := s.OK(alice, "GET", at(room, "messages")+"?dir=b&limit=100", nil)
	context := s.OK(alice, "GET", at(room, "context", first.Str("chunk", len(first.List("chunk"))-1, "event_id"))+"?limit=0", nil)
	s.Join(bob, room)
	s.Say(bob, room, "after")
	members := s.OK(alice, "GET", at(room, "members")+"?at="+url.QueryEscape(context.Str("start")), nil).List("chunk")
	if len(members) != 1 || members[0].(object)["state_key"] != alice {
		t.Errorf("at the beginning are %v", members)
	}
}

// Of gaps about which nobody can be asked each is crossed by itself, and below the creation of a room those who lied about
// the depth of their events have some: who reads on reads all, once.
//
// spec: c2s/getRoomEvents
func TestHistoryIsReadAcrossGaps(t *testing.T) {
	eachEngine(t, func(s *server) {
		t := s.T
		room := s.Create(alice, nil)
		var want []string
		for i := range 12 {
			want = append(want, fmt.Sprint("m", i))
		}
		var said []string
		for _, body := range want {
			said = append(said, s.Say(alice, room, body))
		}
		if err := s.DB.Write(t.Context(), []string{room}, func(tx storage.Tx) error {
			row, _, err := tx.Room(room)
			if err != nil {
				return err
			}
			events, err := tx.EventsByID([]string{said[0], said[4], said[8]})
			if err != nil {
				return err
			}
			for _, ev := range events {
				if ev.ID == said[0] {
					tx.Exec(`UPDATE events SET ord = 1 WHERE nid = $1`, ev.NID)
					continue
				}
				tx.AddMissing(row.NID, ev.NID, "$missing below "+ev.ID)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		slices.Reverse(want)
		for _, limit := range []int{1, 3, 50} {
			var got []string
			from := ""
			for pages := 0; pages == 0 || from != ""; pages++ {
				if pages > 100 {
					t.Fatal("the pages do not end")
				}
				a := s.OK(alice, "GET", at(room, "messages")+fmt.Sprintf("?dir=b&limit=%d&from=%s", limit, from), nil)
				got = append(got, bodies(a, "chunk")...)
				from = a.Str("end")
			}
			same(t, got, want)
		}
	})
}
