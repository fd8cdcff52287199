package endpoint

import (
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strings"
	"unicode/utf8"

	"chancery"
)

// A tree of path segments. net/http's ServeMux cleans paths by redirects, which turns the
// POST of a client that wrote "//" into a GET; and it unescapes before it matches.
type tree struct {
	static map[string]*tree
	param  *tree
	routes map[string]*match // by method
}

// match is a row as seen by one of its paths.
type match struct {
	route *Route
	names []string // of the parameters, in the order of the path
}

type pathValues struct {
	names  []string
	values []string
}

func (p pathValues) get(name string) string {
	for i, n := range p.names {
		if n == name {
			return p.values[i]
		}
	}
	return ""
}

// segments cuts a path; one slash at the end does not count.
func segments(path string) []string {
	return strings.Split(strings.TrimSuffix(strings.TrimPrefix(path, "/"), "/"), "/")
}

func (t *tree) add(path string, route *Route) error {
	m := &match{route: route}
	at := t
	for _, s := range segments(path) {
		if strings.HasPrefix(s, "{") && strings.HasSuffix(s, "}") {
			m.names = append(m.names, s[1:len(s)-1])
			if at.param == nil {
				at.param = &tree{}
			}
			at = at.param
			continue
		}
		if s == "" || strings.ContainsAny(s, "{}% ") {
			return fmt.Errorf("%s: bad segment %q in %s", route.Operation(), s, path)
		}
		if at.static == nil {
			at.static = map[string]*tree{}
		}
		if at.static[s] == nil {
			at.static[s] = &tree{}
		}
		at = at.static[s]
	}
	if at.routes == nil {
		at.routes = map[string]*match{}
	}
	if there := at.routes[route.Method]; there != nil {
		return fmt.Errorf("%s and %s have the same method and path", there.route.Operation(), route.Operation())
	}
	at.routes[route.Method] = m
	return nil
}

// addAll adds a row under all its names.
func (t *tree) addAll(r *Route, prefixes map[string]string) error {
	for _, path := range append([]string{r.Path}, r.Aliases...) {
		if err := t.add(path, r); err != nil {
			return err
		}
		for old, now := range prefixes {
			if rest, ok := strings.CutPrefix(path, now); ok {
				if err := t.add(old+rest, r); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// Finder tells which row of a table answers a request, without the handler of New: for what
// watches a handler from outside.
func Finder(routes []Route, prefixes map[string]string) func(*http.Request) (Route, bool) {
	t := &tree{}
	for i := range routes {
		if routes[i].AnsweredBy != "" {
			continue
		}
		if err := t.addAll(&routes[i], prefixes); err != nil {
			panic("endpoint: " + err.Error())
		}
	}
	return func(r *http.Request) (Route, bool) {
		m, _, _, err := t.find(rowMethod(r.Method), r.URL.EscapedPath())
		if err != nil || m == nil {
			return Route{}, false
		}
		return *m.route, true
	}
}

// rowMethod is the method under which a row stands: HEAD works as GET.
func rowMethod(method string) string {
	if method == http.MethodHead {
		return http.MethodGet
	}
	return method
}

// find looks for the row of a request by the path as it was sent. Without a row, allowed
// lists the methods that the path has, and is empty when there is no such path.
func (t *tree) find(method, escaped string) (m *match, values []string, allowed []string, err error) {
	sent := segments(escaped)
	if len(sent) > 32 {
		return nil, nil, nil, nil
	}
	text := make([]string, len(sent))
	bad := false
	for i, s := range sent {
		if !strings.Contains(s, "%") {
			text[i] = s
			continue
		}
		u, err := url.PathUnescape(s)
		if err != nil {
			bad = true
			u = s
		}
		text[i] = u
	}
	seen := map[string]bool{}
	m, values = t.walk(method, text, nil, seen)
	if m == nil {
		for method := range seen {
			allowed = append(allowed, method)
		}
		sort.Strings(allowed)
		return nil, nil, allowed, nil
	}
	if bad {
		return nil, nil, nil, chancery.InvalidParam("the path has a malformed escape")
	}
	for i, v := range values {
		if !utf8.ValidString(v) {
			return nil, nil, nil, chancery.InvalidParam("%s is not valid UTF-8", m.names[i])
		}
	}
	return m, values, nil, nil
}

func (t *tree) walk(method string, rest, values []string, seen map[string]bool) (*match, []string) {
	if len(rest) == 0 {
		if m := t.routes[method]; m != nil {
			return m, values
		}
		for m := range t.routes {
			seen[m] = true
		}
		return nil, nil
	}
	if next := t.static[rest[0]]; next != nil {
		if m, v := next.walk(method, rest[1:], values, seen); m != nil {
			return m, v
		}
	}
	if t.param != nil && rest[0] != "" {
		return t.param.walk(method, rest[1:], append(values[:len(values):len(values)], rest[0]), seen)
	}
	return nil, nil
}
