package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation"
)

// components are what --only may name.
var components = []string{"clientapi", "syncapi", "federation", "roomserver", "users"}

func runServe(ctx context.Context, args []string, t terminal) error {
	flags := flag.NewFlagSet("serve", flag.ContinueOnError)
	var from configFlags
	from.add(flags)
	list := flags.String("only", "", "")
	words, err := parse(flags, args)
	if err != nil {
		return err
	}
	if len(words) > 0 {
		return badUsage("chancery serve: %q is too much", words[0])
	}
	only, err := parseOnly(*list)
	if err != nil {
		return err
	}
	cfg, err := from.load(t)
	if err != nil {
		return err
	}
	log := newLog(cfg.Log, t.err)
	defer func() { _ = log.Sync() }() // a terminal cannot be synced
	return serve(ctx, cfg, only, log)
}

// parseOnly reads the components of this process; none named is all of them.
func parseOnly(list string) ([]string, error) {
	if list == "" {
		return components, nil
	}
	var only []string
	for _, name := range strings.Split(list, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(components, name) {
			return nil, badUsage("chancery serve: --only knows %s, not %q", strings.Join(components, ", "), name)
		}
		only = append(only, name)
	}
	return only, nil
}

// serve wires the components and runs them until ctx ends. The client listener opens last.
func serve(ctx context.Context, cfg *config.Config, only []string, log *zap.Logger) error {
	if cfg.Passwords.Cost == "low" {
		log.Warn("passwords.cost is low: passwords are kept too cheaply for anything but tests")
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	metrics := endpoint.NewMetrics(registry)
	var limits *endpoint.Limits
	if cfg.RateLimits.Enabled {
		limits = endpoint.NewLimits(nil)
	}

	g, ctx := errgroup.WithContext(ctx)
	if cfg.Metrics.Listen != "" {
		listeners, err := listen("metrics", []string{cfg.Metrics.Listen})
		if err != nil {
			return err
		}
		mux := http.NewServeMux()
		mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		serveHTTP(ctx, g, listeners, mux)
	}
	if slices.Contains(only, "clientapi") {
		client := &clientapi.Server{Config: cfg, Limits: limits, Metrics: metrics, Log: log.Named("clientapi")}
		listeners, err := listen("client", cfg.Client.Listen)
		if err != nil {
			return err
		}
		serveHTTP(ctx, g, listeners, besideAPI(cfg, client.Handler()))
		for _, l := range listeners {
			log.Info("clients are served", zap.Stringer("address", l.Addr()))
		}
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	log.Info("stopped")
	return nil
}

// besideAPI adds to an API what both listeners answer: the well-known files and /health.
func besideAPI(cfg *config.Config, api http.Handler) http.Handler {
	known := endpoint.New(endpoint.API{
		Routes: slices.Concat(clientapi.WellKnown(cfg), federation.WellKnown(cfg)),
		CORS:   true,
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/health":
			w.Header().Set("Content-Type", "text/plain; charset=utf-8")
			fmt.Fprintln(w, "OK")
		case strings.HasPrefix(r.URL.Path, "/.well-known/matrix/"):
			known.ServeHTTP(w, r)
		default:
			api.ServeHTTP(w, r)
		}
	})
}
