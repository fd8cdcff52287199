package test

import (
	"fmt"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The house has floors. A package imports what stands on a lower floor, and packages of its own
// room; rooms of one floor never import each other, so each can be read, tested and replaced alone.
// See docs/decisions and the package comment of chancery.
var floors = [][]string{
	{"."},
	{"storage", "config", "endpoint", "recent"},
	{"federation/peer"},
	{"roomserver", "users", "media"},
	{"clientapi", "federation", "syncapi", "push", "appservice", "identity", "records", "policy", "console"},
	{"cmd"},
	{"test"},
}

// pure packages are functions over values: they can be fuzzed against the letter of the specification
// because nothing of ours but each other and the root is in them.
var pure = []string{"roomserver/event", "roomserver/auth", "roomserver/state", "roomserver/visibility"}

// shared are the two sets of pure functions that the neighbours on the same floor may use.
var shared = []string{"roomserver/visibility", "users/pushrules"}

// outside says which packages may use what is not ours; tests are free.
var outside = []struct {
	module string
	in     []string
	why    string
}{
	{"github.com/matrix-org/gomatrixserverlib", []string{"roomserver/event", "federation/peer"},
		"it is good for formats and keys, not for auth or resolution, and its types must not spread"},
	{"github.com/jackc/pgx", []string{"storage/sql"}, "SQL has one text for two engines, only the engine knows which"},
	{"zombiezen.com/go/sqlite", []string{"storage/sql"}, "SQL has one text for two engines, only the engine knows which"},
	{"modernc.org/sqlite", []string{"storage/sql"}, "SQL has one text for two engines, only the engine knows which"},
	{"testing", []string{"storage/sql/sqltest"}, "test code does not belong in the server"},
}

// graph maps a package, by its path below the module, to what its code outside tests imports:
// ours with a leading "./", others by their import path.
type graph map[string][]string

// faults lists every import that the house forbids, each with its reason in words.
func faults(g graph) []string {
	var out []string
	for _, pkg := range slices.Sorted(maps.Keys(g)) {
		if within(pkg, "test") {
			continue
		}
		from, room := place(pkg)
		if from < 0 {
			out = append(out, fmt.Sprintf("%s stands on no floor: give it one in test/imports_test.go", pkg))
			continue
		}
		for _, imported := range g[pkg] {
			why := ""
			if ours, ok := strings.CutPrefix(imported, "./"); ok {
				why = forbidden(pkg, room, from, ours)
			} else {
				why = foreign(pkg, imported)
			}
			if why != "" {
				out = append(out, fmt.Sprintf("%s must not import %s: %s", pkg, imported, why))
			}
		}
	}
	return out
}

// forbidden says why pkg may not import another package of ours, or "".
func forbidden(pkg, room string, from int, imported string) string {
	to, other := place(imported)
	switch {
	case within(pkg, "storage/sql/sqltest") && within(imported, "test"): // it is test code itself
	case within(imported, "test"), within(imported, "storage/sql/sqltest"):
		return "test code does not belong in the server"
	case slices.Contains(pure, pkg):
		if imported != "." && !slices.Contains(pure, imported) {
			return "it is pure, functions over values: take a small interface instead"
		}
	case other == room:
	case to < from:
		if other == "endpoint" && from < 4 {
			return "what is below the APIs knows nothing of HTTP"
		}
	case to == from:
		if !slices.Contains(shared, imported) {
			return fmt.Sprintf("%s and %s are neighbours, they learn of each other from the log and from storage", room, other)
		}
	case other == "federation":
		return "nobody imports federation itself, the way out is federation/peer"
	default:
		return fmt.Sprintf("%s is below %s, ask from above or tell a fact", room, other)
	}
	return ""
}

// foreign says why pkg may not import a package that is not ours, or "".
func foreign(pkg, imported string) string {
	for _, rule := range outside {
		if within(imported, rule.module) && !slices.ContainsFunc(rule.in, func(home string) bool { return within(pkg, home) }) {
			return rule.why
		}
	}
	return ""
}

// place finds a package's floor and its room there; the longest room wins, as federation/peer has its own floor.
func place(pkg string) (floor int, room string) {
	floor = -1
	for n, rooms := range floors {
		for _, r := range rooms {
			if (r == pkg || r != "." && within(pkg, r)) && len(r) > len(room) {
				floor, room = n, r
			}
		}
	}
	return floor, room
}

func within(pkg, dir string) bool { return pkg == dir || strings.HasPrefix(pkg, dir+"/") }

// read makes the graph from the source itself and not from `go list`: files behind every build tag
// count, and the go command sees which files this test has read, so a cached result is never an old one.
func read(t *testing.T, root string) graph {
	t.Helper()
	g := graph{}
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); file != root && (name[0] == '.' || name[0] == '_' || name == "testdata" || name == "data") {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, src, parser.ImportsOnly)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(file))
		if err != nil {
			return err
		}
		dir = filepath.ToSlash(dir)
		g[dir] = append(g[dir], "")
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if name == "chancery" {
				name = "./."
			} else if ours, ok := strings.CutPrefix(name, "chancery/"); ok {
				name = "./" + path.Clean(ours)
			}
			g[dir] = append(g[dir], name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for pkg, imports := range g {
		slices.Sort(imports)
		g[pkg] = slices.Compact(imports)[1:]
	}
	return g
}

func TestImportsKeepTheHouse(t *testing.T) {
	g := read(t, "..")
	if _, ok := g["storage/sql"]; !ok {
		t.Fatal("storage/sql was not found, so nothing was checked")
	}
	for _, fault := range faults(g) {
		t.Error(fault)
	}
}

func TestForbiddenImportsAreFound(t *testing.T) {
	for _, c := range []struct {
		pkg, imported, want string // want: part of the reason, "" when allowed
	}{
		{"cmd/chancery", "./clientapi", ""},
		{"cmd/chancery", "./federation", ""},
		{"clientapi/room", "./clientapi", ""},
		{"clientapi", "./roomserver", ""},
		{"clientapi", "./endpoint", ""},
		{"clientapi", "./syncapi", "neighbours"},
		{"clientapi", "./federation", "neighbours"},
		{"clientapi", "./federation/peer", ""},
		{"federation", "./federation/peer", ""},
		{"federation/peer", "./federation", "nobody imports federation itself"},
		{"federation/peer", "./storage", ""},
		{"federation/peer", "./roomserver/event", "below roomserver"},
		{"roomserver", "./users", "neighbours"},
		{"roomserver", "./federation", "nobody imports federation itself"},
		{"roomserver", "./endpoint", "nothing of HTTP"},
		{"users", "./roomserver", "neighbours"},
		{"users", "./roomserver/visibility", ""},
		{"users", "./roomserver/event", "neighbours"},
		{"roomserver/auth", "./roomserver/event", ""},
		{"roomserver/auth", "./.", ""},
		{"roomserver/auth", "./storage", "pure"},
		{"roomserver/state", "./roomserver", "pure"},
		{"storage", "./storage/sql", ""},
		{"storage", "./config", "neighbours"},
		{"storage/sql", "./roomserver", "storage is below roomserver"},
		{".", "./config", "below config"},
		{"clientapi", "./test/notice", "test code"},
		{"records", "./clientapi", "neighbours"},
		{"helpers", "./.", "no floor"},
		{"roomserver/event", "github.com/matrix-org/gomatrixserverlib/spec", ""},
		{"roomserver/state", "github.com/matrix-org/gomatrixserverlib", "formats and keys"},
		{"roomserver/state", "github.com/matrix-org/gomatrixserverlibrary", ""},
		{"users", "github.com/jackc/pgx/v5", "two engines"},
		{"storage/sql", "zombiezen.com/go/sqlite/sqlitex", ""},
		{"syncapi", "testing", "test code"},
		{"test", "github.com/matrix-org/gomatrixserverlib", ""},
	} {
		got := faults(graph{c.pkg: {c.imported}})
		switch {
		case c.want == "" && len(got) > 0:
			t.Errorf("%s may import %s, but: %s", c.pkg, c.imported, got[0])
		case c.want != "" && (len(got) != 1 || !strings.Contains(got[0], c.want)):
			t.Errorf("%s imports %s: got %q, want one fault with %q", c.pkg, c.imported, got, c.want)
		}
	}
}
