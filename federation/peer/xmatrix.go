package peer

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"unicode/utf8"
)

// XMatrix is what an Authorization header of a server says.
type XMatrix struct {
	Origin      string
	Destination string // empty where an old server left it out
	Key         string
	Signature   string
}

// Header renders the header in the one spelling that all servers read.
//
// spec: s2s#request-authentication
func (x XMatrix) Header() string {
	return `X-Matrix origin="` + x.Origin + `",destination="` + x.Destination + `",key="` + x.Key + `",sig="` + x.Signature + `"`
}

// errAuthorization never reaches a caller bare: ParseAuthorization is asked by VerifyRequest.
var errAuthorization = errors.New("malformed X-Matrix authorization")

// ParseAuthorization reads one Authorization header of scheme X-Matrix. Names are read in any
// case, unknown ones are ignored, and a value that is no token may stand unquoted if all that
// is wrong with it is a colon, a bracket or base64's signs, as old servers send it.
//
// spec: s2s#request-authentication
func ParseAuthorization(header string) (XMatrix, error) {
	var x XMatrix
	scheme, rest, _ := strings.Cut(strings.Trim(header, " \t"), " ")
	if !strings.EqualFold(scheme, "X-Matrix") {
		return x, errAuthorization
	}
	seen := map[string]bool{}
	for {
		rest = strings.TrimLeft(rest, " \t,") // a list may have empty elements, RFC 9110 section 5.6.1
		if rest == "" {
			break
		}
		name, value, after, ok := authParam(rest)
		if !ok {
			return XMatrix{}, errAuthorization
		}
		rest = after
		name = strings.ToLower(name)
		if seen[name] {
			return XMatrix{}, errAuthorization
		}
		seen[name] = true
		switch name {
		case "origin":
			x.Origin = value
		case "destination":
			x.Destination = value
		case "key":
			x.Key = value
		case "sig":
			x.Signature = value
		case "signature": // the text of the specification has this name, its example the other
			if !seen["sig"] {
				x.Signature = value
			}
		}
	}
	if !ValidServerName(x.Origin) || x.Key == "" || x.Signature == "" {
		return XMatrix{}, errAuthorization
	}
	return x, nil
}

// authParam reads one name=value and the comma after it.
func authParam(s string) (name, value, rest string, ok bool) {
	i := 0
	for i < len(s) && isTokenChar(s[i]) {
		i++
	}
	name, s = s[:i], strings.TrimLeft(s[i:], " \t")
	if name == "" || s == "" || s[0] != '=' {
		return "", "", "", false
	}
	s = strings.TrimLeft(s[1:], " \t")
	if strings.HasPrefix(s, `"`) {
		var b strings.Builder
		i = 1
		for ; i < len(s) && s[i] != '"'; i++ {
			if s[i] == '\\' {
				if i++; i == len(s) {
					return "", "", "", false
				}
			}
			if s[i] < ' ' && s[i] != '\t' || s[i] == 0x7F {
				return "", "", "", false
			}
			b.WriteByte(s[i])
		}
		if i >= len(s) {
			return "", "", "", false
		}
		value, s = b.String(), s[i+1:]
	} else {
		i = 0
		for i < len(s) && (isTokenChar(s[i]) || strings.IndexByte(":[]/=", s[i]) >= 0) {
			i++
		}
		if i == 0 {
			return "", "", "", false
		}
		value, s = s[:i], s[i:]
	}
	s = strings.TrimLeft(s, " \t")
	if s != "" && s[0] != ',' || !utf8.ValidString(value) {
		return "", "", "", false
	}
	return name, value, s, true
}

// isTokenChar: RFC 9110, section 5.6.2.
func isTokenChar(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// requestPayload is what a request's signature covers, in canonical form: content is canonical
// already, or nil for a request without a body.
//
// spec: s2s#request-authentication
func requestPayload(method, uri, origin, destination string, content []byte) []byte {
	out := make([]byte, 0, len(content)+len(uri)+len(origin)+len(destination)+80)
	out = append(out, '{')
	if content != nil {
		out = append(append(append(out, `"content":`...), content...), ',')
	}
	if destination != "" { // an old server signs what it sends: nothing
		out = append(appendString(append(out, `"destination":`...), destination), ',')
	}
	out = append(appendString(append(out, `"method":`...), method), ',')
	out = append(appendString(append(out, `"origin":`...), origin), ',')
	out = appendString(append(out, `"uri":`...), uri)
	return append(out, '}')
}

// SignRequest gives the Authorization header for a request of ours. uri is the request target
// as it goes over the wire, content the canonical body or nil.
//
// spec: s2s#request-authentication
func SignRequest(key SigningKey, origin, destination, method, uri string, content []byte) string {
	sig := ed25519.Sign(key.Private, requestPayload(method, uri, origin, destination, content))
	return XMatrix{origin, destination, key.ID, encodeBase64(sig)}.Header()
}
