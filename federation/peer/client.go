package peer

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"go.uber.org/zap"

	"chancery"
)

// Options say who we are and whom we trust. Only ServerName and Key have to be set.
type Options struct {
	ServerName string
	Key        SigningKey

	TrustedCA    []string       // files of certificates trusted beside the system's
	RootCAs      *x509.CertPool // instead of the system's and TrustedCA
	AllowPrivate bool           // lift the guard against private addresses
	RetryMin     time.Duration  // the first wait after a failure; 30 s
	UserAgent    string
	Log          *zap.Logger
	Resolver     Resolver          // nil: the system's
	Changed      func(Destination) // told of every change of a destination's back-off; may be nil
}

// Client sends signed requests to other servers.
type Client struct {
	name      string
	key       SigningKey
	agent     string
	log       *zap.Logger
	guard     *Guard
	discovery *Discovery
	tls       *tls.Config
	transport *http.Transport
	plain     *http.Client // .well-known's kind of request: unsigned, to where a URL says
	backoff   *backoff
	now       func() time.Time
}

// New makes a client. It fails when a file of TrustedCA cannot be read.
func New(o Options) (*Client, error) {
	roots := o.RootCAs
	if roots == nil {
		var err error
		if roots, err = trusted(o.TrustedCA); err != nil {
			return nil, err
		}
	}
	if o.RetryMin <= 0 {
		o.RetryMin = 30 * time.Second
	}
	if o.UserAgent == "" {
		o.UserAgent = "Chancery"
	}
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Resolver == nil {
		o.Resolver = net.DefaultResolver
	}
	c := &Client{name: o.ServerName, key: o.Key, agent: o.UserAgent, log: o.Log, now: time.Now}
	clock := func() time.Time { return c.now() }
	c.guard = &Guard{AllowPrivate: o.AllowPrivate, Resolver: o.Resolver}
	c.tls = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12, ClientSessionCache: tls.NewLRUClientSessionCache(1024)}
	plain := &http.Transport{
		DialContext: c.guard.DialContext, TLSClientConfig: c.tls.Clone(), TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2: true, MaxIdleConns: 64, IdleConnTimeout: 10 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second, MaxResponseHeaderBytes: 64 << 10,
	}
	c.plain = &http.Client{Transport: plain, CheckRedirect: httpsOnly}
	c.discovery = &Discovery{
		resolver: o.Resolver, known: newWellKnown(plain, clock), routes: newBounded[cachedRoute](maxNames), now: clock,
	}
	c.transport = &http.Transport{
		DialTLSContext:    c.dial,
		ForceAttemptHTTP2: true, MaxIdleConns: 1000, MaxIdleConnsPerHost: 4, IdleConnTimeout: 90 * time.Second,
		MaxResponseHeaderBytes: 64 << 10,
		// A peer that was unplugged leaves no trace on an idle connection but silence.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 20 * time.Second, PingTimeout: 10 * time.Second},
	}
	c.backoff = newBackoff(o.RetryMin, o.Changed, clock)
	return c, nil
}

func trusted(files []string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool() // honours SSL_CERT_FILE
	if err != nil {
		pool = x509.NewCertPool()
	}
	for _, file := range files {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read trusted_ca: %w", err)
		}
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("trusted_ca %s holds no certificate", file)
		}
	}
	return pool, nil
}

func httpsOnly(req *http.Request, via []*http.Request) error {
	if len(via) > wellKnownRedirects {
		return errors.New("too many redirects")
	}
	if req.URL.Scheme != "https" {
		return errors.New("redirect away from https")
	}
	return nil
}

// Close drops the idle connections.
func (c *Client) Close() {
	c.transport.CloseIdleConnections()
	c.plain.CloseIdleConnections()
}

// Guard is the one this client dials through.
func (c *Client) Guard() *Guard { return c.guard }

// Discovery finds servers for this client.
func (c *Client) Discovery() *Discovery { return c.discovery }

// HeardFrom says that server has just made a request to us that we could authenticate.
func (c *Client) HeardFrom(server string) { c.backoff.heard(server) }

// Destination gives the back-off state of server.
func (c *Client) Destination(server string) Destination {
	d, _ := c.backoff.failing.get(server)
	d.Server = server
	return d
}

// Restore puts back what Options.Changed was told before a restart.
func (c *Client) Restore(destinations []Destination) {
	for _, d := range destinations {
		if d.Failures > 0 || c.now().Before(d.RetryAt) {
			c.backoff.failing.set(d.Server, d)
		}
	}
}

// Connections are kept per server name and the route by which it was found, and never shared between two
// names, whatever host they lead to. A server that moves is reached at its new place by the next request,
// though the connection to the old one still stands. The mark of the route goes before port 0, which no server
// name has; its dot and the hexadecimal digits are letters that a URL's host may have.
const routeMark = ".route-"

func urlHost(server string, route Route) string {
	host, port, _ := SplitServerName(server)
	if port != "" {
		return server // nothing that DNS or .well-known could change
	}
	if _, isIP := ipLiteral(host); isIP {
		return server + ":0"
	}
	addresses := slices.Sorted(slices.Values(route.Addresses)) // those of SRV come in any order
	h := fnv.New64a()
	fmt.Fprintf(h, "%q %q %q", addresses, route.Host, route.CertName)
	return fmt.Sprintf("%s%s%x:0", server, routeMark, h.Sum64())
}

// serverOf undoes urlHost.
func serverOf(address string) string {
	server, unnamed := strings.CutSuffix(address, ":0")
	if unnamed {
		if i := strings.LastIndex(server, routeMark); i >= 0 {
			server = server[:i]
		}
	}
	return server
}

// dial connects to a server by its name and checks its certificate.
//
// spec: s2s#resolving-server-names
func (c *Client) dial(ctx context.Context, network, address string) (net.Conn, error) {
	server := serverOf(address)
	route, err := c.discovery.Resolve(ctx, server)
	if err != nil {
		return nil, err
	}
	config := c.tls.Clone()
	config.ServerName = route.CertName // for an IP address crypto/tls sends no SNI, as the specification wants
	config.NextProtos = []string{"h2", "http/1.1"}
	var firstErr error
	for _, target := range route.Addresses {
		conn, err := c.dialTLS(ctx, network, target, config)
		if err == nil {
			return conn, nil
		}
		if firstErr == nil {
			firstErr = err
		}
		if ctx.Err() != nil {
			return nil, firstErr
		}
	}
	c.discovery.forget(server) // its records may have changed
	return nil, firstErr
}

func (c *Client) dialTLS(ctx context.Context, network, target string, config *tls.Config) (net.Conn, error) {
	raw, err := c.guard.DialContext(ctx, network, target)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn := tls.Client(raw, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

// Opts change how one request is made. The zero value is right for most.
type Opts struct {
	Timeout       time.Duration // for the whole request; 30 s, of a stream 10 min
	MaxBytes      int64         // of the answer; 10 MiB, of a stream 256 MiB
	IgnoreBackoff bool          // ask even if the destination failed lately
	Unsigned      bool          // for the few endpoints that take no authentication

	mustAccept bool // anything but a success whose body is what we asked for is a failure of the destination
}

const (
	defaultTimeout   = 30 * time.Second
	defaultMaxBytes  = 10 << 20
	streamTimeout    = 10 * time.Minute
	streamMaxBytes   = 256 << 20
	stallTimeout     = 60 * time.Second // for the next stallBytes of a stream
	stallBytes       = 64 << 10
	maxErrorBody     = 64 << 10
	defaultRateLimit = 5 * time.Second // after a 429 that does not say how long
	leastRateLimit   = time.Second
)

// Do makes a request and decodes the answer into out, unless that is nil. path is escaped and
// may carry a query; body is nil or becomes JSON. Every error is a *Error.
func (c *Client) Do(ctx context.Context, destination, method, path string, body, out any, o Opts) error {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = defaultMaxBytes
	}
	started := c.now()
	answer, err := c.Stream(ctx, destination, method, path, body, o)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err == nil && out != nil {
		if err = Decode(text, out); err != nil {
			err = fmt.Errorf("decode the answer: %w", err)
		}
	}
	switch {
	case err == nil && o.mustAccept:
		c.backoff.succeed(destination)
	case err != nil && o.mustAccept && ctx.Err() == nil:
		// A proxy's page with status 200 is no word of the peer's: to go on at once would be to go on for ever.
		c.failed(destination, started, err)
	}
	if err != nil {
		return unreachable(destination, err)
	}
	return nil
}

// Answer is a success whose body is still on the way. The caller closes Body, and reads no more
// than its limit from it: beyond stands ErrAnswerTooLarge.
type Answer struct {
	Header http.Header
	Body   io.ReadCloser
}

// Stream makes a request and leaves the answer's body to the caller.
func (c *Client) Stream(ctx context.Context, destination, method, path string, body any, o Opts) (*Answer, error) {
	if o.Timeout == 0 {
		o.Timeout = streamTimeout
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = streamMaxBytes
	}
	if !ValidServerName(destination) {
		return nil, &Error{Destination: destination, visible: chancery.InvalidParam("%.100q is not a valid server name", destination)}
	}
	if destination == c.name {
		return nil, unreachable(destination, errors.New("that is this server"))
	}
	if until, wait := c.backoff.waiting(destination); wait && !o.IgnoreBackoff {
		return nil, backedOff(destination, until)
	}
	started := c.now()
	limited, cancel := context.WithTimeout(ctx, o.Timeout)
	res, err := c.send(limited, destination, method, path, body, o)
	if err != nil {
		cancel()
		if ctx.Err() == nil { // else our caller gave up, not the peer
			c.failed(destination, started, err)
		}
		return nil, unreachable(destination, err)
	}
	if res.StatusCode >= 200 && res.StatusCode < 300 {
		if !o.mustAccept { // else the body decides
			c.backoff.succeed(destination)
		}
		return &Answer{Header: res.Header, Body: newLimitedBody(res.Body, o.MaxBytes, stallTimeout, cancel)}, nil
	}
	defer cancel()
	defer res.Body.Close()
	failure := refusal(destination, res)
	switch {
	case res.StatusCode == http.StatusTooManyRequests:
		c.backoff.pause(destination, retryAfter(res.Header, failure, c.now()))
	case failure.Code == chancery.CodeNotYetUploaded: // 504 is what the spec has for it: the server is well
		c.backoff.succeed(destination)
	case o.mustAccept || res.StatusCode >= 502 && res.StatusCode <= 504:
		c.failed(destination, started, failure)
	default:
		c.backoff.succeed(destination)
	}
	return nil, failure
}

func (c *Client) failed(destination string, started time.Time, err error) {
	failures := c.backoff.fail(destination, started)
	c.log.Debug("request to a peer failed", zap.String("server", destination), zap.Error(err))
	var refused *tls.CertificateVerificationError
	if failures == 1 && errors.As(err, &refused) { // people can mend this one: here or there
		c.log.Warn("the certificate of a peer is not accepted", zap.String("server", destination),
			zap.String("why", certificateFault(refused, c.now())))
	}
}

// certificateFault says what is wrong with a certificate in words for whoever has to renew it.
func certificateFault(refused *tls.CertificateVerificationError, now time.Time) string {
	var invalid x509.CertificateInvalidError
	if errors.As(refused, &invalid) && invalid.Reason == x509.Expired && invalid.Cert != nil {
		if now.Before(invalid.Cert.NotBefore) {
			return "it is not valid before " + invalid.Cert.NotBefore.UTC().Format(time.RFC3339)
		}
		return "it expired at " + invalid.Cert.NotAfter.UTC().Format(time.RFC3339)
	}
	return refused.Err.Error()
}

// send builds the request, signs exactly what goes over the wire, and sends it.
func (c *Client) send(ctx context.Context, destination, method, path string, body any, o Opts) (*http.Response, error) {
	route, err := c.discovery.Resolve(ctx, destination)
	if err != nil {
		return nil, err
	}
	target, err := url.Parse("https://" + urlHost(destination, route) + path)
	if err != nil {
		return nil, err
	}
	content, err := encode(body)
	if err != nil {
		return nil, err
	}
	var reader io.Reader
	if content != nil {
		reader = bytes.NewReader(content)
	}
	reused := false
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { reused = c.Reused }})
	req, err := http.NewRequestWithContext(traced, method, target.String(), reader)
	if err != nil {
		return nil, err
	}
	req.URL, req.Host = target, route.Host
	req.Header.Set("User-Agent", c.agent)
	if content != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !o.Unsigned {
		req.Header.Set("Authorization", SignRequest(c.key, c.name, destination, method, target.RequestURI(), content))
	}
	if method == http.MethodPut {
		// Every PUT of the server-server API names what it puts: sent again over a new connection
		// it does no harm. The header itself is not sent when it has no value.
		req.Header["Idempotency-Key"] = nil
	}
	res, err := c.transport.RoundTrip(req) // which follows no redirects
	// A kept connection may die in the middle of what we write; the transport repeats only what it has not begun.
	died := errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF)
	if died && reused && (method == http.MethodPut || method == http.MethodGet) {
		if content != nil {
			req.Body = io.NopCloser(bytes.NewReader(content))
		}
		return c.transport.RoundTrip(req)
	}
	return res, err
}

func encode(body any) ([]byte, error) {
	if body == nil {
		return nil, nil
	}
	plain, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return CanonicalJSON(plain)
}

// refusal reads the error that an answer carries.
//
// spec: c2s#standard-error-response
func refusal(destination string, res *http.Response) *Error {
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxErrorBody))
	members := map[string]any{}
	_ = json.Unmarshal(text, &members) // a proxy's error page has none
	code, _ := members["errcode"].(string)
	message, _ := members["error"].(string)
	delete(members, "errcode")
	delete(members, "error")
	return answered(destination, res.StatusCode, chancery.Code(code), message, members)
}

// retryAfter reads how long a peer wants to be left alone: never less than a moment, or one that always says
// "now" would be asked as fast as it answers.
//
// spec: c2s#rate-limiting
func retryAfter(h http.Header, failure *Error, now time.Time) time.Duration {
	wait := defaultRateLimit
	at, dateErr := http.ParseTime(h.Get("Retry-After"))
	seconds, err := strconv.ParseUint(h.Get("Retry-After"), 10, 32)
	ms, ok := failure.visible.Extra["retry_after_ms"].(float64)
	switch {
	case err == nil:
		wait = time.Duration(seconds) * time.Second
	case dateErr == nil:
		wait = at.Sub(now)
	case ok:
		wait = time.Duration(min(ms, float64(retryMax.Milliseconds()))) * time.Millisecond
	}
	return max(wait, leastRateLimit)
}

// limitedBody ends a stream that is too long, or that has stalled: one that comes in drops would hold up what waits for
// it as long as its sender likes.
type limitedBody struct {
	body    io.ReadCloser
	left    int64
	stall   *time.Timer
	patient time.Duration
	came    int64 // since the timer was set
	cancel  context.CancelFunc
}

func newLimitedBody(body io.ReadCloser, limit int64, patient time.Duration, cancel context.CancelFunc) *limitedBody {
	return &limitedBody{body: body, left: limit, patient: patient, stall: time.AfterFunc(patient, cancel), cancel: cancel}
}

func (b *limitedBody) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.body.Read(p)
	if b.came += int64(n); b.came >= stallBytes {
		b.came = 0
		b.stall.Reset(b.patient)
	}
	if int64(n) > b.left {
		n, b.left = int(b.left), 0
		return n, ErrAnswerTooLarge
	}
	b.left -= int64(n)
	return n, err
}

func (b *limitedBody) Close() error {
	b.stall.Stop()
	b.cancel()
	return b.body.Close()
}
