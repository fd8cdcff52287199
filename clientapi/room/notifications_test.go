package room_test

import (
	"net/url"
	"strconv"
	"testing"
)

// spec: c2s/getNotifications
func TestNotificationsAreListed(t *testing.T) {
	eachEngine(t, func(s *server) {
		list := v3 + "/notifications"
		open, quiet := s.Create(alice, nil), s.Create(alice, nil)
		before := s.Say(alice, open, "before bob came")
		s.Join(bob, open)
		s.Join(bob, quiet)
		s.OK(bob, "PUT", v3+"/pushrules/global/room/"+url.PathEscape(quiet), object{"actions": []any{}})
		plain := s.Say(alice, open, "plain")
		s.Say(alice, quiet, "of which bob wants to hear nothing")
		s.Say(bob, open, "his own")
		s.Send(alice, open, "m.room.message", object{"msgtype": "m.notice", "body": "from a bot"})
		called := s.Send(alice, quiet, "m.room.message", object{"msgtype": "m.text", "body": "bob", "m.mentions": object{"user_ids": []string{bob}}})
		ignored := s.Create(carol, nil)
		s.Join(bob, ignored)
		s.Say(carol, ignored, "one")
		s.OK(bob, "PUT", v3+"/user/"+url.PathEscape(bob)+"/account_data/m.ignored_user_list", object{"ignored_users": object{carol: object{}}})

		all := s.OK(bob, "GET", list, nil)
		if len(all.List("notifications")) != 2 || all.Str("next_token") != "" {
			t.Fatalf("bob is told %s", all)
		}
		for i, want := range []struct {
			event, room string
			highlight   bool
		}{{called, quiet, true}, {plain, open, false}} {
			n := func(path ...any) any { return all.Value(append([]any{"notifications", i}, path...)...) }
			if n("event", "event_id") != want.event || n("room_id") != want.room || n("read") != false || n("event", "room_id") != nil || n("actions", 0) != "notify" ||
				n("ts") != n("event", "origin_server_ts") {
				t.Errorf("%d: %v", i, n())
			}
			highlight := false
			for _, action := range all.List("notifications", i, "actions") {
				tweak, _ := action.(object)
				highlight = highlight || tweak["set_tweak"] == "highlight"
			}
			if highlight != want.highlight {
				t.Errorf("%d: highlighted: %v", i, highlight)
			}
		}
		if got := s.OK(bob, "GET", list+"?only=highlight", nil); len(got.List("notifications")) != 1 || got.Str("notifications", 0, "event", "event_id") != called {
			t.Errorf("only highlights: %s", got)
		}

		// Page by page, and what was read is told as read.
		s.OK(bob, "POST", at(open, "receipt", "m.read.private", plain), object{})
		first := s.OK(bob, "GET", list+"?limit=1", nil)
		second := s.OK(bob, "GET", list+"?limit=1&from="+first.Str("next_token"), nil)
		if first.Str("notifications", 0, "event", "event_id") != called || first.Value("notifications", 0, "read") != false ||
			second.Str("notifications", 0, "event", "event_id") != plain || second.Value("notifications", 0, "read") != true {
			t.Errorf("two pages: %s %s", first, second)
		}
		for from, pages := second.Str("next_token"), 0; from != ""; pages++ {
			page := s.OK(bob, "GET", list+"?limit=1&from="+from, nil)
			if from = page.Str("next_token"); len(page.List("notifications")) > 0 && page.Str("notifications", 0, "event", "event_id") == before || pages > 20 {
				t.Fatalf("further down: %s", page)
			}
		}

		// Who has left is told of nothing there.
		s.Leave(bob, quiet)
		if got := s.OK(bob, "GET", list, nil); len(got.List("notifications")) != 1 {
			t.Errorf("after he left: %s", got)
		}
		for _, query := range []string{"?limit=0", "?limit=-1", "?from=nonsense", "?from=-4", "?limit=" + strconv.Itoa(1<<40) + "0000000000"} {
			if a := s.Ask(bob, "GET", list+query, nil); a.Status != 400 || a.Str("errcode") != "M_INVALID_PARAM" {
				t.Errorf("%s: %s", query, a)
			}
		}
		s.Want(401, "M_MISSING_TOKEN", "", "GET", list, nil)
	})
}
