package users

import (
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"
	"maunium.net/go/mautrix/id"
)

// fold makes texts that people take for the same the same: by case, width and accents. It is done here and
// not by the database, of which the two engines have different ideas.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return unicode.ToLower(r)
	}, norm.NFKD.String(s))
}

// words are the folded words of a text.
func words(s string) []string {
	return strings.FieldsFunc(fold(s), func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) })
}

// foldName is what the user directory searches: the words of the display name and the localpart, each with a
// space before it, so that the beginning of a word can be found.
func foldName(user id.UserID, displayname string) string {
	return " " + strings.Join(append(words(displayname), words(user.Localpart())...), " ")
}
