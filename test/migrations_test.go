package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Two branches that each add a migration must not take the same number: no server would start.
func TestMigrationsHaveNumbersOfTheirOwn(t *testing.T) {
	files, err := filepath.Glob("../storage/migrations/*.sql")
	if err != nil || len(files) == 0 {
		t.Fatalf("no migrations: %v", err)
	}
	taken := map[string]string{}
	for _, file := range files {
		name := filepath.Base(file)
		if other, is := taken[name[:4]]; is {
			t.Errorf("%s has the number of %s", name, other)
		}
		taken[name[:4]] = name
	}
}

// Every table names its one writer, and what keeps it from growing without end: above it, or for its file. The first two
// files are older than this rule, and no migration is changed once it has run.
func TestTablesNameTheirWriterAndTheirTrim(t *testing.T) {
	files, err := filepath.Glob("../storage/migrations/*.sql")
	if err != nil || len(files) < 3 {
		t.Fatalf("no migrations: %v", err)
	}
	bound := regexp.MustCompile(`(?i)trim|bounded|go(es)? with|row goes|one row`)
	for _, file := range files[2:] {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		said := ""
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "--") {
				said += line
			}
			if name, ok := strings.CutPrefix(line, "CREATE TABLE "); ok && (!strings.Contains(said, "Writer") || !bound.MatchString(said)) {
				t.Errorf("%s: nothing says who writes the table %s, or how it is trimmed", filepath.Base(file), strings.Fields(name)[0])
			}
		}
	}
}
