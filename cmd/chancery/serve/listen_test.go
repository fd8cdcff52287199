package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

func TestTakenPortIsSaidInOneSentence(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = listen("client", []string{"127.0.0.1:0", l.Addr().String()})
	want := fmt.Sprintf("the client listener cannot have %s: another process listens there", l.Addr())
	if err == nil || err.Error() != want {
		t.Fatalf("got %v, want %s", err, want)
	}
}

// Anybody may ask for /health: the database is asked seldom, and who asks learns of it within seconds.
func TestProbeAsksSeldom(t *testing.T) {
	var p probe
	asked, full := 0, errors.New("disk full")
	try := func(context.Context) error { asked++; return full }
	for range 5 {
		if err := p.ask(t.Context(), try); !errors.Is(err, full) {
			t.Fatal(err)
		}
	}
	if asked != 1 {
		t.Fatalf("asked %d times", asked)
	}
	p.at = p.at.Add(-probeEvery)
	full = nil
	if err := p.ask(t.Context(), try); err != nil || asked != 2 {
		t.Fatalf("%v after %d", err, asked)
	}
}

// What is asked when the server is told to stop is answered to the end, and who is connected without asking keeps it from nothing.
func TestRequestsUnderWayAreAnswered(t *testing.T) {
	for _, protocol := range []string{"http/1.1", "h2"} {
		t.Run(protocol, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			g, _ := errgroup.WithContext(t.Context())
			fake := httptest.NewUnstartedServer(nil)
			fake.EnableHTTP2 = protocol == "h2"
			fake.StartTLS() // for its certificate and the client that trusts it
			defer fake.Close()
			l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: fake.TLS.Certificates, NextProtos: []string{protocol}})
			if err != nil {
				t.Fatal(err)
			}
			asked, answer := make(chan struct{}), make(chan struct{})
			long := strings.Repeat("x", 1<<20)
			serveHTTP(ctx, g, []net.Listener{l}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/wait" {
					close(asked)
					<-answer
				}
				io.WriteString(w, long)
			}))
			get := func(path string) string {
				res, err := fake.Client().Get("https://" + l.Addr().String() + path)
				if err != nil {
					t.Error(err)
					return ""
				}
				defer res.Body.Close()
				text, err := io.ReadAll(res.Body)
				if err != nil || res.ProtoMajor != map[string]int{"http/1.1": 1, "h2": 2}[protocol] {
					t.Errorf("%v over %s", err, res.Proto)
				}
				return string(text)
			}
			if get("/") != long {
				t.Fatal("it does not answer")
			}
			got := make(chan string)
			go func() { got <- get("/wait") }()
			<-asked
			stop()
			for {
				c, err := net.Dial("tcp", l.Addr().String())
				if err != nil {
					break
				}
				c.Close()
			}
			close(answer)
			if <-got != long {
				t.Error("what was asked is not answered")
			}
			began := time.Now()
			if err := g.Wait(); err != nil {
				t.Error(err)
			}
			t.Logf("it ended %v after the last answer", time.Since(began))
		})
	}
}
