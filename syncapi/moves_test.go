package syncapi_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"chancery/roomserver/event"

	"maunium.net/go/mautrix/id"
)

// fork has a user of ours say something that builds on an older event than the room's last, as another server
// might bring it.
func (s *server) fork(who, room, after, typ string, key *string, content object, auth ...string) string {
	s.t.Helper()
	version, _ := event.Lookup("12")
	text, err := json.Marshal(content)
	if err != nil {
		s.t.Fatal(err)
	}
	p := event.Proto{RoomID: id.RoomID(room), Sender: id.UserID(who), Type: typ, StateKey: key, Content: text, Depth: 100,
		PrevEvents: []id.EventID{id.EventID(after)}}
	for _, v := range auth {
		p.AuthEvents = append(p.AuthEvents, id.EventID(v))
	}
	ev, err := event.Build(version, p, "test", s.keys.Key().ID, s.keys.Key().Private, time.Now())
	if err != nil {
		s.t.Fatal(err)
	}
	if failed := s.rooms.Receive(s.t.Context(), "test", []json.RawMessage{ev.JSON()})[ev.ID()]; failed != nil {
		s.t.Fatal(failed)
	}
	return string(ev.ID())
}

// id gives the event that stands in a room's state.
func (s *server) id(room, typ, key string) (eventID string) {
	s.t.Helper()
	for _, ev := range s.ok(alice, "GET", at(room, "state"), nil).Array() {
		if ev.Get("type").Str == typ && ev.Get("state_key").Str == key {
			eventID = ev.Get("event_id").Str
		}
	}
	if eventID == "" {
		s.t.Fatalf("there is no %s %q", typ, key)
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
		room := s.create(alice, object{})
		s.set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
		s.set(alice, room, "m.room.topic", "", object{"topic": "first"})
		before := s.say(alice, room, "before")
		mine, levels := s.id(room, "m.room.member", alice), s.id(room, "m.room.power_levels", "")
		s.join(bob, room)
		s.join(carol, room)
		s.set(alice, room, "m.room.topic", "", object{"topic": "second"})
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
			t.Errorf("bob, who is in the room no more, is told %s", told.Raw)
		}
		if again := s.get(bob, told.next(), "timeout", "0"); again.Get("rooms").Exists() {
			t.Errorf("bob is told twice: %s", again.Raw)
		}
		if rooms := s.ok(bob, "GET", v3+"/joined_rooms", nil).Get("joined_rooms").Array(); len(rooms) != 0 {
			t.Errorf("bob is in %v", rooms)
		}
		if a := s.ask(bob, "PUT", at(room, "send", "m.room.message", "x"), object{"body": "still here", "msgtype": "m.text"}); a.status != 403 {
			t.Errorf("bob may still speak: %d %s", a.status, a.Raw)
		}
	})
}

// Where the power levels of one branch undo what was done on the other, clients get the older event again.
//
// spec: c2s/sync, msc4222
func TestStateThatFallsBackReachesClients(t *testing.T) {
	eachEngine(t, func(s *server) {
		empty := ""
		room := s.create(alice, object{})
		s.set(alice, room, "m.room.join_rules", "", object{"join_rule": "public"})
		s.join(bob, room)
		s.set(alice, room, "m.room.power_levels", "", object{"users": object{bob: 50}})
		first := s.set(alice, room, "m.room.topic", "", object{"topic": "first"})
		mine, levels := s.id(room, "m.room.member", alice), s.id(room, "m.room.power_levels", "")
		s.set(bob, room, "m.room.topic", "", object{"topic": "second"})
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
