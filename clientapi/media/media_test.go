package media_test

import (
	"bytes"
	"context"
	"image"
	"image/png"
	"io"
	"mime"
	"net/http"
	"strings"
	"testing"

	"chancery"
	"chancery/clientapi"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/media"
	"chancery/storage/blob"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/client"

	"maunium.net/go/mautrix/id"
)

// tokens are the users' names.
type tokens struct{}

func (tokens) Authenticate(_ context.Context, r *http.Request, _ []byte) (endpoint.Caller, error) {
	token, _ := endpoint.AccessToken(r)
	return endpoint.Caller{User: id.NewUserID(token, "agency.example"), Device: "D", Guest: token == "guest", Suspended: token == "suspended"}, nil
}

// elsewhere is another server with one file.
type elsewhere struct{}

func (elsewhere) MediaDownload(_ context.Context, server, mediaID string, _ peer.MediaLimits) (*peer.Media, error) {
	if mediaID != "theirs" {
		return nil, &peer.Error{Destination: server, Status: 404, Code: chancery.CodeNotFound}
	}
	return &peer.Media{ContentType: "text/html", Disposition: `inline; filename="page.html"`, Body: io.NopCloser(strings.NewReader("<p>"))}, nil
}

type server struct{ *client.Server }

func eachEngine(t *testing.T, test func(*server)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		db, log := client.OpenDB(t, fresh()), client.Log(t)
		blobs, err := blob.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		cfg := config.Default()
		cfg.ServerName = "agency.example"
		test(&server{client.Serve(t, &clientapi.Server{Config: cfg, DB: db, Auth: tokens{}, Log: log,
			Media: media.New(media.Options{DB: db, Blobs: blobs, Peers: elsewhere{}, ServerName: cfg.ServerName, MaxBytes: 100_000, Log: log})})})
	})
}

func (s *server) ask(token, method, path, body string, headers ...string) client.Answer {
	s.T.Helper()
	in := client.Request{Token: token, Method: method, URL: s.URL + path, Body: body, Header: http.Header{}}
	for i := 0; i < len(headers); i += 2 {
		in.Header.Set(headers[i], headers[i+1])
	}
	a, err := client.Do(s.T.Context(), s.Client(), in)
	if err != nil {
		s.T.Fatal(err)
	}
	return a
}

func (s *server) want(a client.Answer, status int, code chancery.Code) {
	s.T.Helper()
	if a.Status != status || a.Code() != string(code) {
		s.T.Fatalf("got %s, want %d %s", a, status, code)
	}
}

// upload gives server name and media ID as a path.
func (s *server) upload(query, kind, body string) string {
	s.T.Helper()
	a := s.ask("alice", "POST", "/_matrix/media/v3/upload"+query, body, "Content-Type", kind)
	s.want(a, 200, "")
	path, ok := strings.CutPrefix(a.Str("content_uri"), "mxc://")
	if !ok {
		s.T.Fatalf("the URI is %s", a.Text)
	}
	return path
}

const download = "/_matrix/client/v1/media/download/"

// spec: c2s/uploadContent, c2s/getContentAuthed
func TestFileGoesUpAndDown(t *testing.T) {
	eachEngine(t, func(s *server) {
		file := s.upload("?filename=name%20with%3Bsemicolons", "image/png", "not really a png")
		a := s.ask("bob", "GET", download+file, "")
		s.want(a, 200, "")
		how, params, err := mime.ParseMediaType(a.Header.Get("Content-Disposition"))
		if a.Text != "not really a png" || a.Header.Get("Content-Type") != "image/png" || how != "inline" || params["filename"] != "name with;semicolons" || err != nil {
			t.Fatalf("%q %v", a.Text, a.Header)
		}
		for name, want := range map[string]string{
			"Content-Security-Policy":      "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';",
			"Cross-Origin-Resource-Policy": "cross-origin", "X-Content-Type-Options": "nosniff", "Access-Control-Allow-Origin": "*", "Content-Length": "16",
		} {
			if got := a.Header.Get(name); got != want {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
		if again := s.ask("bob", "GET", download+file, "", "If-None-Match", a.Header.Get("ETag")); again.Status != 304 {
			t.Errorf("asked again: %d", again.Status)
		}
		if part := s.ask("bob", "GET", download+file, "", "Range", "bytes=4-9"); part.Status != 206 || part.Text != "really" {
			t.Errorf("a range: %d %q", part.Status, part.Text)
		}
		if head := s.ask("bob", "HEAD", download+file, ""); head.Status != 200 || head.Header.Get("Content-Length") != "16" || head.Text != "" {
			t.Errorf("HEAD: %d %q", head.Status, head.Header.Get("Content-Length"))
		}
		named := s.ask("bob", "GET", download+file+"/%E2%98%95.png", "")
		if _, params, err := mime.ParseMediaType(named.Header.Get("Content-Disposition")); err != nil || params["filename"] != "☕.png" {
			t.Errorf("with a name: %v", named.Header)
		}
		page := s.ask("bob", "GET", download+s.upload("", "text/html", "<script>"), "")
		if page.Header.Get("Content-Disposition") != "attachment" || page.Header.Get("Content-Type") != "text/html" {
			t.Errorf("a page: %v", page.Header)
		}
		if a := s.ask("bob", "GET", download+s.upload("", "", "x"), ""); a.Header.Get("Content-Type") != "application/octet-stream" {
			t.Errorf("without a type: %v", a.Header)
		}
	})
}

// spec: c2s#content-repo-client-behaviour
func TestOldPathsGiveNothingNew(t *testing.T) {
	eachEngine(t, func(s *server) {
		file := s.upload("", "text/plain", "x")
		for _, path := range []string{"v3/download/" + file, "r0/download/" + file, "v1/download/" + file, "v3/download/" + file + "/name",
			"v3/thumbnail/" + file + "?width=10&height=10", "v3/download/other.example/theirs", "v3/download/other.example/theirs?allow_remote=false"} {
			s.want(s.ask("alice", "GET", "/_matrix/media/"+path, ""), 404, chancery.CodeNotFound)
		}
		s.want(s.ask("", "GET", download+file, ""), 401, chancery.CodeMissingToken)
		s.want(s.ask("", "GET", "/_matrix/client/v1/media/thumbnail/"+file, ""), 401, chancery.CodeMissingToken)
		s.want(s.ask("", "POST", "/_matrix/media/v3/upload", "x"), 401, chancery.CodeMissingToken)
	})
}

// spec: c2s/createContent, c2s/uploadContentToMXC
func TestUploadAfterTheURI(t *testing.T) {
	eachEngine(t, func(s *server) {
		created := s.ask("alice", "POST", "/_matrix/media/v1/create", "{}")
		s.want(created, 200, "")
		file := strings.TrimPrefix(created.Str("content_uri"), "mxc://")
		s.want(s.ask("bob", "GET", download+file+"?timeout_ms=1", ""), 504, chancery.CodeNotYetUploaded)
		s.want(s.ask("bob", "GET", "/_matrix/media/v3/download/"+file+"?timeout_ms=1", ""), 504, chancery.CodeNotYetUploaded)
		s.want(s.ask("bob", "PUT", "/_matrix/media/v3/upload/"+file, "bob's"), 403, chancery.CodeForbidden)
		s.want(s.ask("alice", "PUT", "/_matrix/media/v3/upload/"+file, "alice's", "Content-Type", "text/plain"), 200, "")
		s.want(s.ask("alice", "PUT", "/_matrix/media/v3/upload/"+file, "once more"), 409, chancery.CodeCannotOverwriteMedia)
		s.want(s.ask("alice", "PUT", "/_matrix/media/v3/upload/agency.example/unknown", "x"), 404, chancery.CodeNotFound)
		if a := s.ask("bob", "GET", download+file, ""); a.Text != "alice's" {
			t.Fatalf("%d %s", a.Status, a.Text)
		}
	})
}

// spec: c2s/getContentThumbnailAuthed
func TestThumbnail(t *testing.T) {
	eachEngine(t, func(s *server) {
		var picture bytes.Buffer
		if err := png.Encode(&picture, image.NewNRGBA(image.Rect(0, 0, 300, 200))); err != nil {
			t.Fatal(err)
		}
		file := s.upload("?filename=big.png", "image/png", picture.String())
		thumbnail := "/_matrix/client/v1/media/thumbnail/" + file
		a := s.ask("bob", "GET", thumbnail+"?width=30&height=30&method=crop&animated=true", "")
		s.want(a, 200, "")
		seen, format, err := image.DecodeConfig(strings.NewReader(a.Text))
		if err != nil || format != "png" || seen.Width != 32 || seen.Height != 32 {
			t.Fatalf("%+v %s %v", seen, format, err)
		}
		if a.Header.Get("Content-Type") != "image/png" || a.Header.Get("Content-Disposition") != `inline; filename=thumbnail.png` {
			t.Fatalf("%v", a.Header)
		}
		for query, code := range map[string]chancery.Code{
			"":                   chancery.CodeMissingParam,
			"?width=10":          chancery.CodeMissingParam,
			"?width=x&height=10": chancery.CodeInvalidParam, "?width=-1&height=10": chancery.CodeInvalidParam,
			"?width=10&height=10&method=fold": chancery.CodeInvalidParam, "?width=10&height=10&animated=1": chancery.CodeInvalidParam,
			"?width=10&height=10&timeout_ms=-1": chancery.CodeInvalidParam, "?width=%zz": chancery.CodeInvalidParam,
		} {
			s.want(s.ask("bob", "GET", thumbnail+query, ""), 400, code)
		}
		text := s.upload("", "image/png", "no picture")
		s.want(s.ask("bob", "GET", "/_matrix/client/v1/media/thumbnail/"+text+"?width=10&height=10", ""), 400, chancery.CodeUnknown)
	})
}

func TestFileOfAnotherServer(t *testing.T) {
	eachEngine(t, func(s *server) {
		a := s.ask("guest", "GET", download+"other.example/theirs", "")
		s.want(a, 200, "")
		if a.Text != "<p>" || a.Header.Get("Content-Type") != "text/html" || a.Header.Get("Content-Disposition") != `attachment; filename=page.html` {
			t.Fatalf("%q %v", a.Text, a.Header)
		}
		s.want(s.ask("alice", "GET", download+"other.example/unknown", ""), 404, chancery.CodeNotFound)
		s.want(s.ask("alice", "GET", download+"other.example/..%2F..%2Fadmin", ""), 404, chancery.CodeNotFound)
		s.want(s.ask("alice", "GET", download+"other..example%2F/x", ""), 404, chancery.CodeNotFound)
	})
}

func TestWhatMayNotGoUp(t *testing.T) {
	eachEngine(t, func(s *server) {
		large := strings.Repeat("x", 100_001)
		s.want(s.ask("alice", "POST", "/_matrix/media/v3/upload", large), 413, chancery.CodeTooLarge)
		r, err := http.NewRequest("POST", s.URL+"/_matrix/media/v3/upload", struct{ io.Reader }{strings.NewReader(large)}) // without a length
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer alice")
		res, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != 413 {
			t.Fatalf("without a length: %d", res.StatusCode)
		}
		s.want(s.ask("guest", "POST", "/_matrix/media/v3/upload", "x"), 403, chancery.CodeGuestAccessForbidden)
		s.want(s.ask("suspended", "POST", "/_matrix/media/v3/upload", "x"), 403, chancery.CodeUserSuspended)
		s.want(s.ask("suspended", "POST", "/_matrix/media/v1/create", ""), 403, chancery.CodeUserSuspended)
		for _, path := range []string{"/_matrix/media/v3/config", "/_matrix/client/v1/media/config", "/_matrix/media/r0/config"} {
			if a := s.ask("alice", "GET", path, ""); a.Text != `{"m.upload.size":100000}` {
				t.Errorf("%s: %s", path, a.Text)
			}
		}
		s.want(s.ask("alice", "GET", "/_matrix/client/v1/media/preview_url?url=http://127.0.0.1/", ""), 404, chancery.CodeUnrecognized)
	})
}
