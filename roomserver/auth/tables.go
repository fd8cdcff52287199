package auth

// The tables are laid out as the specification prints them: a line is a rule, its place in the
// list is its number. What a version shares with an earlier one is shared here.

// tables has the rules of each room version.
var tables = map[string]list{
	"1": rulesV1, "2": rulesV1,
	"3": rulesV3, "4": rulesV3, "5": rulesV3,
	"6": rulesV6,
	"7": rulesV7,
	"8": rulesV8, "9": rulesV8,
	"10": rulesV10,
	"11": rulesV11,
	"12": rulesV12,
}

// spec: rooms/v1#authorisation-rules
var rulesV1 = list{
	createV1,         // 1
	authEventsV1,     // 2
	federate,         // 3
	aliases,          // 4
	memberV1,         // 5
	senderIsJoined,   // 6
	thirdPartyInvite, // 7
	requiredLevel,    // 8
	ownStateKey,      // 9
	powerLevelsV1,    // 10
	redaction,        // 11
	otherwiseAllow,   // 12
}

// From version 3 on redactions are like any other event.
//
// spec: rooms/v3#authorisation-rules
var rulesV3 = list{
	createV1,         // 1
	authEventsV1,     // 2
	federate,         // 3
	aliases,          // 4
	memberV1,         // 5
	senderIsJoined,   // 6
	thirdPartyInvite, // 7
	requiredLevel,    // 8
	ownStateKey,      // 9
	powerLevelsV1,    // 10
	otherwiseAllow,   // 11
}

// Version 6 drops the rule for aliases and looks at the levels of notifications.
//
// spec: rooms/v6#authorisation-rules
var rulesV6 = list{
	createV1,         // 1
	authEventsV1,     // 2
	federate,         // 3
	memberV1,         // 4
	senderIsJoined,   // 5
	thirdPartyInvite, // 6
	requiredLevel,    // 7
	ownStateKey,      // 8
	powerLevelsV6,    // 9
	otherwiseAllow,   // 10
}

// Version 7 has knocking.
//
// spec: rooms/v7#authorisation-rules
var rulesV7 = rulesV6.with(4, memberV7)

// Version 8 has restricted joins.
//
// spec: rooms/v8#authorisation-rules
var rulesV8 = rulesV7.with(4, memberV8)

// Version 10 has restricted joins beside knocking, and wants integers as power levels.
//
// spec: rooms/v10#authorisation-rules
var rulesV10 = rulesV8.with(4, memberV10).with(9, powerLevelsV10)

// Version 11 has the creator in the sender alone.
//
// spec: rooms/v11#authorisation-rules
var rulesV11 = rulesV10.with(1, createV11)

// Version 12 has the create event in the room ID, and creators above all levels.
//
// spec: rooms/v12#authorisation-rules
var rulesV12 = list{
	createV12,        // 1
	roomIsCreated,    // 2
	authEventsV12,    // 3
	federate,         // 4
	memberV10,        // 5
	senderIsJoined,   // 6
	thirdPartyInvite, // 7
	requiredLevel,    // 8
	ownStateKey,      // 9
	powerLevelsV12,   // 10
	otherwiseAllow,   // 11
}

// with is the list with another rule under a number.
func (l list) with(number int, r rule) list {
	changed := append(list(nil), l...)
	changed[number-1] = r
	return changed
}

var (
	// spec: rooms/v1#authorisation-rules 1
	createV1 = when(typeIs("m.room.create"),
		createIsFirst,         // 1
		createIsInSendersRoom, // 2
		createVersionIsKnown,  // 3
		createHasCreator,      // 4
		rule(otherwiseAllow),  // 5
	)
	// spec: rooms/v11#authorisation-rules 1
	createV11 = when(typeIs("m.room.create"),
		createIsFirst,         // 1
		createIsInSendersRoom, // 2
		createVersionIsKnown,  // 3
		otherwiseAllow,        // 4
	)
	// spec: rooms/v12#authorisation-rules 1
	createV12 = when(typeIs("m.room.create"),
		createIsFirst,              // 1
		createHasNoRoomID,          // 2
		createVersionIsKnown,       // 3
		additionalCreatorsAreUsers, // 4
		otherwiseAllow,             // 5
	)
)

var (
	// spec: rooms/v11#authorisation-rules 2
	authEventsV1 = considering("m.room.create",
		noneTwice,     // 1
		onlySelected,  // 2
		noneRejected,  // 3
		createIsAmong, // 4
		allOfThisRoom, // 5
	)
	// spec: rooms/v12#authorisation-rules 3
	authEventsV12 = considering("",
		noneTwice,     // 1
		onlySelected,  // 2
		noneRejected,  // 3
		allOfThisRoom, // 4
	)
)

var (
	// spec: rooms/v1#authorisation-rules 5
	// spec: rooms/v6#authorisation-rules 4
	memberV1 = when(typeIs("m.room.member"),
		memberIsComplete, // 1
		when(membershipIs("join"), // 2
			firstJoin,             // 1
			joinIsOwn,             // 2
			joinNotBanned,         // 3
			joinInvited("invite"), // 4
			joinPublic,            // 5
			otherwiseReject("the join rule does not let the user in"), // 6
		),
		invite, // 3
		when(membershipIs("leave"), leaveOwn("invite", "join"), kickerIsJoined, unban, kick, mayNotKick), // 4
		ban,               // 5
		unknownMembership, // 6
	)
	// spec: rooms/v7#authorisation-rules 4
	memberV7 = when(typeIs("m.room.member"),
		memberIsComplete, // 1
		when(membershipIs("join"), // 2
			firstJoin,                      // 1
			joinIsOwn,                      // 2
			joinNotBanned,                  // 3
			joinInvited("invite", "knock"), // 4
			joinPublic,                     // 5
			otherwiseReject("the join rule does not let the user in"), // 6
		),
		invite,            // 3
		leave,             // 4
		ban,               // 5
		knock("knock"),    // 6
		unknownMembership, // 7
	)
	// spec: rooms/v8#authorisation-rules 4
	memberV8 = restrictedMember([]string{"restricted"}, []string{"knock"})
	// spec: rooms/v10#authorisation-rules 4
	// spec: rooms/v12#authorisation-rules 5
	memberV10 = restrictedMember([]string{"restricted", "knock_restricted"}, []string{"knock", "knock_restricted"})
)

// spec: rooms/v11#authorisation-rules 4
func restrictedMember(restricted, knockable []string) rule {
	return when(typeIs("m.room.member"),
		memberIsComplete, // 1
		when(namesAuthoriser, signedByAuthoriser), // 2
		when(membershipIs("join"), // 3
			firstJoin,                      // 1
			joinIsOwn,                      // 2
			joinNotBanned,                  // 3
			joinInvited("invite", "knock"), // 4
			when(joinRuleIs(restricted...), // 5
				joinedOrInvited,     // 1
				authoriserMayInvite, // 2
				otherwiseAllow,      // 3
			),
			joinPublic, // 6
			otherwiseReject("the join rule does not let the user in"), // 7
		),
		invite,              // 4
		leave,               // 5
		ban,                 // 6
		knock(knockable...), // 7
		unknownMembership,   // 8
	)
}

var (
	// spec: rooms/v11#authorisation-rules 4.4
	invite = when(membershipIs("invite"),
		when(hasThirdPartyInvite, // 1
			thirdPartyNotBanned,      // 1
			thirdPartyIsSigned,       // 2
			thirdPartyIsComplete,     // 3
			thirdPartyIsTarget,       // 4
			thirdPartyIsInRoom,       // 5
			thirdPartySenderIsSame,   // 6
			thirdPartySignatureHolds, // 7
			otherwiseReject("no signature fits a public key of the third-party invite"), // 8
		),
		inviterIsJoined,  // 2
		inviteeIsOutside, // 3
		mayInvite,        // 4
		otherwiseReject("the sender's power level is below the invite level"), // 5
	)
	// spec: rooms/v11#authorisation-rules 4.5
	leave = when(membershipIs("leave"),
		leaveOwn("invite", "join", "knock"), // 1
		kickerIsJoined,                      // 2
		unban,                               // 3
		kick,                                // 4
		mayNotKick,                          // 5
	)
	mayNotKick = otherwiseReject("the sender's power level is below the kick level or not above the target's")
	// spec: rooms/v11#authorisation-rules 4.6
	ban = when(membershipIs("ban"),
		bannerIsJoined, // 1
		mayBan,         // 2
		otherwiseReject("the sender's power level is below the ban level or not above the target's"), // 3
	)
	unknownMembership = otherwiseReject("the membership is unknown")
)

// spec: rooms/v11#authorisation-rules 4.7
func knock(joinRules ...string) rule {
	return when(membershipIs("knock"),
		knockable(joinRules...), // 1
		knockIsOwn,              // 2
		knockFromOutside,        // 3
		otherwiseReject("the user is banned, invited or joined already"), // 4
	)
}

// spec: rooms/v11#authorisation-rules 6
var thirdPartyInvite = when(typeIs("m.room.third_party_invite"),
	mayInviteThirdParty, // 1
)

// spec: rooms/v1#authorisation-rules 4
var aliases = when(typeIs("m.room.aliases"),
	aliasesHaveStateKey, // 1
	aliasesAreOwn,       // 2
	otherwiseAllow,      // 3
)

// spec: rooms/v1#authorisation-rules 11
var redaction = when(typeIs("m.room.redaction"),
	mayRedact,  // 1
	redactsOwn, // 2
	otherwiseReject("the sender may not redact the events of other servers"), // 3
)

var (
	// spec: rooms/v1#authorisation-rules 10
	powerLevelsV1 = when(typeIs("m.room.power_levels"),
		usersAreReadable,     // 1
		firstPowerLevels,     // 2
		alterations,          // 3
		takenEntries(events), // 4
		givenEntries(events), // 5
		takenUsers,           // 6
		givenUsers,           // 7
		otherwiseAllow,       // 8
	)
	// spec: rooms/v6#authorisation-rules 9
	powerLevelsV6 = when(typeIs("m.room.power_levels"),
		usersAreReadable,                    // 1
		firstPowerLevels,                    // 2
		alterations,                         // 3
		takenEntries(events, notifications), // 4
		givenEntries(events, notifications), // 5
		takenUsers,                          // 6
		givenUsers,                          // 7
		otherwiseAllow,                      // 8
	)
	// spec: rooms/v10#authorisation-rules 9
	powerLevelsV10 = when(typeIs("m.room.power_levels"),
		levelsAreIntegers,                   // 1
		entriesAreIntegers,                  // 2
		usersAreIntegers,                    // 3
		firstPowerLevels,                    // 4
		alterations,                         // 5
		takenEntries(events, notifications), // 6
		givenEntries(events, notifications), // 7
		takenUsers,                          // 8
		givenUsers,                          // 9
		otherwiseAllow,                      // 10
	)
	// spec: rooms/v12#authorisation-rules 10
	powerLevelsV12 = when(typeIs("m.room.power_levels"),
		levelsAreIntegers,                   // 1
		entriesAreIntegers,                  // 2
		usersAreIntegers,                    // 3
		creatorsAreNotListed,                // 4
		firstPowerLevels,                    // 5
		alterations,                         // 6
		takenEntries(events, notifications), // 7
		givenEntries(events, notifications), // 8
		takenUsers,                          // 9
		givenUsers,                          // 10
		otherwiseAllow,                      // 11
	)
)
