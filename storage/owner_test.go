package storage_test

import (
	"strings"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// A database that was made for one server is refused to another, after a restart too.
func TestBelong(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		for _, step := range []struct{ name, says string }{
			{"a.example", ""}, {"a.example", ""}, {"b.example", "belongs to the server a.example, not to b.example"}, {"a.example", ""},
		} {
			db, err := storage.Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			err = db.Belong(t.Context(), step.name)
			db.Close()
			if (err == nil) != (step.says == "") || err != nil && !strings.Contains(err.Error(), step.says) {
				t.Fatalf("%s: %v", step.name, err)
			}
		}
	})
}
