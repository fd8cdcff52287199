package serve

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"chancery/clientapi"
	"chancery/endpoint"
	"chancery/federation"
)

// beside adds to an API what both listeners answer: the well-known files and /health.
func (s *server) beside(api http.Handler) http.Handler {
	known := endpoint.New(endpoint.API{
		Routes: slices.Concat(clientapi.WellKnown(s.cfg), federation.WellKnown(s.cfg)),
		CORS:   true,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/health":
			s.health(w, r)
		case strings.HasPrefix(r.URL.Path, "/.well-known/matrix/"):
			known.ServeHTTP(w, r)
		default:
			api.ServeHTTP(w, r)
		}
	})
}

// health is 200 while every component of this process is up and the database answers.
func (s *server) health(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	if _, err := s.db.MaxPos(r.Context()); err != nil || !s.ready.Load() {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, "not ready")
		return
	}
	fmt.Fprintln(w, "OK")
}
