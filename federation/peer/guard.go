package peer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// ErrGuarded is the cause of a dial to an address that peers must not make us reach.
var ErrGuarded = errors.New("private, local or special address")

// Resolver is what we ask of DNS; *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupSRV(ctx context.Context, service, proto, name string) (string, []*net.SRV, error)
}

// Guard dials for every part of the house that connects to an address somebody else named:
// federation, media, push, previews. Unless AllowPrivate is set it refuses addresses that are
// not of the public internet. It looks at the address the socket is about to connect to, so a
// name that resolves differently the second time gains nothing.
type Guard struct {
	AllowPrivate bool
	Resolver     Resolver // nil: the system's
	Timeout      time.Duration
}

// DialContext fits http.Transport.
func (g *Guard) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	timeout := g.Timeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var addrs []netip.Addr
	if addr, ok := ipLiteral(host); ok {
		addrs = []netip.Addr{addr}
	} else {
		var resolver Resolver = net.DefaultResolver
		if g.Resolver != nil {
			resolver = g.Resolver
		}
		if addrs, err = resolver.LookupNetIP(ctx, "ip", host); err != nil {
			return nil, fmt.Errorf("resolve %s: %w", host, err)
		}
		if len(addrs) == 0 {
			return nil, fmt.Errorf("resolve %s: no address", host)
		}
	}
	return g.dialFirst(ctx, network, addrs, port)
}

// maxAddrs bounds how many sockets one name can make us open.
const maxAddrs = 8

// dialFirst tries the addresses a moment apart and keeps the first that answers, so that one
// dead address of a name (often its IPv6 one) does not cost the whole time limit.
func (g *Guard) dialFirst(ctx context.Context, network string, addrs []netip.Addr, port string) (net.Conn, error) {
	if len(addrs) > maxAddrs {
		addrs = addrs[:maxAddrs]
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result, len(addrs))
	dialer := net.Dialer{Control: g.Control, KeepAlive: 30 * time.Second}
	started, failed := 0, 0
	start := func() {
		address := net.JoinHostPort(addrs[started].Unmap().String(), port)
		started++
		go func() {
			conn, err := dialer.DialContext(ctx, network, address)
			results <- result{conn, err}
		}()
	}
	start()
	var firstErr error
	stagger := time.NewTicker(250 * time.Millisecond)
	defer stagger.Stop()
	for {
		select {
		case <-stagger.C:
			if started < len(addrs) {
				start()
			}
		case r := <-results:
			if r.err == nil {
				go func(left int) { // the losers of the race
					for range left {
						if late := <-results; late.conn != nil {
							late.conn.Close()
						}
					}
				}(started - failed - 1)
				return r.conn, nil
			}
			failed++
			if firstErr == nil {
				firstErr = r.err
			}
			if started < len(addrs) {
				start()
			} else if failed == started {
				return nil, firstErr
			}
		}
	}
}

// Control fits net.Dialer: it is called with the address after resolution, before connecting.
func (g *Guard) Control(network, address string, _ syscall.RawConn) error {
	if g.AllowPrivate {
		return nil
	}
	dest, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s %s: %w", network, address, ErrGuarded)
	}
	if !PublicAddr(dest.Addr()) {
		return fmt.Errorf("dial %s: %w", dest.Addr(), ErrGuarded)
	}
	return nil
}

// special are the blocks of the IANA special-purpose registries that net/netip has no word
// for. Those that carry an IPv4 address inside (6to4, Teredo, and NAT64 below) could
// lead to a private one through a gateway we know nothing of, so they are refused whole.
var special = prefixes(
	"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15",
	"198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
	"2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
)

// unicast6 is all that is given out of IPv6 for the public internet. Outside of it lie, among others, NAT64
// (64:ff9b::/96 and 64:ff9b:1::/48), IPv4-compatible and IPv4-translated addresses.
var unicast6 = netip.MustParsePrefix("2000::/3")

func prefixes(texts ...string) []netip.Prefix {
	list := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		list[i] = netip.MustParsePrefix(text)
	}
	return list
}

// PublicAddr says whether addr belongs to the public internet.
func PublicAddr(addr netip.Addr) bool {
	addr = addr.Unmap()
	if !addr.IsValid() || addr.Zone() != "" || !addr.IsGlobalUnicast() || addr.IsPrivate() {
		return false // IsGlobalUnicast leaves out unspecified, loopback, multicast and link-local
	}
	if addr.Is6() && !unicast6.Contains(addr) {
		return false
	}
	for _, block := range special {
		if block.Contains(addr) {
			return false
		}
	}
	return true
}
