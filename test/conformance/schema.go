package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Violation is one place of a value that its schema does not allow.
type Violation struct {
	Pointer string // JSON pointer into the value, "" is the whole
	Text    string
}

func (v Violation) String() string {
	if v.Pointer == "" {
		return "the body " + v.Text
	}
	return v.Pointer + " " + v.Text
}

// maxViolations keeps a wrong timeline from drowning the first line that explains it.
const maxViolations = 20

// checker walks a value along a schema: the part of JSON Schema that the OpenAPI uses. "format"
// is left alone, and so is every "x-" word.
type checker struct {
	found []Violation
	depth int
}

func (c *checker) fail(pointer, format string, args ...any) {
	if len(c.found) < maxViolations {
		c.found = append(c.found, Violation{pointer, fmt.Sprintf(format, args...)})
	}
}

// Validate holds a JSON text against a schema.
func validate(schema node, text []byte) []Violation {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var value any
	if err := d.Decode(&value); err != nil {
		return []Violation{{"", "is no JSON: " + err.Error()}}
	}
	var c checker
	c.check(schema, value, "")
	return c.found
}

// try checks a value without keeping what it finds, for the branches of oneOf and anyOf.
func (c *checker) try(schema node, value any, pointer string) []Violation {
	branch := checker{depth: c.depth}
	branch.check(schema, value, pointer)
	return branch.found
}

func (c *checker) check(s node, value any, pointer string) {
	if c.depth++; c.depth > 200 {
		c.fail(pointer, "has a schema that does not end")
		return
	}
	defer func() { c.depth-- }()
	switch b := s.value.(type) {
	case bool:
		if !b {
			c.fail(pointer, "must not be there")
		}
		return
	case map[string]any:
	default:
		return
	}
	schema := s.object()
	if to, ok := schema["$ref"].(string); ok {
		target, err := s.ref(to)
		if err != nil {
			c.fail(pointer, "has a broken schema: %v", err)
			return
		}
		c.check(target, value, pointer)
	}
	if !c.checkType(schema["type"], value, pointer) {
		return
	}
	c.checkValue(schema, value, pointer)
	c.checkBranches(s, value, pointer)
	switch v := value.(type) {
	case map[string]any:
		c.checkObject(s, v, pointer)
	case []any:
		c.checkArray(s, v, pointer)
	}
}

func (c *checker) checkType(want any, value any, pointer string) bool {
	var allowed []string
	switch w := want.(type) {
	case string:
		allowed = []string{w}
	case []any:
		for _, t := range w {
			allowed = append(allowed, fmt.Sprint(t))
		}
	default:
		return true
	}
	for _, t := range allowed {
		if isType(t, value) {
			return true
		}
	}
	c.fail(pointer, "is %s and must be %s", typeName(value), strings.Join(allowed, " or "))
	return false
}

func isType(t string, value any) bool {
	switch v := value.(type) {
	case nil:
		return t == "null"
	case bool:
		return t == "boolean"
	case string:
		return t == "string"
	case json.Number:
		// Matrix knows no 1.0 and no 1e3 where it says integer.
		return t == "number" || t == "integer" && !strings.ContainsAny(v.String(), ".eE")
	case []any:
		return t == "array"
	case map[string]any:
		return t == "object"
	}
	return false
}

func typeName(value any) string {
	switch v := value.(type) {
	case nil:
		return "null"
	case bool:
		return "a boolean"
	case string:
		return "a string"
	case json.Number:
		return "the number " + v.String()
	case []any:
		return "an array"
	}
	return "an object"
}

func (c *checker) checkValue(schema map[string]any, value any, pointer string) {
	if list, ok := schema["enum"].([]any); ok && !slices.ContainsFunc(list, func(e any) bool { return same(e, value) }) {
		c.fail(pointer, "is %s and must be one of %v", brief(value), list)
	}
	if want, ok := schema["const"]; ok && !same(want, value) {
		c.fail(pointer, "is %s and must be %v", brief(value), want)
	}
	switch v := value.(type) {
	case string:
		if p, ok := schema["pattern"].(string); ok {
			if re, err := compiled(p); err != nil {
				c.fail(pointer, "has a pattern that cannot be read: %v", err)
			} else if !re.MatchString(v) {
				c.fail(pointer, "is %s and must match %s", brief(v), p)
			}
		}
		n := utf8.RuneCountInString(v)
		if limit, ok := count(schema["minLength"]); ok && n < limit {
			c.fail(pointer, "is shorter than %d", limit)
		}
		if limit, ok := count(schema["maxLength"]); ok && n > limit {
			c.fail(pointer, "is longer than %d", limit)
		}
	case json.Number:
		x, ok := new(big.Float).SetString(v.String())
		if !ok {
			return
		}
		if limit, ok := number(schema["minimum"]); ok && x.Cmp(limit) < 0 {
			c.fail(pointer, "is %s and must be at least %v", v, schema["minimum"])
		}
		if limit, ok := number(schema["maximum"]); ok && x.Cmp(limit) > 0 {
			c.fail(pointer, "is %s and must be at most %v", v, schema["maximum"])
		}
	}
}

// same compares a scalar of the schema with one of the value.
func same(want, have any) bool {
	switch h := have.(type) {
	case nil:
		return want == nil
	case string:
		w, ok := want.(string)
		return ok && w == h
	case bool:
		w, ok := want.(bool)
		return ok && w == h
	case json.Number:
		if _, text := want.(string); text {
			return false
		}
		return fmt.Sprint(want) == h.String()
	}
	return false
}

func brief(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	if len(text) > 80 {
		return string(text[:80]) + "..."
	}
	return string(text)
}

func count(v any) (int, bool) {
	n, ok := v.(int)
	return n, ok
}

func number(v any) (*big.Float, bool) {
	switch n := v.(type) {
	case int:
		return big.NewFloat(float64(n)), true
	case float64:
		return big.NewFloat(n), true
	}
	return nil, false
}

var patterns sync.Map // string -> *regexp.Regexp

func compiled(p string) (*regexp.Regexp, error) {
	if re, ok := patterns.Load(p); ok {
		return re.(*regexp.Regexp), nil
	}
	re, err := regexp.Compile(p)
	if err != nil {
		return nil, err
	}
	patterns.Store(p, re)
	return re, nil
}

func (s node) list(key string) []node {
	items, _ := s.object()[key].([]any)
	nodes := make([]node, len(items))
	for i, v := range items {
		nodes[i] = node{s.files, s.file, v}
	}
	return nodes
}

func (c *checker) checkBranches(s node, value any, pointer string) {
	for _, b := range s.list("allOf") {
		c.check(b, value, pointer)
	}
	if branches := s.list("anyOf"); len(branches) > 0 {
		c.checkSome(branches, value, pointer, "anyOf")
	}
	if branches := s.list("oneOf"); len(branches) > 0 {
		// More than one may match: the branches of the OpenAPI overlap where it means "one of these".
		c.checkSome(branches, value, pointer, "oneOf")
	}
	if not, ok := s.get("not"); ok && len(c.try(not, value, pointer)) == 0 {
		c.fail(pointer, "matches what it must not")
	}
}

func (c *checker) checkSome(branches []node, value any, pointer, word string) {
	var closest []Violation
	for i, b := range branches {
		found := c.try(b, value, pointer)
		if len(found) == 0 {
			return
		}
		if i == 0 || len(found) < len(closest) {
			closest = found
		}
	}
	c.fail(pointer, "matches nothing of %s; closest: %s", word, closest[0])
}

func (c *checker) checkObject(s node, value map[string]any, pointer string) {
	schema := s.object()
	if required, ok := schema["required"].([]any); ok {
		for _, name := range required {
			if _, there := value[fmt.Sprint(name)]; !there {
				c.fail(pointer, "lacks %q", name)
			}
		}
	}
	if limit, ok := count(schema["minProperties"]); ok && len(value) < limit {
		c.fail(pointer, "has fewer than %d members", limit)
	}
	properties, _ := s.get("properties")
	byPattern, _ := s.get("patternProperties")
	names, checkNames := s.get("propertyNames")
	rest, hasRest := s.get("additionalProperties")
	for _, name := range slices.Sorted(maps.Keys(value)) {
		at := pointer + "/" + strings.ReplaceAll(strings.ReplaceAll(name, "~", "~0"), "/", "~1")
		if checkNames {
			c.check(names, name, at)
		}
		known := false
		if p, ok := properties.get(name); ok {
			known = true
			c.check(p, value[name], at)
		}
		for _, pattern := range slices.Sorted(maps.Keys(byPattern.object())) {
			re, err := compiled(pattern)
			if err != nil {
				c.fail(at, "has a pattern that cannot be read: %v", err)
				continue
			}
			if re.MatchString(name) {
				known = true
				p, _ := byPattern.get(pattern)
				c.check(p, value[name], at)
			}
		}
		if !known && hasRest {
			c.check(rest, value[name], at)
		}
	}
}

func (c *checker) checkArray(s node, value []any, pointer string) {
	schema := s.object()
	if limit, ok := count(schema["minItems"]); ok && len(value) < limit {
		c.fail(pointer, "has fewer than %d items", limit)
	}
	if limit, ok := count(schema["maxItems"]); ok && len(value) > limit {
		c.fail(pointer, "has more than %d items", limit)
	}
	// Items by position: an old word for prefixItems that stands in a few places.
	if list := s.list("items"); len(list) > 0 {
		for i := range min(len(list), len(value)) {
			c.check(list[i], value[i], fmt.Sprintf("%s/%d", pointer, i))
		}
		return
	}
	items, ok := s.get("items")
	if !ok {
		return
	}
	for i, v := range value {
		c.check(items, v, fmt.Sprintf("%s/%d", pointer, i))
	}
}
