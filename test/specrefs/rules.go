package main

import (
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Links and emphasis are of no use to who reads a rule in a terminal.
var (
	link    = regexp.MustCompile(`\[([^\]]+)\](?:\([^)]*\)|\[[^\]]*\])?`)
	marks   = strings.NewReplacer("`", "", "*", "")
	shorten = regexp.MustCompile(`\{\{[^}]*\}\}\s*`)
)

// printRules writes one line for each authorisation rule: its number, its text, and the versions that have it so.
func printRules(out io.Writer) error {
	dir, err := findSpec(".")
	if err != nil {
		return err
	}
	return writeRules(out, &specification{dir: dir, pages: map[string]*document{}})
}

func writeRules(out io.Writer, spec *specification) error {
	versions := map[[2]string][]string{}
	for n := 1; n <= 12; n++ {
		page, err := spec.page("rooms/v" + strconv.Itoa(n))
		if err != nil {
			return err
		}
		section, ok := page.sections["authorisation-rules"]
		if !ok {
			section = page.sections["authorization-rules"]
		}
		for number, text := range section.rules {
			text = strings.TrimSpace(shorten.ReplaceAllString(marks.Replace(link.ReplaceAllString(text, "$1")), ""))
			key := [2]string{number, text}
			versions[key] = append(versions[key], strconv.Itoa(n))
		}
	}
	keys := slices.SortedFunc(maps.Keys(versions), func(a, b [2]string) int {
		if c := slices.CompareFunc(strings.Split(a[0], "."), strings.Split(b[0], "."), func(x, y string) int {
			m, _ := strconv.Atoi(x) // both are numbers, they were counted
			n, _ := strconv.Atoi(y)
			return m - n
		}); c != 0 {
			return c
		}
		return strings.Compare(a[1], b[1])
	})
	fmt.Fprintln(out, "# Authorisation rules of the Matrix specification (Apache License 2.0): number, room versions, text.")
	fmt.Fprintln(out, "# Written by: go run ./test/specrefs -rules")
	for _, key := range keys {
		fmt.Fprintf(out, "%s\t%s\t%s\n", key[0], strings.Join(versions[key], ","), key[1])
	}
	return nil
}
