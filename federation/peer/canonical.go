package peer

import (
	"bytes"
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
	spelled, err := p.spell()
	if err != nil {
		return nil, err
	}
	p = canonical{in: spelled}
	root := p.value()
	if root.tree == nil {
		return spelled, nil
	}
	return p.append(make([]byte, 0, len(spelled)), root), nil
}

// canonical reads valid JSON twice: first it spells each value as it must be, then it puts members in order. What is in
// order stays a piece of the text: only around what is not is a tree made, since each value may be two bytes of very many.
type canonical struct {
	in []byte
	at int
}

// node is a value: the text of it, or what is not in order.
type node struct {
	raw  []byte
	tree *tree
}

// tree is an object or an array of which a part is not in order. In an array, neighbours that are in order share a node.
type tree struct {
	names   [][]byte // of an object's members, unescaped; nil in an array
	members []node
}

// spell gives the text without spaces, and with each string and number as it is signed. It is never longer.
func (p *canonical) spell() ([]byte, error) {
	out := make([]byte, 0, len(p.in))
	for p.at < len(p.in) {
		switch c := p.in[p.at]; {
		case c <= ' ':
			p.at++
		case c == '"':
			text, err := p.text()
			if err != nil {
				return nil, err
			}
			out = append(out, text...)
		case c == '-' && p.in[p.at+1] == '0' && (p.at+2 == len(p.in) || strings.IndexByte(" \t\r\n,]}", p.in[p.at+2]) >= 0):
			p.at++ // -0 is 0
		default:
			out = append(out, c)
			p.at++
		}
	}
	return out, nil
}

// value reads a value of spelled text.
func (p *canonical) value() node {
	start := p.at
	switch p.in[p.at] {
	case '{':
		return p.object()
	case '[':
		return p.array()
	case '"':
		p.skipText()
	default:
		for p.at < len(p.in) && p.in[p.at] != ',' && p.in[p.at] != ']' && p.in[p.at] != '}' {
			p.at++
		}
	}
	return node{raw: p.in[start:p.at]}
}

// skipText gives a string, quotes included.
func (p *canonical) skipText() []byte {
	start := p.at
	for p.at++; p.in[p.at] != '"'; p.at++ {
		if p.in[p.at] == '\\' {
			p.at++
		}
	}
	p.at++
	return p.in[start:p.at]
}

func (p *canonical) object() node {
	start := p.at
	if p.in[p.at+1] == '}' {
		p.at += 2
		return node{raw: p.in[start:p.at]}
	}
	t, ordered := &tree{}, true
	for p.at++; p.in[p.at] != '}'; {
		if p.in[p.at] == ',' {
			p.at++
		}
		name := unescape(p.skipText())
		p.at++ // the colon
		member := p.value()
		if n := len(t.names); n > 0 && bytes.Compare(t.names[n-1], name) >= 0 || member.tree != nil {
			ordered = false
		}
		t.names, t.members = append(t.names, name), append(t.members, member)
	}
	p.at++
	if ordered {
		return node{raw: p.in[start:p.at]}
	}
	t.sort()
	return node{tree: t}
}

func (p *canonical) array() node {
	start := p.at
	var members []node
	from := -1 // where the neighbours begin that are in order
	for p.at++; p.in[p.at] != ']'; {
		at := p.at
		if p.in[p.at] == ',' {
			at++
			p.at++
		}
		switch member := p.value(); {
		case member.tree == nil && from < 0:
			from = at
		case member.tree != nil && from >= 0:
			members, from = append(members, node{raw: p.in[from : at-1]}, member), -1
		case member.tree != nil:
			members = append(members, member)
		}
	}
	p.at++
	switch {
	case members == nil:
		return node{raw: p.in[start:p.at]}
	case from >= 0:
		members = append(members, node{raw: p.in[from : p.at-1]})
	}
	return node{tree: &tree{members: members}}
}

// sort orders an object's members by code point, which in UTF-8 is the order of bytes.
func (t *tree) sort() {
	sorted := true
	for i := 1; i < len(t.names); i++ {
		if bytes.Compare(t.names[i-1], t.names[i]) >= 0 {
			sorted = false
			break
		}
	}
	if sorted {
		return
	}
	order := make([]int, len(t.names))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return bytes.Compare(t.names[a], t.names[b]) })
	names, members := make([][]byte, 0, len(order)), make([]node, 0, len(order))
	for i, o := range order {
		if i+1 < len(order) && bytes.Equal(t.names[order[i+1]], t.names[o]) {
			continue // a later member of the same name follows
		}
		names, members = append(names, t.names[o]), append(members, t.members[o])
	}
	t.names, t.members = names, members
}

func (p *canonical) append(out []byte, n node) []byte {
	t := n.tree
	if t == nil {
		return append(out, n.raw...)
	}
	open, end := byte('['), byte(']')
	if t.names != nil {
		open, end = '{', '}'
	}
	out = append(out, open)
	for i := range t.members {
		if i > 0 {
			out = append(out, ',')
		}
		if t.names != nil {
			out = append(appendString(out, t.names[i]), ':')
		}
		out = p.append(out, t.members[i])
	}
	return append(out, end)
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
func unescape(quoted []byte) []byte {
	body := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(body, '\\') < 0 {
		return body
	}
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return body
	}
	return []byte(s)
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
func appendString[S string | []byte](out []byte, s S) []byte {
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
