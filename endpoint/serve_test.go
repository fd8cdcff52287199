package endpoint

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
	"maunium.net/go/mautrix/id"

	"chancery"
)

// tokens authenticates by a list.
type tokens map[string]Caller

func (k tokens) Authenticate(_ context.Context, r *http.Request, body []byte) (Caller, error) {
	token, _ := AccessToken(r)
	if strings.HasPrefix(r.Header.Get("Authorization"), "X-Matrix") {
		return Caller{Origin: "b.example signed " + string(body)}, nil
	}
	c, ok := k[token]
	if !ok {
		return Caller{}, chancery.UnknownToken(true)
	}
	return c, nil
}

var known = tokens{
	"alice": {User: "@alice:a", Device: "D", Token: 7},
	"guest": {User: "@1:a", Guest: true},
	"irc":   {User: "@irc:a", AppService: "irc"},
}

func row(method, path string, auth Auth, h Handler, more ...func(*Route)) Route {
	return Row(ClientServer, method+" "+path, method, path, auth, Unlimited, h, more...)
}

// ask sends one request to a table and gives status, body and headers.
func ask(t *testing.T, api API, method, target, body string, header ...string) (int, string, http.Header) {
	t.Helper()
	if api.Auth == nil {
		api.Auth = known
	}
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	if body == "" {
		r = httptest.NewRequest(method, target, nil)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	New(api).ServeHTTP(w, r)
	return w.Code, w.Body.String(), w.Header()
}

type nothing struct{}

func empty(context.Context, *nothing) (*nothing, error) { return nil, nil }

type echoIn struct {
	Caller Caller
	Room   id.RoomID       `path:"room"`
	Key    string          `path:"key"`
	Limit  *int            `query:"limit"`
	Dir    string          `query:"dir" default:"b"`
	At     []string        `query:"at"`
	Full   bool            `query:"full"`
	Agent  string          `header:"x-agent"`
	Body   json.RawMessage `body:"json"`
}

type echoOut struct {
	Room  id.RoomID       `json:"room"`
	Key   string          `json:"key"`
	Limit *int            `json:"limit,omitempty"`
	Dir   string          `json:"dir"`
	At    []string        `json:"at"`
	Full  bool            `json:"full,omitempty"`
	Agent string          `json:"agent,omitempty"`
	Body  json.RawMessage `json:"body"`
	User  id.UserID       `json:"user,omitempty"`
}

func echo(_ context.Context, in *echoIn) (*echoOut, error) {
	return &echoOut{in.Room, in.Key, in.Limit, in.Dir, in.At, in.Full, in.Agent, in.Body, in.Caller.User}, nil
}

func echoAPI() API {
	return API{CORS: true, Routes: []Route{
		row("POST", "/v3/rooms/{room}/x/{key}", None, Handle(echo), Alias("/v3/rooms/{room}/x")),
	}, Prefixes: map[string]string{"/r0/": "/v3/"}}
}

func TestInputComesFromPathQueryHeaderAndBody(t *testing.T) {
	for _, c := range []struct{ target, body, want string }{
		{"/v3/rooms/!a:b/x/k", `{"n":1.50e1,"big":12345678901234567890}`, `{"room":"!a:b","key":"k","dir":"b","at":[],"body":{"n":1.50e1,"big":12345678901234567890}}`},
		{"/v3/rooms/!a%2Fb%3Ac+d/x/k%2520", `{}`, `{"room":"!a/b:c+d","key":"k%20","dir":"b","at":[],"body":{}}`},
		{"/v3/rooms/!a/x/k?limit=0&dir=f&at=1&at=2&full=true", `{}`, `{"room":"!a","key":"k","limit":0,"dir":"f","at":["1","2"],"full":true,"body":{}}`},
		{"/v3/rooms/!a/x/", `{}`, `{"room":"!a","key":"","dir":"b","at":[],"body":{}}`},
		{"/v3/rooms/!a/x", `{}`, `{"room":"!a","key":"","dir":"b","at":[],"body":{}}`},
		{"/r0/rooms/!a/x", `{}`, `{"room":"!a","key":"","dir":"b","at":[],"body":{}}`},
		{"/v3/rooms/!a/x/k", ``, `{"room":"!a","key":"k","dir":"b","at":[],"body":{}}`},
		{"/v3/rooms/!a/x/..", `{}`, `{"room":"!a","key":"..","dir":"b","at":[],"body":{}}`},
		{"/v3/rooms/!a/x/%00%F0%9F%8C%8D", `{"a":"<&>"}`, `{"room":"!a","key":"\u0000🌍","dir":"b","at":[],"body":{"a":"<&>"}}`},
	} {
		code, body, h := ask(t, echoAPI(), "POST", c.target, c.body)
		if code != 200 || body != c.want || h.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s\nwant %s", c.target, code, body, c.want)
		}
	}
	if _, body, _ := ask(t, echoAPI(), "POST", "/v3/rooms/!a/x/k", "{}", "X-Agent", "carrier pigeon"); !strings.Contains(body, `"agent":"carrier pigeon"`) {
		t.Error(body)
	}
}

func TestBadInputGetsTheSpecsCode(t *testing.T) {
	deep := strings.Repeat(`{"a":`, 200) + "1" + strings.Repeat("}", 200)
	for _, c := range []struct {
		target, body string
		status       int
		code         string
	}{
		{"/v3/rooms/%ff/x/k", `{}`, 400, "M_INVALID_PARAM"},
		{"/v3/rooms/!a/x/k?limit=ten", `{}`, 400, "M_INVALID_PARAM"},
		{"/v3/rooms/!a/x/k?limit=", `{}`, 400, "M_INVALID_PARAM"},
		{"/v3/rooms/!a/x/k?full=yes", `{}`, 400, "M_INVALID_PARAM"},
		{"/v3/rooms/!a/x/k?dir=%ff", `{}`, 400, "M_INVALID_PARAM"},
		{"/v3/rooms/!a/x/k?limit=%zz", `{}`, 400, "M_INVALID_PARAM"},
		{"/v3/rooms/!a/x/k", `{`, 400, "M_NOT_JSON"},
		{"/v3/rooms/!a/x/k", `hello`, 400, "M_NOT_JSON"},
		{"/v3/rooms/!a/x/k", `{} {}`, 400, "M_NOT_JSON"},
		{"/v3/rooms/!a/x/k", "{\"a\":\"\xff\"}", 400, "M_NOT_JSON"},
		{"/v3/rooms/!a/x/k", `{"a":1,"a":2}`, 400, "M_BAD_JSON"},
		{"/v3/rooms/!a/x/k", `{"a":1,"\u0061":2}`, 400, "M_BAD_JSON"},
		{"/v3/rooms/!a/x/k", `[]`, 400, "M_BAD_JSON"},
		{"/v3/rooms/!a/x/k", `null`, 400, "M_BAD_JSON"},
		{"/v3/rooms/!a/x/k", deep, 400, "M_BAD_JSON"},
		{"/v3/rooms/!a/x/k", `{"a":"` + strings.Repeat("x", DefaultMaxBody) + `"}`, 413, "M_TOO_LARGE"},
		{"/v3/rooms//x/k", `{}`, 404, "M_UNRECOGNIZED"},
		{"//v3/rooms/!a/x/k", `{}`, 404, "M_UNRECOGNIZED"},
		{"/v3/rooms/../rooms/!a/x/k", `{}`, 404, "M_UNRECOGNIZED"},
		{"/v3/nothing", `{}`, 404, "M_UNRECOGNIZED"},
		{"/", `{}`, 404, "M_UNRECOGNIZED"},
	} {
		r := httptest.NewRequest("POST", c.target, strings.NewReader(c.body))
		w := httptest.NewRecorder()
		New(echoAPI()).ServeHTTP(w, r)
		var e struct{ Errcode, Error string }
		if err := json.Unmarshal(w.Body.Bytes(), &e); err != nil || w.Code != c.status || e.Errcode != c.code || e.Error == "" {
			t.Errorf("%s with %.40s: %d %s, want %d %s", c.target, c.body, w.Code, w.Body, c.status, c.code)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "*" || w.Header().Get("Location") != "" {
			t.Errorf("%s: headers %v", c.target, w.Header())
		}
	}
}

// net/http refuses most of these before us; what reaches the tree by another road is refused there.
func TestMalformedEscapeInAPath(t *testing.T) {
	tree := &tree{}
	if err := tree.add("/a/{b}", &Route{Method: "GET"}); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/a/%zz", "/a/%", "/a/%f"} {
		if _, _, _, err := tree.find("GET", path); !chancery.IsCode(err, chancery.CodeInvalidParam) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

type typedIn struct {
	Body struct {
		User   id.UserID `json:"user_id" required:"true"`
		Typing *bool     `json:"typing" required:"true"`
		Wait   int64     `json:"timeout"`
		List   []string  `json:"list"`
	} `body:"json"`
}

func TestTypedBodies(t *testing.T) {
	var got typedIn
	api := API{Routes: []Route{row("PUT", "/typed", None, Handle(func(_ context.Context, in *typedIn) (*nothing, error) {
		got = *in
		return nil, nil
	}))}}
	for _, c := range []struct {
		body   string
		status int
		code   string
	}{
		{`{"user_id":"@a:b","typing":false,"timeout":5,"unknown":{}}`, 200, ""},
		{`{"user_id":"@a:b"}`, 400, "M_MISSING_PARAM"},
		{`{"user_id":null,"typing":true}`, 400, "M_MISSING_PARAM"},
		{`{"User_ID":"@a:b","typing":true}`, 400, "M_MISSING_PARAM"},
		{`{"user_id":1,"typing":true}`, 400, "M_BAD_JSON"},
		{`{"user_id":"@a:b","typing":"yes"}`, 400, "M_BAD_JSON"},
		{`{"user_id":"@a:b","typing":true,"timeout":1.5}`, 400, "M_BAD_JSON"},
		{`{"user_id":"@a:b","typing":true,"list":{}}`, 400, "M_BAD_JSON"},
		{`[]`, 400, "M_BAD_JSON"},
		{`null`, 400, "M_BAD_JSON"},
		{`{"user_id":"@a:b"`, 400, "M_NOT_JSON"},
		{``, 400, "M_NOT_JSON"},
	} {
		status, body, _ := ask(t, api, "PUT", "/typed", c.body)
		if status != c.status || !strings.Contains(body, c.code) {
			t.Errorf("%s: %d %s", c.body, status, body)
		}
	}
	if got.Body.User != "@a:b" || *got.Body.Typing || got.Body.Wait != 5 {
		t.Errorf("decoded %+v", got)
	}
}

type InlineBody struct {
	Reason string `json:"reason"`
}

type params struct {
	Room id.RoomID `path:"room"`
}

func TestEmbeddedStructsLendTheirFields(t *testing.T) {
	type in struct {
		params
		InlineBody `body:"inline"`
		All        map[string]json.RawMessage `body:"json"`
	}
	var got in
	api := API{Routes: []Route{row("POST", "/{room}", None, Handle(func(_ context.Context, in *in) (*nothing, error) {
		got = *in
		return nil, nil
	}))}}
	if code, body, _ := ask(t, api, "POST", "/!r", `{"reason":"x","n":1.0}`); code != 200 || got.Room != "!r" || got.Reason != "x" || string(got.All["n"]) != "1.0" {
		t.Errorf("%d %s %+v", code, body, got)
	}
}

func TestOptionalBodyOfPut(t *testing.T) {
	type in struct {
		Body map[string]any `body:"json,optional"`
	}
	api := API{Routes: []Route{row("PUT", "/x", None, Handle(func(context.Context, *in) (*nothing, error) { return nil, nil }))}}
	if code, body, _ := ask(t, api, "PUT", "/x", ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
}

type teapot struct {
	Flows []string `json:"flows"`
}

func (teapot) Status() int          { return 401 }
func (teapot) Header(h http.Header) { h.Set("X-Tea", "yes") }

func TestAnswers(t *testing.T) {
	api := API{Routes: []Route{
		row("GET", "/nil", None, Handle(empty)),
		row("GET", "/status", None, Handle(func(context.Context, *nothing) (*teapot, error) { return &teapot{}, nil })),
		row("GET", "/raw", None, Handle(func(context.Context, *nothing) (*json.RawMessage, error) {
			m := json.RawMessage(`{"b":1.0,"a":"\u00e4"}`)
			return &m, nil
		})),
		row("GET", "/map", None, Handle(func(context.Context, *nothing) (*map[string]any, error) {
			return &map[string]any{"b": 0, "a": "<script>&"}, nil
		})),
		row("GET", "/omit", None, Handle(func(context.Context, *nothing) (*struct {
			A int      `json:"a,omitempty"`
			B bool     `json:"b,omitempty"`
			C []string `json:"c"`
			D []string `json:"d,omitempty"`
		}, error) {
			return &struct {
				A int      `json:"a,omitempty"`
				B bool     `json:"b,omitempty"`
				C []string `json:"c"`
				D []string `json:"d,omitempty"`
			}{}, nil
		})),
	}}
	for path, want := range map[string]string{"/nil": `{}`, "/status": `{"flows":[]}`, "/raw": `{"b":1.0,"a":"\u00e4"}`, "/map": `{"a":"<script>&","b":0}`, "/omit": `{"c":[]}`} {
		code, body, h := ask(t, api, "GET", path, "")
		if body != want || (path == "/status") != (code == 401 && h.Get("X-Tea") == "yes") {
			t.Errorf("%s: %d %s, want %s", path, code, body, want)
		}
		if h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: headers %v", path, h)
		}
	}
}

func TestMethods(t *testing.T) {
	api := echoAPI()
	api.Routes = append(api.Routes, row("GET", "/v3/get", None, Handle(empty)), row("PUT", "/v3/get", User, Handle(empty)), row("POST", "/v3/planned", User, Planned()))
	// spec: c2s#web-browser-clients
	for _, path := range []string{"/v3/get", "/v3/planned", "/nowhere", "/v3/rooms/%ff/x"} {
		code, body, h := ask(t, api, "OPTIONS", path, "")
		if code != 200 || body != "" || h.Get("Access-Control-Allow-Origin") != "*" || !strings.Contains(h.Get("Access-Control-Allow-Headers"), "Authorization") || !strings.Contains(h.Get("Access-Control-Allow-Methods"), "DELETE") {
			t.Errorf("OPTIONS %s: %d %q %v", path, code, body, h)
		}
	}
	code, body, h := ask(t, api, "DELETE", "/v3/get", "")
	if code != 405 || !strings.Contains(body, "M_UNRECOGNIZED") || h.Get("Allow") != "GET, PUT" {
		t.Errorf("wrong method: %d %s %v", code, body, h)
	}
	if code, _, _ := ask(t, api, "HEAD", "/v3/get", ""); code != 200 {
		t.Errorf("HEAD: %d", code)
	}
	if code, body, _ := ask(t, api, "POST", "/v3/planned", ""); code != 404 || !strings.Contains(body, "M_UNRECOGNIZED") {
		t.Errorf("planned: %d %s", code, body)
	}
	api.CORS = false
	if code, _, h := ask(t, api, "OPTIONS", "/v3/get", ""); code != 405 || h.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("OPTIONS without CORS: %d %v", code, h)
	}
}

func TestStaticSegmentsWinOverParameters(t *testing.T) {
	say := func(word string) Handler {
		return Handle(func(context.Context, *nothing) (*string, error) { return &word, nil })
	}
	api := API{Routes: []Route{
		row("GET", "/query/{type}", None, say("any")),
		row("GET", "/query/profile", None, say("profile")),
		row("PUT", "/query/profile/x", None, say("deep")),
		row("PUT", "/{a}/{b}/{c}", None, say("three")),
		row("GET", "/pushrules/", None, say("slash")),
	}}
	for request, want := range map[string]string{
		"GET /query/directory": `"any"`, "GET /query/profile": `"profile"`, "GET /query/pro%66ile": `"profile"`,
		"PUT /query/profile/x": `"deep"`, "PUT /query/profile/y": `"three"`,
		"GET /pushrules/": `"slash"`, "GET /pushrules": `"slash"`,
	} {
		method, path, _ := strings.Cut(request, " ")
		if code, body, _ := ask(t, api, method, path, ""); code != 200 || body != want {
			t.Errorf("%s: %d %s, want %s", request, code, body, want)
		}
	}
}

// spec: c2s#using-access-tokens
func TestAuthentication(t *testing.T) {
	who := Handle(func(_ context.Context, in *struct{ Caller Caller }) (*string, error) {
		s := string(in.Caller.User) + "|" + in.Caller.IP + "|" + in.Caller.UserAgent
		return &s, nil
	})
	api := API{Routes: []Route{
		row("GET", "/none", None, who), row("GET", "/optional", Optional, who), row("GET", "/user", User, who),
		row("GET", "/guest", UserOrGuest, who), row("GET", "/as", AppService, who),
	}}
	for _, c := range []struct {
		path, token string
		status      int
		want        string
	}{
		{"/none", "", 200, `"|192.0.2.1|"`},
		{"/none", "wrong", 200, `"|192.0.2.1|"`},
		{"/optional", "", 200, `"|192.0.2.1|"`},
		{"/optional", "alice", 200, `"@alice:a|192.0.2.1|"`},
		{"/optional", "wrong", 401, "M_UNKNOWN_TOKEN"},
		{"/user", "", 401, "M_MISSING_TOKEN"},
		{"/user", "wrong", 401, `"soft_logout":true`},
		{"/user", "alice", 200, `"@alice:a|192.0.2.1|"`},
		{"/user", "guest", 403, "M_GUEST_ACCESS_FORBIDDEN"},
		{"/guest", "guest", 200, `"@1:a|192.0.2.1|"`},
		{"/as", "alice", 403, "M_FORBIDDEN"},
		{"/as", "irc", 200, `"@irc:a|192.0.2.1|"`},
	} {
		header := []string{"User-Agent", ""}
		if c.token != "" {
			header = append(header, "Authorization", "bearer "+c.token)
		}
		if code, body, _ := ask(t, api, "GET", c.path, "", header...); code != c.status || !strings.Contains(body, c.want) {
			t.Errorf("%s with %q: %d %s", c.path, c.token, code, body)
		}
		if c.token != "" {
			if code, body, _ := ask(t, api, "GET", c.path+"?access_token="+c.token, ""); code != c.status || !strings.Contains(body, c.want) {
				t.Errorf("%s with %q in the query: %d %s", c.path, c.token, code, body)
			}
		}
	}
}

func TestServerSignatureCoversTheBody(t *testing.T) {
	type in struct {
		Origin string          `origin:""`
		Body   json.RawMessage `body:"json"`
	}
	api := API{Routes: []Route{
		row("PUT", "/send", ServerSignature, Handle(func(_ context.Context, in *in) (*string, error) { return &in.Origin, nil })),
		row("POST", "/raw", ServerSignature, Raw(func(w http.ResponseWriter, r *http.Request, c Caller) error {
			_, err := io.Copy(w, r.Body)
			return err
		})),
	}}
	if code, body, _ := ask(t, api, "PUT", "/send", `{"a": 1}`, "Authorization", "X-Matrix x"); code != 200 || body != `"b.example signed {\"a\": 1}"` {
		t.Errorf("%d %s", code, body)
	}
	if code, body, _ := ask(t, api, "POST", "/raw", `{"a": 1}`, "Authorization", "X-Matrix x"); code != 200 || body != `{"a": 1}` {
		t.Errorf("%d %s", code, body)
	}
}

// A stranger's body is not read before we know that he may send one.
func TestBodyIsReadAfterAuthentication(t *testing.T) {
	api := API{Auth: known, Routes: []Route{row("POST", "/x", User, Handle(func(context.Context, *typedIn) (*nothing, error) { return nil, nil }))}}
	body := &countingReader{}
	r := httptest.NewRequest("POST", "/x", body)
	w := httptest.NewRecorder()
	New(api).ServeHTTP(w, r)
	if w.Code != 401 || body.reads != 0 {
		t.Errorf("%d after %d reads", w.Code, body.reads)
	}
}

type countingReader struct{ reads int }

func (c *countingReader) Read(p []byte) (int, error) { c.reads++; return len(p), nil }

func TestBodyOfUnknownLengthIsBounded(t *testing.T) {
	api := API{Auth: known, Routes: []Route{row("POST", "/x", None, Handle(func(context.Context, *typedIn) (*nothing, error) { return nil, nil }), MaxBody(100))}}
	r := httptest.NewRequest("POST", "/x", io.NopCloser(&countingReader{}))
	r.ContentLength = -1
	w := httptest.NewRecorder()
	New(api).ServeHTTP(w, r)
	if w.Code != 413 || !strings.Contains(w.Body.String(), "M_TOO_LARGE") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

func TestErrorsAreRendered(t *testing.T) {
	secret := errors.New("password=hunter2")
	for name, c := range map[string]struct {
		err    error
		status int
		want   string
	}{
		"ours":   {chancery.Forbidden("no %d", 1).Because(secret), 403, `{"errcode":"M_FORBIDDEN","error":"no 1"}`},
		"theirs": {secret, 500, `{"errcode":"M_UNKNOWN","error":"internal server error"}`},
		"more":   {chancery.UnknownToken(true), 401, `{"errcode":"M_UNKNOWN_TOKEN","error":"unknown access token","soft_logout":true}`},
	} {
		api := API{Routes: []Route{row("GET", "/x", None, Handle(func(context.Context, *nothing) (*nothing, error) { return nil, c.err }))}}
		if code, body, _ := ask(t, api, "GET", "/x", ""); code != c.status || body != c.want {
			t.Errorf("%s: %d %s", name, code, body)
		}
	}
	api := API{Routes: []Route{row("GET", "/x", None, Handle(func(context.Context, *nothing) (*nothing, error) {
		return nil, chancery.LimitExceeded(1500 * time.Millisecond)
	}))}}
	// spec: c2s#rate-limiting
	if code, body, h := ask(t, api, "GET", "/x", ""); code != 429 || h.Get("Retry-After") != "2" || !strings.Contains(body, `"retry_after_ms":1500`) {
		t.Errorf("%d %s %v", code, body, h)
	}
}

func TestPanicIsAnErrorAndTheServerGoesOn(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	api := API{Auth: known, Log: zap.New(core), Routes: []Route{
		row("GET", "/panic", None, Handle(func(context.Context, *nothing) (*nothing, error) { panic("boom") })),
		row("GET", "/half", None, Raw(func(w http.ResponseWriter, _ *http.Request, _ Caller) error {
			w.WriteHeader(200)
			panic("late")
		})),
		row("GET", "/good", None, Handle(empty)),
	}}
	srv := httptest.NewServer(New(api))
	defer srv.Close()
	for path, want := range map[string]int{"/panic": 500, "/half": 200, "/good": 200} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	if n := logs.FilterMessage("request panicked").Len(); n != 2 {
		t.Errorf("%d panics in the log", n)
	}
}

func TestRawHandlers(t *testing.T) {
	api := API{Routes: []Route{
		row("GET", "/media/{server}/{id}", User, Raw(func(w http.ResponseWriter, r *http.Request, c Caller) error {
			if r.PathValue("id") == "none" {
				return chancery.NotFound("no such file")
			}
			_, err := io.WriteString(w, r.PathValue("server")+" "+r.PathValue("id")+" "+string(c.User))
			return errors.Join(err, http.NewResponseController(w).Flush())
		})),
	}}
	if code, body, _ := ask(t, api, "GET", "/media/a.example/x%2Fy?access_token=alice", ""); code != 200 || body != "a.example x/y @alice:a" {
		t.Errorf("%d %s", code, body)
	}
	if code, body, _ := ask(t, api, "GET", "/media/a/none?access_token=alice", ""); code != 404 || !strings.Contains(body, "M_NOT_FOUND") {
		t.Errorf("%d %s", code, body)
	}
}

func TestTimeLimitSparesLongPolls(t *testing.T) {
	wait := Handle(func(ctx context.Context, _ *nothing) (*nothing, error) {
		if _, limited := ctx.Deadline(); !limited {
			return nil, nil
		}
		<-ctx.Done()
		return nil, ctx.Err()
	})
	api := API{Timeout: 5 * time.Millisecond, Routes: []Route{row("GET", "/work", None, wait), row("GET", "/poll", None, wait, LongPoll())}}
	if code, body, _ := ask(t, api, "GET", "/work", ""); code != 504 || !strings.Contains(body, "M_UNKNOWN") {
		t.Errorf("work: %d %s", code, body)
	}
	if code, _, _ := ask(t, api, "GET", "/poll", ""); code != 200 {
		t.Errorf("poll: %d", code)
	}
}

// A client that trickles its body holds neither a handler nor a connection for ever.
func TestSlowBodyIsCutOff(t *testing.T) {
	api := API{Auth: known, Timeout: 50 * time.Millisecond, Routes: []Route{row("POST", "/x", None, Handle(func(context.Context, *typedIn) (*nothing, error) { return nil, nil }))}}
	srv := httptest.NewServer(New(api))
	defer srv.Close()
	body, hold := io.Pipe()
	defer hold.Close()
	req, err := http.NewRequest("POST", srv.URL+"/x", body)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err == nil {
		resp.Body.Close()
		if resp.StatusCode != http.StatusRequestTimeout {
			t.Errorf("%d", resp.StatusCode)
		}
	}
	if time.Since(start) > time.Minute {
		t.Errorf("held for %v", time.Since(start))
	}
}

func TestRequestsAreCountedByOperationOnly(t *testing.T) {
	reg := prometheus.NewRegistry()
	api := API{Metrics: NewMetrics(reg), Routes: []Route{Row(ServerServer, "getX", "GET", "/x/{id}", None, "", Handle(empty))}}
	ask(t, api, "GET", "/x/!room:a", "")
	ask(t, api, "GET", "/x/!other:b", "")
	ask(t, api, "GET", "/secret", "")
	ask(t, api, "BREW", "/x/a", "")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range families {
		if f.GetName() != "chancery_http_requests_total" {
			continue
		}
		for _, m := range f.GetMetric() {
			var words []string
			for _, l := range m.GetLabel() {
				words = append(words, l.GetName()+"="+l.GetValue())
			}
			got = append(got, fmt.Sprint(strings.Join(words, " "), " ", m.GetCounter().GetValue()))
		}
	}
	want := []string{
		"method=GET operation=s2s/getX status=2xx 2",
		"method=GET operation=unknown status=4xx 1",
		"method=other operation=unknown status=4xx 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestLogLines(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	api := API{Log: zap.New(core), Slow: time.Nanosecond, Routes: []Route{
		row("GET", "/slow", None, Handle(empty)), row("GET", "/poll", None, Handle(empty), LongPoll()),
		row("GET", "/fail", None, Handle(func(context.Context, *nothing) (*nothing, error) { return nil, errors.New("disk full") })),
		row("GET", "/away", None, Handle(func(context.Context, *nothing) (*nothing, error) {
			return nil, chancery.Errorf(http.StatusBadGateway, chancery.CodeUnknown, "cannot reach b.example")
		})),
	}}
	ask(t, api, "GET", "/slow?access_token=alice", "")
	ask(t, api, "GET", "/poll", "")
	ask(t, api, "GET", "/fail", "")
	ask(t, api, "GET", "/away", "")
	var got []string
	for _, e := range logs.All() {
		got = append(got, e.Level.String()+" "+e.Message)
		if s, _ := json.Marshal(e.ContextMap()); bytes.Contains(s, []byte("alice")) {
			t.Errorf("the log holds an access token: %s", s)
		}
	}
	if want := "info request was slow,debug request,error request failed,info request failed at another server"; strings.Join(got, ",") != want {
		t.Errorf("got %v", got)
	}
	if cause, ok := logs.All()[2].ContextMap()["error"].(string); !ok || !strings.Contains(cause, "disk full") {
		t.Error("the cause is not in the log")
	}
}

func TestTablesThatContradictThemselvesPanic(t *testing.T) {
	type lost struct {
		Room string `path:"room"`
	}
	for name, routes := range map[string][]Route{
		"same address":    {row("GET", "/x/{a}", None, Handle(empty)), row("GET", "/x/{b}", None, Handle(empty), func(r *Route) { r.ID = "two" })},
		"no handler":      {row("GET", "/x", None, Handler{})},
		"unknown auth":    {row("GET", "/x", "maybe", Handle(empty))},
		"lost parameter":  {row("GET", "/x", None, Handle(func(context.Context, *lost) (*nothing, error) { return nil, nil }))},
		"answered by air": {row("GET", "/x", None, Handler{}, AnsweredBy("air"))},
		"bad path":        {row("GET", "/x//y", None, Handle(empty))},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			New(API{Auth: known, Routes: routes})
		})
	}
	for name, make := range map[string]func(){
		"no source": func() { Handle(func(context.Context, *struct{ X string }) (*nothing, error) { return nil, nil }) },
		"wrong source": func() {
			Handle(func(context.Context, *struct {
				X chan int `query:"x"`
			}) (*nothing, error) {
				return nil, nil
			})
		},
		"hidden": func() {
			Handle(func(context.Context, *struct {
				params `body:"inline"`
			}) (*nothing, error) {
				return nil, nil
			})
		},
		"wrong body": func() {
			Handle(func(context.Context, *struct {
				X string `body:"xml"`
			}) (*nothing, error) {
				return nil, nil
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			make()
		})
	}
}

func TestRowsAnsweredByAnother(t *testing.T) {
	routes := []Route{
		Row(ClientServer, "invite", "POST", "/invite", None, "", Handle(empty)),
		Row(ClientServer, "inviteByMail", "POST", "/invite", None, "", Handler{}, AnsweredBy("invite")),
	}
	if code, _, _ := ask(t, API{Routes: routes}, "POST", "/invite", ""); code != 200 {
		t.Errorf("%d", code)
	}
	r, ok := Finder(routes, nil)(httptest.NewRequest("POST", "/invite", nil))
	if !ok || r.ID != "invite" {
		t.Errorf("%v %v", r, ok)
	}
}

func TestRateLimits(t *testing.T) {
	limits := NewLimits(map[LimitClass]Budget{LimitSend: {1, 2}, LimitServer: {1, 2}})
	api := API{Auth: known, Limits: limits, Routes: []Route{
		Row(ClientServer, "send", "GET", "/send", Optional, LimitSend, Handle(empty)),
		Row(ClientServer, "read", "GET", "/read", Optional, LimitRead, Handle(empty)),
		Row(ServerServer, "signed", "GET", "/signed", ServerSignature, LimitServer, Handle(empty)),
	}}
	h := New(api)
	count := func(target, from string) (refused int) {
		for range 4 {
			r := httptest.NewRequest("GET", target, nil)
			r.RemoteAddr = from
			w := httptest.NewRecorder()
			h.ServeHTTP(w, r)
			if w.Code == 429 {
				refused++
				if w.Header().Get("Retry-After") != "1" || !strings.Contains(w.Body.String(), "M_LIMIT_EXCEEDED") {
					t.Errorf("%s %v", w.Body, w.Header())
				}
			}
		}
		return refused
	}
	for _, c := range []struct {
		target, from string
		refused      int
	}{
		{"/send?access_token=alice", "192.0.2.1:1", 2},
		{"/send?access_token=guest", "192.0.2.1:1", 2}, // another user from the same address has a bucket of his own
		{"/send", "192.0.2.1:1", 2},
		{"/send", "192.0.2.2:1", 2},
		{"/send?access_token=irc", "192.0.2.1:1", 0},
		{"/read", "192.0.2.1:1", 0},
		{"/signed?access_token=nobody", "192.0.2.1:1", 2}, // before anybody looks at the signature
	} {
		if got := count(c.target, c.from); got != c.refused {
			t.Errorf("%s from %s: %d refused, want %d", c.target, c.from, got, c.refused)
		}
	}
}

func TestRateLimitTableIsBounded(t *testing.T) {
	l := NewLimits(nil)
	l.size = 100
	for i := range 1000 {
		if err := l.allow(LimitLogin, Caller{IP: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}).String()}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(l.young) + len(l.elder); n > 100 {
		t.Errorf("%d buckets", n)
	}
}

func TestClientAddress(t *testing.T) {
	trusted, err := ParseProxies([]string{"10.0.0.0/8", "127.0.0.1", "::1"})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ peer, forwarded, want string }{
		{"203.0.113.9:80", "", "203.0.113.9"},
		{"203.0.113.9:80", "198.51.100.1", "203.0.113.9"}, // not a proxy of ours: anyone may say so
		{"127.0.0.1:80", "198.51.100.1", "198.51.100.1"},
		{"127.0.0.1:80", "6.6.6.6, 198.51.100.1", "198.51.100.1"},
		{"127.0.0.1:80", "198.51.100.1, 10.1.2.3", "198.51.100.1"},
		{"127.0.0.1:80", "10.9.9.9, 10.1.2.3", "10.9.9.9"},
		{"127.0.0.1:80", "rubbish", "127.0.0.1"},
		{"127.0.0.1:80", "", "127.0.0.1"},
		{"[::1]:80", "2001:db8::1", "2001:db8::1"},
		{"[::ffff:10.0.0.1]:80", "[2001:db8::1]:443", "2001:db8::1"},
		{"@", "198.51.100.1", "@"},
	} {
		r := httptest.NewRequest("GET", "/", nil)
		r.RemoteAddr = c.peer
		if c.forwarded != "" {
			r.Header.Set("X-Forwarded-For", c.forwarded)
		}
		if got := ClientIP(r, trusted); got != c.want {
			t.Errorf("%s via %q: %s, want %s", c.peer, c.forwarded, got, c.want)
		}
	}
	if _, err := ParseProxies([]string{"proxy"}); err == nil {
		t.Error("a name is no address")
	}
}
