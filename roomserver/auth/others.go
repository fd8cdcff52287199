package auth

import (
	"strings"

	"chancery/roomserver/event"
)

// spec: rooms/v11#authorisation-rules 5
func senderIsJoined(q *question) answer {
	if q.senderMembership() != "join" {
		return reject("the sender is not in the room")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 6.1
func mayInviteThirdParty(q *question) answer {
	if !q.senderLevel().AtLeast(q.power().Invite()) {
		return reject("the sender's power level is below the invite level")
	}
	return allow
}

// spec: rooms/v11#authorisation-rules 7
func requiredLevel(q *question) answer {
	_, isState := q.ev.StateKey()
	if !q.senderLevel().AtLeast(q.power().ForEvent(q.ev.Type(), isState)) {
		return reject("the sender's power level is below what " + q.ev.Type() + " requires")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 8
func ownStateKey(q *question) answer {
	if key, ok := q.ev.StateKey(); ok && strings.HasPrefix(key, "@") && key != string(q.ev.Sender()) {
		return reject("the state key is another user's ID")
	}
	return next
}

// spec: rooms/v1#authorisation-rules 4.1
func aliasesHaveStateKey(q *question) answer {
	if _, ok := q.ev.StateKey(); !ok {
		return reject("the aliases have no state_key")
	}
	return next
}

// spec: rooms/v1#authorisation-rules 4.2
func aliasesAreOwn(q *question) answer {
	if q.target() != server(q.ev.Sender()) {
		return reject("the aliases are those of another server")
	}
	return next
}

// spec: rooms/v1#authorisation-rules 11.1
func mayRedact(q *question) answer {
	if q.senderLevel().AtLeast(q.power().Redact()) {
		return allow
	}
	return next
}

// spec: rooms/v1#authorisation-rules 11.2
func redactsOwn(q *question) answer {
	if event.Domain(string(q.ev.ID())) == event.Domain(string(q.ev.Redacts())) {
		return allow
	}
	return next
}

// CanRedact says whether an accepted redaction takes effect on its target, given the power
// levels at the redaction: if not, neither it nor its effect is shown to clients. In versions 1
// and 2 an accepted redaction has passed that question as an authorisation rule.
//
// spec: rooms/v11#handling-redactions
func CanRedact(redaction, target *event.Event, p PowerLevels) bool {
	if redaction.RoomID() != target.RoomID() {
		return false
	}
	if redaction.Version().RedactionAuthRule {
		return true
	}
	return p.Of(redaction.Sender()).AtLeast(p.Redact()) || server(redaction.Sender()) == server(target.Sender())
}
