package endpoint

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strings"
	"time"

	"go.uber.org/zap"

	"chancery"
)

// API is a table with what is common to its rows.
type API struct {
	Routes []Route
	// Auth authenticates every row but those of AuthFor.
	Auth Authenticator
	// AuthFor has the Authenticator of a further Route.API in the same table.
	AuthFor map[string]Authenticator
	// Prefixes are older names of paths: "/_matrix/client/r0/" for "/_matrix/client/v3/".
	Prefixes map[string]string
	// CORS lets pages of any origin call, as the client-server API demands.
	CORS bool
	// Limits is the rate limiter; nil limits nothing.
	Limits *Limits
	// Metrics counts; nil counts nothing.
	Metrics *Metrics
	// Proxies are whom we believe an X-Forwarded-For.
	Proxies []netip.Prefix
	// Timeout bounds every request but long polls. 0 is DefaultTimeout.
	Timeout time.Duration
	// Slow is from when on a request is worth a line at level info. 0 is five seconds.
	Slow time.Duration
	// Log may be nil.
	Log *zap.Logger
}

type server struct {
	API
	tree   *tree
	bodies bodies
}

// New makes the handler of an API. A table that contradicts itself is a mistake in the
// program and panics.
func New(api API) http.Handler {
	s := &server{API: api, tree: &tree{}}
	if s.Log == nil {
		s.Log = zap.NewNop()
	}
	if s.Timeout == 0 {
		s.Timeout = DefaultTimeout
	}
	if s.Slow == 0 {
		s.Slow = 5 * time.Second
	}
	byID := map[string]*Route{}
	for i := range s.Routes {
		byID[s.Routes[i].Operation()] = &s.Routes[i]
	}
	for i := range s.Routes {
		if err := s.add(&s.Routes[i], byID); err != nil {
			panic("endpoint: " + err.Error())
		}
	}
	return s
}

func (s *server) add(r *Route, byID map[string]*Route) error {
	if r.AnsweredBy != "" {
		by := byID[Route{API: r.API, ID: r.AnsweredBy}.Operation()]
		if by == nil || by.Method != r.Method || by.Path != r.Path {
			return fmt.Errorf("%s is answered by %s, which has another method or path", r.Operation(), r.AnsweredBy)
		}
		return nil
	}
	if !r.Handler.planned && r.Handler.call == nil && r.Handler.raw == nil {
		return fmt.Errorf("%s has no handler", r.Operation())
	}
	switch r.Auth {
	case None:
	case Optional, User, UserOrGuest, AppService, ServerSignature:
		if !r.Handler.planned && s.authFor(r) == nil {
			return fmt.Errorf("%s wants authentication and there is none", r.Operation())
		}
	default:
		return fmt.Errorf("%s: unknown auth %q", r.Operation(), r.Auth)
	}
	if err := r.Handler.input.check(r); err != nil {
		return err
	}
	return s.tree.addAll(r, s.Prefixes)
}

// check finds a path tag that no path of the row has.
func (p *plan) check(r *Route) error {
	if p == nil {
		return nil
	}
	for _, param := range p.params {
		if param.from == fromPath && !strings.Contains(r.Path, "{"+param.name+"}") {
			return fmt.Errorf("%s: %s wants {%s}, which the path has not", r.Operation(), p.typ, param.name)
		}
	}
	return nil
}

func (s *server) authFor(r *Route) Authenticator {
	if a := s.AuthFor[r.API]; a != nil {
		return a
	}
	return s.Auth
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	rec := &recorder{ResponseWriter: w}
	rec.Header().Set("X-Content-Type-Options", "nosniff")
	if s.CORS {
		setCORS(rec.Header())
		// spec: c2s#web-browser-clients (no logic of the endpoint for OPTIONS)
		if r.Method == http.MethodOptions {
			rec.WriteHeader(http.StatusOK)
			return
		}
	}
	m, values, allowed, err := s.tree.find(rowMethod(r.Method), r.URL.EscapedPath())
	switch {
	case err != nil:
	case m == nil && len(allowed) > 0:
		rec.Header().Set("Allow", strings.Join(allowed, ", "))
		err = chancery.Errorf(http.StatusMethodNotAllowed, chancery.CodeUnrecognized, "unrecognized request: wrong method")
	case m == nil || m.route.Planned():
		err = chancery.Unrecognized()
	}
	if err != nil {
		renderError(rec, err)
		s.done(nil, r, rec, start, err)
		return
	}
	ctx := context.WithValue(r.Context(), routeKey{}, m.route)
	if !m.route.LongPoll {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Timeout)
		defer cancel()
	}
	r = r.WithContext(ctx)
	err = s.serve(rec, r, m.route, pathValues{m.names, values})
	if err != nil {
		err = s.fail(rec, r, err)
	}
	s.done(m.route, r, rec, start, err)
}

// fail renders an error, if there is still something to render it into.
func (s *server) fail(w *recorder, r *http.Request, err error) error {
	if w.status != 0 {
		return err
	}
	if errors.Is(err, context.Canceled) && r.Context().Err() != nil {
		w.status = statusClientGone
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) && r.Context().Err() != nil {
		err = chancery.Errorf(http.StatusGatewayTimeout, chancery.CodeUnknown, "the request took too long").Because(err)
	}
	renderError(w, err)
	return err
}

// serve is a request's way through its row.
func (s *server) serve(w *recorder, r *http.Request, route *Route, values pathValues) (err error) {
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			s.Log.Error("request panicked", zap.String("operation", route.Operation()), zap.Any("panic", p), zap.ByteString("stack", debug.Stack()))
			err = chancery.Internal(fmt.Errorf("panic: %v", p))
		}
	}()
	ctx := r.Context()
	address := ClientIP(r, s.Proxies)
	var body []byte
	held := &held{bodies: &s.bodies, network: network(address)}
	defer held.done()
	// A server's signature covers the body, so it is read first; a client's is read only
	// when we know whose it is. Checking the signature may mean asking a server for its keys,
	// so the limit, by address, comes before.
	if route.Auth == ServerSignature {
		if err := s.Limits.allow(route.Limit, Caller{IP: address}); err != nil {
			return err
		}
		if body, err = s.readBody(w, r, route, held); err != nil {
			return err
		}
	}
	caller, err := s.authenticate(ctx, r, route, body)
	if err != nil {
		return err
	}
	caller.IP, caller.UserAgent = address, r.UserAgent()
	if route.Auth != ServerSignature {
		if err := s.Limits.allow(route.Limit, caller); err != nil {
			return err
		}
	}
	if route.Handler.raw != nil {
		for i, name := range values.names {
			r.SetPathValue(name, values.values[i])
		}
		if body != nil {
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		return route.Handler.raw(w, r, caller)
	}
	if route.Auth != ServerSignature && len(route.Handler.input.bodies) > 0 {
		if body, err = s.readBody(w, r, route, held); err != nil {
			return err
		}
	}
	in, err := route.Handler.input.decode(r, values, caller, body)
	if err != nil {
		return err
	}
	out, err := route.Handler.call(ctx, in)
	if err != nil {
		return err
	}
	return render(w, out)
}

// readBody bounds the body in bytes and in time.
func (s *server) readBody(w http.ResponseWriter, r *http.Request, route *Route, held *held) ([]byte, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(s.Timeout)) // not every connection has deadlines
	body, err := readBody(w, r, route.MaxBody, held)
	_ = control.SetReadDeadline(time.Time{})
	return body, err
}

func (s *server) authenticate(ctx context.Context, r *http.Request, route *Route, body []byte) (Caller, error) {
	switch route.Auth {
	case None:
		return Caller{}, nil
	case ServerSignature:
		return s.authFor(route).Authenticate(ctx, r, body)
	}
	if _, ok := AccessToken(r); !ok {
		if route.Auth == Optional {
			return Caller{}, nil
		}
		return Caller{}, chancery.MissingToken()
	}
	caller, err := s.authFor(route).Authenticate(ctx, r, nil)
	if err != nil {
		return Caller{}, err
	}
	if route.Auth == User && caller.Guest {
		return Caller{}, chancery.Errorf(http.StatusForbidden, chancery.CodeGuestAccessForbidden, "guests may not do this")
	}
	if route.Auth == AppService && caller.AppService == "" {
		return Caller{}, chancery.Forbidden("only an application service may do this")
	}
	return caller, nil
}
