package federation

import (
	"fmt"
	"testing"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// News for a server come in few EDUs, none is told twice, and what does not fit comes next.
//
// spec: s2s#receipts, s2s#presence
func TestNewsShareEDUs(t *testing.T) {
	var l loose
	put := func(room, user, thread, event string) {
		l.put("r "+room+user+thread, news{receipt: &readReceipt{user: id.UserID(user), event: event, thread: thread}, room: id.RoomID(room), at: 5})
	}
	put("!a", "@u:x", "", "$1")
	put("!a", "@u:x", "", "$2") // in the place of the first
	put("!b", "@u:x", "", "$3")
	put("!a", "@v:x", "$t", "$4")
	put("!a", "@u:x", "main", "$5") // another receipt of who has one there
	for i := range 150 {
		user := id.UserID(fmt.Sprintf("@p%d:x", i))
		l.put("p "+string(user), news{presence: &userPresence{User: user, Presence: "online"}})
	}
	l.put("t", news{typing: &typing{"!a", "@u:x", true}})
	first := l.take(3)
	rest := l.take(10)
	if len(first) != 3 || len(rest) != 2 || len(l.take(10)) != 0 {
		t.Fatalf("%d EDUs, then %d: %s", len(first), len(rest), append(first, rest...))
	}
	for i, want := range []string{
		`{"!a":{"m.read":{"@u:x":{"event_ids":["$2"],"data":{"ts":5}},"@v:x":{"event_ids":["$4"],"data":{"ts":5,"thread_id":"$t"}}}},"!b":{"m.read":{"@u:x":{"event_ids":["$3"],"data":{"ts":5}}}}}`,
		`{"!a":{"m.read":{"@u:x":{"event_ids":["$5"],"data":{"ts":5,"thread_id":"main"}}}}}`,
	} {
		if got := string(first[i].Content); first[i].Type != "m.receipt" || got != want {
			t.Errorf("EDU %d is %s %s, want %s", i, first[i].Type, got, want)
		}
	}
	users := map[string]bool{}
	for _, e := range append(first[2:], rest[:1]...) {
		list := gjson.GetBytes(e.Content, "push.#.user_id").Array()
		if e.Type != "m.presence" || len(list) > inOneEDU {
			t.Errorf("%s has %d users", e.Type, len(list))
		}
		for _, u := range list {
			users[u.Str] = true
		}
	}
	if len(users) != 150 || rest[1].Type != "m.typing" {
		t.Errorf("of %d users it is told, and %s", len(users), rest[1].Type)
	}
}
