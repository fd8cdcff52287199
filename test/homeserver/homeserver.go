// Package homeserver starts whole servers of ours for tests: in the test's process or as a process of their own
// that can be killed, over TLS with a local authority, on SQLite or PostgreSQL, all on loopback addresses. It
// also has a plain client, and a peer that signs what it is told to, for what no good client or server sends.
package homeserver

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"chancery/clientapi"
	"chancery/cmd/chancery/serve"
	"chancery/config"
	"chancery/endpoint"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/conformance"
	"chancery/test/port"
)

// Options say what server to start.
type Options struct {
	CA       *CA               // nil: one of its own
	Name     string            // the address at which peers find it, when something stands between; empty: its listener
	Database string            // postgres://...; empty: SQLite
	Settings map[string]string // further settings as environment variables: "CHANCERY_NATS_URL"
	Process  bool              // a process of its own, as an operator runs it
	Trace    func(string)      // told every SQL statement; not of a process
}

// Server is a whole server of ours. It keeps its ports and data over Stop, Kill and Start.
type Server struct {
	Name    string // the server name, with the port at which peers find it
	Listens string // the address of its federation listener
	URL     string // of the client-server API
	Dir     string // its data
	CA      *CA
	Options Options
	Config  *config.Config
	t       testing.TB
	env     []string
	log     *os.File
	client  *http.Client
	took    time.Duration
	stop    context.CancelFunc // of a server in this process; nil while it is down
	ended   <-chan error
	process *os.Process
}

// EachEngine runs a test on SQLite and on PostgreSQL. fresh gives a new database as Options want it.
func EachEngine(t *testing.T, test func(t *testing.T, fresh func() string)) {
	t.Helper()
	sqltest.Each(t, func(t *testing.T, options func() sql.Options) {
		test(t, func() string { return options().URL })
	})
}

// Start starts a server and waits until clients are answered. It ends with the test.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	if o.CA == nil {
		o.CA = NewCA(t)
	}
	federation, client := port.Free(t), port.Free(t)
	s := &Server{Listens: "127.0.0.1:" + federation, URL: "http://127.0.0.1:" + client, Dir: filepath.Join(t.TempDir(), "data"),
		CA: o.CA, Options: o, t: t}
	s.Name = cmp.Or(o.Name, s.Listens)
	cert, key := o.CA.Issue(t)
	settings := map[string]string{
		"CHANCERY_SERVER_NAME":                        s.Name,
		"CHANCERY_DATA_DIR":                           s.Dir,
		"CHANCERY_CLIENT_LISTEN":                      "127.0.0.1:" + client,
		"CHANCERY_CLIENT_PUBLIC_URL":                  s.URL,
		"CHANCERY_FEDERATION_LISTEN":                  s.Listens,
		"CHANCERY_FEDERATION_TLS_CERT":                cert,
		"CHANCERY_FEDERATION_TLS_KEY":                 key,
		"CHANCERY_FEDERATION_TRUSTED_CA":              o.CA.File,
		"CHANCERY_FEDERATION_ALLOW_PRIVATE_ADDRESSES": "true",
		"CHANCERY_FEDERATION_RETRY_MIN":               "1s",
		"CHANCERY_REGISTRATION_OPEN":                  "true",
		"CHANCERY_PASSWORDS_COST":                     "low",
		"CHANCERY_RATE_LIMITS_ENABLED":                "false",
		"CHANCERY_DATABASE_URL":                       o.Database,
	}
	maps.Copy(settings, o.Settings)
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		s.env = append(s.env, name+"="+settings[name])
	}
	var err error
	if s.Config, err = config.Load(config.Source{Environ: s.env}); err != nil {
		t.Fatal(err)
	}
	if s.log, err = os.Create(filepath.Join(t.TempDir(), "log")); err != nil {
		t.Fatal(err)
	}
	s.client = &http.Client{Transport: s.transport(), Timeout: 2 * time.Minute}
	t.Cleanup(func() {
		s.client.CloseIdleConnections()
		if s.Running() {
			s.Stop()
		}
		s.showLog()
		s.log.Close()
	})
	s.Start()
	return s
}

// Other is a server that is not ours, as its clients see it: whoever started it stops it.
func Other(t testing.TB, name, url string) *Server {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy = nil
	transport.MaxIdleConnsPerHost = 64
	s := &Server{Name: name, URL: url, t: t, client: &http.Client{Transport: transport, Timeout: 2 * time.Minute}}
	t.Cleanup(s.client.CloseIdleConnections)
	return s
}

// Running says whether the server is up.
func (s *Server) Running() bool { return s.stop != nil || s.process != nil }

// Start starts the server again after Stop or Kill.
func (s *Server) Start() {
	s.t.Helper()
	began := time.Now()
	if err := s.TryStart(); err != nil {
		s.t.Fatalf("start %s: %v", s.Name, err)
	}
	s.took = time.Since(began)
}

// Took is the time from the last start to the first answer.
func (s *Server) Took() time.Duration { return s.took }

// TryStart is Start for a server that may refuse to.
func (s *Server) TryStart() error {
	if s.Options.Process {
		return s.startProcess()
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	core := zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), zapcore.Lock(s.log), zapcore.InfoLevel)
	go func() {
		ended <- serve.Run(ctx, serve.Options{Config: s.Config, Release: "0.0.0-test", Log: zap.New(core), Trace: s.Options.Trace,
			Around: s.around, Ready: func(serve.Addresses) { close(ready) }})
	}()
	select {
	case err := <-ended:
		cancel()
		return fmt.Errorf("the server ended: %w", err)
	case <-ready:
		s.stop, s.ended = cancel, ended
		return nil
	case <-time.After(startTime):
		cancel()
		return fmt.Errorf("the server was not ready after %v", startTime)
	}
}

// around holds each answer of both APIs against the specification.
func (s *Server) around(api string, routes []endpoint.Route, prefixes map[string]string, next http.Handler) http.Handler {
	return conformance.Middleware(s.t, conformance.Load(s.t, api), routes, prefixes)(next)
}

// What a test waits for a server to start or to end, and what the contract gives it to end: the machine may have
// more to do, so more than that is told and fails nothing.
const (
	startTime = 2 * time.Minute
	endTime   = time.Minute
	stopTime  = 5 * time.Second
)

// Stop ends the server as SIGTERM does.
func (s *Server) Stop() {
	s.t.Helper()
	s.client.CloseIdleConnections()
	began := time.Now()
	if s.process != nil {
		s.endProcess(os.Signal(terminate))
	} else if s.stop != nil {
		s.stop()
		s.stop = nil
		select {
		case err := <-s.ended:
			if err != nil {
				s.t.Errorf("%s ended: %v", s.Name, err)
			}
		case <-time.After(endTime):
			s.t.Fatalf("%s does not stop", s.Name)
		}
	}
	if took := time.Since(began); took > stopTime {
		s.t.Logf("%s took %v to stop, %v are allowed", s.Name, took, stopTime)
	}
}

// Restart is Stop and Start.
func (s *Server) Restart() {
	s.t.Helper()
	s.Stop()
	s.Start()
}

// Log is what the server has logged so far.
func (s *Server) Log() string {
	text, err := os.ReadFile(s.log.Name())
	if err != nil {
		s.t.Fatal(err)
	}
	return string(text)
}

// showLog tells the end of the log beside a test that failed, and a panic always.
func (s *Server) showLog() {
	text := s.Log()
	if i := strings.Index(text, "panic"); i >= 0 {
		s.t.Errorf("%s panicked: %.4000s", s.Name, text[i:])
	} else if s.t.Failed() {
		s.t.Logf("the last lines of %s:\n%s", s.Name, text[max(0, len(text)-6000):])
	}
}

// transport checks the answers of a process, around which no middleware can stand.
func (s *Server) transport() http.RoundTripper {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.Proxy = nil
	t.MaxIdleConnsPerHost = 64
	if !s.Options.Process {
		return t
	}
	return conformance.Transport(s.t, conformance.Load(s.t, endpoint.ClientServer), (&clientapi.Server{Config: s.Config}).Routes(), clientapi.OldPaths, t)
}

// HTTP is a client for this server; every answer it gets is held against the specification.
func (s *Server) HTTP() *http.Client { return s.client }
