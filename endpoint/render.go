package endpoint

import (
	"bufio"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"strconv"
	"time"

	"go.uber.org/zap"

	"chancery"
)

// statusClientGone stands in logs and metrics for a client that did not wait; it is never sent.
const statusClientGone = 499

// recorder remembers what was answered.
type recorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (w *recorder) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *recorder) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach Flush and the deadlines.
func (w *recorder) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func setCORS(h http.Header) {
	// spec: c2s#web-browser-clients
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization")
	h.Set("Access-Control-Expose-Headers", "Retry-After, Content-Disposition")
}

func writeJSON(w http.ResponseWriter, status int, text []byte) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
	h.Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, err := w.Write(text)
	return err
}

// streamer is an answer in JSON that is too large to be held: it writes itself, piece by piece. What fails on the way
// ends the answer in the middle, which no reader takes for JSON.
type streamer interface {
	WriteJSON(w io.Writer) error
}

// stallTime is how long a receiver may take over one piece of a stream.
const stallTime = time.Minute

// stream sends pieces on as they are written; a receiver that takes nothing is given up.
type stream struct {
	w       *bufio.Writer
	control *http.ResponseController
}

func (s stream) Write(p []byte) (int, error) {
	_ = s.control.SetWriteDeadline(time.Now().Add(stallTime)) // not every connection has deadlines
	return s.w.Write(p)
}

func writeStream(w http.ResponseWriter, out streamer) error {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Cache-Control", "no-store")
	s := stream{bufio.NewWriterSize(w, 64<<10), http.NewResponseController(w)}
	defer func() { _ = s.control.SetWriteDeadline(time.Time{}) }()
	if err := out.WriteJSON(s); err != nil {
		return err
	}
	return s.w.Flush()
}

// render writes what a handler answered.
func render(w http.ResponseWriter, out any) error {
	if s, ok := out.(streamer); ok {
		return writeStream(w, s)
	}
	text, err := encode(out)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if s, ok := out.(interface{ Status() int }); ok {
		if n := s.Status(); n != 0 {
			status = n
		}
	}
	if h, ok := out.(interface{ Header(http.Header) }); ok {
		h.Header(w.Header())
	}
	return writeJSON(w, status, text)
}

// renderError is the one place where an error becomes an answer.
//
// spec: c2s#standard-error-response
func renderError(w http.ResponseWriter, err error) {
	e := chancery.As(err)
	members := make(map[string]any, len(e.Extra)+2)
	for k, v := range e.Extra {
		members[k] = v
	}
	if e.Code != "" { // interactive authentication asks without accusing
		members["errcode"] = e.Code
		members["error"] = e.Message
	}
	text, err := encode(members)
	if err != nil {
		text = []byte(`{"errcode":"M_UNKNOWN","error":"internal server error"}`)
	}
	if ms, ok := number(e.Extra["retry_after_ms"]); ok {
		// spec: c2s#rate-limiting
		w.Header().Set("Retry-After", strconv.FormatInt(int64(math.Ceil(ms/1000)), 10))
	}
	status := e.Status
	if status == 0 {
		status = http.StatusInternalServerError
	}
	_ = writeJSON(w, status, text) // nobody is left to tell
}

func number(v any) (float64, bool) {
	switch n := v.(type) {
	case int:
		return float64(n), true
	case int64:
		return float64(n), true
	case float64:
		return n, true
	case json.Number:
		f, err := n.Float64()
		return f, err == nil
	}
	return 0, false
}

// Answer writes what a raw handler answers in JSON, by the same rules as any other.
func Answer(w http.ResponseWriter, out any) error { return render(w, out) }

// Fail renders an error outside of a table, by the same rules.
func Fail(w http.ResponseWriter, err error) { renderError(w, err) }

// done counts and logs a request: one line, louder when it was slow or failed by our fault.
func (s *server) done(route *Route, r *http.Request, w *recorder, start time.Time, err error) {
	took := time.Since(start)
	operation, poll := "unknown", false
	if route != nil {
		operation, poll = route.Operation(), route.LongPoll
	}
	status := w.status
	if status == 0 {
		status = http.StatusOK
	}
	s.Metrics.observe(operation, r.Method, status, took)
	fields := func() []zap.Field {
		// The path without the query: that may hold an access token.
		f := []zap.Field{zap.String("operation", operation), zap.String("method", r.Method),
			zap.String("path", r.URL.EscapedPath()), zap.Int("status", status), zap.Duration("took", took), zap.Int64("bytes", w.bytes)}
		if err != nil {
			f = append(f, zap.Error(err))
		}
		return f
	}
	switch {
	case status == http.StatusBadGateway || status == http.StatusGatewayTimeout:
		// Another server did not do its part: a mistyped name is enough for that.
		s.Log.Info("request failed at another server", fields()...)
	case status >= 500:
		s.Log.Error("request failed", fields()...)
	case took >= s.Slow && !poll:
		s.Log.Info("request was slow", fields()...)
	default:
		if s.Log.Core().Enabled(zap.DebugLevel) {
			s.Log.Debug("request", fields()...)
		}
	}
}
