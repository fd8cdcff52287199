package peer

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"
)

func TestGuardRefusesWhatIsNotPublic(t *testing.T) {
	for _, text := range []string{
		"127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
		"0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.0.8", "192.0.2.1", "203.0.113.1",
		"::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1",
		"64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:db8::1", "2001::1", "100::1",
		"::ffff:0:7f00:1", "64:ff9b::a00:1", "64:ff9b::808:808", "5f00::1", "3fff::1", "4000::1", "fd00:ec2::254",
	} {
		if PublicAddr(netip.MustParseAddr(text)) {
			t.Errorf("%s passes for public", text)
		}
	}
	for _, text := range []string{"1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00::1", "::ffff:8.8.8.8"} {
		if !PublicAddr(netip.MustParseAddr(text)) {
			t.Errorf("%s does not pass for public", text)
		}
	}
}

func TestGuardLooksAtTheAddressDialled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, address := range []string{"127.0.0.1:" + port, "innocent.example:" + port, "[::ffff:127.0.0.1]:" + port} {
		g := &Guard{Resolver: &names{}} // every name leads to 127.0.0.1
		if conn, err := g.DialContext(context.Background(), "tcp", address); !errors.Is(err, ErrGuarded) {
			t.Errorf("%s: %v %v, want it refused", address, conn, err)
		}
		g.AllowPrivate = true
		conn, err := g.DialContext(context.Background(), "tcp", address)
		must(t, err)
		conn.Close()
	}
}

func TestGuardStandsBeforeEveryRequest(t *testing.T) {
	ca := newAuthority(t)
	port := ca.serve(t, nil, "a.example")
	c, _ := ca.us(t, &names{}, func(o *Options) { o.AllowPrivate = false })
	if err := c.Do(t.Context(), "a.example:"+port, "GET", "/", nil, nil, Opts{}); !errors.Is(err, ErrGuarded) {
		t.Errorf("a peer led us to loopback: %v", err)
	}
	if _, err := c.follow(t.Context(), "https://a.example:"+port+"/", MediaLimits{Timeout: time.Second, MaxBytes: 1}); !errors.Is(err, ErrGuarded) {
		t.Errorf("a Location led us to loopback: %v", err)
	}
}

func TestGuardTriesTheNextAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	g := &Guard{AllowPrivate: true}
	addrs := []netip.Addr{netip.MustParseAddr("127.0.0.77"), netip.MustParseAddr("127.0.0.1")} // nobody listens on the first
	conn, err := g.dialFirst(t.Context(), "tcp", addrs, port)
	must(t, err)
	conn.Close()
}
