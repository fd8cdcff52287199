package roomserver

import (
	"net/netip"
	"strings"

	"chancery"
	"chancery/roomserver/event"
	"chancery/roomserver/state"

	"github.com/tidwall/gjson"
)

// checkACL refuses a server that the room's server ACL bars.
func (r *room) checkACL(server string) error {
	found, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.server_acl", ""}})
	if err != nil {
		return err
	}
	if acl := found[Key{"m.room.server_acl", ""}]; acl != nil && !ACLAllows(acl.Event, server) {
		return chancery.Forbidden("your server is barred from this room")
	}
	return nil
}

// ACLAllows judges a server name by an m.room.server_acl event. Names are compared without regard to
// case, without their port and without the dot that may end a DNS name.
//
// spec: c2s#server-access-control-lists-acls-for-rooms
func ACLAllows(acl *event.Event, server string) bool {
	host := strings.TrimRight(strings.ToLower(withoutPort(server)), ".")
	content := gjson.ParseBytes(acl.Content())
	if literals := content.Get("allow_ip_literals"); literals.Type == gjson.False && isIPLiteral(host) {
		return false
	}
	for _, glob := range content.Get("deny").Array() {
		if glob.Type == gjson.String && globMatches(strings.ToLower(glob.Str), host) {
			return false
		}
	}
	for _, glob := range content.Get("allow").Array() {
		if glob.Type == gjson.String && globMatches(strings.ToLower(glob.Str), host) {
			return true
		}
	}
	return false
}

func withoutPort(server string) string {
	if strings.HasPrefix(server, "[") {
		if i := strings.IndexByte(server, ']'); i >= 0 {
			return server[:i+1]
		}
		return server
	}
	host, _, _ := strings.Cut(server, ":")
	return host
}

func isIPLiteral(host string) bool {
	if strings.HasPrefix(host, "[") {
		return true
	}
	_, err := netip.ParseAddr(host)
	return err == nil
}

// globMatches matches * (any run) and ? (one character) in linear time for each star.
//
// spec: appendices#glob-style-matching
func globMatches(glob, s string) bool {
	g, i := 0, 0
	star, mark := -1, 0
	for i < len(s) {
		switch {
		case g < len(glob) && glob[g] == '*':
			star, mark = g, i
			g++
		case g < len(glob) && (glob[g] == '?' || glob[g] == s[i]):
			g++
			i++
		case star >= 0:
			mark++
			g, i = star+1, mark
		default:
			return false
		}
	}
	for g < len(glob) && glob[g] == '*' {
		g++
	}
	return g == len(glob)
}
