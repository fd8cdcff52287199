package peer

import (
	"net/netip"
	"strconv"
	"strings"
)

// maxServerName is what user IDs of 255 bytes leave room for at the very most; the
// specification recommends 230.
const maxServerName = 255

// ValidServerName says whether name follows the grammar of server names.
//
// spec: appendices#server-name
func ValidServerName(name string) bool {
	_, _, ok := SplitServerName(name)
	return ok
}

// SplitServerName cuts a server name into its host, without the brackets of an IPv6 literal,
// and its port, which is empty where none was given. It refuses what is no server name.
//
// spec: appendices#server-name
func SplitServerName(name string) (host, port string, ok bool) {
	if name == "" || len(name) > maxServerName {
		return "", "", false
	}
	rest := ""
	if name[0] == '[' {
		end := strings.IndexByte(name, ']')
		if end < 0 {
			return "", "", false
		}
		host, rest = name[1:end], name[end+1:]
		addr, err := netip.ParseAddr(host)
		if err != nil || !addr.Is6() || addr.Zone() != "" {
			return "", "", false
		}
	} else {
		host = name
		if i := strings.IndexByte(name, ':'); i >= 0 {
			host, rest = name[:i], name[i:]
		}
		if !validHost(host) {
			return "", "", false
		}
	}
	if rest == "" {
		return host, "", true
	}
	port = rest[1:]
	if rest[0] != ':' || !validPort(port) {
		return "", "", false
	}
	return host, port, true
}

func validPort(port string) bool {
	if len(port) < 1 || len(port) > 5 {
		return false
	}
	for _, c := range []byte(port) {
		if c < '0' || c > '9' {
			return false
		}
	}
	n, err := strconv.Atoi(port)
	return err == nil && n <= 65535
}

func validHost(host string) bool {
	if host == "" {
		return false
	}
	for _, c := range []byte(host) {
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '.') {
			return false
		}
	}
	return true
}

// ipLiteral gives the address that host spells, if it spells one.
func ipLiteral(host string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(host)
	return addr, err == nil && addr.Zone() == ""
}
