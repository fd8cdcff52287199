package event

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"
)

// Every key that any version keeps, and some that none does.
var (
	allTop = []string{"event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures", "depth", "prev_events",
		"prev_state", "auth_events", "origin", "origin_server_ts", "membership", "redacts", "org.example", "age_not"}
	allContent = []string{"membership", "join_authorised_via_users_server", "third_party_invite", "creator", "room_version", "join_rule", "allow",
		"ban", "events", "events_default", "invite", "kick", "redact", "state_default", "users", "users_default", "notifications",
		"aliases", "history_visibility", "redacts", "body", "reason"}
)

// What stays, as the spec lists it: a version range, the type, the keys of content.
//
// spec: rooms/v1#redactions, rooms/v6#redactions, rooms/v8#redactions, rooms/v9#redactions, rooms/v11#redactions
func TestRedactionKeepsWhatTheSpecLists(t *testing.T) {
	levels := "ban events events_default kick redact state_default users users_default"
	content := []struct {
		first, last int
		typ, keys   string
	}{
		{1, 8, "m.room.member", "membership"},
		{9, 10, "m.room.member", "membership join_authorised_via_users_server"},
		{11, 12, "m.room.member", "membership join_authorised_via_users_server third_party_invite"},
		{1, 10, "m.room.create", "creator"},
		{11, 12, "m.room.create", strings.Join(allContent, " ")},
		{1, 7, "m.room.join_rules", "join_rule"},
		{8, 12, "m.room.join_rules", "join_rule allow"},
		{1, 10, "m.room.power_levels", levels},
		{11, 12, "m.room.power_levels", levels + " invite"},
		{1, 5, "m.room.aliases", "aliases"},
		{6, 12, "m.room.aliases", ""},
		{1, 12, "m.room.history_visibility", "history_visibility"},
		{1, 10, "m.room.redaction", ""},
		{11, 12, "m.room.redaction", "redacts"},
		{1, 12, "m.room.message", ""},
		{1, 12, "m.room.third_party_invite", ""},
	}
	body := map[string]any{}
	for _, k := range allContent {
		body[k] = 1
	}
	body["third_party_invite"] = map[string]any{"signed": map[string]any{"token": "t"}, "display_name": "B..."}
	seen := map[string]int{}
	for _, c := range content {
		for n := c.first; n <= c.last; n++ {
			v := versions[n-1]
			seen[fmt.Sprint(n, c.typ)]++
			top := map[string]any{}
			for _, k := range allTop {
				top[k] = 1
			}
			top["content"] = body
			raw, _ := json.Marshal(top)
			canonical, err := Canonical(raw)
			if err != nil {
				t.Fatal(err)
			}
			o, err := members(canonical, nil)
			if err != nil {
				t.Fatal(err)
			}
			var got map[string]any
			if err := json.Unmarshal(v.redact(o, c.typ).append(nil), &got); err != nil {
				t.Fatal(err)
			}
			want := slices.Clone(allTop[:15])
			if n >= 11 {
				want = slices.DeleteFunc(want, func(k string) bool { return k == "prev_state" || k == "origin" || k == "membership" })
			}
			if keys := keysOf(got); !reflect.DeepEqual(keys, sorted(want)) {
				t.Errorf("version %d keeps %v, want %v", n, keys, sorted(want))
			}
			kept := got["content"].(map[string]any)
			if keys := keysOf(kept); !reflect.DeepEqual(keys, sorted(strings.Fields(c.keys))) {
				t.Errorf("version %d, %s keeps %v in content, want %v", n, c.typ, keys, c.keys)
			}
			if invite, ok := kept["third_party_invite"]; ok && c.typ == typeMember &&
				!reflect.DeepEqual(invite, map[string]any{"signed": map[string]any{"token": "t"}}) {
				t.Errorf("version %d keeps third_party_invite as %v", n, invite)
			}
		}
	}
	for key, times := range seen {
		if times != 1 {
			t.Errorf("the table has %s %d times", key, times)
		}
	}
	// "The third_party_invite key is no longer redacted, but will only contain the signed key."
	// spec: rooms/v11#event-format
	for in, want := range map[string]string{
		`{"membership":"invite","third_party_invite":{"display_name":"x"}}`: `{"membership":"invite","third_party_invite":{}}`,
		`{"membership":"invite","third_party_invite":5}`:                    `{"membership":"invite"}`,
	} {
		if got := v11.redactContent(typeMember, []byte(in)); string(got) != want {
			t.Errorf("%s is redacted to %s, want %s", in, got, want)
		}
	}
}

func keysOf(m map[string]any) []string {
	keys := []string{}
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func sorted(s []string) []string {
	s = append([]string{}, s...)
	sort.Strings(s)
	return s
}
