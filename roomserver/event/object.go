package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"unsafe"
)

// object is a canonical JSON object taken apart: its members in the order of their keys,
// as pieces of the bytes it was read from.
type object []member

type member struct {
	key []byte // between the quotes, escaped; Matrix' own keys need no escapes
	val []byte
}

var errNotCanonical = errors.New("not a canonical JSON object")

// members takes canonical JSON apart. It trusts the values to be JSON.
func members(raw []byte, into object) (object, error) {
	if len(raw) < 2 || raw[0] != '{' || raw[len(raw)-1] != '}' {
		return nil, errNotCanonical
	}
	for i := 1; i < len(raw)-1; {
		if raw[i] != '"' {
			return nil, errNotCanonical
		}
		keyEnd := skip(raw, i)
		if keyEnd >= len(raw) || raw[keyEnd] != ':' {
			return nil, errNotCanonical
		}
		end := skip(raw, keyEnd+1)
		if end >= len(raw) || end == keyEnd+1 || raw[end] != ',' && end != len(raw)-1 {
			return nil, errNotCanonical
		}
		into = append(into, member{raw[i+1 : keyEnd-1], raw[keyEnd+1 : end]})
		i = end + 1
	}
	return into, nil
}

// skip gives the offset behind the value that begins at i, or len(raw) when it does not end.
func skip(raw []byte, i int) int {
	switch {
	case i >= len(raw):
		return len(raw)
	case raw[i] == '"':
		for i++; i < len(raw); i++ {
			j := bytes.IndexByte(raw[i:], '"')
			if j < 0 {
				return len(raw)
			}
			i += j
			back := i - 1
			for raw[back] == '\\' {
				back--
			}
			if (i-back)%2 == 1 { // an even number of backslashes: the quote is the end
				return i + 1
			}
		}
		return len(raw)
	case raw[i] == '{' || raw[i] == '[':
		depth := 0
		for i < len(raw) {
			switch raw[i] {
			case '"':
				i = skip(raw, i)
				continue
			case '{', '[':
				depth++
			case '}', ']':
				if depth--; depth == 0 {
					return i + 1
				}
			}
			i++
		}
		return len(raw)
	}
	for i < len(raw) && raw[i] != ',' && raw[i] != '}' && raw[i] != ']' {
		i++
	}
	return i
}

// get finds the value of a key that needs no escapes; nil when it is not there.
func (o object) get(key string) []byte {
	for _, m := range o {
		if string(m.key) == key {
			return m.val
		}
	}
	return nil
}

// set replaces the value of a key that is there.
func (o object) set(key string, val []byte) {
	for i := range o {
		if string(o[i].key) == key {
			o[i].val = val
		}
	}
}

// lookup finds one member of a canonical JSON object.
func lookup(raw []byte, key string) []byte {
	var few [16]member
	o, err := members(raw, few[:0])
	if err != nil {
		return nil
	}
	return o.get(key)
}

// append writes the object without the members named.
func (o object) append(out []byte, without ...string) []byte {
	out = append(out, '{')
	first := true
next:
	for _, m := range o {
		for _, w := range without {
			if string(m.key) == w {
				continue next
			}
		}
		if !first {
			out = append(out, ',')
		}
		first = false
		out = append(out, '"')
		out = append(out, m.key...)
		out = append(out, '"', ':')
		out = append(out, m.val...)
	}
	return append(out, '}')
}

// with returns the object with one member added or replaced, in the order of keys.
func (o object) with(key string, val []byte) object {
	out := make(object, 0, len(o)+1)
	placed := false
	for _, m := range o {
		if string(m.key) == key {
			continue
		}
		if !placed && bytes.IndexByte(m.key, '\\') < 0 && string(m.key) > key ||
			!placed && bytes.IndexByte(m.key, '\\') >= 0 && unescape(m.key) > key {
			out = append(out, member{[]byte(key), val})
			placed = true
		}
		out = append(out, m)
	}
	if !placed {
		out = append(out, member{[]byte(key), val})
	}
	return out
}

func isObject(val []byte) bool { return len(val) > 0 && val[0] == '{' }
func isArray(val []byte) bool  { return len(val) > 0 && val[0] == '[' }
func isString(val []byte) bool { return len(val) > 0 && val[0] == '"' }

// text gives the string of a JSON string as a view of the bytes where it needs no copy:
// events are immutable, so are their bytes.
func text(val []byte) (string, bool) {
	if len(val) < 2 || val[0] != '"' {
		return "", false
	}
	in := val[1 : len(val)-1]
	if bytes.IndexByte(in, '\\') >= 0 {
		return unescape(in), true
	}
	return view(in), true
}

func view(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	return unsafe.String(&b[0], len(b))
}

// unescape decodes what stands between the quotes of a valid JSON string.
func unescape(in []byte) string {
	if bytes.IndexByte(in, '\\') < 0 {
		return string(in)
	}
	quoted := make([]byte, 0, len(in)+2)
	quoted = append(append(append(quoted, '"'), in...), '"')
	var s string
	if json.Unmarshal(quoted, &s) != nil {
		return string(in)
	}
	return s
}

// elements calls do for each element of a canonical JSON array until it returns false.
func elements(raw []byte, do func(val []byte) bool) bool {
	if len(raw) < 2 || raw[0] != '[' {
		return false
	}
	for i := 1; i < len(raw)-1; {
		end := skip(raw, i)
		if end == i || end >= len(raw) || !do(raw[i:end]) {
			return false
		}
		i = end + 1
	}
	return true
}

// integer reads an integer. Up to version 5 one written as a float, such as 1.0, passes.
//
// spec: rooms/v6#event-format
func integer(val []byte, strict bool) (int64, bool) {
	if n, err := strconv.ParseInt(view(val), 10, 64); err == nil {
		return n, true
	}
	if strict || len(val) == 0 || val[0] != '-' && (val[0] < '0' || val[0] > '9') {
		return 0, false
	}
	f, err := strconv.ParseFloat(view(val), 64)
	if err != nil || f > maxInteger || f < -maxInteger || f != float64(int64(f)) {
		return 0, false
	}
	return int64(f), true
}
