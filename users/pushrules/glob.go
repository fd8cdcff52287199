package pushrules

import (
	"strings"
	"unicode"
)

// Longer texts are matched against patterns with wildcards only up to here: every event asks every rule.
const maxMatched = 8 << 10

// matchAll matches a whole text against a pattern, without regard to case.
//
// spec: appendices#glob-style-matching
func matchAll(pattern, text string) bool {
	if !strings.ContainsAny(pattern, "*?") {
		return strings.EqualFold(pattern, text)
	}
	return walk(lower(pattern), lower(text), false)
}

// matchWords finds a pattern in a text, from one word boundary to another.
//
// spec: c2s#push-rules
func matchWords(pattern, text string) bool {
	if pattern == "" {
		return false // it would be in every text
	}
	if !strings.ContainsAny(pattern, "*?") {
		return matchLiteral(pattern, text)
	}
	return walk(lower(pattern), lower(text), true)
}

// matchLiteral finds a text in another, from one word boundary to another.
func matchLiteral(word, text string) bool {
	w, t := string(lower(word)), string(lower(text))
	for from := 0; ; {
		at := strings.Index(t[from:], w)
		if at < 0 {
			return false
		}
		at += from
		end := at + len(w)
		if (at == 0 || !isWord(rune(t[at-1]))) && (end == len(t) || !isWord(rune(t[end]))) {
			return true
		}
		from = at + 1
	}
}

func lower(s string) []rune {
	r := []rune(s)
	for i, c := range r {
		r[i] = unicode.ToLower(c)
	}
	return r
}

// isWord: only these letters make words; all bytes of other characters are boundaries.
func isWord(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_'
}

// walk follows all ways through the pattern at once, so the time is at most the product of the lengths. With
// inside, a match begins and ends at any word boundary.
func walk(pattern, text []rune, inside bool) bool {
	if len(text) > maxMatched {
		text = text[:maxMatched]
	}
	at := make([]bool, len(pattern)+1)
	next := make([]bool, len(pattern)+1)
	enter := func(places []bool, i int) {
		for places[i] = true; i < len(pattern) && pattern[i] == '*'; i++ {
			places[i+1] = true
		}
	}
	for n := 0; n <= len(text); n++ {
		if n == 0 || inside && !isWord(text[n-1]) {
			enter(at, 0)
		}
		if at[len(pattern)] && (n == len(text) || inside && !isWord(text[n])) {
			return true
		}
		if n == len(text) {
			break
		}
		clear(next)
		for i, c := range pattern {
			if !at[i] {
				continue
			}
			if c == '*' {
				enter(next, i)
			} else if c == '?' || c == text[n] {
				enter(next, i+1)
			}
		}
		at, next = next, at
	}
	return false
}
