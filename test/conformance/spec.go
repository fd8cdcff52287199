// Package conformance holds what the servers do against the specification's own OpenAPI: the
// tables of operations in both directions, and every JSON answer of a test against the schema of
// its operation. It is for tests alone.
package conformance

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"go.yaml.in/yaml/v3"

	"chancery/test/notice"
)

var errNoSpec = errors.New("the specification is not beside the checkout")

// specFolder finds the specification: CHANCERY_SPEC, or shared/spec in this folder or one above it.
func specFolder() (string, error) {
	if dir := os.Getenv("CHANCERY_SPEC"); dir != "" {
		if _, err := os.Stat(filepath.Join(dir, "data", "api")); err != nil {
			return "", fmt.Errorf("CHANCERY_SPEC: %w", err)
		}
		return dir, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		spec := filepath.Join(dir, "shared", "spec")
		if _, err := os.Stat(filepath.Join(spec, "data", "api")); err == nil {
			return spec, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errNoSpec
		}
		dir = parent
	}
}

var sayOnce sync.Once

// Load reads the OpenAPI of one API ("client-server", "server-server"). Where the specification
// is not beside the checkout it says so in one line and gives nil, which checks nothing.
func Load(t interface {
	Helper()
	Fatalf(string, ...any)
}, name string) *API {
	t.Helper()
	dir, err := specFolder()
	if errors.Is(err, errNoSpec) {
		sayOnce.Do(func() {
			notice.Print("conformance to the OpenAPI is not checked: %v (CHANCERY_SPEC names its folder)", err)
		})
		return nil
	}
	if err != nil {
		t.Fatalf("conformance: %v", err)
	}
	loadMu.Lock()
	defer loadMu.Unlock()
	if api := loaded[dir+"\n"+name]; api != nil {
		return api
	}
	api, err := readAPI(filepath.Join(dir, "data"), name)
	if err != nil {
		t.Fatalf("conformance: %v", err)
	}
	loaded[dir+"\n"+name] = api
	return api
}

var (
	loadMu sync.Mutex // guards loaded
	loaded = map[string]*API{}
)

// files are the YAML and JSON documents of the specification, read when first asked for.
type files struct {
	root string // the folder data/
	mu   sync.Mutex
	docs map[string]any // by path below root, with slashes
}

func (f *files) open(name string) (any, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if doc, ok := f.docs[name]; ok {
		return doc, nil
	}
	text, err := os.ReadFile(filepath.Join(f.root, filepath.FromSlash(name)))
	if err != nil {
		return nil, err
	}
	var doc any
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	doc = stringKeys(doc)
	f.docs[name] = doc
	return doc, nil
}

// stringKeys makes every mapping's keys strings; YAML reads the status 200 as a number.
func stringKeys(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = stringKeys(e)
		}
		return v
	case map[any]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[fmt.Sprint(k)] = stringKeys(e)
		}
		return m
	case []any:
		for i, e := range v {
			v[i] = stringKeys(e)
		}
		return v
	}
	return v
}

// node is a place in a document; a $ref in it is relative to its file.
type node struct {
	files *files
	file  string
	value any
}

func (n node) object() map[string]any {
	m, _ := n.value.(map[string]any)
	return m
}

// get is the member of an object, with its $ref followed.
func (n node) get(key string) (node, bool) {
	v, ok := n.object()[key]
	if !ok {
		return node{}, false
	}
	return node{n.files, n.file, v}, true
}

// ref follows one $ref: another file, a place in this file, or a place in another file.
func (n node) ref(to string) (node, error) {
	file, fragment, _ := strings.Cut(to, "#")
	target := node{n.files, n.file, nil}
	if file != "" {
		target.file = path.Join(path.Dir(n.file), file)
	}
	doc, err := n.files.open(target.file)
	if err != nil {
		return node{}, fmt.Errorf("%s: $ref %s: %w", n.file, to, err)
	}
	target.value = doc
	for _, step := range strings.Split(strings.TrimPrefix(fragment, "/"), "/") {
		if fragment == "" || fragment == "/" {
			break
		}
		if step, err = url.PathUnescape(step); err != nil {
			return node{}, err
		}
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		next, ok := target.get(step)
		if !ok {
			return node{}, fmt.Errorf("%s: $ref %s leads nowhere", n.file, to)
		}
		target = next
	}
	return target, nil
}

// follow goes through the $refs of a node that is nothing but one.
func (n node) follow() (node, error) {
	for range 20 {
		to, ok := n.object()["$ref"].(string)
		if !ok {
			return n, nil
		}
		next, err := n.ref(to)
		if err != nil {
			return node{}, err
		}
		n = next
	}
	return node{}, fmt.Errorf("%s: $ref goes in a circle", n.file)
}
