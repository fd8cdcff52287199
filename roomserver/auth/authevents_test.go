package auth_test

import (
	"encoding/json"
	"slices"
	"testing"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
)

// spec: s2s#auth-events-selection
func TestAuthEventsSelection(t *testing.T) {
	type keys = []auth.Key
	create := auth.Key{Type: "m.room.create"}
	levels := auth.Key{Type: "m.room.power_levels"}
	rules := auth.Key{Type: "m.room.join_rules"}
	member := func(user id.UserID) auth.Key { return auth.Key{Type: "m.room.member", StateKey: string(user)} }
	for _, c := range []struct {
		name, typ, key, content string
		noState                 bool
		want                    map[string]keys
	}{
		{"create", "m.room.create", "", `{}`, false, map[string]keys{"1": nil, "12": nil}},
		{"message", "m.room.message", "", `{}`, true, map[string]keys{"1": {create, levels, member(bob)}, "11": {create, levels, member(bob)}, "12": {levels, member(bob)}}},
		{"state", "m.room.name", "", `{}`, false, map[string]keys{"11": {create, levels, member(bob)}, "12": {levels, member(bob)}}},
		{"own join", "m.room.member", "@bob:b.example", `{"membership":"join"}`, false, map[string]keys{"12": {levels, member(bob), rules}}},
		{"invite", "m.room.member", "@carol:c.example", `{"membership":"invite"}`, false, map[string]keys{"12": {levels, member(bob), member(carol), rules}}},
		{"knock", "m.room.member", "@bob:b.example", `{"membership":"knock"}`, false, map[string]keys{"12": {levels, member(bob), rules}}},
		{"kick", "m.room.member", "@carol:c.example", `{"membership":"leave"}`, false, map[string]keys{"12": {levels, member(bob), member(carol)}}},
		{"ban", "m.room.member", "@carol:c.example", `{"membership":"ban"}`, false, map[string]keys{"12": {levels, member(bob), member(carol)}}},
		{"third-party invite", "m.room.member", "@carol:c.example", `{"membership":"invite","third_party_invite":{"signed":{"token":"tok"}}}`, false,
			map[string]keys{"12": {levels, member(bob), member(carol), rules, {Type: "m.room.third_party_invite", StateKey: "tok"}}}},
		{"third-party invite without token", "m.room.member", "@carol:c.example", `{"membership":"invite","third_party_invite":{"signed":[]}}`, false,
			map[string]keys{"12": {levels, member(bob), member(carol), rules}}},
		{"restricted join", "m.room.member", "@bob:b.example", `{"membership":"join","join_authorised_via_users_server":"@carol:c.example"}`, false,
			map[string]keys{"7": {create, levels, member(bob), rules}, "8": {create, levels, member(bob), rules, member(carol)}, "12": {levels, member(bob), rules, member(carol)}}},
		{"authorised by nobody", "m.room.member", "@bob:b.example", `{"membership":"join","join_authorised_via_users_server":3}`, false,
			map[string]keys{"12": {levels, member(bob), rules}}},
		{"leave with an authoriser", "m.room.member", "@bob:b.example", `{"membership":"leave","join_authorised_via_users_server":"@carol:c.example"}`, false,
			map[string]keys{"12": {levels, member(bob)}}},
		{"content that is none", "m.room.member", "@bob:b.example", `[]`, false, map[string]keys{"12": {levels, member(bob)}}},
		{"no content", "m.room.member", "@bob:b.example", ``, false, map[string]keys{"12": {levels, member(bob)}}},
	} {
		key := &c.key
		if c.noState {
			key = nil
		}
		for version, want := range c.want {
			v, _ := event.Lookup(version)
			if got := auth.Needed(v, c.typ, key, bob, json.RawMessage(c.content)); !slices.Equal(got, want) {
				t.Errorf("%s in version %s: %v, want %v", c.name, version, got, want)
			}
		}
	}
}

func TestAuthEventsAreInOrder(t *testing.T) {
	for _, v := range event.Versions() {
		rule := func(n string) string {
			if v.CreateNotInAuthEvents {
				return "3." + n
			}
			return "2." + n
		}
		r := joinedRoom(t, v.Name, bob, carol)
		create := r.Get("m.room.create", "")
		oldJoin := r.Get("m.room.member", string(bob))
		r.send(r.member(bob, bob, "join"))
		ev := r.message(bob)
		cited := r.cited(ev)
		want := func(name, rule string, cited []*event.Event, rejected func(*event.Event) bool) {
			t.Helper()
			if got := ruleOf(t, auth.CheckAuthEvents(ev, cited, create, rejected)); got != rule {
				t.Errorf("version %s, %s: rule %s, want %s", v.Name, name, got, rule)
			}
		}
		want("all in order", "allow", cited, nil)
		// spec: rooms/v11#authorisation-rules 2.1
		// spec: rooms/v12#authorisation-rules 3.1
		want("the sender twice", rule("1"), append(slices.Clone(cited), oldJoin), nil)
		want("one is missing", rule("1"), append(slices.Clone(cited), nil), nil)
		// spec: rooms/v11#authorisation-rules 2.2
		// spec: rooms/v12#authorisation-rules 3.2
		want("the join rules of a message", rule("2"), append(slices.Clone(cited), r.Get("m.room.join_rules", "")), nil)
		want("another member", rule("2"), append(slices.Clone(cited), r.Get("m.room.member", string(carol))), nil)
		want("a message", rule("2"), append(slices.Clone(cited), r.message(alice)), nil)
		// spec: rooms/v11#authorisation-rules 2.3
		// spec: rooms/v12#authorisation-rules 3.3
		want("a rejected one", rule("3"), cited, func(ev *event.Event) bool { return ev.IsState("m.room.member", string(bob)) })
		// spec: rooms/v11#authorisation-rules 2.5
		// spec: rooms/v12#authorisation-rules 3.4
		other := newRoom(t, v.Name, obj{"other": true})
		other.put(other.member(alice, alice, "join"))
		stranger := other.member(bob, bob, "join")
		if !v.RoomIDIsCreateHash {
			p := other.proto(bob, "m.room.member", ptr(string(bob)), obj{"membership": "join"})
			p.RoomID = "!other:a.example"
			stranger = other.build(p)
		}
		without := slices.DeleteFunc(slices.Clone(cited), func(ev *event.Event) bool { return ev.Type() == "m.room.member" })
		last := "5"
		if v.CreateNotInAuthEvents {
			last = "4"
		}
		want("one of another room", rule(last), append(without, stranger), nil)

		withoutCreate := slices.DeleteFunc(slices.Clone(cited), func(ev *event.Event) bool { return ev == create })
		if v.CreateNotInAuthEvents {
			// spec: rooms/v12#authorisation-rules 3.2
			want("the create event", "3.2", append(slices.Clone(cited), create), nil)
			want("no create event", "allow", withoutCreate, nil)
			continue
		}
		// spec: rooms/v11#authorisation-rules 2.4
		want("no create event", "2.4", withoutCreate, nil)
		if got := ruleOf(t, auth.Check(ev, auth.Events(withoutCreate))); got != "2.4" {
			t.Errorf("version %s, a state without create event: rule %s, want 2.4", v.Name, got)
		}
	}
}

func ptr[T any](v T) *T { return &v }
