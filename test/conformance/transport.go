package conformance

import (
	"bytes"
	"io"
	"net/http"
	"sync/atomic"

	"chancery/endpoint"
)

// Transport is Middleware for the other side: it holds what a client gets from a server in another process
// against the specification.
func Transport(t TB, api *API, routes []endpoint.Route, prefixes map[string]string, next http.RoundTripper) http.RoundTripper {
	t.Helper()
	if api == nil {
		return next
	}
	c := &checkedTransport{t: t, api: api, errata: LoadErrata(t), find: endpoint.Finder(routes, prefixes), next: next}
	t.Cleanup(func() { c.over.Store(true) })
	return c
}

type checkedTransport struct {
	t      TB
	api    *API
	errata Errata
	find   func(*http.Request) (endpoint.Route, bool)
	next   http.RoundTripper
	over   atomic.Bool // the test has ended
}

func (c *checkedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	route, ok := c.find(r)
	if !ok || route.API != c.api.Name || route.Planned() || r.Method == http.MethodOptions {
		return resp, nil
	}
	text, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		return nil, err // the server was killed in the middle
	}
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if !c.over.Load() {
		for _, fault := range c.api.Check(route, Answer{resp.StatusCode, resp.Header, text, r.Method == http.MethodHead}, c.errata) {
			c.t.Errorf("%s %s: answer %d of %s: %s", r.Method, r.URL.Path, resp.StatusCode, route.Operation(), fault)
		}
	}
	return resp, nil
}

// CloseIdleConnections is what http.Client looks for.
func (c *checkedTransport) CloseIdleConnections() {
	if closer, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		closer.CloseIdleConnections()
	}
}
