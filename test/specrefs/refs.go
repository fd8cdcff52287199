package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// reference is one place in our source that names a place in the specification.
type reference struct {
	target string // c2s/sendMessage, rooms/v11#authorisation-rules
	rule   string // 4.3.3, or ""
	file   string
	line   int
}

func (r reference) String() string { return strings.TrimSpace(r.target + " " + r.rule) }

var (
	comment = regexp.MustCompile(`//\s*spec:\s*(.*)`)
	call    = regexp.MustCompile(`\bspec\(t, "([^"]+)"(?:, "([^"]+)")?\)`)
	// A reference, its rule, and words for the reader; another may follow after a comma or a semicolon.
	one = regexp.MustCompile(`^\s*([^\s,;]+)(?:\s+(?:rules?\s+)?(\d+(?:\.\d+)*)\b)?`)
)

// references finds them in one file's source.
func references(file, src string) []reference {
	var out []reference
	number := 0
	for line := range strings.Lines(src) {
		number++
		if m := comment.FindStringSubmatch(line); m != nil {
			out = append(out, fromComment(m[1], file, number)...)
		}
		for _, m := range call.FindAllStringSubmatch(line, -1) {
			out = append(out, reference{m[1], m[2], file, number})
		}
	}
	return out
}

// fromComment takes the first reference as it stands; after a comma only what looks like one is meant,
// the rest is words.
func fromComment(text, file string, line int) []reference {
	var out []reference
	for i, part := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == ';' }) {
		m := one.FindStringSubmatch(part)
		if m == nil || i > 0 && !strings.ContainsAny(m[1], "/#") && !strings.HasPrefix(m[1], "msc") {
			continue
		}
		out = append(out, reference{strings.TrimRight(m[1], ".:"), m[2], file, line})
	}
	return out
}

// scan reads every Go and SQL file of the tree.
func scan(root string) ([]reference, error) {
	var out []reference
	err := filepath.WalkDir(root, func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		if d.IsDir() {
			// This folder's own tests hold wrong references on purpose.
			if rel != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "data" || rel == filepath.Join("test", "specrefs")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(file, ".go") && !strings.HasSuffix(file, ".sql") {
			return nil
		}
		src, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		text := string(src)
		if strings.HasSuffix(file, ".sql") {
			text = strings.ReplaceAll(text, "-- spec:", "// spec:")
		}
		out = append(out, references(filepath.ToSlash(rel), text)...)
		return nil
	})
	return out, err
}

// resolve gives the first words of what a reference names.
func (s *specification) resolve(r reference) (string, error) {
	name, anchor, hasAnchor := strings.Cut(r.target, "#")
	operation := ""
	if page, op, ok := strings.Cut(name, "/"); ok && page != "rooms" && page != "modules" {
		name, operation = page, op
	}
	d, err := s.page(name)
	if err != nil {
		return "", err
	}
	if strings.HasPrefix(operation, "m.") { // an event type, by its name instead of its anchor
		anchor, hasAnchor = slug(operation), true
	} else if operation != "" {
		summary, ok := d.operations[operation]
		if !ok {
			return "", fmt.Errorf("no operation %q in %s", operation, name)
		}
		if !hasAnchor {
			return summary, nil
		}
	}
	if !hasAnchor {
		if r.rule != "" {
			return "", fmt.Errorf("rule %s needs a section, as in %s#authorisation-rules", r.rule, name)
		}
		return d.title, nil
	}
	sec, ok := d.sections[anchor]
	if !ok {
		return "", fmt.Errorf("no section %q in %s", anchor, name)
	}
	if r.rule == "" {
		return sec.title, nil
	}
	words, ok := sec.rules[r.rule]
	if !ok {
		return "", fmt.Errorf("no rule %s in %s", r.rule, r.target)
	}
	return words, nil
}
