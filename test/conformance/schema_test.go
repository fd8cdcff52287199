package conformance

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"chancery/endpoint"
)

// schemaOf reads a schema with no file around it.
func schemaOf(t *testing.T, text string) node {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	f := &files{root: t.TempDir(), docs: map[string]any{"s.yaml": stringKeys(v)}}
	return node{f, "s.yaml", f.docs["s.yaml"]}
}

func TestSchemaWords(t *testing.T) {
	for _, c := range []struct{ schema, value, want string }{
		{`{type: object}`, `{}`, ""},
		{`{type: object}`, `[]`, "the body is an array and must be object"},
		{`{type: [string, "null"]}`, `null`, ""},
		{`{type: integer}`, `12`, ""},
		{`{type: integer}`, `1.5`, "the body is the number 1.5 and must be integer"},
		{`{type: integer}`, `1.0`, "the body is the number 1.0 and must be integer"},
		{`{type: number}`, `1.5`, ""},
		{`{required: [a]}`, `{"b":1}`, `the body lacks "a"`},
		{`{properties: {a: {type: string}}}`, `{"a":1}`, "/a is the number 1 and must be string"},
		{`{properties: {"a/b": {type: string}}}`, `{"a/b":1}`, "/a~1b is the number 1 and must be string"},
		{`{properties: {a: {}}, additionalProperties: false}`, `{"b":1}`, "/b must not be there"},
		{`{additionalProperties: {type: string}}`, `{"b":1}`, "/b is the number 1 and must be string"},
		{`{patternProperties: {"^@": {type: string}}, additionalProperties: false}`, `{"@a":"x"}`, ""},
		{`{patternProperties: {"^@": {type: string}}}`, `{"@a":1}`, "/@a is the number 1 and must be string"},
		{`{propertyNames: {pattern: "^a"}}`, `{"b":1}`, `/b is "b" and must match ^a`},
		{`{items: {type: string}}`, `["a",1]`, "/1 is the number 1 and must be string"},
		{`{items: {enum: [a, b]}}`, `["c"]`, `/0 is "c" and must be one of [a b]`},
		{`{enum: [1, 2]}`, `"1"`, `the body is "1" and must be one of [1 2]`},
		{`{pattern: "^mxc:\\/\\/"}`, `"mxc://a/b"`, ""},
		{`{pattern: "^!"}`, `"room"`, `the body is "room" and must match ^!`},
		{`{oneOf: [{type: string}, {type: integer}]}`, `1`, ""},
		{`{oneOf: [{type: string}, {type: integer}]}`, `true`, "the body matches nothing of oneOf; closest: the body is a boolean and must be string"},
		{`{anyOf: [{required: [a]}, {required: [b]}]}`, `{"c":1}`, `the body matches nothing of anyOf; closest: the body lacks "a"`},
		{`{allOf: [{required: [a]}, {required: [b]}]}`, `{"a":1}`, `the body lacks "b"`},
		{`{not: {type: string}}`, `"a"`, "the body matches what it must not"},
		{`{minItems: 1}`, `[]`, "the body has fewer than 1 items"},
		{`{maxItems: 1}`, `[1,2]`, "the body has more than 1 items"},
		{`{minProperties: 1}`, `{}`, "the body has fewer than 1 members"},
		{`{maxLength: 1}`, `"äö"`, "the body is longer than 1"},
		{`{minimum: 3}`, `2`, "the body is 2 and must be at least 3"},
		{`{maximum: 3}`, `4`, "the body is 4 and must be at most 3"},
		{`{"$ref": "#/d", d: {type: string}}`, `1`, "the body is the number 1 and must be string"},
		{`{"$ref": "#/none"}`, `1`, "the body has a broken schema: s.yaml: $ref #/none leads nowhere"},
		{`{"$ref": "#"}`, `1`, "the body has a schema that does not end"},
		{`{type: object}`, `{`, "the body is no JSON: unexpected EOF"},
	} {
		got := ""
		if found := validate(schemaOf(t, c.schema), []byte(c.value)); len(found) > 0 {
			got = found[0].String()
		}
		if got != c.want {
			t.Errorf("%s with %s: got %q, want %q", c.schema, c.value, got, c.want)
		}
	}
}

// failures is a test that is expected to fail.
type failures struct{ said []string }

func (f *failures) Helper()        {}
func (f *failures) Cleanup(func()) {}
func (f *failures) Errorf(format string, args ...any) {
	f.said = append(f.said, fmt.Sprintf(format, args...))
}
func (f *failures) Fatalf(format string, args ...any) { f.Errorf(format, args...) }

func TestMiddlewareFailsTheTestOfAWrongAnswer(t *testing.T) {
	api := Load(t, endpoint.ClientServer)
	if api == nil {
		return
	}
	routes := []endpoint.Route{
		endpoint.Row(endpoint.ClientServer, "sendMessage", "PUT", "/_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}", endpoint.None, "",
			endpoint.Raw(func(http.ResponseWriter, *http.Request, endpoint.Caller) error { return nil })),
		endpoint.Row(endpoint.ClientServer, "register", "POST", "/_matrix/client/v3/register", endpoint.None, "",
			endpoint.Raw(func(http.ResponseWriter, *http.Request, endpoint.Caller) error { return nil })),
	}
	const send, register = "PUT /_matrix/client/v3/rooms/!a:b/send/m.x/1", "POST /_matrix/client/v3/register"
	for _, c := range []struct {
		request, kind, body string
		status              int
		want                string
	}{
		{send, "application/json", `{"event_id":"$x"}`, 200, ""},
		{strings.Replace(send, "v3", "r0", 1), "application/json", `{}`, 200, `c2s/sendMessage: the body lacks "event_id"`},
		{send, "application/json", `{"event_id":7}`, 200, "/event_id is the number 7 and must be string"},
		{send, "application/json", `{"event_id":"x"}`, 200, `/event_id is "x" and must match ^\$`},
		{send, "text/plain", `{"event_id":"$x"}`, 200, "Content-Type"},
		{send, "application/json", `{}`, 201, "no such status"},
		{send, "application/json", `{"errcode":"M_FORBIDDEN","error":"no"}`, 403, ""},
		{send, "application/json", `{"errcode":"M_FORBIDDEN"}`, 403, "/error is null and must be a string"},
		{send, "application/json", `{"errcode":"M_LIMIT_EXCEEDED","error":"no","retry_after_ms":1.5}`, 429, "/retry_after_ms must be an integer"},
		{send, "text/html", `<h1>oops</h1>`, 502, "no such status"},
		{register, "application/json", `{"flows":[{"stages":["m.login.dummy"]}],"params":{},"session":"s"}`, 401, ""},
		{register, "application/json", `{"flows":["m.login.dummy"]}`, 401, "/flows/0 is a string and must be object"},
	} {
		var f failures
		handler := Middleware(&f, api, routes, map[string]string{"/_matrix/client/r0/": "/_matrix/client/v3/"})(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", c.kind)
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
		}))
		method, path, _ := strings.Cut(c.request, " ")
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(method, path, nil))
		got := strings.Join(f.said, "\n")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s %d %s: said %q, want %q", c.request, c.status, c.body, got, c.want)
		}
	}
}

func TestErrataLiftAPartOfABody(t *testing.T) {
	e := Errata{{Operation: "c2s/sync", Subject: "body /rooms/*/x"}}
	for pointer, want := range map[string]bool{"/rooms/join/x": true, "/rooms/join/x/y": true, "/rooms/join": false, "/rooms/join/y": false, "": false} {
		if e.liftsBody("c2s/sync", pointer) != want {
			t.Errorf("%q: not %v", pointer, want)
		}
	}
	if e.liftsBody("c2s/messages", "/rooms/join/x") {
		t.Error("an erratum of one operation lifted a demand of another")
	}
}

func TestErrataRowsAreWhole(t *testing.T) {
	for text, good := range map[string]bool{
		"| s2s/x | auth | none | user | because |\n": true,
		"| s2s/x | auth | none | user | |\n":         false,
		"| s2s/x | auth | none |\n":                  false,
		"| c2s/x | smell | a | b | c |\n":            false,
	} {
		file := filepath.Join(t.TempDir(), "errata.md")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readErrata(file); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// Every schema of every answer can be read to its end: no $ref leads nowhere, every pattern compiles.
func TestEverySchemaOfTheSpecCanBeRead(t *testing.T) {
	for _, name := range []string{endpoint.ClientServer, endpoint.ServerServer, "application-service"} {
		api := Load(t, name)
		if api == nil {
			return
		}
		for _, op := range api.Operations {
			for status, r := range op.responses {
				content, _ := r.get("content")
				body, _ := content.get("application/json")
				if schema, ok := body.get("schema"); ok {
					if err := readThrough(schema, 0); err != nil {
						t.Errorf("%s %s %s: %v", name, op.ID, status, err)
					}
				}
			}
		}
	}
}

func readThrough(n node, depth int) error {
	if depth > 60 {
		return nil // a schema may contain itself
	}
	switch v := n.value.(type) {
	case map[string]any:
		if to, ok := v["$ref"].(string); ok {
			target, err := n.ref(to)
			if err != nil {
				return err
			}
			if err := readThrough(target, depth+20); err != nil {
				return err
			}
		}
		if p, ok := v["pattern"].(string); ok {
			if _, err := compiled(p); err != nil {
				return err
			}
		}
		for key, e := range v {
			if key == "example" || key == "examples" {
				continue
			}
			if err := readThrough(node{n.files, n.file, e}, depth+1); err != nil {
				return err
			}
		}
	case []any:
		for _, e := range v {
			if err := readThrough(node{n.files, n.file, e}, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}
