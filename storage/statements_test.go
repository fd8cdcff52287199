package storage_test

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// Where a statement stands among the arguments of what runs it.
var runners = map[string]int{"Exec": 0, "ExecRows": 0, "Query": 0, "QueryRow": 0, "Collect": 2}

// texts finds the SQL of a package in its source: every value that the statement of a call can have, also
// where it is put together from constants, local variables and what callers pass on.
type texts struct {
	constants map[string]ast.Expr
	functions map[string]*ast.FuncDecl
	calls     map[string][]call
	at        *token.FileSet
}

type call struct {
	in   *ast.FuncDecl
	expr *ast.CallExpr
}

func textsOf(t *testing.T, dir string) *texts {
	t.Helper()
	v := &texts{constants: map[string]ast.Expr{}, functions: map[string]*ast.FuncDecl{}, calls: map[string][]call{}, at: token.NewFileSet()}
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("no source in %s: %v", dir, err)
	}
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(v.at, path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			switch d := d.(type) {
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if s, ok := spec.(*ast.ValueSpec); ok && len(s.Values) == len(s.Names) {
						for i, n := range s.Names {
							v.constants[n.Name] = s.Values[i]
						}
					}
				}
			case *ast.FuncDecl:
				v.functions[d.Name.Name] = d
				ast.Inspect(d, func(n ast.Node) bool {
					if c, ok := n.(*ast.CallExpr); ok {
						v.calls[called(c)] = append(v.calls[called(c)], call{d, c})
					}
					return true
				})
			}
		}
	}
	return v
}

func called(c *ast.CallExpr) string {
	switch f := c.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	case *ast.IndexExpr:
		if s, ok := f.X.(*ast.SelectorExpr); ok {
			return s.Sel.Name
		}
	}
	return ""
}

// all gives the statements and where they stand.
func (v *texts) all(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for name, arg := range runners {
		for _, c := range v.calls[name] {
			if len(c.expr.Args) <= arg || !onTx(c.expr) {
				continue
			}
			at := v.at.Position(c.expr.Pos()).String()
			values := v.values(c.in, c.expr.Args[arg], 4)
			if len(values) == 0 {
				t.Errorf("%s: the text of the statement cannot be found", at)
			}
			for _, text := range values {
				found[text] = at
			}
		}
	}
	return found
}

// onTx says that a call is of a transaction, by the name that transactions have here.
func onTx(c *ast.CallExpr) bool {
	switch f := c.Fun.(type) {
	case *ast.SelectorExpr:
		x, ok := f.X.(*ast.Ident)
		return ok && (x.Name == "tx" || x.Name == "sql" && f.Sel.Name == "Collect")
	case *ast.IndexExpr:
		return true
	}
	return false
}

func (v *texts) values(in *ast.FuncDecl, e ast.Expr, depth int) (all []string) {
	if depth == 0 {
		return nil
	}
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); err == nil {
			return []string{text}
		}
	case *ast.ParenExpr:
		return v.values(in, e.X, depth)
	case *ast.CallExpr:
		if called(e) == "Pair" {
			all = append(v.values(in, e.Args[0], depth), v.values(in, e.Args[1], depth)...)
		}
	case *ast.BinaryExpr:
		for _, left := range v.values(in, e.X, depth) {
			for _, right := range v.values(in, e.Y, depth) {
				all = append(all, left+right)
			}
		}
	case *ast.Ident:
		if c, ok := v.constants[e.Name]; ok {
			return v.values(in, c, depth)
		}
		ast.Inspect(in, func(n ast.Node) bool {
			if a, ok := n.(*ast.AssignStmt); ok {
				for i, l := range a.Lhs {
					if name, ok := l.(*ast.Ident); !ok || name.Name != e.Name {
						continue
					}
					if len(a.Lhs) != len(a.Rhs) {
						all = append(all, v.returned(a.Rhs[0], i, depth-1)...)
						continue
					}
					for _, right := range v.values(in, a.Rhs[i], depth-1) {
						if a.Tok != token.ADD_ASSIGN {
							all = append(all, right)
							continue
						}
						for _, left := range slices.Clone(all) {
							all = append(all, left+right)
						}
					}
				}
			}
			return true
		})
		for i, name := range parameters(in) {
			if name != e.Name {
				continue
			}
			for _, c := range v.calls[in.Name.Name] {
				if i < len(c.expr.Args) {
					all = append(all, v.values(c.in, c.expr.Args[i], depth-1)...)
				}
			}
		}
	}
	return all
}

// returned gives what a call of a function here can give in one of its results.
func (v *texts) returned(e ast.Expr, result, depth int) (all []string) {
	c, ok := e.(*ast.CallExpr)
	if !ok || v.functions[called(c)] == nil {
		return nil
	}
	f := v.functions[called(c)]
	ast.Inspect(f, func(n ast.Node) bool {
		if r, ok := n.(*ast.ReturnStmt); ok && result < len(r.Results) {
			all = append(all, v.values(f, r.Results[result], depth)...)
		}
		return true
	})
	return all
}

func parameters(f *ast.FuncDecl) (names []string) {
	for _, field := range f.Type.Params.List {
		for _, n := range field.Names {
			names = append(names, n.Name)
		}
	}
	return names
}

var (
	argument       = regexp.MustCompile(`\$(\d+)`)
	explains       = regexp.MustCompile(`^\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b`)
	onlyPostgreSQL = regexp.MustCompile(`clock_timestamp|pg_advisory_xact_lock|FROM chain_links WHERE room = \$1 AND to_chain`)
	onlySQLite     = regexp.MustCompile(`INDEXED BY`)
	errSeen        = errors.New("nothing is kept")
)

// house.md 5: one text for both engines. Each understands every statement, with the tables as they are.
func TestBothEnginesUnderstandEveryStatement(t *testing.T) {
	found := map[string]string{}
	for _, dir := range []string{".", "sql"} {
		maps.Copy(found, textsOf(t, dir).all(t))
	}
	if len(found) < 290 {
		t.Errorf("only %d statements were found", len(found))
	}
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, err := storage.Open(t.Context(), fresh())
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		explained := 0
		for text, at := range found {
			switch {
			case !explains.MatchString(text):
				t.Logf("%s: not explained: %.60q", at, text)
				continue
			case !db.OnPostgreSQL() && onlyPostgreSQL.MatchString(text):
				continue // leases and the lock of positions: where one process has the data directory there are none
			case db.OnPostgreSQL() && onlySQLite.MatchString(text):
				continue
			}
			count := 0
			for _, m := range argument.FindAllStringSubmatch(text, -1) {
				n, _ := strconv.Atoi(m[1])
				count = max(count, n)
			}
			err := db.Write(t.Context(), nil, func(tx storage.Tx) error {
				lines, err := sql.Collect(tx.Tx, func(r *sql.Rows) (int, error) { return 1, nil }, "EXPLAIN "+text, make([]any, count)...)
				if err == nil && len(lines) == 0 {
					err = fmt.Errorf("no plan")
				}
				if err != nil {
					return err
				}
				return errSeen
			})
			if !errors.Is(err, errSeen) {
				t.Errorf("%s: %v", at, err)
			}
			explained++
		}
		t.Logf("%d statements", explained)
		if explained < 290 {
			t.Error("too few to be all")
		}
	})
}
