package sql

import (
	"regexp"
	"strings"
	"sync"
)

// The common text is PostgreSQL's; these rewrite it for SQLite, where $1 is a name numbered by
// its first appearance and there are no array parameters.
var (
	anyOf      = regexp.MustCompile(`\s*=\s*ANY\s*\(\s*\$(\d+)\s*\)`)
	noneOf     = regexp.MustCompile(`\s*<>\s*ALL\s*\(\s*\$(\d+)\s*\)`)
	limit      = regexp.MustCompile(`\bLIMIT\s+\$(\d+)`)
	dollar     = regexp.MustCompile(`\$(\d+)`)
	rowID      = regexp.MustCompile(`\bBIGINT PRIMARY KEY`)
	bytea      = regexp.MustCompile(`\bBYTEA\b`)
	textColumn = regexp.MustCompile(`\bTEXT\b`)
)

type translations struct{ known sync.Map }

// forSQLite translates a statement, once.
func (t *translations) forSQLite(query string) string {
	if done, ok := t.known.Load(query); ok {
		return done.(string)
	}
	done := toSQLite(query)
	t.known.Store(query, done)
	return done
}

func toSQLite(query string) string {
	return outsideQuotes(query, func(s string) string {
		s = anyOf.ReplaceAllString(s, ` IN (SELECT value FROM json_each(?$1))`)
		s = noneOf.ReplaceAllString(s, ` NOT IN (SELECT value FROM json_each(?$1))`)
		// SQLite prepares a statement anew whenever a limit that stands there alone is given: 50 µs, not 8.
		s = limit.ReplaceAllString(s, `LIMIT ?$1+0`)
		return dollar.ReplaceAllString(s, `?$1`)
	})
}

// schemaForSQLite translates a migration. A single BIGINT key becomes the row's own number,
// which saves an index; BYTEA is no name that SQLite knows, and it would convert numbers in it.
func schemaForSQLite(script string) string {
	return outsideQuotes(script, func(s string) string {
		return bytea.ReplaceAllString(rowID.ReplaceAllString(s, `INTEGER PRIMARY KEY`), `BLOB`)
	})
}

// schemaForPostgreSQL makes text compare by bytes, as it does in SQLite.
func schemaForPostgreSQL(script string) string {
	return outsideQuotes(script, func(s string) string {
		return textColumn.ReplaceAllString(s, `TEXT COLLATE "C"`)
	})
}

// outsideQuotes applies f to what stands outside of '...', "..." and comments.
func outsideQuotes(query string, f func(string) string) string {
	if !strings.ContainsAny(query, `'"`) && !strings.Contains(query, "--") {
		return f(query)
	}
	var b strings.Builder
	from := 0
	for i := 0; i < len(query); {
		var end int
		switch {
		case query[i] == '\'' || query[i] == '"':
			end = strings.IndexByte(query[i+1:], query[i])
			if end >= 0 {
				end += i + 2
			}
		case strings.HasPrefix(query[i:], "--"):
			end = strings.IndexByte(query[i:], '\n')
			if end >= 0 {
				end += i
			}
		default:
			i++
			continue
		}
		if end < 0 {
			end = len(query)
		}
		b.WriteString(f(query[from:i]))
		b.WriteString(query[i:end])
		i, from = end, end
	}
	b.WriteString(f(query[from:]))
	return b.String()
}
