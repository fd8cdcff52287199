package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Errata are the demands of the OpenAPI that docs/spec-errata.md lifts.
type Errata []Erratum

// Erratum is one row.
type Erratum struct {
	Operation string // "s2s/getEventByTimestamp"
	Subject   string // "auth", or "body" and a JSON pointer
	Theirs    string
	Ours      string
	Why       string
}

// LoadErrata reads docs/spec-errata.md of the module that the test runs in.
func LoadErrata(t interface {
	Helper()
	Fatalf(string, ...any)
}) Errata {
	t.Helper()
	errata, err := findErrata()
	if err != nil {
		t.Fatalf("conformance: %v", err)
	}
	return errata
}

func findErrata() (Errata, error) {
	dir, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return readErrata(filepath.Join(dir, "docs", "spec-errata.md"))
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return nil, errors.New("no go.mod above the test")
		}
		dir = parent
	}
}

func readErrata(file string) (Errata, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var errata Errata
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if !strings.HasPrefix(line, "| c2s/") && !strings.HasPrefix(line, "| s2s/") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) != 5 || cells[4] == "" {
			return nil, fmt.Errorf("%s:%d: a row has five cells, the last of which says why", file, n)
		}
		if cells[1] != "auth" && !strings.HasPrefix(cells[1], "body") {
			return nil, fmt.Errorf("%s:%d: the subject is auth or body, not %q", file, n, cells[1])
		}
		errata = append(errata, Erratum{cells[0], cells[1], cells[2], cells[3], cells[4]})
	}
	return errata, lines.Err()
}

func (e Errata) auth(operation string) (Erratum, bool) {
	for _, row := range e {
		if row.Operation == operation && row.Subject == "auth" {
			return row, true
		}
	}
	return Erratum{}, false
}

// liftsBody says whether a part of an operation's answers is not checked.
func (e Errata) liftsBody(operation, pointer string) bool {
	for _, row := range e {
		pattern, ok := strings.CutPrefix(row.Subject, "body")
		if ok && row.Operation == operation && matchPointer(strings.TrimSpace(pattern), pointer) {
			return true
		}
	}
	return false
}

// matchPointer compares step by step; what lies below the pattern is lifted with it.
func matchPointer(pattern, pointer string) bool {
	if pattern == "" {
		return true
	}
	want, have := strings.Split(pattern, "/"), strings.Split(pointer, "/")
	if len(have) < len(want) {
		return false
	}
	for i, step := range want {
		if step != "*" && step != have[i] {
			return false
		}
	}
	return true
}
