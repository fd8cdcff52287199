package room_test

import (
	"net/url"
	"testing"
)

func alias(name string) string { return v3 + "/directory/room/" + url.PathEscape("#"+name+":test") }

// spec: c2s/setRoomAlias, c2s/deleteRoomAlias
func TestAliasesComeAndGo(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		s.OK(alice, "PUT", alias("one"), object{"room_id": room})
		s.Want(409, "M_UNKNOWN", bob, "PUT", alias("one"), object{"room_id": room})
		s.Want(403, "M_FORBIDDEN", carol, "PUT", alias("two"), object{"room_id": room})
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", v3+"/directory/room/odd", object{"room_id": room})
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", v3+"/directory/room/"+url.PathEscape("#a:elsewhere.example"), object{"room_id": room})
		s.Want(400, "M_MISSING_PARAM", alice, "PUT", alias("two"), object{})
		a := s.OK("", "GET", alias("one"), nil)
		if a.Str("room_id") != room || len(a.List("servers")) != 1 {
			t.Errorf("%s", a.Text)
		}
		s.Set(alice, room, "m.room.canonical_alias", "", object{"alias": "#one:test"})
		if got := s.OK(carol, "POST", v3+"/join/"+url.PathEscape("#one:test"), object{}).Str("room_id"); got != room {
			t.Errorf("joined %q", got)
		}
		if got := s.OK(bob, "GET", at(room, "aliases"), nil).List("aliases"); len(got) != 1 || got[0] != "#one:test" {
			t.Errorf("aliases %v", got)
		}
		s.Want(403, "M_FORBIDDEN", "@dave:test", "GET", at(room, "aliases"), nil)
		s.Want(403, "M_FORBIDDEN", bob, "DELETE", alias("one"), nil)
		s.OK(alice, "DELETE", alias("one"), nil)
		s.Want(404, "M_NOT_FOUND", alice, "DELETE", alias("one"), nil)
		s.Want(404, "M_NOT_FOUND", "", "GET", alias("one"), nil)
		if got := s.OK(alice, "GET", at(room, "state", "m.room.canonical_alias"), nil).Value("alias"); got != nil {
			t.Errorf("the room still names %v", got)
		}
		s.OK(bob, "PUT", alias("his"), object{"room_id": room})
		s.OK(alice, "DELETE", alias("his"), nil) // by her power in the room
	})
}

// spec: c2s/getPublicRooms, c2s/queryPublicRooms
func TestPublishedRoomsAreListed(t *testing.T) {
	eachEngine(t, func(s *server) {
		big := s.Create(alice, object{"preset": "public_chat", "visibility": "public", "name": "Big Ärea"})
		s.Join(bob, big)
		space := s.Create(alice, object{"preset": "public_chat", "visibility": "public", "name": "Space", "topic": "about big things",
			"creation_content": object{"type": "m.space"}})
		hidden := s.Create(alice, object{"preset": "public_chat", "name": "Big and hidden"})
		list := v3 + "/publicRooms"
		s.Want(401, "M_MISSING_TOKEN", "", "GET", list, nil)
		a := s.OK(carol, "GET", list, nil)
		if len(a.List("chunk")) != 2 || a.Str("chunk", 0, "room_id") != big || a.Value("chunk", 0, "num_joined_members") != 2.0 ||
			a.Str("chunk", 1, "room_type") != "m.space" || a.Value("total_room_count_estimate") != 2.0 {
			t.Errorf("%s", a.Text)
		}
		page := s.OK(carol, "GET", list+"?limit=1", nil)
		next := s.OK(carol, "GET", list+"?limit=1&since="+page.Str("next_batch"), nil)
		if page.Str("chunk", 0, "room_id") != big || next.Str("chunk", 0, "room_id") != space || next.Str("next_batch") != "" || next.Str("prev_batch") == "" {
			t.Errorf("%s %s", page.Text, next.Text)
		}
		for _, c := range []struct {
			filter object
			want   int
		}{{object{"generic_search_term": "BIG"}, 2}, {object{"generic_search_term": "ärea"}, 1}, {object{"room_types": []any{"m.space"}}, 1},
			{object{"room_types": []any{nil}}, 1}, {object{"room_types": []any{}}, 0}, {object{"generic_search_term": "nothing"}, 0}} {
			if got := s.OK(carol, "POST", list, object{"filter": c.filter}); len(got.List("chunk")) != c.want {
				t.Errorf("%v: %s", c.filter, got.Text)
			}
		}
		if got := len(s.OK(carol, "POST", list, object{"third_party_instance_id": "irc"}).List("chunk")); got != 0 {
			t.Errorf("%d rooms of a network that is not there", got)
		}
		visibility := v3 + "/directory/list/room/" + url.PathEscape(hidden)
		if got := s.OK("", "GET", visibility, nil).Str("visibility"); got != "private" {
			t.Errorf("visibility %q", got)
		}
		s.Want(403, "M_FORBIDDEN", bob, "PUT", visibility, object{"visibility": "public"})
		s.Want(400, "M_INVALID_PARAM", alice, "PUT", visibility, object{"visibility": "odd"})
		s.Want(403, "M_USER_SUSPENDED", "@suspended:test", "PUT", visibility, object{"visibility": "public"})
		s.Want(403, "M_USER_SUSPENDED", "@suspended:test", "DELETE", alias("any"), nil)
		s.Want(400, "M_INVALID_PARAM", carol, "GET", list+"?server=no%20name", nil)
		s.Want(400, "M_INVALID_PARAM", carol, "GET", list+"?since=-1", nil)
		s.Want(400, "M_BAD_JSON", carol, "POST", list, object{"filter": "x"})
		s.OK(alice, "PUT", visibility, object{})
		if got := len(s.OK(carol, "GET", list, nil).List("chunk")); got != 3 {
			t.Errorf("%d rooms published", got)
		}
		s.OK(alice, "PUT", visibility, object{"visibility": "private"})
		s.Want(404, "M_NOT_FOUND", "", "GET", v3+"/directory/list/room/%21nothing:test", nil)
		s.Want(404, "M_NOT_FOUND", alice, "PUT", v3+"/directory/list/room/%21nothing:test", object{})
	})
}

// spec: c2s#reporting-content
func TestReportsAreKept(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		said := s.Say(alice, room, "said")
		s.Join(bob, room)
		s.OK(bob, "POST", at(room, "report", said), object{"reason": "rude", "score": -50})
		s.OK(bob, "POST", at(room, "report"), object{"reason": "odd"})
		s.OK(bob, "POST", v3+"/users/"+url.PathEscape(alice)+"/report", object{"reason": "mean"})
		s.OK(bob, "POST", at("!nothing:test", "report"), object{"reason": "odd"})
		s.Want(404, "M_NOT_FOUND", carol, "POST", at(room, "report", said), object{})
		s.Want(400, "M_MISSING_PARAM", bob, "POST", at(room, "report"), object{})
		kept := s.reports()
		if len(kept) != 3 || kept[0].User != alice || kept[2].EventID != said || kept[2].Score != -50 {
			t.Errorf("%+v", kept)
		}
	})
}
