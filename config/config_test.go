package config

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func write(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "chancery.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestDefaultsAreThoseOfTheContract(t *testing.T) {
	c := Default()
	if c.ServerName != "localhost" || c.DataDir != "./data" || c.KeyFile() != filepath.Join("data", "signing.key") ||
		!slices.Equal(c.Client.Listen, []string{"127.0.0.1:8008"}) || c.ClientURL() != "http://127.0.0.1:8008" ||
		!slices.Equal(c.Federation.Listen, []string{"127.0.0.1:8448"}) || !c.Federation.TLS || c.Federation.AllowPrivateAddresses || c.Federation.RetryMin != 30*time.Second ||
		c.Database.MaxConnections != 20 || c.NATS.Replicas != 1 || c.Registration.Open || c.Passwords.Cost != "normal" || !c.RateLimits.Enabled ||
		!c.Presence.Enabled || c.Presence.Federate || c.Media.MaxUpload != 100<<20 || c.Rooms.DefaultVersion != "12" || !c.WellKnown.Client ||
		c.Metrics.Listen != "" || c.Log != (Log{"info", "console"}) {
		t.Errorf("%+v", c)
	}
}

// What is printed is the whole configuration, and reading it gives the defaults.
func TestSampleReadsAsTheDefaults(t *testing.T) {
	var b bytes.Buffer
	if err := Print(&b); err != nil {
		t.Fatal(err)
	}
	file := write(t, b.String())
	got, err := Load(Source{File: file})
	if err != nil {
		t.Fatalf("%v\n%s", err, b.String())
	}
	want := Default()
	want.DataDir = filepath.Join(filepath.Dir(file), "data")
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	walk(reflect.ValueOf(want).Elem(), "", func(k key) {
		name := k.path[strings.LastIndexByte(k.path, '.')+1:]
		if !strings.Contains(b.String(), name+": ") {
			t.Errorf("%s is not in the sample", k.path)
		}
	})
	for _, line := range []string{"  max_upload: 100MiB\n", "  retry_min: 30s\n", "  default_version: \"12\"\n", "data_dir: ./data\n", "  listen: [\"127.0.0.1:8008\"]\n", "signing_key: \"\"\n"} {
		if !strings.Contains(b.String(), line) {
			t.Errorf("no line %q in\n%s", line, b.String())
		}
	}
}

func TestFileAsInTheContract(t *testing.T) {
	file := write(t, `
server_name: agency-a.example
client:       {listen: ["127.0.0.1:8008", "127.0.0.2:8008"], public_url: "https://matrix.agency-a.example"}
federation:   {retry_min: 500ms, allow_private_addresses: true}
media:        {max_upload: 1GiB}
rooms:        {default_version: 11}
trusted_proxies: 10.0.0.0/8
nats:
presence: &p  {enabled: false}
well_known:
  support:
    contacts: [{role: m.role.admin, email_address: help@agency-a.example}, {role: m.role.security, matrix_id: "@sec:agency-a.example"}]
`)
	c, err := Load(Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if c.ServerName != "agency-a.example" || len(c.Client.Listen) != 2 || c.Federation.RetryMin != 500*time.Millisecond || !c.Federation.AllowPrivateAddresses ||
		c.Media.MaxUpload != 1<<30 || c.Rooms.DefaultVersion != "11" || c.TrustedProxies[0] != "10.0.0.0/8" || c.Presence.Enabled ||
		len(c.WellKnown.Support.Contacts) != 2 || c.WellKnown.Support.Contacts[1].Account != "@sec:agency-a.example" || c.ClientURL() != "https://matrix.agency-a.example" {
		t.Errorf("%+v", c)
	}
	if c.Federation.Listen[0] != "127.0.0.1:8448" {
		t.Error("a key that was not given lost its default")
	}
}

func TestEveryFaultIsToldWithItsLine(t *testing.T) {
	file := write(t, `server_name: "no name"
client:
  listen: [8008]
  public_url: matrix.example
  listn: []
federation: {retry_min: soon, tls: maybe, tls_cert: nowhere.pem, notaries: ["no name"]}
database:
  max_connections: 1
  url: mysql://root:hunter2@x
media: {max_upload: big}
rooms: {default_version: "13"}
log: {level: loud}
trusted_proxies: [proxy]
metrics: on
server_name: twice
colour: blue
passwords: {cost: [low]}
nats: {replicas: 9}
registration: {open: }
well_known: {support: {contacts: [{role: m.role.admin}, {rule: x}]}}
`)
	_, err := Load(Source{File: file})
	var faults Faults
	if !errors.As(err, &faults) {
		t.Fatalf("got %v", err)
	}
	for _, want := range []string{
		":1: server_name", ":3: client.listen", ":4: client.public_url", ":5: unknown key client.listn; did you mean listen?",
		`:6: federation.retry_min: "soon" must be a duration`, `:6: federation.tls: "maybe" must be true or false`, ":6: federation.tls_cert: there is no file", ":6: federation.notaries",
		":8: database.max_connections: 1 is less than 2", ":9: database.url", ":10: media.max_upload", ":11: rooms.default_version", ":12: log.level",
		":13: trusted_proxies", ":14: metrics must have keys", ":15: server_name stands twice; first in line 1", ":16: unknown key colour",
		":17: passwords.cost must be a text", ":18: nats.replicas: 9 is more than 5", ":19: registration.open has no value",
		":20: unknown key well_known.support.contacts[1].rule", ":20: well_known.support.contacts[0] must have a role",
	} {
		if n := strings.Count(err.Error(), file+want); n != 1 {
			t.Errorf("%q is told %d times", want, n)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Error("a password is repeated")
	}
	last := 0
	for _, f := range faults {
		line := 0
		for _, c := range f.Where[strings.LastIndexByte(f.Where, ':')+1:] {
			line = line*10 + int(c-'0')
		}
		if line < last {
			t.Errorf("not in the order of the file: %s", f)
		}
		last = line
	}
	if t.Failed() {
		t.Log("\n" + err.Error())
	}
}

func TestFilesThatAreNoConfiguration(t *testing.T) {
	for text, want := range map[string]string{"a: [": "line 1", "- a\n": "must have keys", "\tx": "cannot start any token"} {
		if _, err := Load(Source{File: write(t, text)}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := Check(filepath.Join(t.TempDir(), "none.yaml")); err == nil || !strings.Contains(err.Error(), "cannot be read") {
		t.Errorf("%v", err)
	}
	for _, text := range []string{"", "# nothing\n", "client:\n"} {
		if err := Check(write(t, text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFlagsBeatEnvironmentBeatsFile(t *testing.T) {
	file := write(t, "server_name: file.example\nlog: {level: warn}\nclient: {listen: [\"127.0.0.1:1\"]}\n")
	c, err := Load(Source{
		File: file,
		Environ: []string{"CHANCERY_SERVER_NAME=env.example", "CHANCERY_LOG_LEVEL=error", "CHANCERY_CLIENT_LISTEN=127.0.0.1:8008, 127.0.0.2:8008", "CHANCERY_RATE_LIMITS_ENABLED=false",
			"CHANCERY_WELL_KNOWN_SUPPORT_CONTACTS=[{\"role\":\"m.role.dpo\",\"matrix_id\":\"@d:x\"}]", "CHANCERY_PORT=tcp://10.0.0.1:80", "PATH=/bin"},
		Flags: map[string]string{"server_name": "flag.example"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.ServerName != "flag.example" || c.Log.Level != "error" || !slices.Equal(c.Client.Listen, []string{"127.0.0.1:8008", "127.0.0.2:8008"}) || c.RateLimits.Enabled || c.WellKnown.Support.Contacts[0].Role != "m.role.dpo" {
		t.Errorf("%+v", c)
	}
	_, err = Load(Source{Environ: []string{"CHANCERY_LOG_LEVEL=loud", "CHANCERY_FEDERATION_TLS=", "CHANCERY_MEDIA_MAX_UPLOAD=-1"}, Flags: map[string]string{"server_name": "a b"}})
	for _, want := range []string{"CHANCERY_LOG_LEVEL: ", "CHANCERY_FEDERATION_TLS: is empty", "CHANCERY_MEDIA_MAX_UPLOAD: ", "--server-name: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestEveryKeyHasItsOwnEnvironmentVariable(t *testing.T) {
	seen := map[string]string{}
	walk(reflect.ValueOf(Default()).Elem(), "", func(k key) {
		if other := seen[env(k.path)]; other != "" {
			t.Errorf("%s and %s are both %s", other, k.path, env(k.path))
		}
		seen[env(k.path)] = k.path
	})
	if seen["CHANCERY_FEDERATION_ALLOW_PRIVATE_ADDRESSES"] == "" || seen["CHANCERY_DATA_DIR"] == "" {
		t.Errorf("%v", seen)
	}
}

func TestRelativePathsAreRelativeToTheFile(t *testing.T) {
	file := write(t, "data_dir: d\nsigning_key: /etc/key\nappservices: [as/*.yaml, /abs]\n")
	dir := filepath.Dir(file)
	c, err := Load(Source{File: file})
	if err != nil {
		t.Fatal(err)
	}
	if c.DataDir != filepath.Join(dir, "d") || c.KeyFile() != "/etc/key" || !slices.Equal(c.AppServices, []string{filepath.Join(dir, "as/*.yaml"), "/abs"}) {
		t.Errorf("%+v", c)
	}
	c, err = Load(Source{File: file, Flags: map[string]string{"data_dir": "here"}})
	if err != nil || c.DataDir != "here" {
		t.Errorf("a flag is relative to where it was typed: %v %v", c, err)
	}
}

func TestKeysThatNeedEachOther(t *testing.T) {
	pem := write(t, "x")
	for text, want := range map[string]string{
		"federation: {tls_cert: " + pem + "}":      "federation.tls_cert is given without federation.tls_key",
		"federation: {tls_key: " + pem + "}":       "federation.tls_key is given without federation.tls_cert",
		"nats: {credentials: " + pem + "}":         "nats.credentials is given without nats.url",
		"email: {smtp: \"smtp://mail.example\"}":   "email.smtp is given without email.from",
		"data_dir: \"\"":                           "data_dir is empty",
		"email: {from: nobody}":                    "no mail address",
		"well_known: {server: \"a.example:0\"}":    "no server name",
		"identity: {servers: [https://a.example]}": "no server name",
		"identity: {servers: [a.example, \"*\"]}":  "",
		"database: {url: \"postgres://h/db\"}":     "",
		"nats: {url: \"nats://a:1,nats://b:1\"}":   "",
		"trusted_proxies: [\"::1\", 10.0.0.0/8]":   "",
		"client: {listen: [], public_url: \"\"}":   "",
		"metrics: {listen: \"127.0.0.1:9100\"}":    "",
		"metrics: {listen: \"127.0.0.1:http\"}":    "no port",
		"client: {listen: \"127.0.0.1:08008\"}":    "no port",
		"client: {listen: [\"127.0.0.1:70000\"]}":  "no port",
		"federation: {tls: false, tls_cert: \"\"}": "",
	} {
		_, err := Load(Source{File: write(t, text)})
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// spec: appendices#server-name
func TestServerNames(t *testing.T) {
	for name, good := range map[string]bool{
		"matrix.org": true, "matrix.org:8888": true, "1.2.3.4": true, "1.2.3.4:1234": true, "[1234:5678::abcd]": true, "[1234:5678::abcd]:5678": true, "localhost": true, "Agency-A.example": true,
		"": false, "a b": false, "a_b": false, "a:": false, "a:x": false, "a:123456": false, "a:0": false, "[::1": false, "[1.2.3.4]": false, "[fe80::1%eth0]": false, "@a:b": false, "a/b": false, "ä.example": false,
		strings.Repeat("a", 231): false,
	} {
		if err := checkServerName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "512": 512, "1KiB": 1024, "100MiB": 100 << 20, "1 GiB": 1 << 30, "2GB": 2e9, "5b": 5} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%q: %d %v", text, got, err)
		}
	}
	for _, text := range []string{"", "-1", "1.5MiB", "MiB", "1PiB", "99999999999TiB"} {
		if _, err := parseSize(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	for size, want := range map[Size]string{100 << 20: "100MiB", 1536: "1536", 0: "0", 1 << 40: "1TiB"} {
		if size.String() != want {
			t.Errorf("%d: %s", int64(size), size)
		}
	}
}

func TestAddressForClientsIsNotGuessed(t *testing.T) {
	for listen, want := range map[string]string{"127.0.0.1:8008": "http://127.0.0.1:8008", "0.0.0.0:8008": "", ":8008": "", "[::]:8008": "", "[::1]:8008": "http://[::1]:8008", "127.0.0.1:0": ""} {
		c := Default()
		c.Client.Listen = []string{listen}
		if got := c.ClientURL(); got != want {
			t.Errorf("%s: %q, want %q", listen, got, want)
		}
	}
}

// A configuration is only ever refused with faults, never with a crash.
func FuzzLoad(f *testing.F) {
	f.Add("client: {listen: [a]}")
	f.Add("a: &x [*x]")
	f.Add("well_known: {support: {contacts: [{}]}}")
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		file := filepath.Join(dir, "c.yaml")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Source{File: file})
		var faults Faults
		if err != nil && !errors.As(err, &faults) {
			t.Fatalf("%q: %v", text, err)
		}
	})
}
