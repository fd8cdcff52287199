package pushrules

import (
	"encoding/json"

	"maunium.net/go/mautrix/id"
)

// What actions rules take.
const (
	notify    = `"notify"`
	sound     = `{"set_tweak":"sound","value":"default"}`
	ring      = `{"set_tweak":"sound","value":"ring"}`
	highlight = `{"set_tweak":"highlight"}`
)

func raw(texts ...string) []json.RawMessage {
	list := make([]json.RawMessage, len(texts))
	for i, t := range texts {
		list[i] = json.RawMessage(t)
	}
	return list
}

func match(key, pattern string) string {
	return quote(map[string]string{"kind": "event_match", "key": key, "pattern": pattern})
}

func quote(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings and booleans always marshal
	}
	return string(text)
}

const (
	twoMembers   = `{"kind":"room_member_count","is":"2"}`
	mentionsRoom = `{"kind":"event_property_is","key":"content.m\\.mentions.room","value":true}`
	mayMention   = `{"kind":"sender_notification_permission","key":"room"}`
	isEdit       = `{"kind":"event_property_is","key":"content.m\\.relates_to.rel_type","value":"m.replace"}`
)

func rule(ruleID string, actions []json.RawMessage, conditions ...string) Rule {
	return Rule{ID: ruleID, Default: true, Enabled: true, Actions: actions, Conditions: raw(conditions...)}
}

// defaultRules are the rules that everybody has.
//
// spec: c2s#predefined-rules
func defaultRules(user id.UserID) Ruleset {
	member := match("type", "m.room.member")
	mentionsMe := quote(map[string]string{"kind": "event_property_contains", "key": `content.m\.mentions.user_ids`, "value": string(user)})
	master := rule(".m.rule.master", raw())
	master.Enabled = false
	return Ruleset{
		Override: []Rule{
			master,
			rule(".m.rule.suppress_notices", raw(), match("content.msgtype", "m.notice")),
			rule(".m.rule.invite_for_me", raw(notify, sound), member, match("content.membership", "invite"), match("state_key", string(user))),
			rule(".m.rule.member_event", raw(), member),
			rule(".m.rule.is_user_mention", raw(notify, sound, highlight), mentionsMe),
			rule(".m.rule.is_room_mention", raw(notify, highlight), mentionsRoom, mayMention),
			rule(".m.rule.tombstone", raw(notify, highlight), match("type", "m.room.tombstone"), match("state_key", "")),
			rule(".m.rule.reaction", raw(), match("type", "m.reaction")),
			rule(".m.rule.room.server_acl", raw(), match("type", "m.room.server_acl"), match("state_key", "")),
			rule(".m.rule.suppress_edits", raw(), isEdit),
		},
		Underride: []Rule{
			rule(".m.rule.call", raw(notify, ring), match("type", "m.call.invite")),
			rule(".m.rule.encrypted_room_one_to_one", raw(notify, sound), twoMembers, match("type", "m.room.encrypted")),
			rule(".m.rule.room_one_to_one", raw(notify, sound), twoMembers, match("type", "m.room.message")),
			rule(".m.rule.message", raw(notify), match("type", "m.room.message")),
			rule(".m.rule.encrypted", raw(notify), match("type", "m.room.encrypted")),
		},
	}
}
