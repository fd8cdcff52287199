package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Source is where a configuration comes from. Flags beat the environment, the environment
// beats the file, the file beats the defaults.
type Source struct {
	File    string            // "" is none
	Environ []string          // as os.Environ gives it
	Flags   map[string]string // by path: "server_name", "data_dir"
}

// Fault is one thing that is wrong, and where.
type Fault struct {
	Where string // "chancery.yaml:12", "CHANCERY_LOG_LEVEL", "--server-name"
	Text  string
}

func (f Fault) String() string { return f.Where + ": " + f.Text }

// Faults are all that is wrong with a configuration.
type Faults []Fault

func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(lines, "\n")
}

// Default is the configuration without a file.
func Default() *Config {
	c, err := Load(Source{})
	if err != nil {
		panic("config: the defaults are faulty: " + err.Error())
	}
	return c
}

// Check reads a file alone, without environment and flags.
func Check(file string) error {
	_, err := Load(Source{File: file})
	return err
}

// Load reads a configuration. Its error is of type Faults.
func Load(src Source) (*Config, error) {
	l := &loader{where: map[string]origin{}}
	c := &Config{}
	root := reflect.ValueOf(c).Elem()
	walk(root, "", func(k key) { l.setText(k, k.tag.Get("default"), origin{}) })
	if src.File != "" {
		l.readFile(src.File, root)
	}
	l.readEnviron(root, src.Environ)
	l.readFlags(root, src.Flags)
	if src.File != "" {
		l.dir = filepath.Dir(src.File)
	}
	walk(root, "", l.resolvePaths)
	walk(root, "", l.check)
	l.checkTogether(c)
	if len(l.faults) > 0 {
		sort.SliceStable(l.faults, func(i, j int) bool { return l.lines[l.faults[i].Where] < l.lines[l.faults[j].Where] })
		return nil, l.faults
	}
	return c, nil
}

// origin says where a value was set.
type origin struct {
	text string
	flag bool
}

type loader struct {
	file   string
	dir    string
	where  map[string]origin // by path of the key
	lines  map[string]int    // line of a Where, for sorting
	faults Faults
	bad    map[string]bool // keys that have a fault are not checked further
}

func (l *loader) fault(path, where, format string, args ...any) {
	if where == "" {
		where = path
	}
	l.faults = append(l.faults, Fault{where, fmt.Sprintf(format, args...)})
	if l.bad == nil {
		l.bad = map[string]bool{}
	}
	l.bad[path] = true
}

// key is one leaf of the configuration.
type key struct {
	path  string
	tag   reflect.StructTag
	value reflect.Value
}

// walk visits the leaves in order.
func walk(v reflect.Value, path string, visit func(key)) {
	for i := range v.NumField() {
		f := v.Type().Field(i)
		p := join(path, f.Tag.Get("yaml"))
		if f.Type.Kind() == reflect.Struct {
			walk(v.Field(i), p, visit)
			continue
		}
		visit(key{p, f.Tag, v.Field(i)})
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// env is the name of a key's environment variable.
func env(path string) string {
	return "CHANCERY_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_"))
}

func (l *loader) readEnviron(root reflect.Value, environ []string) {
	set := map[string]string{}
	for _, e := range environ {
		if name, value, ok := strings.Cut(e, "="); ok {
			set[name] = value
		}
	}
	walk(root, "", func(k key) {
		if value, ok := set[env(k.path)]; ok {
			l.setText(k, value, origin{text: env(k.path)})
		}
	})
}

func (l *loader) readFlags(root reflect.Value, flags map[string]string) {
	walk(root, "", func(k key) {
		if value, ok := flags[k.path]; ok {
			l.setText(k, value, origin{text: "--" + strings.ReplaceAll(k.path, "_", "-"), flag: true})
		}
	})
}

// setText sets a leaf from one word: a default, an environment variable or a flag.
func (l *loader) setText(k key, text string, from origin) {
	if from.text != "" {
		l.where[k.path] = from
		delete(l.bad, k.path)
	}
	if k.value.Kind() == reflect.Slice {
		if k.value.Type().Elem().Kind() == reflect.Struct {
			k.value.Set(reflect.MakeSlice(k.value.Type(), 0, 0))
			if text != "" {
				l.setYAML(k, text, from)
			}
			return
		}
		k.value.SetZero()
		list := reflect.MakeSlice(k.value.Type(), 0, 0)
		for _, word := range strings.Split(text, ",") {
			if word = strings.TrimSpace(word); word != "" {
				list = reflect.Append(list, reflect.ValueOf(word))
			}
		}
		k.value.Set(list)
		return
	}
	if text == "" && k.value.Kind() != reflect.String {
		if from.text != "" {
			l.fault(k.path, from.text, "is empty; it must be %s", wants(k.value))
		}
		return
	}
	if err := setScalar(k.value, text); err != nil {
		l.fault(k.path, from.text, "%s", err)
	}
}

func (l *loader) setYAML(k key, text string, from origin) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil || len(doc.Content) != 1 {
		l.fault(k.path, from.text, "is not YAML or JSON")
		return
	}
	l.setNode(k, doc.Content[0], func(int) string { return from.text })
}

var durationType = reflect.TypeFor[time.Duration]()
var sizeType = reflect.TypeFor[Size]()

func wants(v reflect.Value) string {
	switch {
	case v.Type() == durationType:
		return "a duration such as 30s"
	case v.Type() == sizeType:
		return "a size such as 100MiB"
	case v.Kind() == reflect.Bool:
		return "true or false"
	case v.Kind() == reflect.Int:
		return "a number"
	case v.Kind() == reflect.Slice:
		return "a list"
	}
	return "a text"
}

func setScalar(v reflect.Value, text string) error {
	no := fmt.Errorf("%q must be %s", text, wants(v))
	switch {
	case v.Type() == durationType:
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return no
		}
		v.SetInt(int64(d))
	case v.Type() == sizeType:
		s, err := parseSize(text)
		if err != nil {
			return no
		}
		v.SetInt(int64(s))
	case v.Kind() == reflect.Bool:
		switch text {
		case "true", "false":
			v.SetBool(text == "true")
		default:
			return no
		}
	case v.Kind() == reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return no
		}
		v.SetInt(int64(n))
	default:
		v.SetString(text)
	}
	return nil
}

func (l *loader) readFile(file string, root reflect.Value) {
	l.file, l.lines = file, map[string]int{}
	text, err := os.ReadFile(file)
	if err != nil {
		var why *os.PathError
		if errors.As(err, &why) {
			err = why.Err
		}
		l.fault("", file, "cannot be read: %s", err)
		return
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		l.fault("", file, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		return
	}
	if len(doc.Content) == 0 {
		return // an empty file, or comments only
	}
	l.setStruct(root, "", doc.Content[0], l.line)
}

// line names a line of the file.
func (l *loader) line(n int) string {
	where := l.file + ":" + strconv.Itoa(n)
	l.lines[where] = n
	return where
}

func (l *loader) setStruct(v reflect.Value, path string, node *yaml.Node, at func(int) string) {
	if node = plain(node); isNull(node) {
		return // "client:" with nothing below it
	}
	if node.Kind != yaml.MappingNode {
		l.fault(path, at(node.Line), "%s must have keys below it", orTop(path))
		return
	}
	fields := map[string]int{}
	for i := range v.NumField() {
		fields[v.Type().Field(i).Tag.Get("yaml")] = i
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], plain(node.Content[i+1])
		p := join(path, name.Value)
		if first, twice := seen[name.Value]; twice {
			l.fault("", at(name.Line), "%s stands twice; first in line %d", p, first)
			continue
		}
		seen[name.Value] = name.Line
		index, known := fields[name.Value]
		if !known {
			l.fault(p, at(name.Line), "unknown key %s%s", p, suggest(name.Value, fields))
			continue
		}
		f := v.Type().Field(index)
		if f.Type.Kind() == reflect.Struct {
			l.setStruct(v.Field(index), p, value, at)
			continue
		}
		l.where[p] = origin{text: at(name.Line)}
		l.setNode(key{p, f.Tag, v.Field(index)}, value, at)
	}
}

func (l *loader) setNode(k key, node *yaml.Node, at func(int) string) {
	where := at(node.Line)
	if isNull(node) {
		l.fault(k.path, where, "%s has no value; it must be %s", k.path, wants(k.value))
		return
	}
	if k.value.Kind() != reflect.Slice {
		if node.Kind != yaml.ScalarNode {
			l.fault(k.path, where, "%s must be %s", k.path, wants(k.value))
			return
		}
		if err := setScalar(k.value, node.Value); err != nil {
			l.fault(k.path, where, "%s: %s", k.path, err)
		}
		return
	}
	k.value.Set(reflect.MakeSlice(k.value.Type(), 0, 0))
	if k.value.Type().Elem().Kind() == reflect.String && node.Kind == yaml.ScalarNode {
		// One word may stand without its brackets; an empty one is an empty list.
		if node.Value != "" {
			k.value.Set(reflect.Append(k.value, reflect.ValueOf(node.Value)))
		}
		return
	}
	if node.Kind != yaml.SequenceNode {
		l.fault(k.path, where, "%s must be a list", k.path)
		return
	}
	for i, item := range node.Content {
		item = plain(item)
		e := reflect.New(k.value.Type().Elem()).Elem()
		p := fmt.Sprintf("%s[%d]", k.path, i)
		switch {
		case e.Kind() == reflect.Struct:
			l.setStruct(e, p, item, at)
		case item.Kind != yaml.ScalarNode || isNull(item):
			l.fault(k.path, at(item.Line), "%s must be a text", p)
		default:
			e.SetString(item.Value)
		}
		k.value.Set(reflect.Append(k.value, e))
	}
}

func plain(node *yaml.Node) *yaml.Node {
	for node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	return node
}

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.Tag == "!!null" }

func orTop(path string) string {
	if path == "" {
		return "the file"
	}
	return path
}

// suggest finds the known key that a wrong one is closest to.
func suggest(name string, fields map[string]int) string {
	best, distance := "", 3
	names := make([]string, 0, len(fields))
	for n := range fields {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if d := editDistance(name, n); d < distance {
			best, distance = n, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + best + "?"
}

func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost++
			}
			last = row[j+1]
			row[j+1] = min(cost, last+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// resolvePaths makes relative paths relative to the file; those given as flags are relative
// to where the command was typed.
func (l *loader) resolvePaths(k key) {
	if k.tag.Get("path") != "true" || l.dir == "" || l.where[k.path].flag {
		return
	}
	fix := func(v reflect.Value) {
		if p := v.String(); p != "" && !filepath.IsAbs(p) {
			v.SetString(filepath.Join(l.dir, p))
		}
	}
	if k.value.Kind() == reflect.String {
		fix(k.value)
		return
	}
	for i := range k.value.Len() {
		fix(k.value.Index(i))
	}
}
