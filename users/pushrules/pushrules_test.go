package pushrules

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"
)

// said is an event for the rules.
type said struct {
	typ     string
	key     *string
	sender  id.UserID
	content string
}

func (e said) ID() id.EventID    { return "$event" }
func (e said) RoomID() id.RoomID { return "!room:test" }
func (e said) Sender() id.UserID {
	if e.sender == "" {
		return "@sender:test"
	}
	return e.sender
}
func (e said) Type() string { return e.typ }
func (e said) StateKey() (string, bool) {
	if e.key == nil {
		return "", false
	}
	return *e.key, true
}
func (e said) Content() json.RawMessage {
	if e.content == "" {
		return json.RawMessage(`{}`)
	}
	return json.RawMessage(e.content)
}
func (e said) JSON() []byte {
	return []byte(`{"origin_server_ts":5,"content":` + string(e.Content()) + `}`)
}

func key(s string) *string { return &s }

func message(content string) said { return said{typ: "m.room.message", content: content} }

// spec: c2s#predefined-rules
func TestDefaultRules(t *testing.T) {
	mayAll := Place{Members: 5, MayNotify: func(key string) bool { return key == "room" }}
	for what, c := range map[string]struct {
		ev    said
		place Place
		want  Outcome
		usual bool
	}{
		"a message":             {ev: message(`{"msgtype":"m.text","body":"x"}`), want: Outcome{Notify: true}, usual: true},
		"an encrypted event":    {ev: said{typ: "m.room.encrypted"}, want: Outcome{Notify: true}, usual: true},
		"in a room of two":      {ev: message(`{"body":"x"}`), place: Place{Members: 2}, want: Outcome{Notify: true}, usual: true},
		"a notice":              {ev: message(`{"msgtype":"m.notice","body":"x"}`)},
		"an edit":               {ev: message(`{"body":"x","m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`)},
		"a reaction":            {ev: said{typ: "m.reaction"}},
		"something unknown":     {ev: said{typ: "org.example.thing"}},
		"a call":                {ev: said{typ: "m.call.invite"}, want: Outcome{Notify: true}, usual: true},
		"a mention":             {ev: message(`{"m.mentions":{"user_ids":["@bob:test","@me:test"]}}`), want: Outcome{Notify: true, Highlight: true}, usual: true},
		"a mention in a thing":  {ev: said{typ: "org.thing", content: `{"m.mentions":{"user_ids":["@me:test"]}}`}, want: Outcome{Notify: true, Highlight: true}},
		"another's mention":     {ev: said{typ: "org.thing", content: `{"m.mentions":{"user_ids":["@bob:test"]}}`}},
		"nobody's mention":      {ev: said{typ: "org.thing", content: `{"m.mentions":{"user_ids":[""]}}`}},
		"a mention in an edit":  {ev: message(`{"m.mentions":{"user_ids":["@me:test"]},"m.relates_to":{"rel_type":"m.replace","event_id":"$x"}}`), want: Outcome{Notify: true, Highlight: true}},
		"everybody, allowed":    {ev: message(`{"m.mentions":{"room":true}}`), place: mayAll, want: Outcome{Notify: true, Highlight: true}, usual: true},
		"everybody, refused":    {ev: message(`{"m.mentions":{"room":true}}`), want: Outcome{Notify: true}, usual: true},
		"everybody, no bool":    {ev: message(`{"m.mentions":{"room":"true"}}`), place: mayAll, want: Outcome{Notify: true}, usual: true},
		"an invite for me":      {ev: said{typ: "m.room.member", key: key("@me:test"), content: `{"membership":"invite"}`}, want: Outcome{Notify: true}},
		"a mention in a notice": {ev: message(`{"msgtype":"m.notice","m.mentions":{"user_ids":["@me:test"]}}`)},
		"mentions of no form":   {ev: said{typ: "org.thing", content: `{"m.mentions":{"user_ids":"@me:test"}}`}},
		"another's invite":      {ev: said{typ: "m.room.member", key: key("@bob:test"), content: `{"membership":"invite"}`}},
		"a tombstone":           {ev: said{typ: "m.room.tombstone", key: key("")}, want: Outcome{Notify: true, Highlight: true}, usual: true},
		"no tombstone":          {ev: said{typ: "m.room.tombstone"}},
		"an ACL":                {ev: said{typ: "m.room.server_acl", key: key("")}},
	} {
		got := For(c.ev, c.place, Reader{User: "@me:test"})
		got.Actions = nil
		if got.Notify != c.want.Notify || got.Highlight != c.want.Highlight {
			t.Errorf("%s: %+v, want %+v", what, got, c.want)
		}
		own := For(c.ev, c.place, Reader{User: "@me:test", Rules: new(Changes).Ruleset("@me:test")})
		if own.Notify != got.Notify || own.Highlight != got.Highlight {
			t.Errorf("%s: by the rules themselves %+v", what, own)
		}
		if got := Default(c.ev, c.place); got != c.usual {
			t.Errorf("%s: by default %v, want %v", what, got, c.usual)
		}
	}
}

// spec: c2s#push-rules
func TestJudgeTellsOnlyWhatIsNotTheDefault(t *testing.T) {
	muted := &Changes{}
	must(t, muted.Put(Room, Rule{ID: "!room:test", Actions: raw()}, "", ""))
	off := &Changes{}
	must(t, off.SetEnabled(Override, ".m.rule.master", true))
	words := &Changes{}
	must(t, words.Put(Content, Rule{ID: "tea", Actions: raw(notify, highlight), Pattern: key("tea")}, "", ""))
	readers := []Reader{
		{User: "@sender:test", Rules: words.Ruleset("@sender:test")}, // never of oneself
		{User: "@usual:test"},
		{User: "@muted:test", Rules: muted.Ruleset("@muted:test")},
		{User: "@off:test", Rules: off.Ruleset("@off:test")},
		{User: "@words:test", Rules: words.Ruleset("@words:test")},
	}
	got := Judge(message(`{"msgtype":"m.text","body":"Time for TEA!"}`), Place{}, readers)
	want := []Notification{{User: "@muted:test"}, {User: "@off:test"}, {User: "@words:test", Notify: true, Highlight: true}}
	if !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	users, all := Named(message(`{"m.mentions":{"user_ids":["@a:test",5,"@a:test","@b:test"]}}`), Place{})
	if all || !slices.Equal(users, []id.UserID{"@a:test", "@b:test"}) {
		t.Errorf("named: %v %v", users, all)
	}
	if _, all := Named(said{typ: "m.room.tombstone", key: key("")}, Place{}); !all {
		t.Error("a tombstone is for everybody")
	}
}

// A user's rules go before the default ones; what they changed of those stays theirs.
func TestOwnRulesGoBeforeDefaultOnes(t *testing.T) {
	c := &Changes{}
	must(t, c.Put(Override, Rule{ID: "mine", Actions: raw(notify, highlight), Conditions: raw(match("type", "m.reaction"))}, "", ""))
	must(t, c.SetActions(Override, ".m.rule.suppress_notices", raw(notify)))
	text, err := c.Text()
	must(t, err)
	again, err := Parse(text)
	must(t, err)
	r := Reader{User: "@me:test", Rules: again.Ruleset("@me:test")}
	if got := For(said{typ: "m.reaction"}, Place{}, r); !got.Highlight {
		t.Errorf("a reaction: %+v", got)
	}
	if got := For(message(`{"msgtype":"m.notice"}`), Place{}, r); !got.Notify {
		t.Errorf("a notice: %+v", got)
	}
	if err := c.Put(Override, Rule{ID: "big", Actions: raw(`{"set_tweak":"` + strings.Repeat("x", maxRules) + `"}`)}, "", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Text(); err == nil {
		t.Error("rules without end are stored")
	}
}

// spec: c2s#historical-actions
func TestHistoricalActionsMeanNothing(t *testing.T) {
	c := &Changes{}
	must(t, c.Put(Sender, Rule{ID: "@quiet:test", Actions: raw(`"dont_notify"`)}, "", ""))
	must(t, c.Put(Sender, Rule{ID: "@loud:test", Actions: raw(`"coalesce"`, notify)}, "", ""))
	r := Reader{User: "@me:test", Rules: c.Ruleset("@me:test")}
	for sender, want := range map[id.UserID]bool{"@quiet:test": false, "@loud:test": true, "@other:test": true} {
		ev := message(`{"msgtype":"m.text","body":"x"}`)
		ev.sender = sender
		if got := For(ev, Place{}, r); got.Notify != want {
			t.Errorf("of %s: %+v", sender, got)
		}
	}
	if err := c.Put(Sender, Rule{ID: "@a:test", Actions: raw(`"dance"`)}, "", ""); err == nil {
		t.Error("an action that never was is taken")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// spec: c2s#conditions-1
func TestConditions(t *testing.T) {
	ev := said{typ: "m.room.message", content: `{"body":"An example event.","n":5,"f":1.5,"no":null,"yes":true,"list":["a",1,null],"m.x":{"a.b":"deep","back\\slash":"s"},"topic":"Lunch plans"}`}
	for condition, want := range map[string]bool{
		match("content.topic", "lunc?*"):                                         true,
		match("content.topic", "LUNCH*"):                                         true,
		match("content.topic", "lunch"):                                          false,
		match("content.topic", "?unch plan?"):                                    true,
		match("content.body", "ex*ple"):                                          true,
		match("content.body", "xampl*"):                                          false,
		match("content.body", "EVENT"):                                           true,
		match("content.body", "exam"):                                            false,
		match("content.body", ""):                                                false,
		match("content.missing", "*"):                                            false,
		match("content.n", "*"):                                                  false,
		match(`content.m\.x.a\.b`, "deep"):                                       true,
		match(`content.m\.x.back\\slash`, "s"):                                   true,
		match("content.m.x", "*"):                                                false,
		match("type", "m.room.*"):                                                true,
		match("sender", "@SENDER:test"):                                          true,
		match("room_id", "!room:*"):                                              true,
		match("event_id", "$event"):                                              true,
		match("state_key", "*"):                                                  false,
		`{"kind":"event_match","key":"content.topic"}`:                           false,
		`{"kind":"event_property_is","key":"content.n","value":5}`:               true,
		`{"kind":"event_property_is","key":"content.n","value":"5"}`:             false,
		`{"kind":"event_property_is","key":"content.n","value":6}`:               false,
		`{"kind":"event_property_is","key":"content.f","value":1.5}`:             false,
		`{"kind":"event_property_is","key":"content.no","value":null}`:           true,
		`{"kind":"event_property_is","key":"content.missing","value":null}`:      false,
		`{"kind":"event_property_is","key":"content.yes","value":true}`:          true,
		`{"kind":"event_property_is","key":"content.yes","value":false}`:         false,
		`{"kind":"event_property_is","key":"content.list","value":["a",1,null]}`: false,
		`{"kind":"event_property_is","key":"origin_server_ts","value":5}`:        true,
		`{"kind":"event_property_contains","key":"content.list","value":"a"}`:    true,
		`{"kind":"event_property_contains","key":"content.list","value":null}`:   true,
		`{"kind":"event_property_contains","key":"content.list","value":"b"}`:    false,
		`{"kind":"event_property_contains","key":"content.topic","value":"L"}`:   false,
		`{"kind":"contains_display_name"}`:                                       true,
		`{"kind":"room_member_count","is":"3"}`:                                  true,
		`{"kind":"room_member_count","is":"==3"}`:                                true,
		`{"kind":"room_member_count","is":"<3"}`:                                 false,
		`{"kind":"room_member_count","is":"<=3"}`:                                true,
		`{"kind":"room_member_count","is":">2"}`:                                 true,
		`{"kind":"room_member_count","is":">=4"}`:                                false,
		`{"kind":"room_member_count","is":"=3"}`:                                 false,
		`{"kind":"room_member_count","is":"3x"}`:                                 false,
		`{"kind":"room_member_count"}`:                                           false,
		`{"kind":"sender_notification_permission","key":"room"}`:                 true,
		`{"kind":"sender_notification_permission","key":"org.other"}`:            false,
		`{"kind":"sender_notification_permission"}`:                              false,
		`{"kind":"org.example.unknown"}`:                                         false,
	} {
		c := Changes{}
		must(t, c.Put(Override, Rule{ID: "x", Actions: raw(notify, highlight), Conditions: raw(condition)}, "", ""))
		p := Place{Members: 3, MayNotify: func(key string) bool { return key == "room" }}
		got := For(ev, p, Reader{User: "@me:test", DisplayName: "Example", Rules: c.Ruleset("@me:test")})
		if got.Highlight != want {
			t.Errorf("%s: %v, want %v", condition, got.Highlight, want)
		}
	}
}

// spec: appendices#glob-style-matching
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"cake*lie", "the cake is a lie!", true},
		{"cake*lie", "the cake is a lier", false},
		{"tea", "steal", false},
		{"tea", "tea_time", false},
		{"tea", "über-tea", true},
		{"tea", "éteaé", true}, // only ASCII makes words
		{"é", "café", false},
		{"é", "caf é", true},
		{"t?a", "a tÄa b", true},
		{"*", "anything", true},
		{"**", "", true},
		{"(x)", "f(x)", false},
		{"(x)", "f (x)", true},
		{"a b", "x A B y", true},
	} {
		if got := matchWords(c.pattern, c.text); got != c.want {
			t.Errorf("%q in %q: %v", c.pattern, c.text, got)
		}
	}
}

// A pattern that would take a backtracking matcher until tomorrow.
func TestHostilePatternsEnd(t *testing.T) {
	start := time.Now()
	matchWords(strings.Repeat("a*", maxPattern/2)+"b", strings.Repeat("a ", 32<<10))
	if took := time.Since(start); took > time.Minute {
		t.Errorf("it took %s", took)
	}
}

func FuzzPatterns(f *testing.F) {
	f.Add("a*b?", "xx ab cb")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 64 || len(text) > 256 {
			t.Skip()
		}
		all := matchAll(pattern, text)
		if all && pattern != "" && !matchWords(pattern, text) {
			t.Errorf("%q matches all of %q but is not in it", pattern, text)
		}
		if !strings.ContainsAny(pattern, "*?") && matchWords(pattern, text) != walk(lower(pattern), lower(text), true) && pattern != "" {
			t.Errorf("%q in %q: the two ways differ", pattern, text)
		}
	})
}

func BenchmarkJudge(b *testing.B) {
	ev := message(`{"msgtype":"m.text","body":"a message of ordinary length, as people write them all day"}`)
	b.ReportAllocs()
	for b.Loop() {
		Default(ev, Place{Members: 50})
	}
}

// spec: c2s#room-upgrades
func TestRulesGoWithTheRoom(t *testing.T) {
	actions := []json.RawMessage{}
	for_ := func(room string) []json.RawMessage {
		return []json.RawMessage{json.RawMessage(`{"kind":"event_match","key":"room_id","pattern":"` + room + `"}`)}
	}
	c := &Changes{}
	for _, put := range []struct {
		kind Kind
		rule Rule
	}{
		{Room, Rule{ID: "!old:x", Actions: actions}}, {Room, Rule{ID: "!other:x", Actions: actions}},
		{Override, Rule{ID: "!old:x", Actions: actions, Conditions: for_("!old:x")}}, {Override, Rule{ID: "quiet", Actions: actions, Conditions: for_("!old:x")}},
		{Override, Rule{ID: "elsewhere", Actions: actions, Conditions: for_("!other:x")}}, {Sender, Rule{ID: "@x:x", Actions: actions}},
	} {
		if err := c.Put(put.kind, put.rule, "", ""); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.SetEnabled(Room, "!old:x", false); err != nil {
		t.Fatal(err)
	}
	names := func(rules []Rule) (all []string) {
		for _, r := range rules {
			all = append(all, r.ID)
		}
		return all
	}
	if !c.CarryOver("!old:x", "!new:x") || c.CarryOver("!old:x", "!new:x") || c.CarryOver("!none:x", "!new:x") {
		t.Error("rules are carried over once")
	}
	if got := names(c.Rules.Room); !slices.Equal(got, []string{"!other:x", "!old:x", "!new:x"}) || c.Rules.Room[2].Enabled {
		t.Errorf("rules for rooms: %v", got)
	}
	if got := names(c.Rules.Override); !slices.Equal(got, []string{"elsewhere", "quiet", "quiet !new:x", "!old:x", "!new:x"}) || !strings.Contains(string(c.Rules.Override[4].Conditions[0]), "!new:x") {
		t.Errorf("rules with conditions: %v", got)
	}
	if len(c.Rules.Sender) != 1 {
		t.Error("rules for senders are doubled")
	}
}
