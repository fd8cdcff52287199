package peer

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// authority is a certificate authority for one test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	a := &authority{cert, key, x509.NewCertPool()}
	a.pool.AddCert(cert)
	return a
}

func (a *authority) certificate(t testing.TB, names ...string) tls.Certificate {
	t.Helper()
	return a.certificateFor(t, time.Now().Add(time.Hour), names...)
}

func (a *authority) certificateFor(t testing.TB, until time.Time, names ...string) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serve starts a TLS server with a certificate for names and gives its port.
func (a *authority) serve(t testing.TB, handler http.HandlerFunc, names ...string) (port string) {
	t.Helper()
	s := a.start(t, handler, "127.0.0.1:0", names...)
	t.Cleanup(s.Close)
	return portOf(s)
}

func (a *authority) start(t testing.TB, handler http.HandlerFunc, address string, names ...string) *httptest.Server {
	t.Helper()
	l, err := net.Listen("tcp", address)
	must(t, err)
	s := httptest.NewUnstartedServer(handler)
	s.Listener.Close()
	s.Listener = l
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are what some tests are about
	s.TLS = &tls.Config{Certificates: []tls.Certificate{a.certificate(t, names...)}}
	s.StartTLS()
	return s
}

func portOf(s *httptest.Server) string {
	return strconv.Itoa(s.Listener.Addr().(*net.TCPAddr).Port)
}

// names is a DNS in which every name that is not listed leads to 127.0.0.1.
type names struct {
	addrs   map[string]string
	srv     map[string][]*net.SRV // by "_service._tcp.name"
	lookups atomic.Int64
}

func (n *names) LookupNetIP(_ context.Context, _, host string) ([]netip.Addr, error) {
	if addr, ok := n.addrs[host]; ok {
		return []netip.Addr{netip.MustParseAddr(addr)}, nil
	}
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

func (n *names) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	n.lookups.Add(1)
	name = "_" + service + "._" + proto + "." + strings.TrimSuffix(name, ".")
	if records, ok := n.srv[name]; ok {
		return name, records, nil
	}
	return "", nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// us is a client of server "us.example" that trusts a and may reach loopback.
func (a *authority) us(t testing.TB, dns *names, change func(*Options)) (*Client, *Keys) {
	t.Helper()
	keys := &Keys{ServerName: "us.example", Signing: []SigningKey{NewSigningKey()}}
	o := Options{ServerName: keys.ServerName, Key: keys.Key(), RootCAs: a.pool, AllowPrivate: true, RetryMin: time.Minute, Resolver: dns}
	if change != nil {
		change(&o)
	}
	c, err := New(o)
	must(t, err)
	t.Cleanup(c.Close)
	c.discovery.known.port = "1" // nobody listens there; tests of .well-known set another
	return c, keys
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func answerJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	switch body := body.(type) {
	case string:
		io.WriteString(w, body)
	default:
		json.NewEncoder(w).Encode(body)
	}
}
