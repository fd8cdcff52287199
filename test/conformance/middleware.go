package conformance

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"sync"

	"chancery/endpoint"
)

// TB is what this package needs of a test.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Middleware holds every answer of a handler against the schema of its operation and fails
// the test with the operation and the JSON pointer. prefixes are those of the handler's
// endpoint.API. A nil api, where the specification is not there, checks nothing.
func Middleware(t TB, api *API, routes []endpoint.Route, prefixes map[string]string) func(http.Handler) http.Handler {
	t.Helper()
	if api == nil {
		return func(next http.Handler) http.Handler { return next }
	}
	errata := LoadErrata(t)
	find := endpoint.Finder(routes, prefixes)
	var mu sync.Mutex // guards over: a server may answer when its test has ended
	over := false
	t.Cleanup(func() {
		mu.Lock()
		defer mu.Unlock()
		over = true
	})
	return func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			route, ok := find(r)
			if !ok || route.API != api.Name || route.Planned() || r.Method == http.MethodOptions {
				next.ServeHTTP(w, r)
				return
			}
			tap := &tap{ResponseWriter: w}
			next.ServeHTTP(tap, r)
			if r.Context().Err() != nil {
				return // the client did not wait for the answer
			}
			faults := api.Check(route, tap.answer(r), errata)
			mu.Lock()
			defer mu.Unlock()
			if over {
				return
			}
			for _, fault := range faults {
				t.Errorf("%s %s: answer %d of %s: %s", r.Method, r.URL.Path, tap.code(), route.Operation(), fault)
			}
		})
	}
}

// Answer is what a handler answered.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Head   bool // to HEAD: there is no body to look at
}

// Check lists what the OpenAPI does not allow in an answer.
func (a *API) Check(route endpoint.Route, answer Answer, errata Errata) []string {
	op := a.Operations[route.ID]
	if op == nil || answer.Head {
		return nil
	}
	text := bytes.TrimSpace(answer.Body)
	if answer.Status >= 400 && isError(text) {
		return checkError(text)
	}
	response, ok := op.responses[strconv.Itoa(answer.Status)]
	if !ok {
		if op.partial(answer.Status) {
			return nil
		}
		if errata.liftsBody(route.Operation(), "/"+strconv.Itoa(answer.Status)) {
			return nil
		}
		return []string{fmt.Sprintf("the operation has no such status (it is no standard error either): %.200s", text)}
	}
	content, _ := response.get("content")
	body, ok := content.get("application/json")
	if !ok {
		return nil // media, pages, redirects
	}
	if kind, _, _ := mime.ParseMediaType(answer.Header.Get("Content-Type")); kind != "application/json" {
		if len(content.object()) > 1 {
			return nil
		}
		return []string{fmt.Sprintf("the Content-Type is %q and must be application/json", answer.Header.Get("Content-Type"))}
	}
	schema, ok := body.get("schema")
	if !ok {
		return nil
	}
	var faults []string
	for _, v := range validate(schema, text) {
		if !errata.liftsBody(route.Operation(), v.Pointer) {
			faults = append(faults, v.String())
		}
	}
	return faults
}

// partial says whether a status is HTTP's own answer to who has a file already, or wants a range of
// it. The OpenAPI is silent on those, and they are for files only.
func (o *Operation) partial(status int) bool {
	whole, ok := o.responses["200"]
	if !ok || status != http.StatusPartialContent && status != http.StatusNotModified && status != http.StatusRequestedRangeNotSatisfiable {
		return false
	}
	content, _ := whole.get("content")
	_, isJSON := content.get("application/json")
	return !isJSON
}

func isError(text []byte) bool {
	var e struct {
		Code any `json:"errcode"`
	}
	return json.Unmarshal(text, &e) == nil && e.Code != nil
}

// checkError holds an error against what every error must have. Which codes an operation may
// answer is said in words only.
//
// spec: c2s#standard-error-response
func checkError(text []byte) []string {
	var members map[string]any
	if err := json.Unmarshal(text, &members); err != nil {
		return []string{"the error is no JSON object"}
	}
	var faults []string
	for _, name := range []string{"errcode", "error"} {
		if _, ok := members[name].(string); !ok {
			faults = append(faults, fmt.Sprintf("/%s is %s and must be a string", name, typeName(members[name])))
		}
	}
	if ms, ok := members["retry_after_ms"]; ok {
		if n, isNumber := ms.(float64); !isNumber || n != float64(int64(n)) {
			faults = append(faults, "/retry_after_ms must be an integer")
		}
	}
	return faults
}

// tap keeps a copy of what is answered.
type tap struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (w *tap) WriteHeader(status int) {
	if w.status == 0 && status >= 200 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *tap) Write(p []byte) (int, error) {
	w.body.Write(p)
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach what is below.
func (w *tap) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *tap) code() int {
	if w.status == 0 {
		return http.StatusOK
	}
	return w.status
}

func (w *tap) answer(r *http.Request) Answer {
	return Answer{Status: w.code(), Header: w.Header(), Body: w.body.Bytes(), Head: r.Method == http.MethodHead}
}
