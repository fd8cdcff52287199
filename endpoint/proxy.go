package endpoint

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
)

// ClientIP is the address a request came from. Behind trusted proxies it is the last address
// in X-Forwarded-For that is not one of them: what stands before it anyone may have written.
func ClientIP(r *http.Request, trusted []netip.Prefix) string {
	peer, ok := address(r.RemoteAddr)
	if !ok || !among(peer, trusted) {
		return show(peer, ok, r.RemoteAddr)
	}
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	client := peer
	for i := len(hops) - 1; i >= 0; i-- {
		hop, ok := address(strings.TrimSpace(hops[i]))
		if !ok {
			break
		}
		client = hop
		if !among(hop, trusted) {
			break
		}
	}
	return client.String()
}

// network is whom an address counts for in limits: of IPv6 the first 64 bits, for whoever has one address has the others
// behind them too.
func network(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil || !a.Is6() {
		return ip
	}
	return netip.PrefixFrom(a.WithZone(""), 64).Masked().String()
}

func show(a netip.Addr, ok bool, text string) string {
	if ok {
		return a.String()
	}
	return text // a Unix socket has no address
}

// address reads an IP address with or without a port.
func address(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return a.Unmap(), true
	}
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr().Unmap(), true
	}
	return netip.Addr{}, false
}

func among(a netip.Addr, prefixes []netip.Prefix) bool {
	for _, p := range prefixes {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// ParseProxies reads addresses and networks: "10.0.0.1", "10.0.0.0/8".
func ParseProxies(list []string) ([]netip.Prefix, error) {
	var prefixes []netip.Prefix
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			a = a.Unmap()
			prefixes = append(prefixes, netip.PrefixFrom(a, a.BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is neither an address nor a network", s)
		}
		prefixes = append(prefixes, p)
	}
	return prefixes, nil
}
