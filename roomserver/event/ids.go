package event

import (
	"strings"

	"maunium.net/go/mautrix/id"
)

// maxID is the limit in bytes of IDs, types and state keys, in every room version.
//
// spec: c2s#size-limits
const maxID = 255

// Domain is the part of a user, room or event ID behind the first colon; empty without one.
func Domain(s string) string {
	_, domain, _ := strings.Cut(s, ":")
	return domain
}

// ValidUserID says whether s may be the sender of an event. Localparts of the historical
// grammar are accepted: anything but a colon and NUL, and nothing at all.
//
// spec: appendices#user-identifiers, appendices#historical-user-ids
func ValidUserID(s string) bool {
	return len(s) <= maxID && validUser(s)
}

// validUser is ValidUserID but for the length.
func validUser(s string) bool {
	return strings.HasPrefix(s, "@") && validLocal(s) && ValidServerName(Domain(s))
}

func validLocal(s string) bool {
	local, _, ok := strings.Cut(s, ":")
	return ok && strings.IndexByte(local, 0) < 0
}

// ValidRoomID says whether s may be a room's ID in this version.
//
// spec: appendices#room-ids
func (v *Version) ValidRoomID(s string) bool {
	if len(s) > maxID || !strings.HasPrefix(s, "!") {
		return false
	}
	if v.RoomIDIsCreateHash {
		return validHashID(s)
	}
	return validLocal(s) && ValidServerName(Domain(s))
}

// validEventID says whether s may be the ID of an event that another one names. The hash
// in it is not looked at: an event nobody has makes no difference.
//
// spec: appendices#event-ids
func (v *Version) validEventID(s string) bool {
	if len(s) > maxID || !strings.HasPrefix(s, "$") {
		return false
	}
	return v.EventIDFormat != IDFromSender || validLocal(s) && ValidServerName(Domain(s))
}

// validHashID knows a sigil with a SHA-256 in URL-safe unpadded base64.
func validHashID(s string) bool {
	if len(s) != 44 {
		return false
	}
	for i := 1; i < len(s); i++ {
		c := s[i]
		if !isAlphanumeric(c) && c != '-' && c != '_' {
			return false
		}
	}
	return true
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c)
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

// ValidServerName knows the grammar of server names: a DNS name, an IPv4 address or an
// IPv6 address in brackets, and perhaps a port.
//
// spec: appendices#server-name
func ValidServerName(s string) bool {
	if s == "" || len(s) > maxID {
		return false
	}
	if s[0] == '[' {
		end := strings.IndexByte(s, ']')
		return end > 2 && validIPv6(s[1:end]) && (end == len(s)-1 || s[end+1] == ':' && validPort(s[end+2:]))
	}
	host, port, hasPort := strings.Cut(s, ":")
	if host == "" || hasPort && !validPort(port) {
		return false
	}
	for i := 0; i < len(host); i++ {
		if c := host[i]; !isAlphanumeric(c) && c != '-' && c != '.' {
			return false
		}
	}
	return true
}

func validIPv6(s string) bool {
	if len(s) > 45 {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !isDigit(c) && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') && c != ':' && c != '.' {
			return false
		}
	}
	return true
}

func validPort(s string) bool {
	if s == "" || len(s) > 5 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if !isDigit(s[i]) {
			return false
		}
	}
	return true
}

// roomOfCreate is the room ID that a version 12 create event gives its room.
//
// spec: appendices#room-ids
func roomOfCreate(create id.EventID) id.RoomID { return id.RoomID("!" + string(create[1:])) }
