package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.uber.org/zap"

	"chancery/cmd/chancery/serve"
	"chancery/config"
)

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
	for _, variable := range config.Misspelt(t.environ) {
		log.Warn(variable)
	}
	return runServer(ctx, cfg, only, log, from, t)
}

// parseOnly reads the components of this process; none named is all of them.
func parseOnly(list string) ([]string, error) {
	if list == "" {
		return serve.Components, nil
	}
	var only []string
	for _, name := range strings.Split(list, ",") {
		name = strings.TrimSpace(name)
		if !slices.Contains(serve.Components, name) {
			return nil, badUsage("chancery serve: --only knows %s, not %q", strings.Join(serve.Components, ", "), name)
		}
		only = append(only, name)
	}
	return only, nil
}

// run serves until ctx ends.
func runServer(ctx context.Context, cfg *config.Config, only []string, log *zap.Logger, from configFlags, t terminal) error {
	if cfg.Passwords.Cost == "low" {
		log.Warn("passwords.cost is low: passwords are kept too cheaply for anything but tests")
	}
	return serve.Run(ctx, serve.Options{Config: cfg, Only: only, Release: version, Log: log, Ready: func(a serve.Addresses) {
		for _, l := range a.Client {
			log.Info("clients are served", zap.Stringer("address", l))
		}
		for _, l := range a.Federation {
			log.Info("other servers are served", zap.Stringer("address", l))
		}
		sayNext(t.out, cfg, from)
	}})
}

// sayNext tells an operator who has just started the server what to do with it.
func sayNext(w io.Writer, cfg *config.Config, from configFlags) {
	fmt.Fprintf(w, `
%s is up. Its data is in %s.
  Make the first administrator:  chancery user create NAME --admin%s
  Sign in with Element:          homeserver %s
  Every setting, with defaults:  chancery config print

`, cfg.ServerName, cfg.DataDir, from, cfg.ClientURL())
}
