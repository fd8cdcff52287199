package auth

import (
	"cmp"
	"strconv"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// Level is how much power a user has or an action takes: a number, or a creator's, which is
// above every number.
//
// spec: rooms/v12#authorisation-rules
type Level struct {
	number  int64
	creator bool
}

// LevelOf is the level of a number.
func LevelOf(n int64) Level { return Level{number: n} }

// Cmp is negative, zero or positive as a is below, equal to or above b. Creators are equals.
func (a Level) Cmp(b Level) int {
	switch {
	case a.creator && b.creator:
		return 0
	case a.creator:
		return 1
	case b.creator:
		return -1
	}
	return cmp.Compare(a.number, b.number)
}

// AtLeast says whether a is enough where b is required.
func (a Level) AtLeast(b Level) bool { return a.Cmp(b) >= 0 }

// Number is the level as a number; ok is false for a creator's, which is none.
func (a Level) Number() (n int64, ok bool) { return a.number, !a.creator }

func (a Level) String() string {
	if a.creator {
		return "creator"
	}
	return strconv.FormatInt(a.number, 10)
}

// PowerLevels are the levels of a room with the defaults filled in.
//
// spec: c2s#mroompower_levels
type PowerLevels struct {
	room       *room
	privileged bool
	levels     *levels // nil if the room has no power levels event
}

// PowerLevelsOf reads the power levels of a room from its create event and its
// m.room.power_levels event, which is nil if there is none. It is cheap for an event that was
// read lately.
func PowerLevelsOf(create, pl *event.Event) PowerLevels {
	var p PowerLevels
	if create != nil {
		p.room = rooms.of(create)
		p.privileged = create.Version().PrivilegedCreators
	}
	if pl != nil {
		p.levels = parsedLevels.of(pl)
	}
	return p
}

func (p PowerLevels) isCreator(user id.UserID) bool { return p.room != nil && p.room.creators[user] }

// Of is the level of a user. Without a power levels event the creator has 100 up to version 11;
// from version 12 on creators are above all numbers, whatever the event says.
func (p PowerLevels) Of(user id.UserID) Level {
	switch {
	case p.privileged && p.isCreator(user):
		return Level{creator: true}
	case p.levels != nil:
		if n, ok := p.levels.entries[users][string(user)]; ok {
			return LevelOf(n)
		}
		return p.UsersDefault()
	case p.isCreator(user):
		return LevelOf(100)
	}
	return LevelOf(0)
}

// named is one of the levels, or its default.
func (p PowerLevels) named(i named, otherwise int64) Level {
	if p.levels != nil && p.levels.has[i] {
		otherwise = p.levels.named[i]
	}
	return LevelOf(otherwise)
}

// ForEvent is the level required to send an event of a type that is neither m.room.member nor,
// for other users' events, m.room.redaction.
//
// spec: s2s#definitions
func (p PowerLevels) ForEvent(typ string, isState bool) Level {
	if p.levels != nil {
		if n, ok := p.levels.entries[events][typ]; ok {
			return LevelOf(n)
		}
	}
	if isState {
		return p.StateDefault()
	}
	return p.EventsDefault()
}

// Notification is the level required to notify, such as by "room" everybody in it.
//
// spec: c2s#mroompower_levels
func (p PowerLevels) Notification(name string) Level {
	if p.levels != nil {
		if n, ok := p.levels.entries[notifications][name]; ok {
			return LevelOf(n)
		}
	}
	return LevelOf(50)
}

func (p PowerLevels) UsersDefault() Level  { return p.named(usersDefault, 0) }
func (p PowerLevels) EventsDefault() Level { return p.named(eventsDefault, 0) }
func (p PowerLevels) StateDefault() Level  { return p.named(stateDefault, 50) }
func (p PowerLevels) Invite() Level        { return p.named(inviteLevel, 0) }
func (p PowerLevels) Kick() Level          { return p.named(kickLevel, 50) }
func (p PowerLevels) Ban() Level           { return p.named(banLevel, 50) }
func (p PowerLevels) Redact() Level        { return p.named(redactLevel, 50) }
