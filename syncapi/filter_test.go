package syncapi

import (
	"context"
	"strings"
	"testing"
)

// spec: c2s#filtering
func TestWildcardsMatchAnyCharacters(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"m.room.message", "m.room.message", true}, {"m.room.message", "m.room.messages", false}, {"*", "", true}, {"*", "x", true},
		{"m.*", "m.room.x", true}, {"m.*", "n.room", false}, {"*.x", "a.b.x", true}, {"*.x", "x", false}, {"a*b*c", "abc", true},
		{"a*b*c", "aXbYc", true}, {"a*b*c", "acb", false}, {"a**c", "ac", true}, {"a*a", "a", false}, {"", "", true}, {"", "x", false},
	} {
		if got := wildcard(c.pattern, c.text); got != c.want {
			t.Errorf("%q matches %q: %v", c.pattern, c.text, got)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, text := range []string{`{}`, `{"room":{"timeline":{"limit":1,"types":["m.*"],"not_types":["*x*"]}}}`, `{"presence":{"senders":[]}}`,
		`{"room":{"state":{"lazy_load_members":true}},"event_format":"federation"}`, `{"room":{"timeline":{"limit":-1}}}`, `{"room":null}`} {
		f.Add(text, "m.room.message")
	}
	s := &Server{}
	f.Fuzz(func(t *testing.T, text, typ string) {
		if !strings.HasPrefix(text, "{") {
			t.Skip() // the ID of a stored one
		}
		got, err := s.filter(context.Background(), "@a:b", text)
		if err != nil {
			return
		}
		timeline := &got.Room.Timeline
		if n := timeline.limit(); n < 0 || n > maxTimeline {
			t.Errorf("a limit of %d", n)
		}
		if timeline.typed(typ) && (matched(timeline.NotTypes, typ) || timeline.Types != nil && !matched(timeline.Types, typ)) {
			t.Errorf("%q passes %s", typ, text)
		}
	})
}
