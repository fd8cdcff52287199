package storage_test

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"github.com/jackc/pgx/v5"
)

// Tables of a few rows, however large and old the server is.
var fewRows = []string{"migrations", "epochs", "counters", "cursors", "fences", "leases"}

// Statements that read all of a table on purpose, by their text.
var readsAll = map[string]string{
	"SELECT room, join_event, server FROM partial_joins":              "rooms being joined, at the start",
	"SELECT name, behind, acked,":                                     "servers that are owed something, at the start",
	"SELECT DISTINCT destination FROM edus":                           "what they are owed, at the start",
	"NOT o.looked_at LIMIT 100":                                       "rooms from before open_rooms, at the start",
	"WHERE nid IN (SELECT room FROM unjudged)":                        "a bounded number of rows, at the start",
	"WHERE nid IN (SELECT room FROM partial_events)":                  "events of rooms joined in part, at the start",
	"FROM unjudged WHERE room = $1 OR $1 = 0":                         "a bounded number of rows",
	"(SELECT count(*) FROM unjudged)":                                 "a bounded number of rows",
	"FROM to_device GROUP BY user_id, device_id":                      "what devices have not fetched, once an hour",
	"SELECT DISTINCT user_id, device_id FROM one_time_keys":           "when an epoch begins",
	"FROM open_rooms WHERE looked_at ORDER BY room DESC LIMIT":        "in the order of the key, up to its limit",
	"FROM published p CROSS JOIN rooms":                               "the room directory is searched",
	"WHERE joined > 0 AND room_id IN (SELECT room_id FROM published)": "the room directory is counted",
}

// Statements that read all of a table's rows for a room on purpose, by their text: SQLite has no idea of how many a room
// has, and takes an index by the room alone for a good one.
var readsAllOfARoom = map[string]string{
	"SELECT (SELECT min(ord) FROM events":                   "the first row and the last",
	"SELECT user_id, event FROM members WHERE room = $1":    "once, when a room becomes whole",
	"SELECT slot, type, state_key FROM state_slots":         "once, when a room becomes whole or is rebuilt",
	"JOIN accounts a ON a.user_id = m.user_id":              "guests, who are put out",
	"DELETE FROM invites WHERE room_id = $1":                "once, when a room is joined",
	"JOIN remote_device_lists l ON l.user_id = m.user_id":   "once, when a room is left",
	"FROM facts WHERE room = $1 AND room <> 0 AND kind = 3": "an operator asks what moved without an event",
	"FROM receipts WHERE room = ANY($1)":                    "all are told",
	"r.rel_type = 'm.thread' AND e.status = 0":              "the threads of a room are listed",
	"f.room = b.room AND f.room <> 0 ORDER BY f.pos DESC":   "the newest one",
}

// Tables that have few rows for a room, however large and old it is.
var fewOfARoom = []string{"extremities", "member_servers", "partial_events", "partial_servers", "server_sets", "unjudged"}

var (
	named  = regexp.MustCompile(`(?i)\b(?:FROM|JOIN|UPDATE|INTO)\s+([a-z_]+)(?:\s+(?:AS\s+)?([a-z]\w*))?`)
	scans  = regexp.MustCompile(`^SCAN (\w+)`)
	ofRoom = regexp.MustCompile(`^SEARCH (\w+) USING .*\(room=\?\)$`)
	spaces = regexp.MustCompile(`\s+`)
	// Facts of rooms or of users, which have indexes of their own, and no more of them than have a room or a user.
	ofSomeFacts = regexp.MustCompile(`(?s)FROM facts\s.*\b(room|user_id) = `)
)

// tablesIn maps the names that a statement gives tables to the tables; what it makes itself is none.
func tablesIn(text string) map[string]string {
	tables := map[string]string{}
	for _, m := range named.FindAllStringSubmatch(text, -1) {
		if !strings.Contains(text, m[1]+" AS (") {
			tables[m[1]] = m[1]
			if m[2] != "" {
				tables[m[2]] = m[1]
			}
		}
	}
	return tables
}

// What a statement costs does not grow with the age of the server: none reads all of a table where it wants a part.
func TestNoStatementReadsAWholeTable(t *testing.T) {
	found := map[string]string{}
	for _, dir := range []string{".", "sql"} {
		maps.Copy(found, textsOf(t, dir).all(t))
	}
	judge := func(t *testing.T, text, how, table string, onPurpose map[string]string) {
		if slices.Contains(fewRows, table) {
			return
		}
		one := spaces.ReplaceAllString(text, " ")
		for part := range onPurpose {
			if strings.Contains(one, part) {
				return
			}
		}
		t.Errorf("%s: it %s %s:\n\t%s", found[text], how, table, one)
	}
	t.Run("SQLite", func(t *testing.T) {
		db, err := storage.Open(t.Context(), sqltest.SQLite(t))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var partial []string // indexes for a few of a table's rows
		err = db.Read(t.Context(), func(tx storage.Tx) (err error) {
			partial, err = sql.Collect(tx.Tx, func(r *sql.Rows) (name string, err error) { err = r.Scan(&name); return name, err },
				"SELECT name FROM sqlite_master WHERE type = 'index' AND sql LIKE '% WHERE %'")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		for text := range found {
			if !explains.MatchString(text) || onlyPostgreSQL.MatchString(text) {
				continue
			}
			tables := tablesIn(text)
			err := db.Read(t.Context(), func(tx storage.Tx) error {
				lines, err := sql.Collect(tx.Tx, func(r *sql.Rows) (detail string, err error) {
					var a, b, c int64
					err = r.Scan(&a, &b, &c, &detail)
					return detail, err
				}, "EXPLAIN QUERY PLAN "+text, make([]any, arguments(text))...)
				for _, line := range lines {
					m := scans.FindStringSubmatch(line)
					if m != nil && tables[m[1]] != "" && !slices.ContainsFunc(partial, func(name string) bool { return strings.HasSuffix(line, " INDEX "+name) }) {
						judge(t, text, "reads all of", tables[m[1]], readsAll)
					}
					if m := ofRoom.FindStringSubmatch(line); m != nil && tables[m[1]] != "" && !slices.Contains(fewOfARoom, tables[m[1]]) {
						judge(t, text, "reads, of a room, all of", tables[m[1]], readsAllOfARoom)
					}
				}
				if ofSomeFacts.MatchString(text) && !strings.Contains(strings.Join(lines, "\n"), " INDEX facts_") {
					judge(t, text, "reads, of all rooms and users,", "facts", readsAll)
				}
				return err
			})
			if err != nil {
				t.Errorf("%s: %v", found[text], err)
			}
		}
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		o := sqltest.PostgreSQL(t)
		db, err := storage.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		conn, err := pgx.Connect(t.Context(), o.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		// A plan for any arguments, that reads a whole table only where no index helps.
		for _, s := range []string{"SET plan_cache_mode = force_generic_plan", "SET enable_seqscan = off",
			"SET enable_hashjoin = off", "SET enable_mergejoin = off", "SET jit = off"} {
			if _, err := conn.Exec(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		}
		partial := map[string]bool{}
		rows, _ := conn.Query(t.Context(), `SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid WHERE i.indpred IS NOT NULL`)
		names, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			partial[name] = true
		}
		for text := range found {
			if !explains.MatchString(text) || onlySQLite.MatchString(text) {
				continue
			}
			tables, indexes := scanned(t, conn, text, partial)
			for _, table := range tables {
				judge(t, text, "reads all of", table, readsAll)
			}
			if ofSomeFacts.MatchString(text) && !slices.ContainsFunc(indexes, func(name string) bool { return partial[name] }) {
				judge(t, text, "reads, of all rooms and users,", "facts", readsAll)
			}
		}
	})
}

func arguments(text string) (count int) {
	for _, m := range argument.FindAllStringSubmatch(text, -1) {
		n, _ := strconv.Atoi(m[1])
		count = max(count, n)
	}
	return count
}

// plan is a node of what PostgreSQL explains.
type plan struct {
	Type  string `json:"Node Type"`
	Table string `json:"Relation Name"`
	Index string `json:"Index Name"`
	Cond  string `json:"Index Cond"`
	Plans []plan
}

// scanned lists the tables that a statement reads all of, and the indexes that it uses. An index for a few of a table's
// rows may be read as a whole.
func scanned(t *testing.T, conn *pgx.Conn, text string, partial map[string]bool) (tables, indexes []string) {
	t.Helper()
	ctx := t.Context()
	if _, err := conn.Exec(ctx, "PREPARE one AS "+text, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Errorf("%s: %v", text, err)
		return nil, nil
	}
	defer conn.Exec(ctx, "DEALLOCATE one", pgx.QueryExecModeSimpleProtocol)
	values := ""
	if n := arguments(text); n > 0 {
		values = "(" + strings.TrimSuffix(strings.Repeat("NULL, ", n), ", ") + ")"
	}
	var explained []struct{ Plan plan }
	if err := conn.QueryRow(ctx, fmt.Sprint("EXPLAIN (FORMAT JSON) EXECUTE one", values), pgx.QueryExecModeSimpleProtocol).Scan(&explained); err != nil {
		t.Errorf("%s: %v", text, err)
		return nil, nil
	}
	var walk func(p plan)
	walk = func(p plan) {
		if p.Type == "Seq Scan" || strings.HasPrefix(p.Type, "Index") && p.Cond == "" && !partial[p.Index] {
			tables = append(tables, p.Table)
		}
		if p.Index != "" {
			indexes = append(indexes, p.Index)
		}
		for _, below := range p.Plans {
			walk(below)
		}
	}
	walk(explained[0].Plan)
	return tables, indexes
}
