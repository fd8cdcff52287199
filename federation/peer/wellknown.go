package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	wellKnownTimeout   = 5 * time.Second
	wellKnownSize      = 50 << 10
	wellKnownRedirects = 5

	// spec: s2s#resolving-server-names 3 recommends the default and the maximum.
	wellKnownDefault = 24 * time.Hour
	wellKnownMax     = 48 * time.Hour
	wellKnownMin     = 5 * time.Minute // no-store must not mean one request for each of ours

	wellKnownRetry    = time.Minute // after a failure, doubling
	wellKnownRetryMax = time.Hour
)

// wellKnown asks https://<host>/.well-known/matrix/server and remembers the answers, good and bad.
type wellKnown struct {
	client  *http.Client
	port    string // "" is 443; tests have no such port
	answers *bounded[wellKnownAnswer]
	now     func() time.Time
}

type wellKnownAnswer struct {
	server   string // empty: there is none
	until    time.Time
	fetched  time.Time // when server was learned
	failures int
}

func newWellKnown(transport http.RoundTripper, now func() time.Time) *wellKnown {
	return &wellKnown{
		client: &http.Client{
			Transport: transport,
			Timeout:   wellKnownTimeout,
			CheckRedirect: func(req *http.Request, via []*http.Request) error {
				if len(via) > wellKnownRedirects { // which also ends loops
					return errors.New("too many redirects")
				}
				if req.URL.Scheme != "https" {
					return errors.New("redirect away from https")
				}
				return nil
			},
		},
		answers: newBounded[wellKnownAnswer](maxNames),
		now:     now,
	}
}

// lookup gives the delegated server name of host, or "" if there is none, and until when that holds.
func (w *wellKnown) lookup(ctx context.Context, host string) (delegated string, until time.Time) {
	answer, found := w.answers.get(host)
	if found && w.now().Before(answer.until) {
		return answer.server, answer.until
	}
	server, lifetime, err := w.fetch(ctx, host)
	now := w.now()
	var gone *noDelegation
	switch {
	case err == nil:
		answer = wellKnownAnswer{server: server, fetched: now, until: now.Add(lifetime)}
	default:
		retry := min(wellKnownRetry<<min(answer.failures, 6), wellKnownRetryMax)
		answer.failures++
		answer.until = now.Add(retry)
		// A web server that is down for a while has not withdrawn the delegation.
		if errors.As(err, &gone) || now.Sub(answer.fetched) > wellKnownMax {
			answer.server = ""
		} else {
			answer.until = earlier(answer.until, answer.fetched.Add(wellKnownMax))
		}
	}
	w.answers.set(host, answer)
	return answer.server, answer.until
}

// noDelegation is an answer that says clearly that nothing is delegated.
type noDelegation struct{ why string }

func (e *noDelegation) Error() string { return e.why }

func (w *wellKnown) fetch(ctx context.Context, host string) (server string, lifetime time.Duration, err error) {
	authority := host
	if w.port != "" {
		authority += ":" + w.port
	}
	ctx, cancel := context.WithTimeout(ctx, wellKnownTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, "GET", "https://"+authority+"/.well-known/matrix/server", nil)
	if err != nil {
		return "", 0, err
	}
	req.Header.Set("Accept", "application/json")
	res, err := w.client.Do(req)
	if err != nil {
		return "", 0, err
	}
	defer res.Body.Close()
	if res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests {
		return "", 0, fmt.Errorf("status %d", res.StatusCode)
	}
	if res.StatusCode != http.StatusOK {
		return "", 0, &noDelegation{fmt.Sprintf("status %d", res.StatusCode)}
	}
	body, err := io.ReadAll(io.LimitReader(res.Body, wellKnownSize+1))
	if err != nil {
		return "", 0, err
	}
	if len(body) > wellKnownSize {
		return "", 0, &noDelegation{"answer too large"}
	}
	var answer struct {
		Server string `json:"m.server"`
	}
	if err := Decode(body, &answer); err != nil {
		return "", 0, &noDelegation{err.Error()}
	}
	if _, port, ok := SplitServerName(answer.Server); !ok || noPort(port) {
		return "", 0, &noDelegation{"m.server is not a valid server name"}
	}
	return answer.Server, cacheLifetime(res.Header, w.now()), nil
}

// cacheLifetime reads how long an answer may be kept, within our bounds.
func cacheLifetime(h http.Header, now time.Time) time.Duration {
	lifetime := wellKnownDefault
	if expires := h.Get("Expires"); expires != "" {
		lifetime = 0 // a malformed date means "already expired": RFC 9111, section 5.3
		if at, err := http.ParseTime(expires); err == nil {
			if date, err := http.ParseTime(h.Get("Date")); err == nil {
				now = date // their clock need not be ours
			}
			lifetime = at.Sub(now)
		}
	}
	for _, line := range h.Values("Cache-Control") {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch strings.ToLower(name) {
			case "no-store", "no-cache":
				return wellKnownMin
			case "max-age":
				seconds, err := strconv.ParseInt(strings.Trim(value, `"`), 10, 32)
				if err != nil {
					seconds = 0
				}
				lifetime = time.Duration(seconds) * time.Second
			}
		}
	}
	return max(wellKnownMin, min(lifetime, wellKnownMax))
}
