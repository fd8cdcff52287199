package event

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf16"
	"unicode/utf8"

	"chancery"
)

const (
	maxDepth   = 1000      // of arrays and objects in each other
	maxInteger = 1<<53 - 1 // spec: appendices#canonical-json
)

// Canonical checks that raw is one JSON value that room versions 6 and later accept and
// writes it as canonical JSON. Refused are duplicate keys, floats, -0, integers outside
// of ±(2^53 - 1), invalid UTF-8, lone surrogates and nesting deeper than 1,000.
//
// spec: appendices#canonical-json, rooms/v6#canonical-json
func Canonical(raw []byte) ([]byte, error) { return canonical(raw, false) }

// CanonicalLenient is Canonical for room versions 1 to 5, which must not enforce the range
// and form of numbers. A number with an exponent whose value is an integer in range is
// written as that integer and -0 as 0, as in the spec's examples; other floats have no
// canonical form and stay as they are.
//
// spec: rooms/v1#canonical-json
func CanonicalLenient(raw []byte) ([]byte, error) { return canonical(raw, true) }

func canonical(raw []byte, lenient bool) ([]byte, error) {
	e := newEncoder(raw, lenient)
	defer e.free()
	if err := e.document(nil); err != nil {
		return nil, err
	}
	return bytes.Clone(e.out), nil
}

// encoder reads JSON once and writes its canonical form, keeping track of the members of
// the objects it is in so that only objects whose keys are out of order are moved.
type encoder struct {
	in      []byte
	pos     int
	out     []byte
	lenient bool
	drop    []string // top-level keys that are read and left out
	members []span   // of all open objects; at the end those of the outermost one
	scratch []byte
}

// span is a member of an object as offsets into out: its key without quotes and its value.
type span struct{ key, keyEnd, val, end int }

var encoders = sync.Pool{New: func() any { return new(encoder) }}

func newEncoder(raw []byte, lenient bool) *encoder {
	e := encoders.Get().(*encoder)
	e.in, e.pos, e.lenient, e.drop = raw, 0, lenient, nil
	e.out, e.members = e.out[:0], e.members[:0]
	return e
}

func (e *encoder) free() {
	e.in = nil
	if cap(e.out) <= 1<<20 { // one huge value must not stay in memory for ever
		encoders.Put(e)
	}
}

// document reads one value and nothing after it. Top-level keys in drop are left out.
func (e *encoder) document(drop []string) error {
	e.drop = drop
	e.space()
	if err := e.value(1); err != nil {
		return chancery.BadJSON("%s", err.Error())
	}
	e.space()
	if e.pos != len(e.in) {
		return chancery.BadJSON("something follows the JSON value at byte %d", e.pos)
	}
	return nil
}

func (e *encoder) space() {
	for e.pos < len(e.in) {
		switch e.in[e.pos] {
		case ' ', '\t', '\n', '\r':
			e.pos++
		default:
			return
		}
	}
}

func (e *encoder) peek() byte {
	if e.pos < len(e.in) {
		return e.in[e.pos]
	}
	return 0
}

func (e *encoder) value(depth int) error {
	switch c := e.peek(); {
	case c == '{':
		return e.object(depth)
	case c == '[':
		return e.array(depth)
	case c == '"':
		return e.string()
	case c == '-' || c >= '0' && c <= '9':
		return e.number()
	case c == 't':
		return e.word("true")
	case c == 'f':
		return e.word("false")
	case c == 'n':
		return e.word("null")
	}
	return e.unexpected()
}

func (e *encoder) unexpected() error {
	if e.pos >= len(e.in) {
		return errors.New("the JSON ends too early")
	}
	return fmt.Errorf("unexpected %q in JSON at byte %d", e.in[e.pos], e.pos)
}

func (e *encoder) word(w string) error {
	if len(e.in)-e.pos < len(w) || string(e.in[e.pos:e.pos+len(w)]) != w {
		return e.unexpected()
	}
	e.pos += len(w)
	e.out = append(e.out, w...)
	return nil
}

func (e *encoder) array(depth int) error {
	if depth > maxDepth {
		return errors.New("the JSON is nested too deeply")
	}
	e.pos++
	e.out = append(e.out, '[')
	e.space()
	if e.peek() == ']' {
		e.pos++
		e.out = append(e.out, ']')
		return nil
	}
	for {
		if err := e.value(depth + 1); err != nil {
			return err
		}
		e.space()
		switch e.peek() {
		case ',':
			e.pos++
			e.out = append(e.out, ',')
			e.space()
		case ']':
			e.pos++
			e.out = append(e.out, ']')
			return nil
		default:
			return e.unexpected()
		}
	}
}

func (e *encoder) object(depth int) error {
	if depth > maxDepth {
		return errors.New("the JSON is nested too deeply")
	}
	e.pos++
	start, base := len(e.out), len(e.members)
	e.out = append(e.out, '{')
	e.space()
	if e.peek() == '}' {
		e.pos++
		e.out = append(e.out, '}')
		return nil
	}
	sorted := true
	var dropped []string
	for {
		before := len(e.out)
		if before > start+1 {
			e.out = append(e.out, ',')
		}
		key := len(e.out) + 1
		if e.peek() != '"' {
			return e.unexpected()
		}
		if err := e.string(); err != nil {
			return err
		}
		m := span{key: key, keyEnd: len(e.out) - 1}
		e.space()
		if e.peek() != ':' {
			return e.unexpected()
		}
		e.pos++
		e.out = append(e.out, ':')
		e.space()
		m.val = len(e.out)
		if depth == 1 && slices.Contains(e.drop, string(e.out[m.key:m.keyEnd])) {
			name := string(e.out[m.key:m.keyEnd])
			if slices.Contains(dropped, name) {
				return fmt.Errorf("duplicate key %q in JSON", name)
			}
			dropped = append(dropped, name)
			if err := e.skipDropped(before); err != nil {
				return err
			}
		} else {
			if err := e.value(depth + 1); err != nil {
				return err
			}
			m.end = len(e.out)
			if n := len(e.members); n > base && e.compare(e.members[n-1], m) >= 0 {
				sorted = false
			}
			e.members = append(e.members, m)
		}
		e.space()
		switch e.peek() {
		case ',':
			e.pos++
			e.space()
			continue
		case '}':
			e.pos++
		default:
			return e.unexpected()
		}
		break
	}
	if !sorted {
		if err := e.sort(start, base); err != nil {
			return err
		}
	}
	e.out = append(e.out, '}')
	if depth > 1 {
		e.members = e.members[:base]
	}
	return nil
}

// skipDropped reads a value that does not belong to the event, only checking that it is
// JSON, and takes back what was written of its member.
func (e *encoder) skipDropped(before int) error {
	lenient, n := e.lenient, len(e.members)
	e.lenient = true
	err := e.value(2)
	e.lenient = lenient
	e.out, e.members = e.out[:before], e.members[:n]
	return err
}

// compare orders keys by code point, which in UTF-8 is the order of the bytes.
func (e *encoder) compare(a, b span) int {
	x, y := e.out[a.key:a.keyEnd], e.out[b.key:b.keyEnd]
	if bytes.IndexByte(x, '\\') < 0 && bytes.IndexByte(y, '\\') < 0 {
		return bytes.Compare(x, y)
	}
	return strings.Compare(unescape(x), unescape(y))
}

// sort puts the members of the object that begins at start into order.
func (e *encoder) sort(start, base int) error {
	members := e.members[base:]
	slices.SortFunc(members, e.compare)
	for i := 1; i < len(members); i++ {
		if e.compare(members[i-1], members[i]) == 0 {
			return fmt.Errorf("duplicate key %q in JSON", e.out[members[i].key:members[i].keyEnd])
		}
	}
	e.scratch = append(e.scratch[:0], e.out[start:]...)
	e.out = e.out[:start+1]
	for i := range members {
		m := &members[i]
		if i > 0 {
			e.out = append(e.out, ',')
		}
		move := len(e.out) + 1 - m.key
		e.out = append(e.out, e.scratch[m.key-1-start:m.end-start]...)
		m.key, m.keyEnd, m.val, m.end = m.key+move, m.keyEnd+move, m.val+move, m.end+move
	}
	if cap(e.scratch) > 1<<20 {
		e.scratch = nil
	}
	return nil
}

// number copies an integer, and in lenient mode any number.
func (e *encoder) number() error {
	start := e.pos
	if e.in[e.pos] == '-' {
		e.pos++
	}
	digits := e.pos
	for e.peek() >= '0' && e.peek() <= '9' {
		e.pos++
	}
	n := e.in[digits:e.pos]
	if len(n) == 0 || len(n) > 1 && n[0] == '0' {
		e.pos = digits
		return e.unexpected()
	}
	if c := e.peek(); c == '.' || c == 'e' || c == 'E' {
		return e.float(start)
	}
	if len(n) == 1 && n[0] == '0' && digits > start {
		if !e.lenient {
			return errors.New("-0 is not canonical JSON")
		}
		start = digits
	}
	if !e.lenient && !inRange(n) {
		return fmt.Errorf("the integer %.40s is out of range", e.in[start:e.pos])
	}
	e.out = append(e.out, e.in[start:e.pos]...)
	return nil
}

func inRange(digits []byte) bool {
	if len(digits) < 16 {
		return true
	}
	v, err := strconv.ParseUint(string(digits), 10, 64)
	return err == nil && v <= maxInteger
}

func (e *encoder) float(start int) error {
	if !e.lenient {
		return errors.New("floats are not canonical JSON")
	}
	if e.peek() == '.' {
		e.pos++
		if !e.digits() {
			return e.unexpected()
		}
	}
	if c := e.peek(); c == 'e' || c == 'E' {
		e.pos++
		if c := e.peek(); c == '+' || c == '-' {
			e.pos++
		}
		if !e.digits() {
			return e.unexpected()
		}
		if v, ok := exponentInteger(string(e.in[start:e.pos])); ok {
			e.out = strconv.AppendInt(e.out, v, 10)
			return nil
		}
	}
	e.out = append(e.out, e.in[start:e.pos]...)
	return nil
}

func (e *encoder) digits() bool {
	start := e.pos
	for e.peek() >= '0' && e.peek() <= '9' {
		e.pos++
	}
	return e.pos > start
}

// exponentInteger gives the value of a number such as 1e10 when it is an integer in range.
func exponentInteger(s string) (int64, bool) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(s), "e")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	exp, err := strconv.Atoi(exponent)
	if err != nil || exp > 30 || exp < -30 || len(mantissa) > 50 {
		return 0, false
	}
	digits, shift := whole+fraction, exp-len(fraction)
	if shift >= 0 {
		digits += strings.Repeat("0", shift)
	} else {
		keep := max(len(digits)+shift, 0)
		if strings.Trim(digits[keep:], "-0") != "" {
			return 0, false
		}
		digits = digits[:keep]
	}
	if digits == "" || digits == "-" {
		return 0, true
	}
	v, err := strconv.ParseInt(digits, 10, 64)
	return v, err == nil && v <= maxInteger && v >= -maxInteger
}

const hexDigits = "0123456789abcdef"

// string reads a string and writes its shortest form.
func (e *encoder) string() error {
	e.pos++
	e.out = append(e.out, '"')
	for {
		start, ascii := e.pos, true
		for e.pos < len(e.in) {
			c := e.in[e.pos]
			if c == '"' || c == '\\' || c < ' ' {
				break
			}
			if c >= utf8.RuneSelf {
				ascii = false
			}
			e.pos++
		}
		if !ascii && !utf8.Valid(e.in[start:e.pos]) {
			return errors.New("the JSON is not valid UTF-8")
		}
		e.out = append(e.out, e.in[start:e.pos]...)
		switch c := e.peek(); {
		case e.pos >= len(e.in) || c < ' ':
			return e.unexpected()
		case c == '"':
			e.pos++
			e.out = append(e.out, '"')
			return nil
		default:
			if err := e.escape(); err != nil {
				return err
			}
		}
	}
}

func (e *encoder) escape() error {
	if e.pos+1 >= len(e.in) {
		e.pos = len(e.in)
		return e.unexpected()
	}
	c := e.in[e.pos+1]
	switch c {
	case '"', '\\', 'b', 'f', 'n', 'r', 't':
		e.pos += 2
		e.out = append(e.out, '\\', c)
		return nil
	case '/':
		e.pos += 2
		e.out = append(e.out, '/')
		return nil
	case 'u':
	default:
		e.pos++
		return e.unexpected()
	}
	r, ok := e.hex(e.pos)
	if !ok {
		return e.unexpected()
	}
	e.pos += 6
	if utf16.IsSurrogate(r) {
		low, ok := e.hex(e.pos)
		if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
			return errors.New("the JSON has half of a surrogate pair")
		}
		e.pos += 6
	}
	e.out = appendRune(e.out, r)
	return nil
}

// hex reads the \uXXXX at i.
func (e *encoder) hex(i int) (rune, bool) {
	if i+6 > len(e.in) || e.in[i] != '\\' || e.in[i+1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range e.in[i+2 : i+6] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

// appendRune writes a character of a string in its shortest form.
func appendRune(out []byte, r rune) []byte {
	switch r {
	case '"', '\\':
		return append(out, '\\', byte(r))
	case '\b':
		return append(out, '\\', 'b')
	case '\t':
		return append(out, '\\', 't')
	case '\n':
		return append(out, '\\', 'n')
	case '\f':
		return append(out, '\\', 'f')
	case '\r':
		return append(out, '\\', 'r')
	}
	if r < ' ' {
		return append(out, '\\', 'u', '0', '0', hexDigits[r>>4], hexDigits[r&15])
	}
	return utf8.AppendRune(out, r)
}

// appendString writes a Go string as a canonical JSON string. Bytes that are no UTF-8
// become U+FFFD.
func appendString(out []byte, s string) []byte {
	out = append(out, '"')
	plain := 0
	for i := 0; i < len(s); {
		if c := s[i]; c >= ' ' && c != '"' && c != '\\' && c < utf8.RuneSelf {
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		out = append(out, s[plain:i]...)
		out = appendRune(out, r)
		i += n
		plain = i
	}
	out = append(out, s[plain:]...)
	return append(out, '"')
}
