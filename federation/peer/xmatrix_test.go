package peer

import (
	"crypto/ed25519"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery"
)

func TestAuthorizationHeader(t *testing.T) {
	// spec: s2s#request-authentication
	want := XMatrix{"o.example:1", "d.example", "ed25519:k", "a+b/c"}
	for _, header := range []string{
		want.Header(),
		`X-Matrix origin="o.example:1",destination="d.example",key="ed25519:k",sig="a+b/c"`,
		`x-matrix   ORIGIN=o.example:1 ,	Destination=d.example, key=ed25519:k, sig="a+b/c", future=1, other="a\"b,c=d"`,
		`X-Matrix sig=a+b/c,key="ed25519\:k",origin="o.ex\ample:1",destination="d.example",`,
		`X-Matrix signature="a+b/c",key="ed25519:k",origin="o.example:1",destination="d.example"`,
		`X-Matrix ,, origin = "o.example:1" ,, destination = "d.example" , key="ed25519:k" , sig="a+b/c"`,
	} {
		if got, err := ParseAuthorization(header); err != nil || got != want {
			t.Errorf("%s\ngives %+v, %v", header, got, err)
		}
	}
	if x, err := ParseAuthorization(`X-Matrix origin=o,key=k,sig=s`); err != nil || x.Destination != "" {
		t.Errorf("a header without destination: %+v, %v", x, err)
	}
	for _, header := range []string{
		``, `X-Matrix`, `X-Matrix `, `Bearer abc`, `X-Matrix origin=o`, `X-Matrix origin=o,key=k`, `X-Matrix origin=o,key=k,sig`, `X-Matrix origin=o,key=k,sig=`,
		`X-Matrix origin="o,key=k,sig=s`, `X-Matrix origin=o key=k sig=s`, `X-Matrix origin=o,key=k,sig=s,origin=p`, `X-Matrix origin="a b",key=k,sig=s`,
		`X-Matrix origin=o,key=k,sig="s"x`, "X-Matrix origin=o,key=\"k\x00\",sig=s", `X-Matrix origin=o,key=k,sig="s\`, "X-Matrix origin=o,key=\"\xff\",sig=s",
	} {
		if got, err := ParseAuthorization(header); err == nil {
			t.Errorf("%q passes: %+v", header, got)
		}
	}
}

func TestRequestsMustBeForUsAndWhole(t *testing.T) {
	// spec: s2s#request-authentication
	them := &Keys{ServerName: "them.example", Signing: []SigningKey{NewSigningKey()}}
	r := ringOf(t, "us.example", them)
	body := []byte(`{"a": 1}`)
	canonical, _ := CanonicalJSON(body)
	sign := func(key SigningKey, destination string) string {
		return SignRequest(key, "them.example", destination, "PUT", "/p?q=1", canonical)
	}
	good := sign(them.Key(), "us.example")
	without := func() string { // as an old server does it
		payload := []byte(`{"content":{"a":1},"method":"PUT","origin":"them.example","uri":"/p?q=1"}`)
		return `X-Matrix origin=them.example,key="` + them.Key().ID + `",sig="` + encodeBase64(ed25519.Sign(them.Key().Private, payload)) + `"`
	}()
	stranger := NewSigningKey()
	stranger.ID = them.Key().ID
	unknown := sign(NewSigningKey(), "us.example")
	for _, tc := range []struct {
		name string
		in   Request
		code chancery.Code
	}{
		{"good", Request{"PUT", "/p?q=1", body, []string{good}}, ""},
		{"without destination", Request{"PUT", "/p?q=1", body, []string{without}}, ""},
		{"one of two signatures is of an unknown key", Request{"PUT", "/p?q=1", body, []string{unknown, good}}, ""},
		{"another method", Request{"POST", "/p?q=1", body, []string{good}}, chancery.CodeUnauthorized},
		{"another URI", Request{"PUT", "/p?q=2", body, []string{good}}, chancery.CodeUnauthorized},
		{"another body", Request{"PUT", "/p?q=1", []byte(`{"a":2}`), []string{good}}, chancery.CodeUnauthorized},
		{"no body", Request{"PUT", "/p?q=1", nil, []string{good}}, chancery.CodeUnauthorized},
		{"no JSON", Request{"PUT", "/p?q=1", []byte(`{`), []string{good}}, chancery.CodeNotJSON},
		{"no UTF-8", Request{"PUT", "/p?q=1", []byte("{\"a\":\"\xff\"}"), []string{good}}, chancery.CodeNotJSON},
		{"another destination", Request{"PUT", "/p?q=1", body, []string{sign(them.Key(), "other.example")}}, chancery.CodeUnauthorized},
		{"another key under the name", Request{"PUT", "/p?q=1", body, []string{sign(stranger, "us.example")}}, chancery.CodeUnauthorized},
		{"two origins", Request{"PUT", "/p?q=1", body, []string{good, strings.Replace(good, "them.example", "o.example", 1)}}, chancery.CodeUnauthorized},
		{"no header", Request{"PUT", "/p?q=1", body, nil}, chancery.CodeUnauthorized},
		{"many headers", Request{"PUT", "/p?q=1", body, []string{good, good, good, good, good}}, chancery.CodeUnauthorized},
		{"a client's token", Request{"PUT", "/p?q=1", body, []string{"Bearer x"}}, chancery.CodeUnauthorized},
	} {
		origin, err := r.VerifyRequest(t.Context(), tc.in)
		if tc.code == "" && (err != nil || origin != "them.example") || tc.code != "" && !chancery.IsCode(err, tc.code) {
			t.Errorf("%s: %q, %v", tc.name, origin, err)
		}
		if tc.code == chancery.CodeUnauthorized && chancery.As(err).Status != http.StatusUnauthorized {
			t.Errorf("%s: status %d", tc.name, chancery.As(err).Status)
		}
	}
}

func FuzzXMatrix(f *testing.F) {
	f.Add(`X-Matrix origin="o",destination="d",key="ed25519:k",sig="s"`)
	f.Add(`X-Matrix origin=o.example:1, sig="a\"b",key=x`)
	f.Fuzz(func(t *testing.T, header string) {
		x, err := ParseAuthorization(header)
		if err != nil {
			return
		}
		if !ValidServerName(x.Origin) {
			t.Fatalf("%q is of origin %q", header, x.Origin)
		}
		if strings.ContainsAny(x.Destination+x.Key+x.Signature, "\"\\") {
			return // Header does not escape: nothing of ours needs it
		}
		if again, err := ParseAuthorization(x.Header()); err != nil || again != x {
			t.Fatalf("%q gives %+v, and that gives %+v %v", header, x, again, err)
		}
	})
}

func TestServerNames(t *testing.T) {
	// spec: appendices#server-name
	for name, want := range map[string][2]string{
		"matrix.org": {"matrix.org", ""}, "matrix.org:8888": {"matrix.org", "8888"}, "1.2.3.4": {"1.2.3.4", ""}, "1.2.3.4:1234": {"1.2.3.4", "1234"},
		"[1234:5678::abcd]": {"1234:5678::abcd", ""}, "[1234:5678::abcd]:5678": {"1234:5678::abcd", "5678"}, "localhost": {"localhost", ""}, "A-b.c": {"A-b.c", ""},
		"[::ffff:1.2.3.4]:1": {"::ffff:1.2.3.4", "1"},
	} {
		if host, port, ok := SplitServerName(name); !ok || host != want[0] || port != want[1] {
			t.Errorf("%q: %q %q %v", name, host, port, ok)
		}
	}
	for _, name := range []string{
		"", ":", ":1", "a:", "a:b", "a:1:2", "a:123456", "a:65536", "a:-1", "a:+1", "a_b", "a b", "a/b", "a@b", "é", "a\x00", "[", "[]", "[::1", "::1", "[::1]x", "[::1]:",
		"[1.2.3.4]", "[fe80::1%eth0]", "[::g]", "https://a", strings.Repeat("a", 256),
	} {
		if ValidServerName(name) {
			t.Errorf("%q passes", name)
		}
	}
}

func FuzzServerName(f *testing.F) {
	for _, name := range []string{"a.example:1", "[::1]:8448", "1.2.3.4", "a..b"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		host, port, ok := SplitServerName(name)
		if !ok {
			return
		}
		whole := host
		if strings.Contains(host, ":") {
			whole = "[" + host + "]"
		}
		if port != "" {
			whole += ":" + port
		}
		if whole != name {
			t.Fatalf("%q splits into %q and %q", name, host, port)
		}
		if route, ok := namedRoute(name, host, port); ok && (route.Host != name || len(route.Addresses) != 1) {
			t.Fatalf("%q leads to %+v", name, route)
		}
	})
}

func TestOwnKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "signing.key")
	made, err := LoadKeys(path, "us.example")
	must(t, err)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the key's file has mode %v", info.Mode())
	}
	read, err := LoadKeys(path, "us.example")
	must(t, err)
	if read.Key().ID != made.Key().ID || !read.Key().Private.Equal(made.Key().Private) {
		t.Error("the key read is not the key made")
	}
	files, _ := os.ReadDir(filepath.Dir(path))
	if len(files) != 1 {
		t.Errorf("left over: %v", files)
	}
	if _, err := makeKeys(path, "us.example"); err == nil {
		t.Error("a key was overwritten")
	}
	if _, err := LoadKeys(filepath.Join(path, "x"), "us.example"); err == nil {
		t.Error("a key in a file that cannot be")
	}
}

func TestSynapseKeyFile(t *testing.T) {
	const seed = "YJDBA9Xnr2sVqXD9Vj7XVUnmFZcZrlw8Md7kMW+3XA1" // spec: appendices#cryptographic-test-vectors
	keys, err := parseKeys([]byte("ed25519 1 " + seed + "\n\ned25519 b_2 " + seed + "\n# gone\ned25519 old 1532645052628 XGX0JRS2Af3be3knz2fBiRbApjm2Dh61gXDJA8kcJNI\n"))
	must(t, err)
	if len(keys.Signing) != 2 || len(keys.Old) != 1 || keys.Key().ID != "ed25519:1" || keys.Signing[1].ID != "ed25519:b_2" {
		t.Fatalf("%+v", keys)
	}
	keys.ServerName = "domain"
	signed, err := SignJSON("domain", keys.Key(), []byte(`{"two":"Two","one":1}`))
	must(t, err)
	if want := `{"one":1,"signatures":{"domain":{"ed25519:1":"KqmLSbO39/Bzb0QIYE82zqLwsA+PDzYIpIRA2sRQ4sL53+sN6/fpNSoqE7BP7vBZhG6kYdD13EIMJpvhJI+6Bw"}},"two":"Two"}`; string(signed) != want {
		t.Errorf("the test vector gives %s", signed)
	}
	now := time.Now()
	list, err := keys.ServerKeys(now)
	must(t, err)
	found, until, err := readKeyList("domain", list, now)
	must(t, err)
	if len(found) != 3 || !until.After(now.Add(time.Hour)) || strings.Contains(string(list), seed) {
		t.Errorf("published: %s", list)
	}
	for _, bad := range []string{"", "ed25519 1", "rsa 1 " + seed, "ed25519 a:b " + seed, "ed25519 1 " + seed[:20], "ed25519 1 " + seed + "\ned25519 1 " + seed, "ed25519 1 x " + seed, "ed25519 1 5 " + seed} {
		if _, err := parseKeys([]byte(bad)); err == nil {
			t.Errorf("%q passes", bad)
		} else if strings.Contains(err.Error(), seed[:20]) {
			t.Errorf("the message tells the key: %v", err)
		}
	}
}

func BenchmarkSignRequest(b *testing.B) {
	key, content := NewSigningKey(), transactionBody()
	b.ReportAllocs()
	for b.Loop() {
		SignRequest(key, "us.example", "them.example", "PUT", "/_matrix/federation/v1/send/1", content)
	}
}

func BenchmarkVerifyRequest(b *testing.B) {
	them := &Keys{ServerName: "them.example", Signing: []SigningKey{NewSigningKey()}}
	r := ringOf(b, "us.example", them)
	content := transactionBody()
	in := Request{"PUT", "/_matrix/federation/v1/send/1", content, []string{SignRequest(them.Key(), "them.example", "us.example", "PUT", "/_matrix/federation/v1/send/1", content)}}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.VerifyRequest(b.Context(), in); err != nil {
			b.Fatal(err)
		}
	}
}

// transactionBody is a transaction of one message of 1 KB.
func transactionBody() []byte {
	body, _ := CanonicalJSON([]byte(`{"origin":"us.example","origin_server_ts":1,"pdus":[{"auth_events":["$a","$b","$c"],"content":{"body":"` + strings.Repeat("x", 600) +
		`","msgtype":"m.text"},"depth":10,"hashes":{"sha256":"` + strings.Repeat("h", 43) + `"},"origin_server_ts":1,"prev_events":["$d"],"room_id":"!r:us.example",` +
		`"sender":"@u:us.example","signatures":{"us.example":{"ed25519:1":"` + strings.Repeat("s", 86) + `"}},"type":"m.room.message"}]}`))
	return body
}
