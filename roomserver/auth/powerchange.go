package auth

// The rules on m.room.power_levels events. Numbers in the references are those of version 12,
// which has them all.

// changed is the content of the power levels event that is asked about.
func (q *question) changed() *levels { return parsedLevels.of(q.ev) }

// current is the content of the room's power levels event. The rules that ask for it come after
// firstPowerLevels.
func (q *question) current() *levels { return q.power().levels }

// usersAreReadable is also where anything else unreadable is refused up to version 9: the
// content takes integers, strings and floats there, and nothing else has a level.
//
// spec: rooms/v9#authorisation-rules 9.1
// spec: rooms/v9#mroompower_levels-events-accept-values-as-strings
func usersAreReadable(q *question) answer {
	l := q.changed()
	for _, fault := range []string{l.usersFault, l.namedFault, l.entriesFault} {
		if fault != "" {
			return malformed(fault)
		}
	}
	return next
}

// spec: rooms/v12#authorisation-rules 10.1
func levelsAreIntegers(q *question) answer {
	if fault := q.changed().namedFault; fault != "" {
		return malformed(fault)
	}
	return next
}

// spec: rooms/v12#authorisation-rules 10.2
func entriesAreIntegers(q *question) answer {
	if fault := q.changed().entriesFault; fault != "" {
		return malformed(fault)
	}
	return next
}

// spec: rooms/v12#authorisation-rules 10.3
func usersAreIntegers(q *question) answer {
	if fault := q.changed().usersFault; fault != "" {
		return malformed(fault)
	}
	return next
}

// spec: rooms/v12#authorisation-rules 10.4
func creatorsAreNotListed(q *question) answer {
	listed := q.changed().entries[users]
	for creator := range q.power().room.creators {
		if _, ok := listed[string(creator)]; ok {
			return malformed("users lists a creator of the room")
		}
	}
	return next
}

// spec: rooms/v12#authorisation-rules 10.5
func firstPowerLevels(q *question) answer {
	if q.current() == nil {
		return allow
	}
	return next
}

// spec: rooms/v12#authorisation-rules 10.6
func alterations(q *question) answer {
	was, is, sender := q.current(), q.changed(), q.senderLevel()
	for i := range allNamed {
		if was.has[i] == is.has[i] && was.named[i] == is.named[i] {
			continue
		}
		if was.has[i] && !sender.AtLeast(LevelOf(was.named[i])) {
			return rejectAt("1", "the sender's power level is below the current "+namedAs[i])
		}
		if is.has[i] && !sender.AtLeast(LevelOf(is.named[i])) {
			return rejectAt("2", "the sender's power level is below the new "+namedAs[i])
		}
	}
	return next
}

// taken calls see for each entry changed in or removed from a property, until it is false.
func (q *question) taken(e entries, see func(name string, was Level) bool) {
	is := q.changed().entries[e]
	for name, was := range q.current().entries[e] {
		if now, ok := is[name]; (!ok || now != was) && !see(name, LevelOf(was)) {
			return
		}
	}
}

// given calls see for each entry added to or changed in a property, until it is false.
func (q *question) given(e entries, see func(now Level) bool) {
	was := q.current().entries[e]
	for name, now := range q.changed().entries[e] {
		if before, ok := was[name]; (!ok || now != before) && !see(LevelOf(now)) {
			return
		}
	}
}

// spec: rooms/v12#authorisation-rules 10.7
func takenEntries(of ...entries) rule {
	return func(q *question) (a answer) {
		sender := q.senderLevel()
		for _, e := range of {
			q.taken(e, func(_ string, was Level) bool {
				if !sender.AtLeast(was) {
					a = rejectAt("1", "the sender's power level is below the current one of an entry of "+entriesAs[e])
				}
				return a.verdict == goesOn
			})
		}
		return a
	}
}

// spec: rooms/v12#authorisation-rules 10.8
func givenEntries(of ...entries) rule {
	return func(q *question) (a answer) {
		for _, e := range of {
			if a.verdict == goesOn {
				a = givenAtMost(q, e)
			}
		}
		return a
	}
}

// spec: rooms/v12#authorisation-rules 10.9
func takenUsers(q *question) (a answer) {
	sender := q.senderLevel()
	q.taken(users, func(user string, was Level) bool {
		if user != string(q.ev.Sender()) && sender.Cmp(was) <= 0 {
			a = rejectAt("1", "the sender's power level is not above the current one of another user")
		}
		return a.verdict == goesOn
	})
	return a
}

// spec: rooms/v12#authorisation-rules 10.10
func givenUsers(q *question) answer { return givenAtMost(q, users) }

// givenAtMost refuses what is above the sender's own level.
func givenAtMost(q *question, e entries) (a answer) {
	sender := q.senderLevel()
	q.given(e, func(now Level) bool {
		if !sender.AtLeast(now) {
			a = rejectAt("1", "the sender's power level is below the new one of an entry of "+entriesAs[e])
		}
		return a.verdict == goesOn
	})
	return a
}
