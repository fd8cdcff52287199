package endpoint

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"unicode/utf8"

	"maunium.net/go/mautrix/id"
)

// Whatever the path, the answer is JSON and no redirect; and a parameter, escaped again, comes
// back as it was.
func FuzzPath(f *testing.F) {
	for _, s := range []string{"/a/b", "//", "/a//b", "/%2F/%2f", "/a/%", "/a/b/", "/../a", "/a/%00", "/a/+", "/%E2%82%AC/b", "/a/b/c/d/e/f"} {
		f.Add(s)
	}
	type in struct {
		A id.RoomID `path:"a"`
		B string    `path:"b"`
	}
	h := New(API{CORS: true, Routes: []Route{
		row("GET", "/{a}/{b}", None, Handle(func(_ context.Context, in *in) (*[2]string, error) { return &[2]string{string(in.A), in.B}, nil })),
		row("GET", "/a/c", None, Handle(empty)),
	}})
	f.Fuzz(func(t *testing.T, path string) {
		serve := func(path string) *httptest.ResponseRecorder {
			r := httptest.NewRequest("GET", "/", nil)
			u, err := url.ParseRequestURI(path)
			if err != nil {
				t.Skip()
			}
			r.URL = u
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			return w
		}
		w := serve(path)
		if !json.Valid(w.Body.Bytes()) || w.Code >= 300 && w.Code < 400 || w.Code >= 500 {
			t.Fatalf("%q: %d %s", path, w.Code, w.Body)
		}
		var got []string
		if w.Code != http.StatusOK || json.Unmarshal(w.Body.Bytes(), &got) != nil {
			return
		}
		again := serve("/" + url.PathEscape(got[0]) + "/" + url.PathEscape(got[1]))
		if got[1] != "" && again.Body.String() != w.Body.String() && !strings.HasPrefix(again.Body.String(), "{") {
			t.Fatalf("%q gives %s, escaped again %s", path, w.Body, again.Body)
		}
	})
}

// Whatever the query and the body, decoding either fails with a code of the spec or gives
// what a strict reader reads.
func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{}`, `{"n":1}`, `{"n":"x"}`, `{"s":"\u0000"}`, `{"s":"\ud800"}`, `[`, `{"a":1,"a":2}`, "{\"\xff\":1}", `null`, `{"l":["a"],"raw":{"x":1.0}}`} {
		f.Add("limit=1", s)
	}
	f.Add("limit=x&at=%zz", "{}")
	type in struct {
		Limit *int     `query:"limit"`
		At    []string `query:"at"`
		Body  struct {
			N   int             `json:"n"`
			S   string          `json:"s"`
			L   []string        `json:"l"`
			Raw json.RawMessage `json:"raw"`
		} `body:"json"`
		Whole json.RawMessage `body:"json"`
	}
	p := planFor[in]()
	f.Fuzz(func(t *testing.T, query, body string) {
		r := httptest.NewRequest("POST", "/", nil)
		r.URL.RawQuery = query
		got, err := p.decode(r, pathValues{}, Caller{}, []byte(body))
		if err != nil {
			return
		}
		v := got.(*in)
		if !utf8.ValidString(v.Body.S) {
			t.Fatalf("%q: invalid UTF-8 came through: %q", body, v.Body.S)
		}
		if strings.TrimSpace(body) != "" && strings.TrimSpace(body) != string(v.Whole) && !json.Valid(v.Whole) {
			t.Fatalf("%q became %q", body, v.Whole)
		}
		if text, err := encode(v.Body); err != nil || !json.Valid(text) {
			t.Fatalf("%q cannot be written again: %v", body, err)
		}
	})
}
