package sql

import (
	"strings"
	"testing"
)

func TestTranslationForSQLite(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`SELECT 1`, `SELECT 1`},
		{`SELECT $2, $1, $2`, `SELECT ?2, ?1, ?2`},
		{`SELECT $10`, `SELECT ?10`},
		{`WHERE a = ANY($1) AND b = $2`, `WHERE a IN (SELECT value FROM json_each(?1)) AND b = ?2`},
		{`WHERE a=ANY( $3 )`, `WHERE a IN (SELECT value FROM json_each(?3))`},
		{`ORDER BY a LIMIT $12`, `ORDER BY a LIMIT ?12+0`},
		{`WHERE a <> ALL($1)`, `WHERE a NOT IN (SELECT value FROM json_each(?1))`},
		{`SELECT '$1', "$2", $3 -- $4` + "\n, $5", `SELECT '$1', "$2", ?3 -- $4` + "\n, ?5"},
		{`SELECT 'it''s $1' || $1`, `SELECT 'it''s $1' || ?1`},
		{`SELECT 'open $1`, `SELECT 'open $1`},
	} {
		if got := toSQLite(c.in); got != c.want {
			t.Errorf("%s\n became %s\n want   %s", c.in, got, c.want)
		}
	}
}

func TestTranslationOfMigrations(t *testing.T) {
	in := "CREATE TABLE a (n BIGINT PRIMARY KEY, t TEXT DEFAULT 'TEXT', d BYTEA) -- TEXT"
	if got, want := schemaForPostgreSQL(in), `CREATE TABLE a (n BIGINT PRIMARY KEY, t TEXT COLLATE "C" DEFAULT 'TEXT', d BYTEA) -- TEXT`; got != want {
		t.Errorf("%s", got)
	}
	if got, want := schemaForSQLite(in), `CREATE TABLE a (n INTEGER PRIMARY KEY, t TEXT DEFAULT 'TEXT', d BLOB) -- TEXT`; got != want {
		t.Errorf("%s", got)
	}
}

func TestKeyOrder(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"c b a", "a b c"},
		{"b1 a1 b2 a2", "a1 a2 b1 b2"},
		{"x1 x+a2 a3", "x1 x+a2 a3"}, // x before a, though a is lower: the order of submission goes before
		{"z1 x+y2 a3 y4 b+x5", "a3 x+y2 b+x5 y4 z1"},
	} {
		var group []*Pending
		names := map[*Pending]string{}
		for _, name := range strings.Fields(c.in) {
			p := &Pending{keys: strings.Split(strings.TrimRight(name, "0123456789"), "+")}
			names[p] = name
			group = append(group, p)
		}
		var got []string
		for _, p := range inKeyOrder(group) {
			got = append(got, names[p])
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s ran as %v, want %s", c.in, got, c.want)
		}
	}
}

func TestOlder(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{{"0.3", "0.3.1", true}, {"0.10", "0.9", false}, {"v1.0.0", "1.0", false}, {"0.9.9", "1", true}, {"1.2.0-rc1", "1.2", false}} {
		if older(c.a, c.b) != c.want {
			t.Errorf("older(%s, %s) is not %v", c.a, c.b, c.want)
		}
	}
}
