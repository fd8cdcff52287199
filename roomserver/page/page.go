// Package page is the tokens with which clients walk through what they were told: a place in a
// room's history, and a point in time of /sync. It is pure text; what a point in time means in
// a room is looked up in storage.
package page

import (
	"strconv"
	"strings"

	"chancery"
)

// Before is the token of the place in a room's history below the event at ord: backwards from
// it come events with a lower ord, forwards that one and those above it.
//
// spec: c2s#pagination
func Before(ord int64) string { return "t" + strconv.FormatInt(ord, 10) }

// After is the token of the place above the event at ord.
func After(ord int64) string { return Before(ord + 1) }

// Token is either a place in one room's history or a point in time.
type Token struct {
	Room bool  // a place: below the event at Ord
	Ord  int64 // of a place
	Sync       // of a point in time
}

// Sync is a point in time: all facts up to Pos are told.
type Sync struct {
	Epoch, Pos int64
	// ToDevice is the number of the last to-device message that was given; 0: none yet.
	ToDevice int64
	// Process names a process and its start; Typing and Presence count what that process told of
	// them, for they have no positions. Empty where nothing was told.
	Process          string
	Typing, Presence int64
}

// String is the token "s<epoch>_<pos>", with "_d<number>" for ToDevice and
// "_<process>.<typing>.<presence>" where they say something.
func (s Sync) String() string {
	b := make([]byte, 0, 64)
	b = strconv.AppendInt(append(b, 's'), s.Epoch, 10)
	b = strconv.AppendInt(append(b, '_'), s.Pos, 10)
	if s.ToDevice != 0 {
		b = strconv.AppendInt(append(b, "_d"...), s.ToDevice, 10)
	}
	if s.Process != "" {
		b = append(append(b, "_p"...), s.Process...)
		b = strconv.AppendInt(append(b, '.'), s.Typing, 10)
		b = strconv.AppendInt(append(b, '.'), s.Presence, 10)
	}
	return string(b)
}

// Parse reads a token of either kind.
func Parse(text string) (Token, error) {
	if rest, ok := strings.CutPrefix(text, "t"); ok {
		ord, ok := number(strings.TrimPrefix(rest, "-"))
		if !ok {
			return Token{}, wrong()
		}
		if strings.HasPrefix(rest, "-") {
			if ord == 0 {
				return Token{}, wrong()
			}
			ord = -ord
		}
		return Token{Room: true, Ord: ord}, nil
	}
	s, err := ParseSync(text)
	return Token{Sync: s}, err
}

// ParseSync reads a point in time. What String wrote, and nothing else, is read.
func ParseSync(text string) (Sync, error) {
	rest, ok := strings.CutPrefix(text, "s")
	if !ok || len(text) > 160 {
		return Sync{}, wrong()
	}
	parts := strings.Split(rest, "_")
	if len(parts) < 2 {
		return Sync{}, wrong()
	}
	var s Sync
	var ok1, ok2 bool
	s.Epoch, ok1 = number(parts[0])
	s.Pos, ok2 = number(parts[1])
	if !ok1 || !ok2 {
		return Sync{}, wrong()
	}
	parts = parts[2:]
	if len(parts) > 0 && strings.HasPrefix(parts[0], "d") {
		n, ok := number(parts[0][1:])
		if !ok || n == 0 {
			return Sync{}, wrong()
		}
		s.ToDevice, parts = n, parts[1:]
	}
	if len(parts) > 0 && strings.HasPrefix(parts[0], "p") {
		local := strings.Split(parts[0][1:], ".")
		if len(local) != 3 || !isName(local[0]) {
			return Sync{}, wrong()
		}
		var ok1, ok2 bool
		s.Process = local[0]
		s.Typing, ok1 = number(local[1])
		s.Presence, ok2 = number(local[2])
		if !ok1 || !ok2 {
			return Sync{}, wrong()
		}
		parts = parts[1:]
	}
	if len(parts) > 0 {
		return Sync{}, wrong()
	}
	return s, nil
}

// number reads a number as it is written: digits, no sign, no leading zero.
func number(text string) (int64, bool) {
	if text == "" || text[0] == '+' || text[0] == '-' || len(text) > 1 && text[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, err == nil && n < 1<<62
}

func isName(text string) bool {
	if text == "" || len(text) > 32 {
		return false
	}
	for _, c := range text {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9') {
			return false
		}
	}
	return true
}

func wrong() error { return chancery.InvalidParam("this is no token of ours") }
