package peer

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"chancery"
)

// maxHeaders bounds the signatures that one request can make us check.
const maxHeaders = 4

// Request is what of an inbound request its signature covers.
type Request struct {
	Method        string
	URI           string   // the request target as it came over the wire: http.Request.RequestURI
	Body          []byte   // empty where there was none
	Authorization []string // all Authorization headers
}

// VerifyRequest says which server made a request, once its signature holds. That server is up,
// so its back-off ends. Everything but a body that is no JSON is refused with 401 M_UNAUTHORIZED; a server
// never seen may have to wait while the keys of many others are being fetched.
//
// spec: s2s#request-authentication
func (r *KeyRing) VerifyRequest(ctx context.Context, in Request) (origin string, err error) {
	var claims []XMatrix
	for _, header := range in.Authorization {
		x, err := ParseAuthorization(header)
		if err != nil {
			return "", chancery.Unauthorized("the Authorization header is not that of a server").Because(err)
		}
		claims = append(claims, x)
	}
	if len(claims) == 0 || len(claims) > maxHeaders {
		return "", chancery.Unauthorized("the request must be signed by a server")
	}
	origin, destination := claims[0].Origin, claims[0].Destination
	for _, x := range claims {
		if x.Origin != origin || x.Destination != destination {
			return "", chancery.Unauthorized("the Authorization headers contradict each other")
		}
	}
	if destination != "" && destination != r.own.ServerName {
		return "", chancery.Unauthorized("the request is for another server than %s", r.own.ServerName)
	}
	var content []byte
	if len(in.Body) > 0 {
		if content, err = CanonicalJSON(in.Body); err != nil {
			return "", chancery.NotJSON("the body is not JSON").Because(err)
		}
	}
	payload := requestPayload(in.Method, in.URI, origin, destination, content)
	signatures := map[string]string{}
	for _, x := range claims {
		signatures[x.Key] = x.Signature
	}
	now := r.now()
	good := func(k ServerKey) bool { return k.signsRequests(now) }
	if err := r.check(ctx, origin, payload, signatures, now, good, true); errors.Is(err, errStrangers) {
		return "", chancery.LimitExceeded(fetchPause).Because(err)
	} else if err != nil {
		return "", chancery.Unauthorized("the request's signature could not be verified").Because(err)
	}
	r.client.HeardFrom(origin)
	return origin, nil
}

// VerifyJSON checks that server signed a JSON object with a key valid at the given time.
//
// spec: appendices#checking-for-a-signature
func (r *KeyRing) VerifyJSON(ctx context.Context, server string, object []byte, at time.Time) error {
	payload, signatures, _, err := signedPart(object)
	if err != nil {
		return err
	}
	good := func(k ServerKey) bool { return k.validAt(at) }
	return r.check(ctx, server, payload, signatures[server], at, good, false)
}

// check wants one signature that holds, with a key that is good.
func (r *KeyRing) check(ctx context.Context, server string, payload []byte, signatures map[string]string, at time.Time, good func(ServerKey) bool, speaking bool) error {
	ids := ed25519Only(signatures)
	if len(ids) == 0 {
		return fmt.Errorf("%w: %s did not sign", errNoKey, server)
	}
	keys, err := r.obtain(ctx, server, need{ids: ids, until: at, speaking: speaking, anyone: speaking, met: func(keys map[string]ServerKey) bool {
		return slices.ContainsFunc(ids, func(id string) bool { k, ok := keys[id]; return ok && good(k) })
	}})
	found := false
	for _, id := range ids {
		if key, ok := keys[id]; ok && good(key) {
			if verify(key.Public, payload, signatures[id]) {
				return nil
			}
			found = true
		}
	}
	switch {
	case found:
		return fmt.Errorf("the signature of %s is false", server)
	case err == nil:
		err = errNoKey
	}
	return fmt.Errorf("check the signature of %s: %w", server, err)
}

// SignedThing is something a server must have signed: an event, mostly.
type SignedThing struct {
	Server     string
	Payload    []byte            // the bytes that are signed
	Signatures map[string]string // of Server, by key ID

	// At is when it was signed by its own word. The key must have been valid then if
	// EnforceValidity, which room versions from 5 on ask for.
	// spec: rooms/v5#signing-key-validity-period
	At              time.Time
	EnforceValidity bool
}

func (s *SignedThing) good(k ServerKey) bool { return !s.EnforceValidity || k.validAt(s.At) }

// usable gives a signature whose key is among keys and good.
func (s *SignedThing) usable(keys map[string]ServerKey) bool {
	for id := range s.Signatures {
		if key, ok := keys[id]; ok && s.good(key) {
			return true
		}
	}
	return false
}

// ErrBadSignature is the cause when a signature was checked and is false, or there is none:
// asking again cannot help, as it may when the key could not be fetched.
var ErrBadSignature = errors.New("bad signature")

const parallelFetches = 64

// VerifyEvents checks many things: each server's keys are fetched once and side by side, then the
// signatures are checked on all cores, a few at a time in turn with whatever else is being checked: no
// number of servers that send at once keeps our users from the processors. The errors stand in the places
// of the things.
func (r *KeyRing) VerifyEvents(ctx context.Context, things []SignedThing) []error {
	byServer := map[string][]*SignedThing{}
	for i := range things {
		byServer[things[i].Server] = append(byServer[things[i].Server], &things[i])
	}
	keys := r.keysFor(ctx, byServer)
	errs := make([]error, len(things))
	var next atomic.Int64
	var workers sync.WaitGroup
	const share = 32 // things taken at a time: a signature takes about 60 µs
	for range min(runtime.GOMAXPROCS(0), (len(things)+share-1)/share) {
		workers.Go(func() {
			for ctx.Err() == nil {
				from := int(next.Add(share)) - share
				if from >= len(things) {
					return
				}
				r.cores <- struct{}{}
				for i := from; i < min(from+share, len(things)); i++ {
					of := keys[things[i].Server]
					errs[i] = things[i].verify(of.keys, of.err)
				}
				<-r.cores
			}
		})
	}
	workers.Wait()
	if err := ctx.Err(); err != nil {
		for i := range errs {
			errs[i] = err // some were not checked, and which ones is not known
		}
	}
	return errs
}

type keysOrError struct {
	keys map[string]ServerKey
	err  error
}

func (r *KeyRing) keysFor(ctx context.Context, byServer map[string][]*SignedThing) map[string]keysOrError {
	var mu sync.Mutex // guards found
	found := make(map[string]keysOrError, len(byServer))
	slots := make(chan struct{}, parallelFetches)
	var fetches sync.WaitGroup
	for server, things := range byServer {
		slots <- struct{}{}
		fetches.Go(func() {
			defer func() { <-slots }()
			keys, err := r.obtain(ctx, server, needOf(things))
			mu.Lock()
			defer mu.Unlock()
			found[server] = keysOrError{keys, err}
		})
	}
	fetches.Wait()
	return found
}

// needOf is what all things of one server need together. A thing that is not signed needs nothing.
func needOf(things []*SignedThing) need {
	var n need
	ids := map[string]bool{}
	for _, s := range things {
		for _, id := range ed25519Only(s.Signatures) {
			if !ids[id] && len(ids) < maxKeys {
				ids[id] = true
				n.ids = append(n.ids, id)
			}
		}
		if s.EnforceValidity && s.At.After(n.until) {
			n.until = s.At
		}
	}
	n.met = func(keys map[string]ServerKey) bool {
		return !slices.ContainsFunc(things, func(s *SignedThing) bool {
			return len(ed25519Only(s.Signatures)) > 0 && !s.usable(keys)
		})
	}
	return n
}

func (s *SignedThing) verify(keys map[string]ServerKey, fetching error) error {
	if len(ed25519Only(s.Signatures)) == 0 {
		return fmt.Errorf("%w: %s did not sign", ErrBadSignature, s.Server)
	}
	if !s.usable(keys) {
		if fetching == nil {
			fetching = errNoKey
		}
		return fmt.Errorf("check the signature of %s: %w", s.Server, fetching)
	}
	for id, signature := range s.Signatures {
		if key, ok := keys[id]; ok && s.good(key) && verify(key.Public, s.Payload, signature) {
			return nil
		}
	}
	return fmt.Errorf("%w of %s", ErrBadSignature, s.Server)
}
