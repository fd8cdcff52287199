package peer

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// ErrNotCanonical is the cause when bytes have no canonical form: no JSON, or no UTF-8.
var ErrNotCanonical = errors.New("not JSON that has a canonical form")

// CanonicalJSON gives the one encoding that is signed. Its time grows with the input's length
// and with nothing else: a peer's nesting and ordering must not cost us. Numbers keep
// their spelling (which ones are allowed is the room version's business), save -0 which becomes 0.
// Of members with one name the last counts, as for every JSON library.
//
// spec: appendices#canonical-json
func CanonicalJSON(in []byte) ([]byte, error) {
	if !json.Valid(in) || !utf8.Valid(in) { // Valid also bounds the depth, at 10,000
		return nil, ErrNotCanonical
	}
	p := canonical{in: in}
	root, err := p.value()
	if err != nil {
		return nil, err
	}
	return p.append(make([]byte, 0, len(in)), root), nil
}

// canonical reads valid JSON into a tree and writes the tree in order.
type canonical struct {
	in []byte
	at int
}

type node struct {
	kind    byte // '{', '[' or 0 for what is written as it is
	raw     []byte
	names   []string
	members []node
}

func (p *canonical) space() {
	for p.at < len(p.in) && p.in[p.at] <= ' ' {
		p.at++
	}
}

func (p *canonical) value() (node, error) {
	p.space()
	start := p.at
	switch p.in[p.at] {
	case '{':
		return p.object()
	case '[':
		return p.array()
	case '"':
		s, err := p.text()
		if err != nil {
			return node{}, err
		}
		return node{raw: s}, nil
	}
	for p.at < len(p.in) && !strings.ContainsRune(" \t\r\n,]}", rune(p.in[p.at])) {
		p.at++
	}
	raw := p.in[start:p.at]
	if string(raw) == "-0" {
		raw = raw[1:]
	}
	return node{raw: raw}, nil
}

func (p *canonical) object() (node, error) {
	n := node{kind: '{'}
	p.at++
	for {
		p.space()
		switch p.in[p.at] {
		case '}':
			p.at++
			n.sort()
			return n, nil
		case ',':
			p.at++
			p.space()
		}
		name, err := p.text()
		if err != nil {
			return n, err
		}
		p.space()
		p.at++ // the colon
		member, err := p.value()
		if err != nil {
			return n, err
		}
		n.names = append(n.names, unescape(name))
		n.members = append(n.members, member)
	}
}

func (p *canonical) array() (node, error) {
	n := node{kind: '['}
	p.at++
	for {
		p.space()
		switch p.in[p.at] {
		case ']':
			p.at++
			return n, nil
		case ',':
			p.at++
		}
		member, err := p.value()
		if err != nil {
			return n, err
		}
		n.members = append(n.members, member)
	}
}

// sort orders an object's members by code point, which in UTF-8 is the order of bytes.
func (n *node) sort() {
	sorted := true
	for i := 1; i < len(n.names); i++ {
		if n.names[i-1] >= n.names[i] {
			sorted = false
			break
		}
	}
	if sorted {
		return
	}
	order := make([]int, len(n.names))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return strings.Compare(n.names[a], n.names[b]) })
	names, members := make([]string, 0, len(order)), make([]node, 0, len(order))
	for i, o := range order {
		if i+1 < len(order) && n.names[order[i+1]] == n.names[o] {
			continue // a later member of the same name follows
		}
		names, members = append(names, n.names[o]), append(members, n.members[o])
	}
	n.names, n.members = names, members
}

func (p *canonical) append(out []byte, n node) []byte {
	switch n.kind {
	case '{':
		out = append(out, '{')
		for i := range n.members {
			if i > 0 {
				out = append(out, ',')
			}
			out = appendString(out, n.names[i])
			out = append(out, ':')
			out = p.append(out, n.members[i])
		}
		return append(out, '}')
	case '[':
		out = append(out, '[')
		for i := range n.members {
			if i > 0 {
				out = append(out, ',')
			}
			out = p.append(out, n.members[i])
		}
		return append(out, ']')
	}
	return append(out, n.raw...)
}

// text reads a string, quotes included, and gives it in canonical spelling.
func (p *canonical) text() ([]byte, error) {
	start, escaped := p.at, false
	for p.at++; p.in[p.at] != '"'; p.at++ {
		if p.in[p.at] == '\\' {
			escaped = true
			p.at++
		}
	}
	p.at++
	raw := p.in[start:p.at]
	if !escaped {
		return raw, nil
	}
	if loneSurrogate(raw) {
		return nil, ErrNotCanonical // no UTF-8 spells it
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, ErrNotCanonical
	}
	return appendString(make([]byte, 0, len(raw)), s), nil
}

// unescape reads a string that is in canonical spelling.
func unescape(quoted []byte) string {
	body := quoted[1 : len(quoted)-1]
	if !slices.Contains(body, '\\') {
		return string(body)
	}
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return string(body)
	}
	return s
}

// loneSurrogate says whether a JSON string escapes half a surrogate pair.
func loneSurrogate(raw []byte) bool {
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		i++
		if raw[i] != 'u' {
			continue
		}
		switch c := hex4(raw[i+1:]); {
		case c >= 0xDC00 && c <= 0xDFFF:
			return true
		case c >= 0xD800 && c <= 0xDBFF:
			next := raw[i+5:]
			if len(next) < 6 || next[0] != '\\' || next[1] != 'u' {
				return true
			}
			if low := hex4(next[2:]); low < 0xDC00 || low > 0xDFFF {
				return true
			}
			i += 6
		}
		i += 4
	}
	return false
}

func hex4(digits []byte) (n int) {
	for _, c := range digits[:4] {
		n <<= 4
		switch {
		case c <= '9':
			n |= int(c - '0')
		default:
			n |= int(c|0x20-'a') + 10
		}
	}
	return n
}

// appendString writes s as a canonical JSON string.
func appendString(out []byte, s string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		out = append(out, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, `\b`...)
		case '\t':
			out = append(out, `\t`...)
		case '\n':
			out = append(out, `\n`...)
		case '\f':
			out = append(out, `\f`...)
		case '\r':
			out = append(out, `\r`...)
		default:
			out = append(out, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(append(out, s[from:]...), '"')
}
