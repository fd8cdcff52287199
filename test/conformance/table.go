package conformance

import (
	"fmt"
	"maps"
	"slices"

	"chancery/endpoint"
)

// Compare lists every difference between a table and the OpenAPI that no erratum names, and
// every erratum about auth that names a difference which is none.
func (a *API) Compare(routes []endpoint.Route, errata Errata) []string {
	var faults []string
	rows := map[string]endpoint.Route{}
	for _, r := range routes {
		if r.API != a.Name {
			continue
		}
		if _, twice := rows[r.ID]; twice {
			faults = append(faults, fmt.Sprintf("%s stands twice in the table", r.Operation()))
		}
		rows[r.ID] = r
		if a.Operations[r.ID] == nil {
			faults = append(faults, fmt.Sprintf("%s is in the table and not in the OpenAPI", r.Operation()))
		}
	}
	for _, id := range slices.Sorted(maps.Keys(a.Operations)) {
		op := a.Operations[id]
		r, ok := rows[id]
		name := endpoint.Route{API: a.Name, ID: id}.Operation()
		if !ok {
			faults = append(faults, fmt.Sprintf("%s is in the OpenAPI and not in the table", name))
			continue
		}
		if r.Method != op.Method {
			faults = append(faults, fmt.Sprintf("%s has method %s, the OpenAPI says %s", name, r.Method, op.Method))
		}
		if r.Path != op.Path {
			faults = append(faults, fmt.Sprintf("%s has path %s, the OpenAPI says %s", name, r.Path, op.Path))
		}
		faults = append(faults, compareAuth(name, authWord(r.Auth), op.Auth, errata)...)
	}
	return faults
}

func compareAuth(name, ours, theirs string, errata Errata) []string {
	e, known := errata.auth(name)
	switch {
	case known && (e.Theirs != theirs || e.Ours != ours):
		return []string{fmt.Sprintf("%s: docs/spec-errata.md says the OpenAPI has auth %s and we %s; it has %s and we %s", name, e.Theirs, e.Ours, theirs, ours)}
	case known && ours == theirs:
		return []string{fmt.Sprintf("%s: docs/spec-errata.md names a difference of auth that is none", name)}
	case !known && ours != theirs:
		return []string{fmt.Sprintf("%s has auth %s, the OpenAPI says %s", name, ours, theirs)}
	}
	return nil
}
