package syncapi_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"chancery/roomserver/event"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// fork has a user of ours say something that builds on an older event than the room's last, as another server
// might bring it.
func (s *server) fork(who, room, after, typ string, key *string, content object, auth ...string) string {
	s.T.Helper()
	version, _ := event.Lookup("12")
	text, err := json.Marshal(content)
	if err != nil {
		s.T.Fatal(err)
	}
	p := event.Proto{RoomID: id.RoomID(room), Sender: id.UserID(who), Type: typ, StateKey: key, Content: text, Depth: 100,
		PrevEvents: []id.EventID{id.EventID(after)}}
	for _, v := range auth {
		p.AuthEvents = append(p.AuthEvents, id.EventID(v))
	}
	ev, err := event.Build(version, p, "test", s.Keys.Key().ID, s.Keys.Key().Private, time.Now())
	if err != nil {
		s.T.Fatal(err)
	}
	if failed := s.Rooms.Receive(s.T.Context(), "test", []json.RawMessage{ev.JSON()})[ev.ID()]; failed != nil {
		s.T.Fatal(failed)
	}
	return string(ev.ID())
}

// id gives the event that stands in a room's state.
func (s *server) id(room, typ, key string) (eventID string) {
	s.T.Helper()
	for _, ev := range s.OK(alice, "GET", at(room, "state"), nil).At().Array() {
		if ev.Get("type").Str == typ && ev.Get("state_key").Str == key {
			eventID = ev.Get("event_id").Str
		}
	}
	if eventID == "" {
		s.T.Fatalf("there is no %s %q", typ, key)
	}
	return eventID
}

// Where branches of a room meet, state may move without an event: clients are told what holds, and who is in the
// room no more is told that.
//
// spec: c2s/sync, msc4222
func TestStateThatMovesWithoutAnEventReachesClients(t *testing.T) {
	eachEngine(t, func(s *server) {
		empty := ""
		room := s.Create(alice, object{})
		s.Set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
		s.Set(alice, room, "m.room.topic", "", object{"topic": "first"})
		before := s.Say(alice, room, "before")
		mine, levels := s.id(room, "m.room.member", alice), s.id(room, "m.room.power_levels", "")
		s.Join(bob, room)
		s.Join(carol, room)
		s.Set(alice, room, "m.room.topic", "", object{"topic": "second"})
		hers := s.get(alice, "", "use_state_after", "true")
		his := s.get(bob, "")
		since, sinceBob := hers.next(), his.next()

		// The join rules of the other branch let nobody in, its topic is older than ours.
		s.fork(alice, room, before, "m.room.join_rules", &empty, object{"join_rule": "invite"}, mine, levels)
		got := s.get(alice, since, "use_state_after", "true")
		if list := states(got.room("join", room).Get("state_after.events")); len(list) != 1 || list[0] != "m.room.join_rules|" {
			t.Errorf("the state after is %q", list)
		}
		if n := got.room("join", room).Get("summary.m\\.joined_member_count").Int(); n != 1 {
			t.Errorf("alice is told of %d members: %s", n, got.room("join", room))
		}
		told := s.get(bob, sinceBob, "timeout", "0")
		if !told.room("leave", room).Exists() || told.room("join", room).Exists() {
			t.Errorf("bob, who is in the room no more, is told %s", told.Text)
		}
		if again := s.get(bob, told.next(), "timeout", "0"); again.Get("rooms").Exists() {
			t.Errorf("bob is told twice: %s", again.Text)
		}
		if rooms := s.OK(bob, "GET", v3+"/joined_rooms", nil).Get("joined_rooms").Array(); len(rooms) != 0 {
			t.Errorf("bob is in %v", rooms)
		}
		if a := s.Ask(bob, "PUT", at(room, "send", "m.room.message", "x"), object{"body": "still here", "msgtype": "m.text"}); a.Status != 403 {
			t.Errorf("bob may still speak: %d %s", a.Status, a.Text)
		}
	})
}

// A ban that failed softly and comes into the state all the same has no place in the timeline: who was banned is told of it as
// of state, and what was said before.
//
// spec: c2s/sync, s2s#soft-failure
func TestWhoIsBannedByAnEventThatFailedSoftlyIsToldOfIt(t *testing.T) {
	eachEngine(t, func(s *server) {
		t := s.T
		room := s.Create(alice, object{"preset": "public_chat"})
		s.Join(bob, room)
		s.Join(carol, room)
		levels := s.Set(alice, room, "m.room.power_levels", "", object{"users": object{carol: 50}})
		mine, his, hers := s.id(room, "m.room.member", alice), s.id(room, "m.room.member", bob), s.id(room, "m.room.member", carol)
		s.OK(carol, "POST", at(room, "leave"), object{})
		since := s.get(bob, "").next()
		missed := s.Say(alice, room, "before we saw the ban")
		victim := bob
		ban := s.fork(carol, room, levels, "m.room.member", &victim, object{"membership": "ban"}, levels, hers, his)
		if got := s.get(bob, since); got.room("leave", room).Exists() {
			t.Fatalf("bob is told %s", got.Text)
		}
		s.fork(alice, room, ban, "m.room.message", nil, object{"msgtype": "m.text", "body": "after the ban"}, levels, mine)
		got := s.get(bob, since).room("leave", room)
		if id := got.Get("state.events.#.event_id").Raw; id != `["`+ban+`"]` {
			t.Errorf("bob is told of the state %s", got)
		}
		if list := got.Get("timeline.events.#.event_id").Raw; list != `["`+missed+`"]` || got.Get("timeline.limited").Bool() {
			t.Errorf("bob is told %s", got)
		}
	})
}

// Where the power levels of one branch undo what was done on the other, clients get the older event again.
//
// spec: c2s/sync, msc4222
func TestStateThatFallsBackReachesClients(t *testing.T) {
	eachEngine(t, func(s *server) {
		empty := ""
		room := s.Create(alice, object{})
		s.Set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
		s.Join(bob, room)
		s.Set(alice, room, "m.room.power_levels", "", object{"users": object{bob: 50}})
		first := s.Set(alice, room, "m.room.topic", "", object{"topic": "first"})
		mine, levels := s.id(room, "m.room.member", alice), s.id(room, "m.room.power_levels", "")
		s.Set(bob, room, "m.room.topic", "", object{"topic": "second"})
		since := s.get(alice, "").next()
		demoted := s.fork(alice, room, first, "m.room.power_levels", &empty, object{"users": object{bob: 0}}, mine, levels)
		for _, section := range []string{"state", "state_after"} {
			query := []string{"use_state_after", fmt.Sprint(section == "state_after")}
			told := map[string]string{}
			r := s.get(alice, since, query...).room("join", room)
			for _, ev := range append(r.Get("timeline.events").Array(), r.Get(section+".events").Array()...) {
				told[ev.Get("type").Str] = ev.Get("event_id").Str
			}
			if told["m.room.topic"] != first || told["m.room.power_levels"] != demoted {
				t.Errorf("%s: told of %v in %s", section, told, r.Raw)
			}
		}
	})
}

// When nothing of a room is missing any more, somebody of ours may turn out to be in it whom the part that was known
// had not: they hear of what happens there from then on.
//
// spec: msc3902
func TestWhoIsInARoomAsItBecomesWholeHearsOfIt(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, object{})
		s.Set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
		s.Join(bob, room)
		mine := s.id(room, "m.room.member", bob)
		member := func(membership string, also func(storage.Tx, int64)) {
			s.T.Helper()
			if err := s.DB.Write(s.T.Context(), []string{room}, func(tx storage.Tx) error {
				row, _, err := tx.Room(room)
				if err != nil {
					return err
				}
				events, err := tx.EventsByID([]string{mine})
				if err != nil {
					return err
				}
				tx.SetMember(storage.Member{Room: row.NID, User: bob, Server: "test", Membership: membership, Event: events[0].NID})
				also(tx, row.NID)
				return nil
			}); err != nil {
				s.T.Fatal(err)
			}
		}
		since := s.get(bob, "").next()
		member("leave", func(tx storage.Tx, room int64) { tx.Announce(storage.Fact{Kind: sql.FactState, Room: room, User: bob}) })
		since = s.get(bob, since).next()
		since = s.get(bob, since, "timeout", "0").next()
		member("join", func(tx storage.Tx, room int64) { tx.Announce(storage.Fact{Kind: sql.FactRoomComplete, Room: room}) })
		got := s.get(bob, since, "timeout", longPoll)
		if !got.room("join", room).Exists() {
			s.T.Fatalf("bob is told %s", got.Text)
		}
		said := s.Say(alice, room, "to all")
		got = s.get(bob, got.next(), "timeout", longPoll)
		if id := got.room("join", room).Get("timeline.events.#(content.body==\"to all\").event_id").Str; id != said {
			s.T.Errorf("bob is told %s", got.Text)
		}
	})
}
