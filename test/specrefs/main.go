// Command specrefs reads every `// spec:` reference of the tree, looks it up in the specification and
// lists section by section which code and which tests stand for it. A reference that the
// specification does not have is an error.
//
//	go run ./test/specrefs [folder of the module]
//
// With -rules it prints instead the text of the authorisation rules of every room version, which
// roomserver/auth keeps for those who ask why an event was refused:
//
//	go run ./test/specrefs -rules > roomserver/auth/rules.txt
//
// References: c2s/sendMessage (an operation), c2s/m.room.create (an event type), c2s#soft-logout (a
// section), rooms/v11#authorisation-rules 4.3.3 (a rule, counted as the rendered page counts),
// appendices#server-name, modules/push#push-rules, msc4186.
// In tests also spec(t, "rooms/v11#authorisation-rules", "4.3.3").
package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
)

func main() {
	root := "."
	if len(os.Args) > 1 && os.Args[1] == "-rules" {
		if err := printRules(os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "specrefs: %v\n", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) > 1 {
		root = os.Args[1]
	}
	unknown, err := list(root)
	if errors.Is(err, errNoSpec) {
		fmt.Fprintf(os.Stderr, "specrefs: not checked: %v\n", err)
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "specrefs: %v\n", err)
		os.Exit(1)
	}
	if unknown > 0 {
		fmt.Fprintf(os.Stderr, "specrefs: %d references name nothing\n", unknown)
		os.Exit(1)
	}
}

// list prints what each reference names and who names it, and counts those that name nothing.
func list(root string) (unknown int, err error) {
	dir, err := findSpec(root)
	if err != nil {
		return 0, err
	}
	refs, err := scan(root)
	if err != nil {
		return 0, err
	}
	slices.SortFunc(refs, func(a, b reference) int {
		return cmp.Or(strings.Compare(a.String(), b.String()), strings.Compare(a.file, b.file), cmp.Compare(a.line, b.line))
	})
	spec := &specification{dir: dir, pages: map[string]*document{}}
	last := ""
	for _, r := range refs {
		if r.String() != last {
			last = r.String()
			words, err := spec.resolve(r)
			if err != nil {
				words = "UNKNOWN: " + err.Error()
			}
			fmt.Printf("%s: %s\n", r, words)
		}
		if _, err := spec.resolve(r); err != nil {
			unknown++
		}
		kind := "code"
		if strings.HasSuffix(r.file, "_test.go") {
			kind = "test"
		}
		fmt.Printf("    %s %s:%d\n", kind, r.file, r.line)
	}
	return unknown, nil
}
