package syncapi_test

import (
	"strings"
	"testing"
	"time"
)

// spec: c2s#e2e-extensions-to-sync
func TestKeyCountsAreInEveryAnswer(t *testing.T) {
	eachEngine(t, func(s *server) {
		key := func(n string) object { return object{"key": n, "signatures": object{}} }
		since := s.get(bob, "").next()
		if a := s.get(bob, since); a.Get("device_one_time_keys_count.signed_curve25519").Int() != 0 {
			s.T.Errorf("without keys: %s", a.Text)
		}
		s.OK(bob, "POST", v3+"/keys/upload", object{"one_time_keys": object{"signed_curve25519:AAA": key("a"), "signed_curve25519:BBB": key("b")},
			"fallback_keys": object{"signed_curve25519:FFF": object{"key": "f", "fallback": true, "signatures": object{}}}})
		a := s.get(bob, since, "timeout", longPoll)
		if a.Get("device_one_time_keys_count.signed_curve25519").Int() != 2 || a.Get("device_unused_fallback_key_types.0").Str != "signed_curve25519" {
			s.T.Errorf("after the upload: %s", a.Text)
		}
		got := make(chan answer, 1)
		began := time.Now()
		go func() {
			v, _ := s.Try(bob, "GET", syncPath(a.next(), "timeout", longPoll, "filter", `{"presence":{"types":[]}}`), nil)
			got <- v
		}()
		s.OK(alice, "POST", v3+"/keys/claim", object{"one_time_keys": object{bob: object{"DEVICE": "signed_curve25519"}}})
		b := synced{<-got}
		if b.Get("device_one_time_keys_count.signed_curve25519").Int() != 1 || time.Since(began) > woken {
			s.T.Errorf("after the claim: %s", b.Text)
		}
		if c := s.get(bob, b.next()); c.Get("device_one_time_keys_count.signed_curve25519").Int() != 1 {
			s.T.Errorf("an empty sync has no counts: %s", c.Text)
		}
	})
}

// spec: c2s#presence
func TestPresenceOfThoseWhoShareARoom(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Join(bob, room)
	a := s.get(alice, s.get(alice, "").next())
	s.OK(carol, "PUT", v3+"/presence/"+carol+"/status", object{"presence": "online", "status_msg": "stranger"})
	s.OK(bob, "PUT", v3+"/presence/"+bob+"/status", object{"presence": "unavailable", "status_msg": "tea"})
	var seen string
	for range 20 {
		a = s.get(alice, a.next(), "timeout", "500")
		seen += a.Get("presence").Raw
		if strings.Contains(seen, "tea") {
			break
		}
	}
	if !strings.Contains(seen, "tea") || strings.Contains(seen, "stranger") {
		t.Errorf("presence: %s", seen)
	}
	s.Join(carol, room) // whose presence does not change by that
	a = s.get(alice, a.next())
	if seen += a.Get("presence").Raw; strings.Count(seen, "stranger") != 1 {
		t.Errorf("of whom alice met she is told %s", a.Get("presence").Raw)
	}
	if a = s.get(alice, a.next()); a.Get("presence").Exists() || strings.Contains(seen, alice) {
		t.Errorf("told again, or of herself: %s, %s", seen, a.Get("presence").Raw)
	}
}

// What typing counted before listeners know of it must not be lost for who asks in between.
//
// spec: c2s#typing-notifications
func TestTypingIsToldToWhoAskedTooEarly(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Join(bob, room)
	a := s.get(alice, s.get(alice, "").next())
	for i := range 30 {
		on := i%2 == 0
		s.OK(bob, "PUT", at(room, "typing", bob), object{"typing": on, "timeout": 30000})
		told := false
		for range 5 {
			a = s.get(alice, a.next(), "timeout", "300")
			if told = strings.Contains(a.room("join", room).Get("ephemeral").Raw, "m.typing"); told {
				break
			}
		}
		if !told {
			t.Fatalf("change %d is lost", i)
		}
	}
}

// spec: c2s/sync (RoomSummary)
func TestSummaryNamesHeroesWhereThereIsNoName(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Join(bob, room)
	s.Invite(alice, room, carol)
	a := s.get(alice, "")
	same(t, "summary", a.room("join", room).Get("summary").Raw, `{"m.heroes":["@bob:test","@carol:test"],"m.joined_member_count":2,"m.invited_member_count":1}`)
	s.Join(carol, room)
	a = s.get(alice, a.next())
	same(t, "changed summary", a.room("join", room).Get("summary").Raw, `{"m.heroes":["@bob:test","@carol:test"],"m.joined_member_count":3,"m.invited_member_count":0}`)
	s.Leave(bob, room)
	s.Leave(carol, room)
	a = s.get(alice, a.next())
	same(t, "those who left", a.room("join", room).Get(`summary.m\.heroes`).Raw, `["@bob:test","@carol:test"]`)
}

// spec: c2s/sync (full_state)
func TestFullStateRepeatsTheStateOnly(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, object{"preset": "public_chat", "name": "n"})
	s.Say(alice, room, "old")
	since := s.get(alice, "").next()
	s.Say(alice, room, "new")
	a := s.get(alice, since, "full_state", "true", "timeout", "10000")
	same(t, "timeline", a.bodies("join", room), []string{"new"})
	if n := len(a.room("join", room).Get("state.events").Array()); n < 6 {
		t.Errorf("%d state events: %s", n, a.room("join", room))
	}
	a = s.get(alice, a.next(), "full_state", "true", "timeout", "10000")
	if !a.room("join", room).Exists() || len(a.bodies("join", room)) != 0 {
		t.Errorf("nothing new: %s", a.Text)
	}
}

// A long poll of somebody who is in no room ends with an invite; one that is stopped answers.
func TestInviteWakesAndStopAnswers(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, object{"preset": "private_chat"})
		since := s.get(carol, s.get(carol, "").next()).next()
		got := make(chan answer, 1)
		poll := func(since string) {
			v, err := s.Try(carol, "GET", syncPath(since, "timeout", longPoll), nil)
			if err != nil {
				s.T.Error(err)
			}
			got <- v
		}
		began := time.Now()
		go poll(since)
		s.waiting(1)
		s.Invite(alice, room, carol)
		a := synced{<-got}
		if !a.room("invite", room).Exists() || time.Since(began) > woken {
			s.T.Fatalf("the invite: %s", a.Text)
		}
		began = time.Now()
		go poll(a.next())
		s.waiting(1)
		s.stop()
		if b := (synced{<-got}); b.next() == "" || time.Since(began) > woken {
			s.T.Errorf("a poll that is stopped answers %s", b.Text)
		}
	})
}

// spec: c2s#tracking-the-device-list-for-a-user
func TestWhoIsKickedAndThenBannedLosesTheOthers(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, object{"preset": "public_chat"})
	s.Join(bob, room)
	since := s.get(bob, "").next()
	s.OK(alice, "POST", at(room, "kick"), object{"user_id": bob})
	s.OK(alice, "POST", at(room, "ban"), object{"user_id": bob})
	b := s.get(bob, since)
	same(t, "whom bob lost", b.Get("device_lists").Raw, `{"changed":[],"left":["@alice:test"]}`)
}
