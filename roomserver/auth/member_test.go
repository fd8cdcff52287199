package auth_test

import (
	"testing"

	"chancery/roomserver/event"
)

// joinRule sets the join rule.
func (r *room) joinRule(rule string) {
	r.t.Helper()
	r.send(r.state0(alice, "m.room.join_rules", obj{"join_rule": rule}))
}

// levels sets power levels as alice. Version 12 does not let her list herself.
func (r *room) levels(content obj, users obj) {
	r.t.Helper()
	all := obj{}
	for user, level := range users {
		all[user] = level
	}
	if !r.v.PrivilegedCreators {
		all[string(alice)] = 100
	}
	whole := obj{"users": all}
	for key, value := range content {
		whole[key] = value
	}
	r.send(r.power(alice, whole))
}

// mods gives bob 50 and lets him send power levels.
func (r *room) mods(content obj) {
	r.t.Helper()
	r.send(r.member(bob, bob, "join"))
	r.levels(content, obj{string(bob): 50})
}

func TestMembersJoin(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v1#authorisation-rules 5.1
		// spec: rooms/v11#authorisation-rules 4.1
		// spec: rooms/v12#authorisation-rules 5.1
		{"a member event without membership", func(r *room) *event.Event {
			return r.stateAt(bob, "m.room.member", string(bob), obj{"reason": "none"})
		}, in{"1-5": "5.1", "6-11": "4.1", "12": "5.1"}},
		{"a member event that is no state", func(r *room) *event.Event {
			return r.build(r.proto(bob, "m.room.member", nil, obj{"membership": "join"}))
		}, in{"1-5": "5.1", "6-11": "4.1", "12": "5.1"}},
		// spec: rooms/v11#authorisation-rules 4.8
		{"a membership that nobody knows", func(r *room) *event.Event {
			return r.member(bob, bob, "visit")
		}, in{"1-5": "5.6", "6": "4.6", "7": "4.7", "8-11": "4.8", "12": "5.8"}},
		{"a membership that is no string", func(r *room) *event.Event {
			return r.stateAt(bob, "m.room.member", string(bob), obj{"membership": 1})
		}, in{"1-5": "5.6", "6": "4.6", "7": "4.7", "8-11": "4.8", "12": "5.8"}},
		{"Membership is not membership", func(r *room) *event.Event {
			return r.stateAt(bob, "m.room.member", string(bob), obj{"Membership": "join"})
		}, in{"1-5": "5.1", "6-11": "4.1", "12": "5.1"}},

		// spec: rooms/v11#authorisation-rules 4.3.1
		{"the creator's first join", func(r *room) *event.Event {
			fresh := newRoom(r.t, r.v.Name, nil)
			*r = *fresh
			return r.member(alice, alice, "join")
		}, in{"1-12": "allow"}},
		{"another user as the first to join", func(r *room) *event.Event {
			fresh := newRoom(r.t, r.v.Name, nil)
			*r = *fresh
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6-7": "4.2.6", "8-11": "4.3.7", "12": "5.3.7"}},
		// spec: rooms/v12#authorisation-rules 5.3.1
		{"an additional creator as the first to join", func(r *room) *event.Event {
			*r = *newRoom(r.t, r.v.Name, obj{"additional_creators": []string{string(bob)}})
			return r.member(bob, bob, "join")
		}, in{"12": "5.3.7"}},
		{"a second join event of the creator, after others", func(r *room) *event.Event {
			return r.member(alice, alice, "join")
		}, in{"1-12": "allow"}},

		// spec: rooms/v11#authorisation-rules 4.3.2
		{"joining for somebody else", func(r *room) *event.Event {
			return r.member(alice, bob, "join")
		}, in{"1-5": "5.2.2", "6-7": "4.2.2", "8-11": "4.3.2", "12": "5.3.2"}},
		// spec: rooms/v11#authorisation-rules 4.3.3
		{"a banned user may not rejoin", func(r *room) *event.Event {
			r.send(r.member(alice, bob, "ban"))
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.3", "6-7": "4.2.3", "8-11": "4.3.3", "12": "5.3.3"}},
		// spec: rooms/v11#authorisation-rules 4.3.4
		{"an invited user joins", func(r *room) *event.Event {
			r.joinRule("invite")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "join")
		}, in{"1-12": "allow"}},
		{"a member changes their name in a room by invitation", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			r.joinRule("invite")
			return r.member(bob, bob, "join")
		}, in{"1-12": "allow"}},
		{"nobody joins uninvited by invitation", func(r *room) *event.Event {
			r.joinRule("invite")
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6-7": "4.2.6", "8-11": "4.3.7", "12": "5.3.7"}},
		{"a room without join rules is joined by invitation", func(r *room) *event.Event {
			*r = *newRoom(r.t, r.v.Name, nil)
			r.send(r.member(alice, alice, "join"))
			r.send(r.member(alice, bob, "invite"))
			r.want(r.member(carol, carol, "join"), map[bool]string{true: "5.2.6", false: "4.2.6"}[r.v.SpecialCaseAliases])
			return r.member(bob, bob, "join")
		}, in{"1-7": "allow"}},
		// spec: rooms/v7#authorisation-rules 4.2.4
		{"an invited user joins where users knock", func(r *room) *event.Event {
			r.joinRule("knock")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6": "4.2.6", "7-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.3.6
		{"anybody joins a public room", func(r *room) *event.Event {
			return r.member(bob, bob, "join")
		}, in{"1-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.3.7
		{"nobody joins a private room, invited or not", func(r *room) *event.Event {
			r.joinRule("private")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6-7": "4.2.6", "8-11": "4.3.7", "12": "5.3.7"}},
		{"a join rule that is no string lets nobody in", func(r *room) *event.Event {
			r.send(r.state0(alice, "m.room.join_rules", obj{"join_rule": []string{"public"}}))
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6-7": "4.2.6", "8-11": "4.3.7", "12": "5.3.7"}},
		{"restricted is unknown before version 8", func(r *room) *event.Event {
			r.joinRule("restricted")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6-7": "4.2.6", "8-12": "allow"}},
		{"knock_restricted is unknown before version 10", func(r *room) *event.Event {
			r.joinRule("knock_restricted")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "join")
		}, in{"1-5": "5.2.6", "6-7": "4.2.6", "8-9": "4.3.7", "10-12": "allow"}},
	})
}

// authorisedJoin is bob's join in the name of a user.
func (r *room) authorisedJoin(via any) *event.Event {
	r.t.Helper()
	return r.stateAt(bob, "m.room.member", string(bob), obj{"membership": "join", "join_authorised_via_users_server": via})
}

func TestMembersOfOtherRoomsJoinRestrictedRooms(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v8#authorisation-rules 4.2.1
		{"authorised by what is no user", func(r *room) *event.Event {
			r.joinRule("restricted")
			return r.authorisedJoin("a.example")
		}, in{"8-11": "4.2.1", "12": "5.2.1"}},
		{"authorised by a number", func(r *room) *event.Event {
			r.joinRule("restricted")
			return r.authorisedJoin(5)
		}, in{"8-11": "4.2.1", "12": "5.2.1"}},
		{"the property means nothing before version 8", func(r *room) *event.Event {
			return r.authorisedJoin(5)
		}, in{"1-7": "allow"}},
		// spec: rooms/v8#authorisation-rules 4.3.5.1
		{"invited, no authorisation needed", func(r *room) *event.Event {
			r.joinRule("restricted")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "join")
		}, in{"8-12": "allow"}},
		// spec: rooms/v8#authorisation-rules 4.3.5.2
		{"authorised by nobody", func(r *room) *event.Event {
			r.joinRule("restricted")
			return r.member(bob, bob, "join")
		}, in{"8-11": "4.3.5.2", "12": "5.3.5.2"}},
		{"authorised by one who is not in the room", func(r *room) *event.Event {
			r.joinRule("restricted")
			return r.authorisedJoin(carol)
		}, in{"8-11": "4.3.5.2", "12": "5.3.5.2"}},
		{"authorised by one who may not invite", func(r *room) *event.Event {
			r.send(r.member(carol, carol, "join"))
			r.levels(obj{"invite": 10}, nil)
			r.joinRule("restricted")
			return r.authorisedJoin(carol)
		}, in{"8-11": "4.3.5.2", "12": "5.3.5.2"}},
		// spec: rooms/v8#authorisation-rules 4.3.5.3
		{"authorised by one who may invite", func(r *room) *event.Event {
			r.send(r.member(carol, carol, "join"))
			r.levels(obj{"invite": 10}, obj{string(carol): 10})
			r.joinRule("restricted")
			return r.authorisedJoin(carol)
		}, in{"8-12": "allow"}},
		// spec: rooms/v12#authorisation-rules 5.3.5.2
		{"authorised by the creator, who is above every level", func(r *room) *event.Event {
			r.levels(obj{"invite": 1000}, nil)
			r.joinRule("restricted")
			return r.authorisedJoin(alice)
		}, in{"12": "allow"}},
		// spec: rooms/v10#authorisation-rules 4.3.5
		{"restricted beside knocking", func(r *room) *event.Event {
			r.joinRule("knock_restricted")
			return r.authorisedJoin(alice)
		}, in{"8-9": "4.3.7", "10-12": "allow"}},
	})
}

func TestMembersInvite(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v11#authorisation-rules 4.4.2
		{"an outsider invites", func(r *room) *event.Event {
			return r.member(bob, carol, "invite")
		}, in{"1-5": "5.3.2", "6-7": "4.3.2", "8-11": "4.4.2", "12": "5.4.2"}},
		// spec: rooms/v11#authorisation-rules 4.4.3
		{"a member is invited", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.member(alice, bob, "invite")
		}, in{"1-5": "5.3.3", "6-7": "4.3.3", "8-11": "4.4.3", "12": "5.4.3"}},
		{"a banned user is invited", func(r *room) *event.Event {
			r.send(r.member(alice, bob, "ban"))
			return r.member(alice, bob, "invite")
		}, in{"1-5": "5.3.3", "6-7": "4.3.3", "8-11": "4.4.3", "12": "5.4.3"}},
		// spec: rooms/v11#authorisation-rules 4.4.4
		{"the invite level is 0 by default", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.member(bob, carol, "invite")
		}, in{"1-12": "allow"}},
		{"an invited user is invited again", func(r *room) *event.Event {
			r.send(r.member(alice, bob, "invite"))
			return r.member(alice, bob, "invite")
		}, in{"1-12": "allow"}},
		{"a level equal to the invite level is enough", func(r *room) *event.Event {
			r.mods(obj{"invite": 50})
			return r.member(bob, carol, "invite")
		}, in{"1-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.4.5
		{"a level below the invite level is not", func(r *room) *event.Event {
			r.mods(obj{"invite": 51})
			return r.member(bob, carol, "invite")
		}, in{"1-5": "5.3.5", "6-7": "4.3.5", "8-11": "4.4.5", "12": "5.4.5"}},
	})
}

func TestMembersLeaveAndAreKicked(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v11#authorisation-rules 4.5.1
		{"a member leaves", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			return r.member(bob, bob, "leave")
		}, in{"1-12": "allow"}},
		{"an invite is declined", func(r *room) *event.Event {
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "leave")
		}, in{"1-12": "allow"}},
		{"a knock is taken back", func(r *room) *event.Event {
			r.joinRule("knock")
			r.send(r.member(bob, bob, "knock"))
			return r.member(bob, bob, "leave")
		}, in{"7-12": "allow"}},
		{"who was never there cannot leave", func(r *room) *event.Event {
			return r.member(bob, bob, "leave")
		}, in{"1-5": "5.4.1", "6-7": "4.4.1", "8-11": "4.5.1", "12": "5.5.1"}},
		{"the banned do not lift their ban by leaving", func(r *room) *event.Event {
			r.send(r.member(alice, bob, "ban"))
			return r.member(bob, bob, "leave")
		}, in{"1-5": "5.4.1", "6-7": "4.4.1", "8-11": "4.5.1", "12": "5.5.1"}},
		// spec: rooms/v11#authorisation-rules 4.5.2
		{"an outsider kicks", func(r *room) *event.Event {
			return r.member(bob, alice, "leave")
		}, in{"1-5": "5.4.2", "6-7": "4.4.2", "8-11": "4.5.2", "12": "5.5.2"}},
		// spec: rooms/v11#authorisation-rules 4.5.3
		{"unbanning below the ban level", func(r *room) *event.Event {
			r.mods(obj{"ban": 60})
			r.send(r.member(alice, carol, "ban"))
			return r.member(bob, carol, "leave")
		}, in{"1-5": "5.4.3", "6-7": "4.4.3", "8-11": "4.5.3", "12": "5.5.3"}},
		{"unbanning", func(r *room) *event.Event {
			r.mods(nil)
			r.send(r.member(alice, carol, "ban"))
			return r.member(bob, carol, "leave")
		}, in{"1-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.5.4
		{"kicking", func(r *room) *event.Event {
			r.mods(nil)
			r.send(r.member(carol, carol, "join"))
			return r.member(bob, carol, "leave")
		}, in{"1-12": "allow"}},
		{"an invite is withdrawn", func(r *room) *event.Event {
			r.mods(nil)
			r.send(r.member(alice, carol, "invite"))
			return r.member(bob, carol, "leave")
		}, in{"1-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.5.5
		{"unbanning takes the kick level too", func(r *room) *event.Event {
			r.mods(obj{"kick": 60})
			r.send(r.member(alice, carol, "ban"))
			return r.member(bob, carol, "leave")
		}, in{"1-5": "5.4.5", "6-7": "4.4.5", "8-11": "4.5.5", "12": "5.5.5"}},
		{"kicking an equal", func(r *room) *event.Event {
			r.mods(nil)
			r.send(r.member(carol, carol, "join"))
			r.levels(nil, obj{string(bob): 50, string(carol): 50})
			return r.member(bob, carol, "leave")
		}, in{"1-5": "5.4.5", "6-7": "4.4.5", "8-11": "4.5.5", "12": "5.5.5"}},
		{"kicking below the kick level", func(r *room) *event.Event {
			r.mods(obj{"kick": 51})
			r.send(r.member(carol, carol, "join"))
			return r.member(bob, carol, "leave")
		}, in{"1-5": "5.4.5", "6-7": "4.4.5", "8-11": "4.5.5", "12": "5.5.5"}},
		// spec: rooms/v12#authorisation-rules 5.5.4
		{"creators do not outrank each other", func(r *room) *event.Event {
			*r = *newRoom(r.t, r.v.Name, obj{"additional_creators": []string{string(bob)}})
			r.send(r.member(alice, alice, "join"))
			r.send(r.member(alice, bob, "invite"))
			r.send(r.member(bob, bob, "join"))
			return r.member(alice, bob, "leave")
		}, in{"12": "5.5.5"}},
		{"the highest number is below a creator", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			r.levels(nil, obj{string(bob): int64(1)<<53 - 1})
			r.want(r.member(bob, alice, "leave"), "5.5.5")
			return r.member(alice, bob, "leave")
		}, in{"12": "allow"}},
	})
}

func TestMembersAreBanned(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v11#authorisation-rules 4.6.1
		{"an outsider bans", func(r *room) *event.Event {
			return r.member(bob, alice, "ban")
		}, in{"1-5": "5.5.1", "6-7": "4.5.1", "8-11": "4.6.1", "12": "5.6.1"}},
		// spec: rooms/v11#authorisation-rules 4.6.2
		{"banning who never was in the room", func(r *room) *event.Event {
			r.mods(nil)
			return r.member(bob, carol, "ban")
		}, in{"1-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.6.3
		{"banning below the ban level", func(r *room) *event.Event {
			r.mods(obj{"ban": 51})
			return r.member(bob, carol, "ban")
		}, in{"1-5": "5.5.3", "6-7": "4.5.3", "8-11": "4.6.3", "12": "5.6.3"}},
		{"banning a superior", func(r *room) *event.Event {
			r.mods(nil)
			return r.member(bob, alice, "ban")
		}, in{"1-5": "5.5.3", "6-7": "4.5.3", "8-11": "4.6.3", "12": "5.6.3"}},
		{"banning oneself", func(r *room) *event.Event {
			return r.member(alice, alice, "ban")
		}, in{"1-5": "5.5.3", "6-7": "4.5.3", "8-11": "4.6.3", "12": "5.6.3"}},
	})
}

func TestMembersKnock(t *testing.T) {
	tellAll(t, []story{
		// spec: rooms/v7#authorisation-rules 4.6
		{"knocking is unknown before version 7", func(r *room) *event.Event {
			return r.member(bob, bob, "knock")
		}, in{"1-5": "5.6", "6": "4.6"}},
		// spec: rooms/v11#authorisation-rules 4.7.1
		{"knocking at a public room", func(r *room) *event.Event {
			return r.member(bob, bob, "knock")
		}, in{"7": "4.6.1", "8-11": "4.7.1", "12": "5.7.1"}},
		{"knocking", func(r *room) *event.Event {
			r.joinRule("knock")
			return r.member(bob, bob, "knock")
		}, in{"7-12": "allow"}},
		// spec: rooms/v10#authorisation-rules 4.7.1
		{"knocking at a restricted room that lets users knock", func(r *room) *event.Event {
			r.joinRule("knock_restricted")
			return r.member(bob, bob, "knock")
		}, in{"7": "4.6.1", "8-9": "4.7.1", "10-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.7.2
		{"knocking for somebody else", func(r *room) *event.Event {
			r.joinRule("knock")
			return r.member(bob, carol, "knock")
		}, in{"7": "4.6.2", "8-11": "4.7.2", "12": "5.7.2"}},
		// spec: rooms/v11#authorisation-rules 4.7.3
		{"knocking twice", func(r *room) *event.Event {
			r.joinRule("knock")
			r.send(r.member(bob, bob, "knock"))
			return r.member(bob, bob, "knock")
		}, in{"7-12": "allow"}},
		// spec: rooms/v11#authorisation-rules 4.7.4
		{"the banned do not knock", func(r *room) *event.Event {
			r.joinRule("knock")
			r.send(r.member(alice, bob, "ban"))
			return r.member(bob, bob, "knock")
		}, in{"7": "4.6.4", "8-11": "4.7.4", "12": "5.7.4"}},
		{"the invited do not knock", func(r *room) *event.Event {
			r.joinRule("knock")
			r.send(r.member(alice, bob, "invite"))
			return r.member(bob, bob, "knock")
		}, in{"7": "4.6.4", "8-11": "4.7.4", "12": "5.7.4"}},
		{"members do not knock", func(r *room) *event.Event {
			r.send(r.member(bob, bob, "join"))
			r.joinRule("knock")
			return r.member(bob, bob, "knock")
		}, in{"7": "4.6.4", "8-11": "4.7.4", "12": "5.7.4"}},
	})
}
