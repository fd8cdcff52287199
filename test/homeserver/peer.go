package homeserver

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/test/client"
)

// Peer is another server as far as its keys go: it publishes them and signs whatever a test tells it to.
type Peer struct {
	Name   string
	Keys   *peer.Keys
	mux    *http.ServeMux
	t      testing.TB
	client *http.Client
}

// NewPeer starts a peer that servers of the authority can reach.
func NewPeer(t testing.TB, ca *CA) *Peer {
	t.Helper()
	p := &Peer{t: t}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.Name = listener.Addr().String()
	p.Keys = &peer.Keys{ServerName: p.Name, Signing: []peer.SigningKey{peer.NewSigningKey()}}
	p.mux = http.NewServeMux()
	p.mux.HandleFunc("GET /_matrix/key/v2/server", func(w http.ResponseWriter, r *http.Request) {
		keys, err := p.Keys.ServerKeys(time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(keys)
	})
	server := httptest.NewUnstartedServer(p.mux)
	server.Listener.Close()
	server.Listener = listener
	server.TLS = ca.TLS(t)
	server.StartTLS()
	p.client = &http.Client{Transport: &http.Transport{TLSClientConfig: ca.TLS(t)}, Timeout: time.Minute}
	t.Cleanup(func() {
		p.client.CloseIdleConnections()
		server.Close()
	})
	return p
}

// Handle has the peer answer more than questions for its keys.
func (p *Peer) Handle(pattern string, answer http.Handler) { p.mux.Handle(pattern, answer) }

// As is the same peer in another test, for subtests.
func (p *Peer) As(t testing.TB) *Peer {
	other := *p
	other.t = t
	return &other
}

// Signed is a request of the peer; a test may spoil any part of it.
type Signed struct {
	Method, Path string
	Body         any    // nil, or JSON
	Sent         []byte // what goes over the wire in place of Body, which is what was signed
	Origin       string // empty: the peer's
	Destination  string // empty: the server's
	Key          *peer.SigningKey
	Header       *string // in place of the whole Authorization
}

// Ask signs a request and sends it to a server's federation listener.
func (p *Peer) Ask(s *Server, in Signed) Answer {
	p.t.Helper()
	var content []byte
	if in.Body != nil {
		text, err := json.Marshal(in.Body)
		if raw, ok := in.Body.([]byte); ok {
			text, err = raw, nil
		}
		if err != nil {
			p.t.Fatal(err)
		}
		if content, err = peer.CanonicalJSON(text); err != nil {
			p.t.Fatal(err)
		}
	}
	if in.Origin == "" {
		in.Origin = p.Name
	}
	if in.Destination == "" {
		in.Destination = s.Name
	}
	if in.Key == nil {
		key := p.Keys.Key()
		in.Key = &key
	}
	header := peer.SignRequest(*in.Key, in.Origin, in.Destination, in.Method, in.Path, content)
	if in.Header != nil {
		header = *in.Header
	}
	sent := content
	if in.Sent != nil {
		sent = in.Sent
	}
	req, err := http.NewRequestWithContext(p.t.Context(), in.Method, "https://"+s.Name+in.Path, bytes.NewReader(sent))
	if err != nil {
		p.t.Fatal(err)
	}
	if header != "" {
		req.Header.Set("Authorization", header)
	}
	req.Header.Set("Content-Type", "application/json")
	a, err := client.Send(p.client, req)
	if err != nil {
		p.t.Fatalf("%s %.200s: %v", in.Method, in.Path, err)
	}
	return a
}

// Refused is Ask for what must fail with this status and code.
func (p *Peer) Refused(s *Server, status int, code string, in Signed) Answer {
	p.t.Helper()
	a := p.Ask(s, in)
	if a.Status != status || a.Code() != code {
		p.t.Errorf("%s %.200s: got %s, want %d %s", in.Method, in.Path, a, status, code)
	}
	return a
}
