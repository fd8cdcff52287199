package peer

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestServerNamesAreFound(t *testing.T) {
	// spec: s2s#resolving-server-names
	ca := newAuthority(t)
	delegations := map[string]string{}
	var asked atomic.Int64
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		host, _, _ := net.SplitHostPort(r.Host)
		target, ok := delegations[host]
		if !ok {
			http.NotFound(w, r)
			return
		}
		answerJSON(w, 200, target)
	}, "*.example")
	dns := &names{srv: map[string][]*net.SRV{}}
	c, _ := ca.us(t, dns, nil)
	c.discovery.known.port = port
	srv := func(service, name, target string, port uint16) {
		dns.srv["_"+service+"._tcp."+name] = []*net.SRV{{Target: target, Port: port}}
	}
	srv("matrix-fed", "srv.example", "node.example.", 4000)
	srv("matrix", "srv.example", "wrong.example.", 4000)
	srv("matrix", "oldsrv.example", "node.example.", 4001)
	srv("matrix-fed", "nosrv.example", ".", 0)
	srv("matrix-fed", "wk.example", "wrong.example.", 4002)
	srv("matrix-fed", "to-srv.example", "node.example.", 4003)
	srv("matrix", "to-oldsrv.example", "node.example.", 4004)
	for name, server := range map[string]string{
		"wk": "to.example", "wk-ip": "127.0.0.9", "wk-ip6": "[::1]", "wk-ip-port": "127.0.0.9:1234", "wk-port": "to.example:1234",
		"wk-srv": "to-srv.example", "wk-oldsrv": "to-oldsrv.example", "wk-self": "wk-self.example", "wk-bad": "http://to.example", "wk-empty": "",
	} {
		delegations[name+".example"] = fmt.Sprintf(`{"m.server":%q}`, server)
	}
	delegations["wk-null.example"] = `null`
	delegations["wk-text.example"] = `<html>`

	for _, tc := range []struct{ step, server, address, host, cert string }{
		{"1", "127.0.0.9", "127.0.0.9:8448", "127.0.0.9", "127.0.0.9"},
		{"1", "127.0.0.9:1", "127.0.0.9:1", "127.0.0.9:1", "127.0.0.9"},
		{"1", "[::1]", "[::1]:8448", "[::1]", "::1"},
		{"1", "[::1]:1", "[::1]:1", "[::1]:1", "::1"},
		{"2", "wk.example:5", "wk.example:5", "wk.example:5", "wk.example"},
		{"3.1", "wk-ip.example", "127.0.0.9:8448", "127.0.0.9", "127.0.0.9"},
		{"3.1", "wk-ip6.example", "[::1]:8448", "[::1]", "::1"},
		{"3.1", "wk-ip-port.example", "127.0.0.9:1234", "127.0.0.9:1234", "127.0.0.9"},
		{"3.2", "wk-port.example", "to.example:1234", "to.example:1234", "to.example"},
		{"3.3", "wk-srv.example", "node.example:4003", "to-srv.example", "to-srv.example"},
		{"3.4", "wk-oldsrv.example", "node.example:4004", "to-oldsrv.example", "to-oldsrv.example"},
		{"3.5", "wk.example", "to.example:8448", "to.example", "to.example"},
		{"3.5", "wk-self.example", "wk-self.example:8448", "wk-self.example", "wk-self.example"},
		{"4", "srv.example", "node.example:4000", "srv.example", "srv.example"},
		{"5", "oldsrv.example", "node.example:4001", "oldsrv.example", "oldsrv.example"},
		{"6", "nosrv.example", "nosrv.example:8448", "nosrv.example", "nosrv.example"},
		{"6", "none.example", "none.example:8448", "none.example", "none.example"},
		{"6", "wk-bad.example", "wk-bad.example:8448", "wk-bad.example", "wk-bad.example"},
		{"6", "wk-empty.example", "wk-empty.example:8448", "wk-empty.example", "wk-empty.example"},
		{"6", "wk-null.example", "wk-null.example:8448", "wk-null.example", "wk-null.example"},
		{"6", "wk-text.example", "wk-text.example:8448", "wk-text.example", "wk-text.example"},
	} {
		got, err := c.Discovery().Resolve(t.Context(), tc.server)
		want := Route{[]string{tc.address}, tc.host, tc.cert}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("step %s, %s: got %+v %v, want %+v", tc.step, tc.server, got, err, want)
		}
	}
	before, lookups := asked.Load(), dns.lookups.Load()
	for _, server := range []string{"wk.example", "none.example", "srv.example"} {
		if _, err := c.Discovery().Resolve(t.Context(), server); err != nil {
			t.Error(err)
		}
	}
	if asked.Load() != before || dns.lookups.Load() != lookups {
		t.Error("a server was looked up again although the answer was known")
	}
	for _, bad := range []string{"", "a b", "example:0", "[::1", "example:99999", "exämple"} {
		if _, err := c.Discovery().Resolve(t.Context(), bad); err == nil {
			t.Errorf("%q was found", bad)
		}
	}
}

func TestWellKnownIsBounded(t *testing.T) {
	// spec: s2s#resolving-server-names 3: redirects are followed, loops avoided
	ca := newAuthority(t)
	const good = `{"m.server":"to.example:1"}`
	release := make(chan struct{})
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		host, port, _ := net.SplitHostPort(r.Host)
		switch host + r.URL.Path {
		case "redirect.example/.well-known/matrix/server":
			http.Redirect(w, r, "https://elsewhere.example:"+port+"/there", http.StatusFound)
		case "elsewhere.example/there":
			answerJSON(w, 200, good)
		case "loop.example/.well-known/matrix/server":
			http.Redirect(w, r, r.URL.Path, http.StatusFound)
		case "plain.example/.well-known/matrix/server":
			http.Redirect(w, r, "http://elsewhere.example:"+port+"/there", http.StatusFound)
		case "large.example/.well-known/matrix/server":
			answerJSON(w, 200, `{"m.server":"to.example:1","x":"`+strings.Repeat("x", wellKnownSize)+`"}`)
		case "slow.example/.well-known/matrix/server":
			select {
			case <-release:
			case <-r.Context().Done():
			}
		case "error.example/.well-known/matrix/server":
			answerJSON(w, 500, good)
		default:
			http.NotFound(w, r)
		}
	}, "*.example")
	t.Cleanup(func() { close(release) })
	c, _ := ca.us(t, &names{}, nil)
	c.discovery.known.port = port
	for host, want := range map[string]string{
		"redirect.example": "to.example:1", "loop.example": "", "plain.example": "", "large.example": "", "slow.example": "", "error.example": "",
		"other.test": "", // the certificate is not for it
	} {
		c.discovery.known.client.Timeout = time.Minute
		if host == "slow.example" {
			c.discovery.known.client.Timeout = 300 * time.Millisecond
		}
		if got, _ := c.discovery.known.lookup(t.Context(), host); got != want {
			t.Errorf("%s delegates to %q, want %q", host, got, want)
		}
	}
}

func TestWellKnownIsCached(t *testing.T) {
	now := time.Now()
	for _, tc := range []struct {
		header http.Header
		want   time.Duration
	}{
		{http.Header{}, wellKnownDefault},
		{http.Header{"Cache-Control": {"public, max-age=7200"}}, 2 * time.Hour},
		{http.Header{"Cache-Control": {"max-age=9999999"}}, wellKnownMax},
		{http.Header{"Cache-Control": {"max-age=99999999999999999999"}}, wellKnownMin},
		{http.Header{"Cache-Control": {"no-store"}}, wellKnownMin},
		{http.Header{"Cache-Control": {"max-age=0"}}, wellKnownMin},
		{http.Header{"Expires": {now.Add(3 * time.Hour).UTC().Format(http.TimeFormat)}, "Date": {now.Add(time.Hour).UTC().Format(http.TimeFormat)}}, 2 * time.Hour},
		{http.Header{"Expires": {"0"}}, wellKnownMin},
		{http.Header{"Expires": {"0"}, "Cache-Control": {"max-age=7200"}}, 2 * time.Hour},
	} {
		if got := cacheLifetime(tc.header, now); got != tc.want {
			t.Errorf("%v is kept %v, want %v", tc.header, got, tc.want)
		}
	}
}

func TestDelegationOutlivesAnOutage(t *testing.T) {
	ca := newAuthority(t)
	status, asked := 200, 0
	port := ca.serve(t, func(w http.ResponseWriter, _ *http.Request) {
		asked++
		answerJSON(w, status, `{"m.server":"to.example:1"}`)
	}, "*.example")
	c, _ := ca.us(t, &names{}, nil)
	c.discovery.known.port = port
	now := time.Now()
	c.now = func() time.Time { return now }
	lookup := func(want string) {
		t.Helper()
		if got, _ := c.discovery.known.lookup(t.Context(), "a.example"); got != want {
			t.Errorf("delegated to %q, want %q", got, want)
		}
	}
	lookup("to.example:1")
	now, status = now.Add(25*time.Hour), 503
	lookup("to.example:1") // the web server is down
	if lookup("to.example:1"); asked != 2 {
		t.Errorf("asked %d times, the failure was not remembered", asked)
	}
	now = now.Add(25 * time.Hour)
	lookup("") // more than 48 h old
	now, status = now.Add(2*time.Hour), 200
	lookup("to.example:1")
	now, status = now.Add(25*time.Hour), 404
	lookup("") // withdrawn
}

func TestCachesAreBounded(t *testing.T) {
	b := newBounded[int](10)
	for i := range 1000 {
		b.set(fmt.Sprint(i), i)
		b.get("0")
	}
	if b.len() != 10 || len(b.items) != 10 {
		t.Fatalf("%d items, want 10", b.len())
	}
	if _, ok := b.get("0"); !ok {
		t.Error("what is asked for all the time was forgotten")
	}
	if _, ok := b.get("500"); ok {
		t.Error("what nobody asks for was kept")
	}
	heavy := newWeighed(10, func(n int) int { return n })
	for i := range 1000 {
		heavy.set(fmt.Sprint(i%7), i%6)
		sum := 0
		for _, item := range heavy.items {
			sum += item.Value.(*boundedItem[int]).value
		}
		if sum != heavy.weight || sum > 10 || heavy.len() != len(heavy.items) {
			t.Fatalf("%d items weigh %d, counted as %d", heavy.len(), sum, heavy.weight)
		}
	}
	heavy.set("one", 11)
	if _, ok := heavy.get("one"); !ok || heavy.len() != 1 {
		t.Errorf("what is too heavy alone is kept beside %d others", heavy.len()-1)
	}
}

func TestCertificateMustBeForTheName(t *testing.T) {
	// spec: s2s#resolving-server-names 2: a valid certificate for the hostname
	ca := newAuthority(t)
	var hosts []string
	handler := func(w http.ResponseWriter, r *http.Request) {
		hosts = append(hosts, r.Host+" "+r.TLS.ServerName)
		answerJSON(w, 200, `{}`)
	}
	port := ca.serve(t, handler, "right.example", "127.0.0.1")
	c, _ := ca.us(t, &names{srv: map[string][]*net.SRV{"_matrix-fed._tcp.right.example": {{Target: "node.test.", Port: atoi16(port)}}}}, nil)
	ask := func(server string) error {
		return c.Do(t.Context(), server, "GET", "/", nil, nil, Opts{IgnoreBackoff: true})
	}
	must(t, ask("right.example:"+port))
	must(t, ask("right.example")) // by SRV: the certificate is for the server's name and not for the target's
	must(t, ask("127.0.0.1:"+port))
	want := []string{"right.example:" + port + " right.example", "right.example right.example", "127.0.0.1:" + port + " "}
	if !reflect.DeepEqual(hosts, want) {
		t.Errorf("Host and SNI were %q, want %q", hosts, want)
	}
	var failure *Error
	if err := ask("wrong.example:" + port); !errors.As(err, &failure) || failure.Status != 0 {
		t.Errorf("a certificate for another name was accepted: %v", err)
	}
	stranger, _ := newAuthority(t).us(t, &names{}, nil)
	if err := stranger.Do(t.Context(), "right.example:"+port, "GET", "/", nil, nil, Opts{}); err == nil {
		t.Error("a certificate of an unknown authority was accepted")
	}
}

func atoi16(s string) (n uint16) {
	fmt.Sscan(s, &n)
	return n
}
