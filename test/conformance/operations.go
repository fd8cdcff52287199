package conformance

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"chancery/endpoint"
)

// API is the OpenAPI of one API of the specification.
type API struct {
	Name       string
	Operations map[string]*Operation // by operationId
}

// Operation is what the OpenAPI says of one.
type Operation struct {
	ID, Method, Path, Auth string
	responses              map[string]node // by status
}

var methods = []string{"get", "put", "post", "delete", "options", "head", "patch"}

func readAPI(data, name string) (*API, error) {
	f := &files{root: data, docs: map[string]any{}}
	list, err := filepath.Glob(filepath.Join(data, "api", name, "*.yaml"))
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: %w", filepath.Join(data, "api", name), os.ErrNotExist)
	}
	api := &API{Name: name, Operations: map[string]*Operation{}}
	for _, file := range list {
		if err := api.read(f, "api/"+name+"/"+filepath.Base(file)); err != nil {
			return nil, err
		}
	}
	return api, nil
}

func (a *API) read(f *files, file string) error {
	doc, err := f.open(file)
	if err != nil {
		return err
	}
	root := node{f, file, doc}
	base := basePath(root)
	paths, ok := root.get("paths")
	if !ok {
		return nil
	}
	for _, p := range slices.Sorted(maps.Keys(paths.object())) {
		item, _ := paths.get(p)
		if item, err = item.follow(); err != nil {
			return err
		}
		for _, method := range methods {
			op, ok := item.get(method)
			if !ok {
				continue
			}
			id, _ := op.object()["operationId"].(string)
			if id == "" || a.Operations[id] != nil {
				return fmt.Errorf("%s: %s %s: the operationId %q is empty or not unique", file, method, p, id)
			}
			// A space at the end of a path keeps two operations of one address apart.
			o := &Operation{ID: id, Method: strings.ToUpper(method), Path: base + strings.TrimSpace(p), Auth: authOf(op), responses: map[string]node{}}
			responses, _ := op.get("responses")
			for status := range responses.object() {
				r, _ := responses.get(status)
				if o.responses[status], err = r.follow(); err != nil {
					return err
				}
			}
			a.Operations[id] = o
		}
	}
	return nil
}

func basePath(root node) string {
	servers, _ := root.object()["servers"].([]any)
	for _, s := range servers {
		v, _ := node{value: s}.get("variables")
		b, _ := v.get("basePath")
		if p, ok := b.object()["default"].(string); ok {
			return strings.TrimSuffix(p, "/")
		}
	}
	return ""
}

// Words for whom an operation wants to know, as errata use them.
const (
	authNone      = "none"
	authOptional  = "optional"
	authUser      = "user"
	authService   = "appservice"
	authSignature = "server signature"
)

// authOf reads "security": any one of the list suffices, an empty one is nobody.
func authOf(op node) string {
	list, _ := op.object()["security"].([]any)
	auth, anonymous := authNone, false
	for _, entry := range list {
		schemes := node{value: entry}.object()
		if len(schemes) == 0 {
			anonymous = true
		}
		for scheme := range schemes {
			switch {
			case scheme == "signedRequest":
				auth = authSignature
			case strings.HasPrefix(scheme, "appservice"):
				auth = authService
			case strings.HasPrefix(scheme, "accessToken"):
				auth = authUser
			default:
				auth = scheme
			}
		}
	}
	if anonymous && auth != authNone {
		return authOptional
	}
	return auth
}

func authWord(a endpoint.Auth) string {
	switch a {
	case endpoint.None:
		return authNone
	case endpoint.Optional:
		return authOptional
	case endpoint.User, endpoint.UserOrGuest:
		return authUser
	case endpoint.AppService:
		return authService
	case endpoint.ServerSignature:
		return authSignature
	}
	return string(a)
}
