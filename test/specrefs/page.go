package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

var (
	heading  = regexp.MustCompile(`^(#{1,6})\s+(.*?)\s*(?:\{(?:#|id=")([^"}]+)"?\})?\s*$`)
	event    = regexp.MustCompile(`\{\{% event event="([^"]+)"(?: title="([^"]*)")?`)
	numbered = regexp.MustCompile(`^(\s*)\d+\.\s+(.*)`)
	fence    = regexp.MustCompile("^\\s*```")
)

// parsePage finds the headings of a page with the numbered rules below each.
func parsePage(text string) *document {
	d := &document{operations: map[string]string{}, sections: map[string]section{}}
	var open []opened // the headings that the current line stands under
	inFence := false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if fence.MatchString(line) {
			inFence = !inFence
		}
		if inFence {
			continue
		}
		if m := heading.FindStringSubmatch(line); m != nil {
			level := len(m[1])
			for len(open) > 0 && open[len(open)-1].level >= level {
				open = open[:len(open)-1]
			}
			if d.title == "" {
				d.title = m[2]
			}
			open = append(open, opened{level: level, rules: d.add(m[2], m[3])})
			continue
		}
		if m := event.FindStringSubmatch(line); m != nil {
			d.add(m[1], "")
			continue
		}
		for i := range open {
			open[i].read(line)
		}
	}
	return d
}

// add makes a section with the anchor that the page gets: the second of one name ends in -1.
func (d *document) add(title, id string) map[string]string {
	if id == "" {
		id = slug(title)
	}
	anchor := id
	for n := 1; ; n++ {
		if _, taken := d.sections[anchor]; !taken {
			break
		}
		anchor = fmt.Sprintf("%s-%d", id, n)
	}
	rules := map[string]string{}
	d.sections[anchor] = section{title: title, rules: rules}
	return rules
}

// slug is the anchor that Hugo makes of a heading: lower case, spaces to hyphens, other punctuation dropped.
func slug(title string) string {
	var out strings.Builder
	for _, r := range strings.ToLower(title) {
		switch {
		case r == ' ':
			out.WriteByte('-')
		case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r):
			out.WriteRune(r)
		}
	}
	return out.String()
}

// opened reads the numbered lists of a section. Items are counted as the page renders them, not by the
// number that stands in the source: version 12 writes two rules 10 in a row.
type opened struct {
	level int
	rules map[string]string
	list  []struct{ indent, count int }
	last  string // the rule whose text goes on, "" when none does
}

func (o *opened) read(line string) {
	m := numbered.FindStringSubmatch(line)
	if m == nil {
		// A paragraph at the margin ends the list; a blank line does not.
		if line != "" && line[0] != ' ' {
			o.list = nil
		}
		text := strings.TrimSpace(line)
		if text == "" || line[0] != ' ' {
			o.last = ""
		}
		if o.last != "" {
			o.rules[o.last] += " " + text
		}
		return
	}
	indent := len(m[1])
	for len(o.list) > 0 && o.list[len(o.list)-1].indent > indent {
		o.list = o.list[:len(o.list)-1]
	}
	if len(o.list) == 0 || o.list[len(o.list)-1].indent < indent {
		o.list = append(o.list, struct{ indent, count int }{indent, 0})
	}
	o.list[len(o.list)-1].count++
	var number []string
	for _, item := range o.list {
		number = append(number, strconv.Itoa(item.count))
	}
	key := strings.Join(number, ".")
	o.last = ""
	if _, taken := o.rules[key]; !taken { // the section's first list has the word
		o.rules[key], o.last = m[2], key
	}
}
