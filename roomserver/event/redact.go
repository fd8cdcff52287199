package event

import (
	"slices"

	"chancery"
)

// Redaction says what survives when an event is redacted.
type Redaction struct {
	Top     []string            // the top-level keys that stay
	Content map[string][]string // by event type, the keys of content that stay
	// CreateContent keeps the whole content of m.room.create.
	CreateContent bool
	// InviteSigned keeps signed in content.third_party_invite of m.room.member.
	InviteSigned bool
}

func (r Redaction) with(change func(*Redaction)) *Redaction {
	content := make(map[string][]string, len(r.Content))
	for typ, keys := range r.Content {
		content[typ] = keys
	}
	r.Content = content
	change(&r)
	return &r
}

var (
	// spec: rooms/v1#redactions
	redactV1 = &Redaction{
		Top: []string{"event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures",
			"depth", "prev_events", "prev_state", "auth_events", "origin", "origin_server_ts", "membership"},
		Content: map[string][]string{
			"m.room.member":     {"membership"},
			"m.room.create":     {"creator"},
			"m.room.join_rules": {"join_rule"},
			"m.room.power_levels": {"ban", "events", "events_default", "kick", "redact", "state_default",
				"users", "users_default"},
			"m.room.aliases":            {"aliases"},
			"m.room.history_visibility": {"history_visibility"},
		},
	}
	// spec: rooms/v6#redactions
	redactV6 = redactV1.with(func(r *Redaction) { delete(r.Content, "m.room.aliases") })
	// spec: rooms/v8#redactions
	redactV8 = redactV6.with(func(r *Redaction) { r.Content["m.room.join_rules"] = []string{"join_rule", "allow"} })
	// spec: rooms/v9#redactions
	redactV9 = redactV8.with(func(r *Redaction) {
		r.Content["m.room.member"] = []string{"membership", "join_authorised_via_users_server"}
	})
	// spec: rooms/v11#redactions
	redactV11 = redactV9.with(func(r *Redaction) {
		r.Top = []string{"event_id", "type", "room_id", "sender", "state_key", "content", "hashes", "signatures",
			"depth", "prev_events", "auth_events", "origin_server_ts"}
		delete(r.Content, "m.room.create")
		r.CreateContent = true
		r.InviteSigned = true
		r.Content["m.room.power_levels"] = []string{"ban", "events", "events_default", "invite", "kick", "redact",
			"state_default", "users", "users_default"}
		r.Content["m.room.redaction"] = []string{"redacts"}
	})
)

// redact keeps the essential members of an event, signatures included.
func (v *Version) redact(top object, typ string) object {
	out := make(object, 0, len(top))
	for _, m := range top {
		switch {
		case string(m.key) == "content":
			out = append(out, member{m.key, v.redactContent(typ, m.val)})
		case slices.Contains(v.Redaction.Top, view(m.key)):
			out = append(out, m)
		}
	}
	return out
}

func (v *Version) redactContent(typ string, content []byte) []byte {
	r := v.Redaction
	if typ == typeCreate && r.CreateContent {
		return content
	}
	keep := r.Content[typ]
	if len(keep) == 0 {
		return []byte("{}")
	}
	var few [16]member
	all, err := members(content, few[:0])
	if err != nil {
		return []byte("{}")
	}
	kept := make(object, 0, len(keep)+1)
	for _, m := range all {
		switch {
		case slices.Contains(keep, view(m.key)):
			kept = append(kept, m)
		case typ == typeMember && r.InviteSigned && string(m.key) == "third_party_invite":
			// The key itself is no longer redacted, so it stays even when nothing is left in it.
			if isObject(m.val) {
				kept = append(kept, member{m.key, only(m.val, "signed")})
			}
		}
	}
	return kept.append(make([]byte, 0, len(content)))
}

// only keeps one member of an object.
func only(raw []byte, key string) []byte {
	if val := lookup(raw, key); val != nil {
		return object{{[]byte(key), val}}.append(nil)
	}
	return []byte("{}")
}

// Redact returns the redacted copy of the event. It has the same ID and signatures.
func (e *Event) Redact() (*Event, error) {
	top, err := members(e.json, nil)
	if err != nil {
		return nil, chancery.Internal(err)
	}
	c, err := newEvent(e.version, e.id, e.version.redact(top, e.typ).append(nil), true)
	if err != nil {
		return nil, err
	}
	c.redacted = true
	return c, nil
}
