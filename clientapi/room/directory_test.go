package room_test

import (
	"net/url"
	"testing"
)

func alias(name string) string { return v3 + "/directory/room/" + url.PathEscape("#"+name+":test") }

// spec: c2s/setRoomAlias, c2s/deleteRoomAlias
func TestAliasesComeAndGo(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		s.join(bob, room)
		s.ok(alice, "PUT", alias("one"), object{"room_id": room})
		s.want(409, "M_UNKNOWN", bob, "PUT", alias("one"), object{"room_id": room})
		s.want(403, "M_FORBIDDEN", carol, "PUT", alias("two"), object{"room_id": room})
		s.want(400, "M_INVALID_PARAM", alice, "PUT", v3+"/directory/room/odd", object{"room_id": room})
		s.want(400, "M_INVALID_PARAM", alice, "PUT", v3+"/directory/room/"+url.PathEscape("#a:elsewhere.example"), object{"room_id": room})
		s.want(400, "M_MISSING_PARAM", alice, "PUT", alias("two"), object{})
		a := s.ok("", "GET", alias("one"), nil)
		if a.text("room_id") != room || len(a.array("servers")) != 1 {
			t.Errorf("%s", a.raw)
		}
		s.set(alice, room, "m.room.canonical_alias", "", object{"alias": "#one:test"})
		if got := s.ok(carol, "POST", v3+"/join/"+url.PathEscape("#one:test"), object{}).text("room_id"); got != room {
			t.Errorf("joined %q", got)
		}
		if got := s.ok(bob, "GET", at(room, "aliases"), nil).array("aliases"); len(got) != 1 || got[0] != "#one:test" {
			t.Errorf("aliases %v", got)
		}
		s.want(403, "M_FORBIDDEN", "@dave:test", "GET", at(room, "aliases"), nil)
		s.want(403, "M_FORBIDDEN", bob, "DELETE", alias("one"), nil)
		s.ok(alice, "DELETE", alias("one"), nil)
		s.want(404, "M_NOT_FOUND", alice, "DELETE", alias("one"), nil)
		s.want(404, "M_NOT_FOUND", "", "GET", alias("one"), nil)
		if got := s.ok(alice, "GET", at(room, "state", "m.room.canonical_alias"), nil).at("alias"); got != nil {
			t.Errorf("the room still names %v", got)
		}
		s.ok(bob, "PUT", alias("his"), object{"room_id": room})
		s.ok(alice, "DELETE", alias("his"), nil) // by her power in the room
	})
}

// spec: c2s/getPublicRooms, c2s/queryPublicRooms
func TestPublishedRoomsAreListed(t *testing.T) {
	eachEngine(t, func(s *server) {
		big := s.create(alice, object{"preset": "public_chat", "visibility": "public", "name": "Big Ärea"})
		s.join(bob, big)
		space := s.create(alice, object{"preset": "public_chat", "visibility": "public", "name": "Space", "topic": "about big things",
			"creation_content": object{"type": "m.space"}})
		hidden := s.create(alice, object{"preset": "public_chat", "name": "Big and hidden"})
		list := v3 + "/publicRooms"
		s.want(401, "M_MISSING_TOKEN", "", "GET", list, nil)
		a := s.ok(carol, "GET", list, nil)
		if len(a.array("chunk")) != 2 || a.text("chunk", 0, "room_id") != big || a.at("chunk", 0, "num_joined_members") != 2.0 ||
			a.text("chunk", 1, "room_type") != "m.space" || a.at("total_room_count_estimate") != 2.0 {
			t.Errorf("%s", a.raw)
		}
		page := s.ok(carol, "GET", list+"?limit=1", nil)
		next := s.ok(carol, "GET", list+"?limit=1&since="+page.text("next_batch"), nil)
		if page.text("chunk", 0, "room_id") != big || next.text("chunk", 0, "room_id") != space || next.text("next_batch") != "" || next.text("prev_batch") == "" {
			t.Errorf("%s %s", page.raw, next.raw)
		}
		for _, c := range []struct {
			filter object
			want   int
		}{{object{"generic_search_term": "BIG"}, 2}, {object{"generic_search_term": "ärea"}, 1}, {object{"room_types": []any{"m.space"}}, 1},
			{object{"room_types": []any{nil}}, 1}, {object{"room_types": []any{}}, 0}, {object{"generic_search_term": "nothing"}, 0}} {
			if got := s.ok(carol, "POST", list, object{"filter": c.filter}); len(got.array("chunk")) != c.want {
				t.Errorf("%v: %s", c.filter, got.raw)
			}
		}
		if got := len(s.ok(carol, "POST", list, object{"third_party_instance_id": "irc"}).array("chunk")); got != 0 {
			t.Errorf("%d rooms of a network that is not there", got)
		}
		visibility := v3 + "/directory/list/room/" + url.PathEscape(hidden)
		if got := s.ok("", "GET", visibility, nil).text("visibility"); got != "private" {
			t.Errorf("visibility %q", got)
		}
		s.want(403, "M_FORBIDDEN", bob, "PUT", visibility, object{"visibility": "public"})
		s.want(400, "M_INVALID_PARAM", alice, "PUT", visibility, object{"visibility": "odd"})
		s.ok(alice, "PUT", visibility, object{})
		if got := len(s.ok(carol, "GET", list, nil).array("chunk")); got != 3 {
			t.Errorf("%d rooms published", got)
		}
		s.ok(alice, "PUT", visibility, object{"visibility": "private"})
		s.want(404, "M_NOT_FOUND", "", "GET", v3+"/directory/list/room/%21nothing:test", nil)
		s.want(404, "M_NOT_FOUND", alice, "PUT", v3+"/directory/list/room/%21nothing:test", object{})
	})
}

// spec: c2s#reporting-content
func TestReportsAreKept(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.create(alice, nil)
		said := s.say(alice, room, "said")
		s.join(bob, room)
		s.ok(bob, "POST", at(room, "report", said), object{"reason": "rude", "score": -50})
		s.ok(bob, "POST", at(room, "report"), object{"reason": "odd"})
		s.ok(bob, "POST", v3+"/users/"+url.PathEscape(alice)+"/report", object{"reason": "mean"})
		s.ok(bob, "POST", at("!nothing:test", "report"), object{"reason": "odd"})
		s.want(404, "M_NOT_FOUND", carol, "POST", at(room, "report", said), object{})
		s.want(400, "M_MISSING_PARAM", bob, "POST", at(room, "report"), object{})
		kept := s.reports()
		if len(kept) != 3 || kept[0].User != alice || kept[2].EventID != said || kept[2].Score != -50 {
			t.Errorf("%+v", kept)
		}
	})
}
