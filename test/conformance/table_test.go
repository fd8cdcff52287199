package conformance

import (
	"strings"
	"testing"

	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation"
)

// The tables hold every operation of the spec and nothing that it does not know.
func TestTablesAreThoseOfTheSpec(t *testing.T) {
	errata := LoadErrata(t)
	for name, table := range map[string]struct {
		routes []endpoint.Route
		count  int
	}{
		endpoint.ClientServer: {(&clientapi.Server{Config: config.Default()}).Routes(), 166},
		endpoint.ServerServer: {(&federation.Server{Config: config.Default()}).Routes(), 36},
	} {
		t.Run(name, func(t *testing.T) {
			api := Load(t, name)
			if api == nil {
				return
			}
			if len(api.Operations) != table.count {
				t.Errorf("the OpenAPI has %d operations, not %d: has the spec moved on?", len(api.Operations), table.count)
			}
			for _, fault := range api.Compare(table.routes, errata) {
				t.Error(fault)
			}
		})
	}
}

// Each of these must be seen, or the test above proves nothing.
func TestCompareSeesEveryDifference(t *testing.T) {
	api := Load(t, endpoint.ClientServer)
	if api == nil {
		return
	}
	errata := LoadErrata(t)
	good := func() []endpoint.Route { return (&clientapi.Server{Config: config.Default()}).Routes() }
	find := func(routes []endpoint.Route, id string) *endpoint.Route {
		for i := range routes {
			if routes[i].ID == id {
				return &routes[i]
			}
		}
		t.Fatalf("no row %s", id)
		return nil
	}
	for name, c := range map[string]struct {
		change func([]endpoint.Route) []endpoint.Route
		want   string
	}{
		"missing": {func(r []endpoint.Route) []endpoint.Route { return r[1:] }, "not in the table"},
		"extra": {func(r []endpoint.Route) []endpoint.Route {
			return append(r, endpoint.Route{API: endpoint.ClientServer, ID: "sendPigeon"})
		}, "c2s/sendPigeon is in the table and not in the OpenAPI"},
		"twice":  {func(r []endpoint.Route) []endpoint.Route { return append(r, r[0]) }, "stands twice"},
		"method": {func(r []endpoint.Route) []endpoint.Route { find(r, "sendMessage").Method = "POST"; return r }, "c2s/sendMessage has method POST"},
		"path": {func(r []endpoint.Route) []endpoint.Route {
			find(r, "sendMessage").Path = "/_matrix/client/v3/send"
			return r
		}, "c2s/sendMessage has path"},
		"auth": {func(r []endpoint.Route) []endpoint.Route { find(r, "sendMessage").Auth = endpoint.None; return r }, "c2s/sendMessage has auth none, the OpenAPI says user"},
		"erratum that is none": {func(r []endpoint.Route) []endpoint.Route {
			find(r, "getRoomSummary").Auth = endpoint.ServerSignature
			return r
		}, "spec-errata.md"},
	} {
		t.Run(name, func(t *testing.T) {
			faults := api.Compare(c.change(good()), errata)
			if len(faults) != 1 || !strings.Contains(faults[0], c.want) {
				t.Fatalf("want one fault with %q, got %q", c.want, faults)
			}
		})
	}
}
