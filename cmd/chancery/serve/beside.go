package serve

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"chancery/clientapi"
	"chancery/endpoint"
	"chancery/federation"
)

// beside adds to an API what both listeners answer, the well-known files and /health, and more rows of the other API.
func (s *server) beside(api http.Handler, more ...endpoint.Route) http.Handler {
	proxies, err := endpoint.ParseProxies(s.cfg.TrustedProxies)
	if err != nil {
		panic("serve: " + err.Error()) // config has checked them
	}
	known := endpoint.New(endpoint.API{
		Routes:  slices.Concat(clientapi.WellKnown(s.cfg, s.rooms.PolicyKey), federation.WellKnown(s.cfg), more),
		CORS:    true,
		Limits:  s.limits,
		Proxies: proxies,
	})
	const version, keys = "/_matrix/federation/v1/version", "/_matrix/key/"
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/health":
			s.health(w, r)
		case strings.HasPrefix(r.URL.Path, "/.well-known/matrix/"),
			len(more) > 0 && (r.URL.Path == version || strings.HasPrefix(r.URL.Path, keys)):
			known.ServeHTTP(w, r)
		default:
			api.ServeHTTP(w, r)
		}
	})
}

// health is 200 while every component of this process is up and the database takes writes.
func (s *server) health(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if !s.ready.Load() || s.healthy.ask(r.Context(), s.db.Probe) != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "not ready")
		return
	}
	fmt.Fprintln(w, "OK")
}

// probe asks once for all who want to know at the same time: anybody may ask for /health, as often as they like.
type probe struct {
	mu  sync.Mutex // guards the rest, and is held while asking
	at  time.Time
	err error
}

const (
	probeEvery = 3 * time.Second
	probeTime  = 2 * time.Second
)

func (p *probe) ask(ctx context.Context, try func(context.Context) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.at) < probeEvery {
		return p.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTime)
	defer cancel()
	p.err, p.at = try(ctx), time.Now()
	return p.err
}
