package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"chancery/config"
	"chancery/storage"
	"chancery/storage/sql/sqltest"
	"chancery/test/port"
)

// tell runs the command and gives its exit code and what it wrote.
func tell(t *testing.T, in string, args ...string) (code int, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = run(t.Context(), args, terminal{in: strings.NewReader(in), out: &o, err: &e})
	return code, o.String(), e.String()
}

func TestBadUsageExitsWithTwo(t *testing.T) {
	for _, args := range [][]string{{}, {"dance"}, {"serve", "--what"}, {"serve", "now"}, {"serve", "--only", "clientapi,cooking"},
		{"config"}, {"config", "check"}, {"user"}, {"user", "create"}, {"user", "create", "a", "b"}, {"version", "x"}, {"serve", "--server-name", "no name"}} {
		code, _, errs := tell(t, "", args...)
		if code != exitUsage || errs == "" {
			t.Errorf("%q: exit %d, %q", args, code, errs)
		}
	}
}

func TestConfigCheckTellsEveryFault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte("server_name: a b\nlog: {level: loud}\nnew: 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := tell(t, "", "config", "check", file)
	if code != exitUsage || strings.Count(errs, "\n") != 3 || !strings.Contains(errs, "c.yaml:1:") || !strings.Contains(errs, "c.yaml:2:") || !strings.Contains(errs, "c.yaml:3:") {
		t.Fatalf("exit %d\n%s", code, errs)
	}
}

func TestPrintedConfigIsGood(t *testing.T) {
	code, out, errs := tell(t, "", "config", "print")
	if code != exitDone || errs != "" {
		t.Fatalf("exit %d %s", code, errs)
	}
	file := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(file, []byte(out), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := tell(t, "", "config", "check", file); code != exitDone {
		t.Fatalf("exit %d %s", code, errs)
	}
}

func TestVersionAndHelp(t *testing.T) {
	if code, out, _ := tell(t, "", "version"); code != 0 || !strings.HasPrefix(out, "chancery ") {
		t.Errorf("%d %q", code, out)
	}
	for _, args := range [][]string{{"help"}, {"--help"}, {"serve", "--help"}} {
		if code, out, _ := tell(t, "", args...); code != 0 || !strings.Contains(out, "chancery serve") {
			t.Errorf("%q: %d %q", args, code, out)
		}
	}
}

func TestPasswordComesFromStandardInput(t *testing.T) {
	got, err := readPassword(terminal{in: strings.NewReader("correct horse \r\nmore")})
	if err != nil || got != "correct horse " {
		t.Fatalf("%q %v", got, err)
	}
	if _, err := readPassword(terminal{in: strings.NewReader("\n")}); err == nil {
		t.Fatal("an empty password was taken")
	}
}

// A server that was told to start answers /versions and /health, and a signal ends it.
func TestServeUntilToldToStop(t *testing.T) {
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	var errs bytes.Buffer
	go func() {
		done <- run(ctx, []string{"serve", "--data", t.TempDir(), "--only", "clientapi"},
			terminal{in: strings.NewReader(""), out: io.Discard, err: &errs, environ: []string{"CHANCERY_CLIENT_LISTEN=" + address, "CHANCERY_LOG_FORMAT=json"}})
	}()
	for _, path := range []string{"/_matrix/client/versions", "/health", "/.well-known/matrix/client"} {
		if status := poll(t, "http://"+address+path); status != 200 {
			t.Errorf("%s: %d", path, status)
		}
	}
	half, err := net.Dial("tcp", address) // a request that never ends does not keep the server
	if err != nil {
		t.Fatal(err)
	}
	defer half.Close()
	if _, err := io.WriteString(half, "POST /_matrix/client/v3/login HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"); err != nil {
		t.Fatal(err)
	}
	cancel()
	stops(t, done, &errs)
	for _, line := range strings.Split(strings.TrimSpace(errs.String()), "\n") {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line of the log is no JSON: %q", line)
		}
	}
}

// Who waits for news when the server is told to stop is answered, and does not hold it.
func TestLongPollsAreAnsweredWhenTheServerStops(t *testing.T) {
	address := freeAddress(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"serve", "--data", t.TempDir()}, terminal{in: strings.NewReader(""), out: io.Discard, err: io.Discard,
			environ: []string{"CHANCERY_CLIENT_LISTEN=" + address, "CHANCERY_FEDERATION_LISTEN=127.0.0.1:0", "CHANCERY_REGISTRATION_OPEN=true", "CHANCERY_PASSWORDS_COST=low"}})
	}()
	url := "http://" + address + "/_matrix/client/"
	poll(t, url+"versions")
	var user struct {
		Token string `json:"access_token"`
		ID    string `json:"user_id"`
		Next  string `json:"next_batch"`
	}
	ask := func(method, path, body string, out any) (status int) {
		req, err := http.NewRequestWithContext(t.Context(), method, url+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+user.Token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Errorf("%s: %v", path, err)
			return 0
		}
		defer res.Body.Close()
		if out == nil {
			out = &struct{}{}
		}
		if err := json.NewDecoder(res.Body).Decode(out); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		return res.StatusCode
	}
	ask("POST", "v3/register", `{"username":"alice","password":"correct horse","auth":{"type":"m.login.dummy"}}`, &user)
	ask("GET", "v3/sync", "", &user)
	answered := make(chan int)
	var told struct {
		Presence string `json:"presence"`
	}
	go func() {
		answered <- ask("GET", "v3/sync?timeout=60000&set_presence=unavailable&filter=%7B%22presence%22%3A%7B%22not_types%22%3A%5B%22*%22%5D%7D%7D&since="+user.Next, "", nil)
	}()
	for told.Presence != "unavailable" { // until it is looked at
		ask("GET", "v3/presence/"+user.ID+"/status", "", &told)
		time.Sleep(10 * time.Millisecond)
	}
	select {
	case status := <-answered:
		t.Errorf("the poll was answered %d before there was news", status)
	default:
	}
	cancel()
	if status := <-answered; status != 200 {
		t.Errorf("the poll was answered %d", status)
	}
	if code := <-done; code != exitDone {
		t.Errorf("exit %d", code)
	}
}

// A first start that cannot succeed leaves no key and no database behind; a later one keeps what was there.
func TestFailedFirstStartLeavesNothing(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	data := filepath.Join(t.TempDir(), "data")
	start := func() {
		t.Helper()
		var errs bytes.Buffer
		code := run(t.Context(), []string{"serve", "--data", data, "--only", "clientapi"},
			terminal{in: strings.NewReader(""), out: io.Discard, err: &errs, environ: []string{"CHANCERY_CLIENT_LISTEN=" + taken.Addr().String()}})
		if code != exitFailed || !strings.Contains(errs.String(), "another process listens there") {
			t.Fatalf("exit %d: %s", code, errs.String())
		}
	}
	start()
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Fatalf("the data directory is there: %v", err)
	}
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	start()
	if _, err := os.Stat(filepath.Join(data, "signing.key")); err != nil {
		t.Fatalf("what an operator made is the operator's: %v", err)
	}
}

// A server that is told to stop before it is up has not failed, and leaves nothing behind either.
func TestStopWhileStarting(t *testing.T) {
	o := sqltest.PostgreSQL(t)
	db, err := storage.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.TakeShard(t.Context(), 0, "another process", time.Hour); err != nil {
		t.Fatal(err)
	}
	data := filepath.Join(t.TempDir(), "data")
	ctx, cancel := context.WithCancel(t.Context())
	var errs bytes.Buffer
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"serve", "--data", data, "--only", "roomserver"}, terminal{in: strings.NewReader(""), out: io.Discard, err: &errs,
			environ: []string{"CHANCERY_DATABASE_URL=" + o.URL, "CHANCERY_LOG_LEVEL=error"}})
	}()
	for { // until it has named itself, and asks for the rooms
		if _, err := os.Stat(filepath.Join(data, "owner")); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cancel()
	if code := <-done; code != exitDone || errs.Len() > 0 {
		t.Errorf("exit %d: %s", code, errs.String())
	}
	if _, err := os.Stat(data); !os.IsNotExist(err) {
		t.Errorf("the data directory is there: %v", err)
	}
}

// Each start that cannot succeed says why in one sentence and leaves nothing behind.
func TestStartsThatCannotSucceed(t *testing.T) {
	nobody := freeAddress(t)
	for name, c := range map[string]struct{ variable, value, says string }{
		"PostgreSQL that is not there": {"CHANCERY_DATABASE_URL", "postgres://u:p@" + nobody + "/d", "connection refused"},
		"NATS that is not there":       {"CHANCERY_NATS_URL", "nats://" + nobody, nobody},
		"a key that is none":           {"CHANCERY_SIGNING_KEY", "main_test.go", "signing key main_test.go"},
		"an address of somebody else":  {"CHANCERY_CLIENT_LISTEN", "192.0.2.1:8008", "192.0.2.1:8008"},
	} {
		t.Run(name, func(t *testing.T) {
			data := filepath.Join(t.TempDir(), "data")
			var errs bytes.Buffer
			code := run(t.Context(), []string{"serve", "--data", data}, terminal{in: strings.NewReader(""), out: io.Discard, err: &errs,
				environ: []string{"CHANCERY_CLIENT_LISTEN=127.0.0.1:0", "CHANCERY_FEDERATION_LISTEN=127.0.0.1:0", "CHANCERY_LOG_LEVEL=error", c.variable + "=" + c.value}})
			if code != exitFailed || strings.Count(errs.String(), "\n") != 1 || !strings.HasPrefix(errs.String(), "chancery: ") || !strings.Contains(errs.String(), c.says) {
				t.Errorf("exit %d: %s", code, errs.String())
			}
			if _, err := os.Stat(data); !os.IsNotExist(err) {
				t.Errorf("the data directory is there: %v", err)
			}
		})
	}
}

func TestLowPasswordCostIsWarnedOf(t *testing.T) {
	cfg := config.Default()
	cfg.Passwords.Cost = "low"
	cfg.Client.Listen = []string{"127.0.0.1:0"}
	cfg.DataDir = t.TempDir()
	var errs bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	up, down := io.Pipe()
	go func() {
		up.Read(make([]byte, 1)) // it tells that it is up
		cancel()
		io.Copy(io.Discard, up)
	}()
	if err := runServer(ctx, cfg, []string{"clientapi"}, newLog(cfg.Log, &errs), configFlags{}, terminal{out: down, err: &errs}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(errs.String(), "passwords.cost") {
		t.Fatalf("no warning: %s", errs.String())
	}
}

// stops waits for a server that was told to stop.
func stops(t *testing.T, done <-chan int, log fmt.Stringer) {
	t.Helper()
	select {
	case code := <-done:
		if code != exitDone {
			t.Fatalf("exit %d: %s", code, log)
		}
	case <-time.After(time.Minute):
		t.Fatal("it does not stop")
	}
}

func freeAddress(t *testing.T) string { return "127.0.0.1:" + port.Free(t) }

func poll(t *testing.T, url string) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		resp, err := http.Get(url)
		if err == nil {
			resp.Body.Close()
			return resp.StatusCode
		}
	}
	t.Fatalf("%s does not answer", url)
	return 0
}
