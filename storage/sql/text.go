package sql

import (
	"strings"
	"unicode/utf8"
)

// escape begins an escaped byte in stored text. It is a control character that no identifier
// of Matrix may hold, so nearly no text needs to be changed.
const escape = '\x1a'

const hexDigits = "0123456789abcdef"

// Text escapes what PostgreSQL's TEXT refuses: U+0000 and bytes that are no UTF-8. Each such
// byte, and the escape character itself, becomes the escape and two hex digits; different
// texts stay different. Everything that comes from events or clients passes here.
func Text[S ~string](s S) string {
	if plain(string(s)) {
		return string(s)
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(string(s[i:]))
		if r == 0 || r == escape || (r == utf8.RuneError && n == 1) {
			b.WriteByte(escape)
			b.WriteByte(hexDigits[s[i]>>4])
			b.WriteByte(hexDigits[s[i]&15])
		} else {
			b.WriteString(string(s[i : i+n]))
		}
		i += n
	}
	return b.String()
}

func plain(s string) bool {
	return strings.IndexByte(s, 0) < 0 && strings.IndexByte(s, escape) < 0 && utf8.ValidString(s)
}

// Untext gives the text that Text was given.
func Untext(s string) string {
	at := strings.IndexByte(s, escape)
	if at < 0 {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == escape && i+2 < len(s) {
			hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
			if hi >= 0 && lo >= 0 {
				b = append(b, byte(hi<<4|lo))
				i += 2
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}
