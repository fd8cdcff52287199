package test

import (
	"bytes"
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation"
	"chancery/syncapi"
)

var update = flag.Bool("update", false, "write docs/coverage.md anew")

const coverageFile = "../docs/coverage.md"

// What the page says is served is what the tables serve.
func TestCoveragePageIsInStep(t *testing.T) {
	cfg := config.Default()
	page := coverage(
		(&clientapi.Server{Config: cfg, Sync: (&syncapi.Server{}).Sync()}).Routes(),
		(&federation.Server{Config: cfg}).Routes())
	if *update {
		if err := os.WriteFile(coverageFile, page, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	there, err := os.ReadFile(coverageFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(there, page) {
		t.Fatalf("docs/coverage.md says otherwise than the tables (%s): write it with go test ./test -run Coverage -update",
			firstDifference(there, page))
	}
}

func firstDifference(a, b []byte) string {
	was, is := strings.Split(string(a), "\n"), strings.Split(string(b), "\n")
	for i := range max(len(was), len(is)) {
		if i >= len(was) || i >= len(is) {
			return fmt.Sprintf("%d lines, %d in the tables", len(was), len(is))
		}
		if was[i] != is[i] {
			return fmt.Sprintf("line %d is %q, in the tables %q", i+1, was[i], is[i])
		}
	}
	return "no difference"
}

// coverage is the page: each table with what it serves and what is planned.
func coverage(tables ...[]endpoint.Route) []byte {
	names := map[string]string{endpoint.ClientServer: "Client-server API", endpoint.ServerServer: "Server-server API"}
	var page bytes.Buffer
	page.WriteString(`# Coverage

Every operation of the Matrix specification 1.19 for clients and between servers, and whether this server answers
it. What is planned answers as if it were not there (404 M_UNRECOGNIZED), so clients do without it.

This page is written from the tables that serve: ` + "`go test ./test -run Coverage -update`" + `.
`)
	for _, routes := range tables {
		routes = slices.Clone(routes)
		slices.SortStableFunc(routes, func(a, b endpoint.Route) int {
			return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Method, b.Method))
		})
		byID := map[string]endpoint.Route{}
		for _, r := range routes {
			byID[r.ID] = r
		}
		served := 0
		var rows bytes.Buffer
		for _, r := range routes {
			answers := r
			if r.AnsweredBy != "" {
				answers = byID[r.AnsweredBy]
			}
			what := "planned"
			if !answers.Planned() {
				what = "**served**"
				served++
			}
			fmt.Fprintf(&rows, "| %s | %s | `%s` | %s |\n", r.ID, r.Method, r.Path, what)
		}
		fmt.Fprintf(&page, "\n## %s\n\n%d of %d operations are served.\n\n| Operation | Method | Path | |\n|---|---|---|---|\n%s",
			names[routes[0].API], served, len(routes), rows.Bytes())
	}
	return page.Bytes()
}
