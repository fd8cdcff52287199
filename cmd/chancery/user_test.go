package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
)

// The first administrator of a new server, before its first start and while it runs.
func TestUserCreate(t *testing.T) {
	data, address := t.TempDir(), freeAddress(t)
	environ := []string{"CHANCERY_CLIENT_LISTEN=" + address, "CHANCERY_FEDERATION_LISTEN=" + freeAddress(t), "CHANCERY_PASSWORDS_COST=low"}
	create := func(password string, args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), append([]string{"user", "create", "--data", data}, args...),
			terminal{in: strings.NewReader(password + "\n"), out: &out, err: &errs, environ: environ})
		return code, out.String(), errs.String()
	}
	if code, out, errs := create("before it runs", "root", "--admin"); code != exitDone || out != "@root:localhost can sign in now\n" || !strings.HasPrefix(errs, "No server has run on "+data+" yet") {
		t.Fatalf("exit %d %q %q", code, out, errs)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int)
	var log bytes.Buffer
	go func() {
		done <- run(ctx, []string{"serve", "--data", data}, terminal{in: strings.NewReader(""), out: io.Discard, err: &log, environ: environ})
	}()
	poll(t, "http://"+address+"/_matrix/client/versions")
	if code, out, errs := create("while it runs", "alice"); code != exitDone || out != "@alice:localhost can sign in now\n" || errs != "" {
		t.Errorf("exit %d %q %q", code, out, errs)
	}
	for _, bad := range []struct{ name, says string }{{"alice", "no account was made: there is already a user of this name"}, {"a b", "no account was made: a user name has only"}} {
		if code, _, errs := create("x", bad.name); code != exitFailed || !strings.Contains(errs, bad.says) {
			t.Errorf("%s: exit %d %q", bad.name, code, errs)
		}
	}
	for name, password := range map[string]string{"root": "before it runs", "alice": "while it runs"} {
		body := `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"` + name + `"},"password":"` + password + `"}`
		resp, err := http.Post("http://"+address+"/_matrix/client/v3/login", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != 200 {
			t.Errorf("%s cannot sign in: %d %s", name, resp.StatusCode, text)
		}
	}
	stop()
	stops(t, done, &log)
}
