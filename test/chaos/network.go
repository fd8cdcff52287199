package chaos

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"
)

// network lies between servers. Each has a gate there, the address in its name, and what comes to a gate goes
// on to the server if the way from the sender is open.
type network struct {
	mu    sync.Mutex // guards ways and r
	ways  map[[2]string]*way
	r     *rand.Rand
	gates []*gate
	slow  time.Duration // of a question for a state, at most
}

// way is how requests get from one server to another. Of many requests one is lost: 0 loses none.
type way struct {
	cut    bool
	silent bool          // while cut, nothing answers; else the connection breaks
	delay  time.Duration // of each request, at most
	lose   int           // one request in so many never arrives
	deaf   int           // one arrives, and its answer is lost
	replay int           // one transaction arrives twice
}

// gate is where the peers of a server knock.
type gate struct {
	name   string
	net    *network
	client *http.Client
	mu     sync.Mutex // guards to
	to     string     // the server's listener; empty: nobody is there
}

func newNetwork(seed uint64) *network {
	return &network{ways: map[[2]string]*way{}, r: rand.New(rand.NewPCG(seed, 1))}
}

// gate opens a new gate.
func (n *network) gate(t testing.TB, ca *homeserver.CA) *gate {
	t.Helper()
	config := ca.TLS(t)
	config.NextProtos = []string{"h2", "http/1.1"}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: ca.TLS(t), MaxIdleConnsPerHost: 32}
	g := &gate{name: l.Addr().String(), net: n, client: &http.Client{Transport: transport}}
	server := &http.Server{Handler: g, ErrorLog: quiet}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		<-ended
		transport.CloseIdleConnections()
	})
	n.gates = append(n.gates, g)
	return g
}

// leadTo says where the server of the gate listens.
func (g *gate) leadTo(address string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.to = address
}

// set changes the way from one server to another.
func (n *network) set(from, to string, w way) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ways[[2]string{from, to}] = &w
}

// slowStates makes questions for a state slow.
func (n *network) slowStates(most time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.slow = most
}

// slowness is how long a question takes longer than others.
func (n *network) slowness(path string) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.slow == 0 || !strings.Contains(path, "/federation/v1/state") {
		return 0
	}
	return time.Duration(n.r.Int64N(int64(n.slow)))
}

// heal opens all ways.
func (n *network) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.ways)
}

// is gives the way from one server to another as it is now. Who asks without a name, for keys, comes through
// unless nobody does.
func (n *network) is(from, to string) way {
	n.mu.Lock()
	defer n.mu.Unlock()
	if from != "" {
		if w := n.ways[[2]string{from, to}]; w != nil {
			return *w
		}
		return way{}
	}
	for _, g := range n.gates {
		if g.name == to {
			continue
		}
		if w := n.ways[[2]string{g.name, to}]; w == nil || !w.cut {
			return way{}
		}
	}
	return way{cut: true}
}

func (n *network) oneIn(many int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return many > 0 && n.r.IntN(many) == 0
}

func (n *network) upTo(d time.Duration) time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	if d <= 0 {
		return 0
	}
	return time.Duration(n.r.Int64N(int64(d)))
}

var originIn = regexp.MustCompile(`origin="?([^",]+)`)

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	from := ""
	if m := originIn.FindStringSubmatch(r.Header.Get("Authorization")); m != nil {
		from = m[1]
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	way := g.net.is(from, g.name)
	pause(r.Context(), g.net.upTo(way.delay)+g.net.slowness(r.URL.Path))
	for way = g.net.is(from, g.name); way.cut; way = g.net.is(from, g.name) {
		if !way.silent {
			panic(http.ErrAbortHandler)
		}
		if pause(r.Context(), 50*time.Millisecond); r.Context().Err() != nil {
			panic(http.ErrAbortHandler)
		}
	}
	if g.net.oneIn(way.lose) {
		panic(http.ErrAbortHandler)
	}
	// What is on its way arrives, whether or not the sender still waits.
	ctx := context.WithoutCancel(r.Context())
	resp, text := g.forward(ctx, r, body)
	if r.Method == http.MethodPut && g.net.oneIn(way.replay) {
		pause(ctx, g.net.upTo(200*time.Millisecond))
		resp, text = g.forward(ctx, r, body)
	}
	if resp == nil || g.net.oneIn(way.deaf) || g.net.is(from, g.name).cut {
		panic(http.ErrAbortHandler)
	}
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(resp.StatusCode)
	w.Write(text)
}

// forward brings a request to the server; nil when there was no answer.
func (g *gate) forward(ctx context.Context, r *http.Request, body []byte) (*http.Response, []byte) {
	g.mu.Lock()
	to := g.to
	g.mu.Unlock()
	if to == "" {
		return nil, nil
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+to+r.RequestURI, bytes.NewReader(body))
	if err != nil {
		return nil, nil
	}
	req.Header = r.Header.Clone()
	req.Host = r.Host
	resp, err := g.client.Do(req)
	if err != nil {
		return nil, nil
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, nil
	}
	return resp, text
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
