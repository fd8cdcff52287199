package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tidwall/gjson"
)

// client speaks to a server as one of its users.
type client struct {
	t          *testing.T
	url, token string
}

func (c *client) ok(method, path, body string) gjson.Result {
	c.t.Helper()
	req, err := http.NewRequest(method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		c.t.Fatalf("%s %s: %d %s %v", method, path, resp.StatusCode, text, err)
	}
	return gjson.ParseBytes(text)
}

// An operator asks why an event is what it is, while the server runs and while it does not.
func TestRoomExplain(t *testing.T) {
	data, address := t.TempDir(), freeAddress(t)
	environ := []string{"CHANCERY_CLIENT_LISTEN=" + address, "CHANCERY_FEDERATION_LISTEN=" + freeAddress(t), "CHANCERY_PASSWORDS_COST=low"}
	chancery := func(args ...string) (int, string, string) {
		var out, errs bytes.Buffer
		code := run(t.Context(), append(args, "--data", data), terminal{in: strings.NewReader("correct horse\n"), out: &out, err: &errs, environ: environ})
		return code, out.String(), errs.String()
	}
	if code, _, errs := chancery("user", "create", "alice"); code != exitDone {
		t.Fatal(errs)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan int)
	var log bytes.Buffer
	go func() {
		done <- run(ctx, []string{"serve", "--data", data}, terminal{in: strings.NewReader(""), out: io.Discard, err: &log, environ: environ})
	}()
	poll(t, "http://"+address+"/_matrix/client/versions")
	alice := &client{t: t, url: "http://" + address + "/_matrix/client/v3"}
	alice.token = alice.ok("POST", "/login", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"correct horse"}`).Get("access_token").Str
	room := alice.ok("POST", "/createRoom", `{"name":"Budget"}`).Get("room_id").Str
	event := alice.ok("PUT", "/rooms/"+room+"/send/m.room.message/1", `{"msgtype":"m.text","body":"hello"}`).Get("event_id").Str

	explained := func() {
		t.Helper()
		code, out, errs := chancery("room", "explain", room, event)
		if code != exitDone {
			t.Fatalf("exit %d: %s", code, errs)
		}
		for _, line := range []string{"room " + room + ", version 12", "  " + event + "  m.room.message  by @alice:localhost, ", `m.room.name ""  by @alice:localhost`,
			"the list of its auth events is in order", `rule 11 allows: "Otherwise, allow."`, "so it is accepted"} {
			if !strings.Contains(out, line) {
				t.Errorf("%q is not in\n%s", line, out)
			}
		}
		code, out, errs = chancery("room", "explain", room, event, "--json")
		var x struct {
			Event struct{ Status string }
			By    struct {
				Said []struct{ Rule, Says string } `json:"by_state_before"`
			} `json:"judgements"`
		}
		if err := json.Unmarshal([]byte(out), &x); code != exitDone || err != nil {
			t.Fatalf("exit %d, %v: %s", code, err, errs)
		}
		if x.Event.Status != "accepted" || len(x.By.Said) == 0 || fmt.Sprint(x.By.Said[len(x.By.Said)-1]) != "{11 allows}" {
			t.Errorf("as JSON: %s", out)
		}
		for _, bad := range [][2]string{{room, "$nothing"}, {"!nowhere:localhost", event}} {
			if code, _, errs := chancery("room", "explain", bad[0], bad[1]); code != exitFailed || !strings.Contains(errs, "the event cannot be explained: ") {
				t.Errorf("%v: exit %d %s", bad, code, errs)
			}
		}
	}
	rebuilt := func(args ...string) {
		t.Helper()
		code, out, errs := chancery(append([]string{"room", "rebuild-state", room}, args...)...)
		if code != exitDone || !strings.Contains(out, "all of it is as it is stored") {
			t.Errorf("exit %d %s %s", code, out, errs)
		}
		if code, _, errs := chancery("room", "rebuild-state", "!nowhere:localhost"); code != exitFailed || !strings.Contains(errs, "the state is as it was: unknown room") {
			t.Errorf("exit %d %s", code, errs)
		}
	}
	explained()
	rebuilt()
	stop()
	stops(t, done, &log)
	explained()
	rebuilt("--apply")
	if code, _, _ := chancery("room", "explain", room); code != exitUsage {
		t.Errorf("without an event: exit %d", code)
	}
}

// A mistyped directory must not become a server's.
func TestRoomVerbsMakeNoDatabase(t *testing.T) {
	data := filepath.Join(t.TempDir(), "mistyped")
	for _, verb := range [][]string{{"explain", "!room:localhost", "$event"}, {"rebuild-state", "!room:localhost"}} {
		var errs bytes.Buffer
		code := run(t.Context(), append(append([]string{"room"}, verb...), "--data", data), terminal{in: strings.NewReader(""), out: io.Discard, err: &errs})
		if code != exitFailed || !strings.Contains(errs.String(), "there is no "+filepath.Join(data, "chancery.db")) {
			t.Errorf("%s: code %d: %s", verb[0], code, &errs)
		}
		if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s made a data directory: %v", verb[0], err)
		}
	}
}
