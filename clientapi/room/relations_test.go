package room_test

import (
	"net/url"
	"testing"

	"chancery/test/client"
)

func related(rel, target string) object { return object{"rel_type": rel, "event_id": target} }

func (s *server) relate(who, room, rel, target, body string) string {
	s.T.Helper()
	return s.Send(who, room, "m.room.message", object{"msgtype": "m.text", "body": body, "m.relates_to": related(rel, target)})
}

func (s *server) edit(who, room, target, body string) string {
	s.T.Helper()
	return s.Send(who, room, "m.room.message", object{"msgtype": "m.text", "body": "* " + body,
		"m.new_content": object{"msgtype": "m.text", "body": body}, "m.relates_to": related("m.replace", target)})
}

// spec: c2s#server-side-aggregation-of-mreplace-relationships, c2s#validity-of-replacement-events
func TestTheLatestValidEditIsBundled(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		said := s.Say(alice, room, "said")
		bundle := func() answer { return s.OK(bob, "GET", at(room, "event", said), nil) }
		if bundle().Value("unsigned", "m.relations") != nil {
			t.Error("nothing relates to it yet")
		}
		s.edit(alice, room, said, "first")
		second := s.edit(alice, room, said, "second")
		s.edit(bob, room, said, "not mine")
		s.relate(alice, room, "m.replace", said, "no new content")
		a := bundle()
		if a.Str("unsigned", "m.relations", "m.replace", "event_id") != second || a.Str("content", "body") != "said" {
			t.Errorf("%s", a.Text)
		}
		// Redacted, it leaves the edit before it.
		s.OK(alice, "PUT", at(room, "redact", second, client.Txn()), object{})
		if got := bundle().Str("unsigned", "m.relations", "m.replace", "content", "m.new_content", "body"); got != "first" {
			t.Errorf("after the redaction the edit is %q", got)
		}
		s.OK(alice, "PUT", at(room, "redact", said, client.Txn()), object{"reason": "spam"})
		a = bundle()
		if a.Value("unsigned", "m.relations") != nil || a.Str("unsigned", "redacted_because", "content", "reason") != "spam" || len(a.Value("content").(object)) != 0 {
			t.Errorf("redacted: %s", a.Text)
		}
	})
}

// spec: c2s#server-side-aggregation-of-mthread-relationships, c2s/getThreadRoots
func TestThreadsAreSummedUp(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		s.Join(bob, room)
		one, two := s.Say(alice, room, "one"), s.Say(bob, room, "two")
		s.relate(bob, room, "m.thread", one, "1a")
		s.relate(bob, room, "m.thread", two, "2a")
		last := s.relate(bob, room, "m.thread", one, "1b")
		s.edit(bob, room, last, "1b better")
		a := s.OK(bob, "GET", at(room, "event", one), nil)
		thread := func(path ...any) any {
			return a.Value(append([]any{"unsigned", "m.relations", "m.thread"}, path...)...)
		}
		if thread("count") != 2.0 || thread("current_user_participated") != true || thread("latest_event", "event_id") != last ||
			thread("latest_event", "unsigned", "m.relations", "m.replace", "content", "m.new_content", "body") != "1b better" {
			t.Errorf("%s", a.Text)
		}
		list := v1 + "/rooms/" + url.PathEscape(room) + "/threads"
		same(t, bodies(s.OK(alice, "GET", list, nil), "chunk"), []string{"one", "two"})
		same(t, bodies(s.OK(alice, "GET", list+"?include=participated", nil), "chunk"), []string{"one"})
		page := s.OK(alice, "GET", list+"?limit=1", nil)
		same(t, bodies(page, "chunk"), []string{"one"})
		same(t, bodies(s.OK(alice, "GET", list+"?limit=1&from="+page.Str("next_batch"), nil), "chunk"), []string{"two"})
		s.Want(400, "M_INVALID_PARAM", alice, "GET", list+"?from=bad", nil)
		s.Want(403, "M_FORBIDDEN", carol, "GET", list, nil)
		s.Want(400, "M_UNKNOWN", alice, "PUT", at(room, "send", "m.room.message", client.Txn()),
			object{"body": "nested", "msgtype": "m.text", "m.relates_to": related("m.thread", last)})
	})
}

// spec: c2s/getRelatingEvents
func TestRelationsAreListed(t *testing.T) {
	eachEngine(t, func(s *server) {
		room := s.Create(alice, nil)
		root := s.Say(alice, room, "root")
		child := s.relate(alice, room, "m.reference", root, "child")
		s.relate(alice, room, "m.reference", child, "grandchild")
		s.Send(alice, room, "m.reaction", object{"m.relates_to": object{"rel_type": "m.annotation", "event_id": root, "key": "+"}})
		path := func(more ...string) string {
			p := v1 + "/rooms/" + url.PathEscape(room) + "/relations/" + url.PathEscape(root)
			for _, m := range more {
				p += "/" + url.PathEscape(m)
			}
			return p
		}
		count := func(p string) int { return len(s.OK(alice, "GET", p, nil).List("chunk")) }
		for p, want := range map[string]int{path(): 2, path("m.annotation"): 1, path("m.annotation", "m.reaction"): 1, path("m.annotation", "m.room.message"): 0,
			path("m.reference"): 1, path() + "?recurse=true": 3, path("m.reference") + "?recurse=true": 2} {
			if got := count(p); got != want {
				t.Errorf("%d relations at %s, want %d", got, p, want)
			}
		}
		first := s.OK(alice, "GET", path()+"?limit=1&dir=f", nil)
		same(t, bodies(first, "chunk"), []string{"child"})
		second := s.OK(alice, "GET", path()+"?limit=1&dir=f&from="+first.Str("next_batch"), nil)
		if second.Str("chunk", 0, "type") != "m.reaction" {
			t.Errorf("%s", second.Text)
		}
		chunk := s.OK(alice, "GET", at(room, "event", root), nil).List("unsigned", "m.relations", "m.reference", "chunk")
		if len(chunk) != 1 || chunk[0].(object)["event_id"] != child {
			t.Errorf("references %v", chunk)
		}
		s.Want(404, "M_NOT_FOUND", bob, "GET", path(), nil)
	})
}

// spec: c2s#avoiding-duplicate-annotations
func TestAnnotationsAreMadeOnce(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	said := s.Say(alice, room, "said")
	like := object{"m.relates_to": object{"rel_type": "m.annotation", "event_id": said, "key": "+"}}
	first := s.OK(alice, "PUT", at(room, "send", "m.reaction", "like"), like).Str("event_id")
	if again := s.OK(alice, "PUT", at(room, "send", "m.reaction", "like"), like).Str("event_id"); again != first {
		t.Error("the repeated request made another event")
	}
	s.Want(400, "M_DUPLICATE_ANNOTATION", alice, "PUT", at(room, "send", "m.reaction", "like2"), like)
	s.OK(alice, "PUT", at(room, "redact", first, "r"), object{})
	s.OK(alice, "PUT", at(room, "send", "m.reaction", "like3"), like)
}

// What is said of an event after a user left is no more for them than what is said beside it.
//
// spec: c2s#room-history-visibility, c2s#aggregations-of-child-events
func TestWhoLeftHearsNoLaterRelations(t *testing.T) {
	s := onSQLite(t)
	room := s.Create(alice, nil)
	s.Join(bob, room)
	said, root := s.Say(alice, room, "said"), s.Say(alice, room, "root")
	first := s.edit(alice, room, said, "first")
	heard := s.Say(alice, room, "heard")
	s.relate(alice, room, "m.thread", heard, "in time")
	known := s.relate(alice, room, "m.reference", heard, "in time")
	s.Leave(bob, room)
	s.relate(alice, room, "m.thread", heard, "secret")
	s.relate(alice, room, "m.reference", heard, "secret")
	s.edit(alice, room, said, "secret")
	s.relate(alice, room, "m.thread", root, "secret")
	if got := s.OK(bob, "GET", at(room, "event", said), nil).Str("unsigned", "m.relations", "m.replace", "event_id"); got != first {
		t.Errorf("the edit is %q", got)
	}
	if got := s.OK(bob, "GET", at(room, "event", root), nil); got.Value("unsigned", "m.relations") != nil {
		t.Errorf("the thread of after the leave: %s", got.Text)
	}
	got := s.OK(bob, "GET", at(room, "event", heard), nil)
	if bodyOf := got.Str("unsigned", "m.relations", "m.thread", "latest_event", "content", "body"); bodyOf != "in time" || got.Value("unsigned", "m.relations", "m.thread", "count") != float64(1) {
		t.Errorf("the thread from before the leave: %s", got.Text)
	}
	if refs := got.List("unsigned", "m.relations", "m.reference", "chunk"); len(refs) != 1 || got.Str("unsigned", "m.relations", "m.reference", "chunk", 0, "event_id") != known {
		t.Errorf("the references: %s", got.Text)
	}
	if got := s.OK(alice, "GET", at(room, "event", root), nil); got.Value("unsigned", "m.relations", "m.thread") == nil {
		t.Errorf("alice does not see the thread: %s", got.Text)
	}
}
