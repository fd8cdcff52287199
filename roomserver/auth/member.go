package auth

import (
	"slices"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// content is the content of the m.room.member event that is asked about.
func (q *question) content() *memberContent {
	if q.member == nil {
		q.member = parseMember(q.ev.Content())
	}
	return q.member
}

func membershipIs(membership string) func(*question) bool {
	return func(q *question) bool { return q.content().membership == membership }
}

func (q *question) isOwn() bool { return string(q.ev.Sender()) == q.target() }

func (q *question) senderMembership() string { return q.membershipOf(string(q.ev.Sender())) }

func (q *question) targetMembership() string { return q.membershipOf(q.target()) }

// spec: rooms/v11#authorisation-rules 4.1
func memberIsComplete(q *question) answer {
	if _, isState := q.ev.StateKey(); !isState || !q.content().has {
		return reject("a member event has a state_key and a membership")
	}
	return next
}

func namesAuthoriser(q *question) bool { return q.content().authoriser.Exists() }

// signedByAuthoriser leaves the signature itself to the check of signatures that every event
// passes before its authorisation, which asks for that of JoinAuthorisedVia's server: keys come
// from the network. What names no user has no server that could have signed.
//
// spec: rooms/v8#authorisation-rules 4.2.1
// spec: s2s#checks-performed-on-receipt-of-a-pdu 2
func signedByAuthoriser(q *question) answer {
	if via := q.content().authoriser; via.Type != gjson.String || !event.ValidUserID(via.Str) {
		return reject("join_authorised_via_users_server is not a user ID")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.3.1
func firstJoin(q *question) answer {
	prev := q.ev.PrevEvents()
	if len(prev) != 1 || prev[0] != q.create.ID() {
		return next
	}
	// Additional creators are no more than others until they have joined.
	if creators := Creators(q.create); q.target() == string(creators[0]) {
		return allow
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.3.2
func joinIsOwn(q *question) answer {
	if !q.isOwn() {
		return reject("nobody joins for another user")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.3.3
func joinNotBanned(q *question) answer {
	if q.senderMembership() == "ban" {
		return reject("the sender is banned")
	}
	return next
}

func joinRuleIs(rules ...string) func(*question) bool {
	return func(q *question) bool {
		return slices.Contains(rules, JoinRule(q.state.Get("m.room.join_rules", "")))
	}
}

// spec: rooms/v11#authorisation-rules 4.3.4
func joinInvited(rules ...string) rule { return when(joinRuleIs(rules...), joinedOrInvited) }

// spec: rooms/v11#authorisation-rules 4.3.5.1
func joinedOrInvited(q *question) answer {
	if m := q.targetMembership(); m == "join" || m == "invite" {
		return allow
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.3.5.2
func authoriserMayInvite(q *question) answer {
	via := q.content().authoriser
	if via.Type != gjson.String {
		return reject("no user of the room has authorised the join")
	}
	if q.membershipOf(via.Str) != "join" {
		return reject("the user who authorised the join is not in the room")
	}
	p := q.power()
	if !p.Of(id.UserID(via.Str)).AtLeast(p.Invite()) {
		return reject("the user who authorised the join may not invite")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.3.6
func joinPublic(q *question) answer {
	if JoinRule(q.state.Get("m.room.join_rules", "")) == "public" {
		return allow
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.2
func inviterIsJoined(q *question) answer {
	if q.senderMembership() != "join" {
		return reject("the sender of the invite is not in the room")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.3
func inviteeIsOutside(q *question) answer {
	switch q.targetMembership() {
	case "join":
		return reject("the invited user is in the room")
	case "ban":
		return reject("the invited user is banned")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.4.4
func mayInvite(q *question) answer {
	if q.senderLevel().AtLeast(q.power().Invite()) {
		return allow
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.5.1
func leaveOwn(from ...string) rule {
	return func(q *question) answer {
		if !q.isOwn() {
			return next
		}
		if !slices.Contains(from, q.senderMembership()) {
			return reject("there is nothing that the sender could leave")
		}
		return allow
	}
}

// spec: rooms/v11#authorisation-rules 4.5.2
func kickerIsJoined(q *question) answer {
	if q.senderMembership() != "join" {
		return reject("the sender of the kick is not in the room")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.5.3
func unban(q *question) answer {
	if q.targetMembership() == "ban" && !q.senderLevel().AtLeast(q.power().Ban()) {
		return reject("the sender's power level is below the ban level, so it may not unban")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.5.4
func kick(q *question) answer {
	if q.senderLevel().AtLeast(q.power().Kick()) && q.outranksTarget() {
		return allow
	}
	return next
}

func (q *question) outranksTarget() bool {
	return q.senderLevel().Cmp(q.power().Of(id.UserID(q.target()))) > 0
}

// spec: rooms/v11#authorisation-rules 4.6.1
func bannerIsJoined(q *question) answer {
	if q.senderMembership() != "join" {
		return reject("the sender of the ban is not in the room")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.6.2
func mayBan(q *question) answer {
	if q.senderLevel().AtLeast(q.power().Ban()) && q.outranksTarget() {
		return allow
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.7.1
func knockable(rules ...string) rule {
	return func(q *question) answer {
		if !joinRuleIs(rules...)(q) {
			return reject("the join rule does not let users knock")
		}
		return next
	}
}

// spec: rooms/v11#authorisation-rules 4.7.2
func knockIsOwn(q *question) answer {
	if !q.isOwn() {
		return reject("nobody knocks for another user")
	}
	return next
}

// spec: rooms/v11#authorisation-rules 4.7.3
func knockFromOutside(q *question) answer {
	switch q.senderMembership() {
	case "ban", "invite", "join":
		return next
	}
	return allow
}
