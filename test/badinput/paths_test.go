package badinput

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"

	"chancery/test/homeserver"

	"github.com/tidwall/gjson"
)

// What a path or a method has to do with the other listener, or with nothing, gets the error that clients and servers
// know by its code.
//
// spec: c2s#standard-error-response, s2s#unsupported-endpoints
func TestPathsOfNobody(t *testing.T) {
	s := homeserver.Start(t, homeserver.Options{Settings: map[string]string{"CHANCERY_WELL_KNOWN_POLICY_SERVER": "true"}})
	for _, c := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"GET", "/_matrix/unknown", 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/client/v1/unknown", 404, "M_UNRECOGNIZED"},
		{"PUT", "/_matrix/client/v3/login", 405, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/federation/unknown", 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/federation/v1/unknown", 404, "M_UNRECOGNIZED"},
		{"PUT", "/_matrix/federation/v1/send/1", 404, "M_UNRECOGNIZED"},
		{"PUT", "/_matrix/federation/v1/version", 405, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/key/unknown", 404, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/key/v2/unknown", 404, "M_UNRECOGNIZED"},
		{"PUT", "/_matrix/key/v2/query", 405, "M_UNRECOGNIZED"},
		{"PATCH", "/_matrix/media/v3/upload", 405, "M_UNRECOGNIZED"},
		{"GET", "/_matrix/federation/v1/version", 200, ""},
		{"GET", "/.well-known/matrix/policy_server", 200, ""},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, s.URL+c.path, strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.HTTP().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if code := gjson.GetBytes(text, "errcode").Str; res.StatusCode != c.status || code != c.code || res.Header.Get("Access-Control-Allow-Origin") != "*" {
			t.Errorf("%s %s: %d %s", c.method, c.path, res.StatusCode, text)
		}
	}
	for _, line := range []string{"GET /_matrix/client/v3/%zz HTTP/1.1", "GET /_matrix/client/v3/rooms/%f HTTP/1.1", "nonsense"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s\r\nHost: x\r\n\r\n", line)
		res, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatalf("%s: %v", line, err)
		}
		text, _ := io.ReadAll(res.Body)
		conn.Close()
		if res.StatusCode != 400 || gjson.GetBytes(text, "errcode").Str != "M_UNRECOGNIZED" || res.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %s %q", line, res.StatusCode, res.Header.Get("Content-Type"), text)
		}
	}
}
