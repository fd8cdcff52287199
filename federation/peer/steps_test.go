package peer

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// seen is what a server saw of one request, and on which address.
type seen struct{ place, host, sni, proto string }

// town is several TLS servers on addresses of 127.0.0.0/8, each with certificates for some names, a DNS and a
// web server for .well-known. What is asked of any of them is noted.
type town struct {
	t   *testing.T
	ca  *authority
	dns *names
	c   *Client

	mu        sync.Mutex // guards the rest
	asked     []seen
	wellKnown map[string]string
}

func newTown(t *testing.T, change func(*Options)) *town {
	v := &town{t: t, ca: newAuthority(t), dns: &names{addrs: map[string]string{}, srv: map[string][]*net.SRV{}}, wellKnown: map[string]string{}}
	port := v.ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.Host)
		v.mu.Lock()
		target, ok := v.wellKnown[host]
		v.mu.Unlock()
		if !ok {
			http.NotFound(w, r)
			return
		}
		answerJSON(w, 200, fmt.Sprintf(`{"m.server":%q}`, target))
	}, "*.example")
	v.c, _ = v.ca.us(t, v.dns, change)
	v.c.discovery.known.port = port
	return v
}

func (v *town) delegate(from, to string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wellKnown[from] = to
}

// house opens a server with a certificate for some names and gives its port.
func (v *town) house(address string, names ...string) (port uint16) {
	v.t.Helper()
	l, err := net.Listen("tcp", address)
	must(v.t, err)
	return v.open(l, names...)
}

func (v *town) open(l net.Listener, names ...string) (port uint16) {
	v.t.Helper()
	place := l.Addr().String()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.mu.Lock()
		v.asked = append(v.asked, seen{place, r.Host, r.TLS.ServerName, r.Proto})
		v.mu.Unlock()
		answerJSON(w, 200, `{}`)
	}))
	s.Listener.Close()
	s.Listener, s.EnableHTTP2 = l, true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{v.ca.certificate(v.t, names...)}}
	s.StartTLS()
	v.t.Cleanup(s.Close)
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

func (v *town) ask(server string) error {
	return v.c.Do(v.t.Context(), server, "GET", "/_matrix/federation/v1/version", nil, nil, Opts{IgnoreBackoff: true})
}

func (v *town) last() seen {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.asked) == 0 {
		return seen{}
	}
	return v.asked[len(v.asked)-1]
}

// standing opens a server on the default port of an address of this machine where that is free.
func (v *town) standing(names ...string) (address string) {
	v.t.Helper()
	for range 1000 {
		address = fmt.Sprintf("127.84.%d.%d", rand.IntN(250)+1, rand.IntN(250)+1)
		if l, err := net.Listen("tcp", address+":8448"); err == nil {
			v.open(l, append(names, address)...)
			return address
		}
	}
	v.t.Fatal("no address of the loopback network has port 8448 free")
	return ""
}

// Each step of the specification over real TLS: which address is asked, with which Host header and SNI, and for
// whose name the certificate has to be.
//
// spec: s2s#resolving-server-names
func TestEachStepOfDiscoveryOverTLS(t *testing.T) {
	v := newTown(t, nil)
	srv := func(service, name, target string, port uint16) {
		v.dns.srv["_"+service+"._tcp."+name] = []*net.SRV{{Target: target + ".", Port: port}}
	}
	ours := v.standing("s32.example", "d35.example", "s6.example")
	v.dns.addrs["d35.example"], v.dns.addrs["s6.example"] = ours, ours
	byIP := v.house("127.0.0.1:0", "127.0.0.1")
	byName := v.house("127.0.0.1:0", "s2.example", "d32.example")
	fed := v.house("127.0.0.1:0", "d33.example", "s4.example")
	old := v.house("127.0.0.1:0", "d34.example", "s5.example")
	target := v.house("127.0.0.1:0", "node.example", "elsewhere.example") // has no certificate for the names that lead to it
	v.delegate("w31.example", fmt.Sprintf("127.0.0.1:%d", byIP))
	v.delegate("w31d.example", ours)
	v.delegate("w32.example", fmt.Sprintf("d32.example:%d", byName))
	v.delegate("w33.example", "d33.example")
	srv("matrix-fed", "d33.example", "node.example", fed)
	srv("matrix", "d33.example", "node.example", target)
	v.delegate("w34.example", "d34.example")
	srv("matrix", "d34.example", "node.example", old)
	v.delegate("w35.example", "d35.example")
	srv("matrix-fed", "s4.example", "node.example", fed)
	srv("matrix", "s4.example", "node.example", target)
	srv("matrix", "s5.example", "node.example", old)
	at := func(address string, port uint16) string { return net.JoinHostPort(address, strconv.Itoa(int(port))) }
	for _, tc := range []struct{ step, server, place, host, sni string }{
		{"1", at("127.0.0.1", byIP), at("127.0.0.1", byIP), at("127.0.0.1", byIP), ""},
		{"1", ours, ours + ":8448", ours, ""},
		{"2", fmt.Sprintf("s2.example:%d", byName), at("127.0.0.1", byName), fmt.Sprintf("s2.example:%d", byName), "s2.example"},
		{"3.1", "w31.example", at("127.0.0.1", byIP), at("127.0.0.1", byIP), ""},
		{"3.1", "w31d.example", ours + ":8448", ours, ""},
		{"3.2", "w32.example", at("127.0.0.1", byName), fmt.Sprintf("d32.example:%d", byName), "d32.example"},
		{"3.3", "w33.example", at("127.0.0.1", fed), "d33.example", "d33.example"},
		{"3.4", "w34.example", at("127.0.0.1", old), "d34.example", "d34.example"},
		{"3.5", "w35.example", ours + ":8448", "d35.example", "d35.example"},
		{"4", "s4.example", at("127.0.0.1", fed), "s4.example", "s4.example"},
		{"5", "s5.example", at("127.0.0.1", old), "s5.example", "s5.example"},
		{"6", "s6.example", ours + ":8448", "s6.example", "s6.example"},
	} {
		err := v.ask(tc.server)
		if got := v.last(); err != nil || got != (seen{tc.place, tc.host, tc.sni, "HTTP/2.0"}) {
			t.Errorf("step %s, %s: %v, seen %+v", tc.step, tc.server, err, got)
		}
	}
	// The name that counts is the delegated one where a .well-known names it, and never the target of SRV.
	srv("matrix-fed", "s4wrong.example", "node.example", target)
	v.delegate("w33wrong.example", "d33wrong.example")
	srv("matrix-fed", "d33wrong.example", "node.example", target)
	v.delegate("elsewhere.example", fmt.Sprintf("d32wrong.example:%d", target)) // the certificate is for the delegating name
	for _, server := range []string{"s4wrong.example", "w33wrong.example", "elsewhere.example", at("127.0.0.1", byName)} {
		var wrong *tls.CertificateVerificationError
		if err := v.ask(server); !errors.As(err, &wrong) {
			t.Errorf("%s: a certificate for another name is accepted: %v", server, err)
		}
	}
}

// An IPv6 address has no SNI, and its certificate is for the address.
//
// spec: s2s#resolving-server-names 1
func TestAnIPv6LiteralOverTLS(t *testing.T) {
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("this machine has no IPv6")
	} else {
		l.Close()
	}
	v := newTown(t, nil)
	right, wrong := v.house("[::1]:0", "::1"), v.house("[::1]:0", "six.example")
	server := fmt.Sprintf("[::1]:%d", right)
	v.delegate("six.example", server)
	for _, name := range []string{server, "six.example"} {
		if err := v.ask(name); err != nil || v.last() != (seen{server, server, "", "HTTP/2.0"}) {
			t.Errorf("%s: %v, seen %+v", name, err, v.last())
		}
	}
	if err := v.ask(fmt.Sprintf("[::1]:%d", wrong)); err == nil {
		t.Error("a certificate for no address is accepted")
	}
}

// A delegation to what is no server name counts as none.
//
// spec: s2s#resolving-server-names 3
func TestInvalidDelegationsAreNone(t *testing.T) {
	v := newTown(t, nil)
	port := v.house("127.0.0.1:0", "a.example")
	v.dns.srv["_matrix-fed._tcp.a.example"] = []*net.SRV{{Target: "node.example.", Port: port}}
	for _, to := range []string{"", " ", "https://b.example", "b.example/x", "b.example:0", "b.example:00000", "b.example:65536", "b.example:x",
		"b_c.example", "[::1", "[127.0.0.1]", "[fe80::1%25eth0]", "user@b.example", "bücher.example", strings.Repeat("b", 300), "a b"} {
		v.delegate("a.example", to)
		v.c.discovery.known.answers = newBounded[wellKnownAnswer](10)
		v.c.discovery.forget("a.example")
		route, err := v.c.discovery.Resolve(t.Context(), "a.example")
		if err != nil || route.Host != "a.example" || route.Addresses[0] != fmt.Sprintf("node.example:%d", port) {
			t.Errorf("delegated to %q: %+v %v", to, route, err)
		}
	}
	must(t, v.ask("a.example"))
}

// A connection is kept for the next request, and is not kept for a server that has moved.
func TestConnectionsAreKeptWhileTheRouteHolds(t *testing.T) {
	v := newTown(t, nil)
	before, after := v.house("127.0.0.1:0", "a.example"), v.house("127.0.0.1:0", "b.example")
	v.delegate("moves.example", fmt.Sprintf("a.example:%d", before))
	dials, dial := 0, v.c.transport.DialTLSContext
	v.c.transport.DialTLSContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return dial(ctx, network, address)
	}
	for range 5 {
		must(t, v.ask("moves.example"))
	}
	if dials != 1 {
		t.Errorf("5 requests made %d connections", dials)
	}
	v.delegate("moves.example", fmt.Sprintf("b.example:%d", after))
	now := time.Now().Add(wellKnownMax)
	v.c.now = func() time.Time { return now }
	must(t, v.ask("moves.example"))
	if got := v.last(); got.sni != "b.example" || dials != 2 {
		t.Errorf("the server has moved, and %+v is asked, after %d connections", got, dials)
	}
}

// An expired certificate is refused, and the log says so in words, once.
//
// spec: s2s#tls
func TestAnExpiredCertificateIsRefusedAndTold(t *testing.T) {
	core, logs := observer.New(zap.WarnLevel)
	v := newTown(t, func(o *Options) { o.Log = zap.New(core) })
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := httptest.NewUnstartedServer(nil)
	s.Listener.Close()
	s.Listener = l
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{v.ca.certificateFor(t, time.Now().Add(-time.Minute), "late.example")}}
	s.StartTLS()
	t.Cleanup(s.Close)
	server := "late.example:" + portOf(s)
	for range 3 {
		var invalid x509.CertificateInvalidError
		if err := v.ask(server); !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
			t.Fatalf("asked a server whose certificate has expired: %v", err)
		}
	}
	lines := logs.FilterMessage("the certificate of a peer is not accepted").All()
	if len(lines) != 1 || lines[0].ContextMap()["server"] != server || !strings.HasPrefix(lines[0].ContextMap()["why"].(string), "it expired at 20") {
		t.Errorf("the log says %+v", lines)
	}
}

// The guard looks at each address: of SRV targets, of delegated names, of redirects, and of a name that leads
// elsewhere the second time.
func TestNoWayOfDiscoveryLeadsInside(t *testing.T) {
	v := newTown(t, func(o *Options) { o.AllowPrivate = false })
	inside := v.house("127.0.0.1:0", "inside.example", "srv.example", "127.0.0.1")
	v.dns.addrs["public.example"] = "203.0.113.1"
	v.dns.srv["_matrix-fed._tcp.srv.example"] = []*net.SRV{{Target: "inside.example.", Port: inside}}
	for _, server := range []string{fmt.Sprintf("127.0.0.1:%d", inside), fmt.Sprintf("inside.example:%d", inside), "srv.example",
		fmt.Sprintf("[::ffff:127.0.0.1]:%d", inside), fmt.Sprintf("[64:ff9b::7f00:1]:%d", inside)} {
		if err := v.ask(server); !errors.Is(err, ErrGuarded) {
			t.Errorf("%s: %v", server, err)
		}
	}
	for _, scheme := range []string{"https", "http"} {
		req, err := http.NewRequest("GET", fmt.Sprintf("%s://inside.example:%d/", scheme, inside), nil)
		must(t, err)
		if res, err := v.c.plain.Do(req); !errors.Is(err, ErrGuarded) {
			t.Errorf("a redirect to %s leads to %v %v", req.URL, res, err)
		}
	}
	if len(v.asked) != 0 {
		t.Errorf("inside was asked %+v", v.asked)
	}
}
