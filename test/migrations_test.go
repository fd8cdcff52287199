package test

import (
	"path/filepath"
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
