package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// document is one page of the rendered specification: what a reference may name in it.
type document struct {
	title      string
	operations map[string]string // operationId to its summary
	sections   map[string]section
}

// section is a heading with its numbered rules.
type section struct {
	title string
	rules map[string]string // "4.3.3" to the rule's first words
}

// specification is the folder with content/, data/ and proposals/.
type specification struct {
	dir   string
	pages map[string]*document
}

var errNoSpec = errors.New("no folder shared/spec beside the checkout or above it")

// findSpec looks for shared/spec in the given folder and all above it.
func findSpec(from string) (string, error) {
	dir, err := filepath.Abs(from)
	if err != nil {
		return "", err
	}
	for {
		spec := filepath.Join(dir, "shared", "spec")
		if _, err := os.Stat(filepath.Join(spec, "content")); err == nil {
			return spec, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errNoSpec
		}
		dir = parent
	}
}

// pageFiles says where a page's text and its operations are.
var pageFiles = map[string]struct{ content, api string }{
	"c2s":        {"client-server-api/_index.md", "client-server"},
	"s2s":        {"server-server-api.md", "server-server"},
	"as":         {"application-service-api.md", "application-service"},
	"is":         {"identity-service-api.md", "identity"},
	"push":       {"push-gateway-api.md", "push-gateway"},
	"appendices": {"appendices.md", ""},
	"olm":        {"olm-megolm/olm.md", ""},
	"megolm":     {"olm-megolm/megolm.md", ""},
}

// page reads a page when it is first asked for.
func (s *specification) page(name string) (*document, error) {
	if d, ok := s.pages[name]; ok {
		return d, nil
	}
	d, err := s.readPage(name)
	if err != nil {
		return nil, err
	}
	s.pages[name] = d
	return d, nil
}

func (s *specification) readPage(name string) (*document, error) {
	if number, ok := strings.CutPrefix(name, "msc"); ok {
		found, err := filepath.Glob(filepath.Join(s.dir, "proposals", number+"-*.md"))
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("no proposal %s", number)
		}
		return s.readText(found[0])
	}
	files, ok := pageFiles[name]
	if strings.HasPrefix(name, "rooms/") || strings.HasPrefix(name, "modules/") {
		files.content, ok = name+".md", true
	}
	if strings.HasPrefix(name, "modules/") {
		files.content = "client-server-api/" + files.content
	}
	if !ok {
		return nil, fmt.Errorf("no page %q", name)
	}
	d, err := s.readText(filepath.Join(s.dir, "content", filepath.FromSlash(files.content)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("no page %q", name)
	}
	if err != nil || files.api == "" {
		return d, err
	}
	return d, s.readOperations(d, files.api)
}

// include is a page inside a page: a module of the client-server API, or a piece shared by room versions.
var include = regexp.MustCompile(`\{\{% (cs-module|rver-fragment) (?:name="([^"]*)")?\s*(?:filename="([^"]*)")?.*%\}\}`)

func (s *specification) readText(file string) (*document, error) {
	text, err := s.inline(file)
	if err != nil {
		return nil, err
	}
	return parsePage(text), nil
}

func (s *specification) inline(file string) (string, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	var out strings.Builder
	for line := range strings.Lines(string(raw)) {
		m := include.FindStringSubmatch(line)
		if m == nil {
			out.WriteString(line)
			continue
		}
		inner := filepath.Join(s.dir, "content", "rooms", "fragments", m[2]+".md")
		if m[1] == "cs-module" {
			inner = filepath.Join(s.dir, "content", "client-server-api", "modules", m[3]+".md")
		}
		text, err := s.inline(inner)
		if err != nil {
			return "", err
		}
		out.WriteString(text + "\n")
	}
	return out.String(), nil
}

// readOperations adds an API's operations, by ID and by the anchor that the rendered page gives them.
func (s *specification) readOperations(d *document, api string) error {
	files, err := filepath.Glob(filepath.Join(s.dir, "data", "api", api, "*.yaml"))
	if err != nil {
		return err
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		var spec struct {
			Servers []struct {
				Variables map[string]struct{ Default string }
			}
			Paths map[string]map[string]yaml.Node
		}
		if err := yaml.Unmarshal(raw, &spec); err != nil {
			return fmt.Errorf("read %s: %w", file, err)
		}
		base := ""
		if len(spec.Servers) > 0 {
			base = spec.Servers[0].Variables["basePath"].Default
		}
		for path, methods := range spec.Paths {
			for method, node := range methods {
				var op struct {
					ID      string `yaml:"operationId"`
					Summary string
				}
				if node.Kind != yaml.MappingNode || node.Decode(&op) != nil || op.ID == "" {
					continue
				}
				d.operations[op.ID] = op.Summary
				anchor := strings.ToLower(method) + slug(base+path)
				d.sections[anchor] = section{title: op.Summary}
			}
		}
	}
	return nil
}
