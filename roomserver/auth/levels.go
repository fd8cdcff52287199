package auth

import (
	"errors"
	"math"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"

	"chancery/roomserver/event"
)

// named are the properties of m.room.power_levels that are one level each.
type named int

const (
	usersDefault named = iota
	eventsDefault
	stateDefault
	banLevel
	redactLevel
	kickLevel
	inviteLevel
	allNamed
)

var namedAs = [allNamed]string{"users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"}

// entries are the properties of m.room.power_levels with a level for each of many things.
type entries int

const (
	users entries = iota
	events
	notifications
	allEntries
)

var entriesAs = [allEntries]string{"users", "events", "notifications"}

// levels is the content of an m.room.power_levels event as it stands, without defaults.
type levels struct {
	named   [allNamed]int64
	has     [allNamed]bool
	entries [allEntries]map[string]int64

	// What the rules on the form of the content have to say, found in reading it.
	namedFault, entriesFault, usersFault string
}

// Parsing is the expensive part of a check, and the same few events are asked about by every
// event of a room.
var parsedLevels = cache[levels]{parse: parseLevels, budget: 16 << 20}

func parseLevels(ev *event.Event) *levels {
	l := &levels{}
	number := lenientInteger
	if ev.Version().IntegerPowerLevels {
		number = strictInteger
	}
	gjson.ParseBytes(ev.Content()).ForEach(func(key, value gjson.Result) bool {
		for i, name := range namedAs {
			if key.Str == name {
				l.readNamed(ev.Version(), named(i), value, number)
			}
		}
		for i, name := range entriesAs {
			if key.Str == name {
				l.readEntries(ev.Version(), entries(i), value, number)
			}
		}
		return true
	})
	return l
}

func (l *levels) readNamed(v *event.Version, i named, value gjson.Result, number func(gjson.Result) (int64, error)) {
	if value.Type == gjson.Null && !v.IntegerPowerLevels {
		l.has[i] = false
		return // up to version 9 no rule forbids it, and there is no number in it
	}
	n, err := number(value)
	if err != nil {
		l.namedFault = namedAs[i] + " " + err.Error()
		return
	}
	l.named[i], l.has[i] = n, true
}

func (l *levels) readEntries(v *event.Version, i entries, value gjson.Result, number func(gjson.Result) (int64, error)) {
	fault := &l.entriesFault
	switch {
	case i == users:
		fault = &l.usersFault
	case i == notifications && !v.LimitNotificationsPL:
		fault = new(string) // no rule looks at them
	}
	if !value.IsObject() {
		*fault = entriesAs[i] + " is not an object"
		return
	}
	l.entries[i] = make(map[string]int64)
	value.ForEach(func(key, value gjson.Result) bool {
		if i == users && !event.ValidUserID(key.Str) {
			*fault = "a key of users is not a user ID"
			return true
		}
		n, err := number(value)
		if err != nil {
			*fault = "an entry of " + entriesAs[i] + " " + err.Error()
			return true
		}
		l.entries[i][key.Str] = n
		return true
	})
}

var (
	errNotInteger  = errors.New("is not an integer")
	errNotReadable = errors.New("is neither a number nor a string that is an integer")
)

// strictInteger takes an integer of canonical JSON.
//
// spec: rooms/v10#values-in-mroompower_levels-events-must-be-integers
func strictInteger(value gjson.Result) (int64, error) {
	const most = 1<<53 - 1
	if value.Type != gjson.Number {
		return 0, errNotInteger
	}
	n, err := strconv.ParseInt(value.Raw, 10, 64)
	if err != nil || n > most || n < -most {
		return 0, errNotInteger
	}
	return n, nil
}

// lenientInteger takes also floats, cut at the point, and strings. What is larger than 64 bits
// counts as the largest number: the rules only compare.
//
// spec: rooms/v9#mroompower_levels-events-accept-values-as-strings
// spec: rooms/v5#mroompower_levels-events-accept-values-as-floats
func lenientInteger(value gjson.Result) (int64, error) {
	switch value.Type {
	case gjson.String:
		n, err := strconv.ParseInt(strings.TrimSpace(value.Str), 10, 64)
		if err != nil && !errors.Is(err, strconv.ErrRange) {
			return 0, errNotReadable
		}
		return n, nil
	case gjson.Number:
		n, err := strconv.ParseInt(value.Raw, 10, 64)
		if err == nil {
			return n, nil
		}
		f, err := strconv.ParseFloat(value.Raw, 64)
		if err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			return 0, errNotReadable
		}
		switch f = math.Trunc(f); {
		case f >= math.MaxInt64:
			return math.MaxInt64, nil
		case f <= math.MinInt64:
			return math.MinInt64, nil
		}
		return int64(f), nil
	}
	return 0, errNotReadable
}
