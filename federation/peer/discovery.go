package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/singleflight"
)

// Route is where a server is found and how it is addressed there.
type Route struct {
	Addresses []string // host:port, in the order to try them
	Host      string   // the Host header
	CertName  string   // what the certificate must be valid for, and the SNI unless it is an IP address
}

const (
	federationPort = "8448"
	srvLifetime    = 5 * time.Minute // net.Resolver does not tell the record's own
	srvTimeout     = 2 * time.Second
	maxNames       = 10_000 // remote names remembered at once
)

// Discovery turns server names into routes.
//
// spec: s2s#resolving-server-names
type Discovery struct {
	resolver Resolver
	known    *wellKnown
	routes   *bounded[cachedRoute]
	flight   singleflight.Group
	now      func() time.Time
}

type cachedRoute struct {
	route Route
	until time.Time
}

// Resolve says where server is found. Numbers in the comments are the steps of the specification.
//
// spec: s2s#resolving-server-names
func (d *Discovery) Resolve(ctx context.Context, server string) (Route, error) {
	host, port, ok := SplitServerName(server)
	if !ok {
		return Route{}, fmt.Errorf("%q is not a valid server name", server)
	}
	if noPort(port) {
		return Route{}, fmt.Errorf("%q has a port that nobody can listen on", server)
	}
	if route, ok := namedRoute(server, host, port); ok { // 1, 2
		return route, nil
	}
	if cached, ok := d.routes.get(server); ok && d.now().Before(cached.until) {
		return cached.route, nil
	}
	// One look-up for all who wait; it lives on when the first of them gives up.
	found := d.flight.DoChan(server, func() (_ any, err error) {
		defer func() { // a goroutine of its own: no answer may end the process
			if p := recover(); p != nil {
				err = fmt.Errorf("panic while finding %s: %v", server, p)
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), wellKnownTimeout+srvTimeout)
		defer cancel()
		return d.discover(ctx, server), nil
	})
	select {
	case r := <-found:
		route, _ := r.Val.(Route)
		return route, r.Err
	case <-ctx.Done():
		return Route{}, fmt.Errorf("find %s: %w", server, ctx.Err())
	}
}

// noPort says that a port is given and is 0, by whatever number of digits: nobody listens there.
func noPort(port string) bool { return port != "" && strings.Trim(port, "0") == "" }

// forget makes the next Resolve ask DNS again; .well-known keeps its own time.
func (d *Discovery) forget(server string) {
	d.routes.change(server, func(cachedRoute, bool) (cachedRoute, bool) { return cachedRoute{}, false })
}

// namedRoute answers for names that say themselves where they are: IP literals and names with a port.
func namedRoute(server, host, port string) (Route, bool) {
	_, isIP := ipLiteral(host)
	if port == "" && !isIP {
		return Route{}, false
	}
	if port == "" {
		port = federationPort
	}
	return Route{Addresses: []string{net.JoinHostPort(host, port)}, Host: server, CertName: host}, true
}

// discover goes through steps 3 to 6 for a name without port.
func (d *Discovery) discover(ctx context.Context, server string) Route {
	// The SRV records are wanted only without a .well-known, which most servers with SRV
	// and test networks lack. Asking at once saves them the wait.
	early := make(chan []string, 1)
	srvCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { early <- d.srv(srvCtx, server) }()

	delegated, until := d.known.lookup(ctx, server)
	var route Route
	if delegated == "" {
		route = hostRoute(server, <-early) // 4, 5, 6
		until = earlier(until, d.now().Add(srvLifetime))
	} else {
		host, port, _ := SplitServerName(delegated)
		var ok bool
		if route, ok = namedRoute(delegated, host, port); !ok { // else 3.1, 3.2
			if delegated == server {
				route = hostRoute(server, <-early)
			} else {
				route = hostRoute(delegated, d.srv(ctx, delegated)) // 3.3, 3.4, 3.5
			}
			until = earlier(until, d.now().Add(srvLifetime))
		}
	}
	d.routes.set(server, cachedRoute{route, until})
	return route
}

func hostRoute(host string, targets []string) Route {
	if len(targets) == 0 {
		targets = []string{net.JoinHostPort(host, federationPort)}
	}
	return Route{Addresses: targets, Host: host, CertName: host}
}

// srv lists the targets of _matrix-fed._tcp, or else of the deprecated _matrix._tcp, as host:port.
// A look-up that fails counts as no record: the fallback may still reach the server.
func (d *Discovery) srv(ctx context.Context, host string) []string {
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return nil // RFC 6761: names of this machine, DNS is not to be asked
	}
	ctx, cancel := context.WithTimeout(ctx, srvTimeout)
	defer cancel()
	old := make(chan []string, 1)
	go func() { old <- d.srvOf(ctx, "matrix", host) }()
	if targets := d.srvOf(ctx, "matrix-fed", host); targets != nil {
		return targets
	}
	return <-old
}

// maxTargets bounds the dials that one request can make.
const maxTargets = 4

func (d *Discovery) srvOf(ctx context.Context, service, host string) (targets []string) {
	// The dot at the end keeps the machine's search domains out of it.
	_, records, err := d.resolver.LookupSRV(ctx, service, "tcp", strings.TrimSuffix(host, ".")+".")
	var partial *net.DNSError
	if err != nil && !(errors.As(err, &partial) && len(records) > 0) {
		return nil
	}
	for _, r := range records {
		target := strings.TrimSuffix(r.Target, ".")
		if target == "" || r.Port == 0 || !validHost(target) {
			continue // "." means that the service is not to be had: RFC 2782
		}
		if targets = append(targets, net.JoinHostPort(target, strconv.Itoa(int(r.Port)))); len(targets) == maxTargets {
			break
		}
	}
	return targets
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
