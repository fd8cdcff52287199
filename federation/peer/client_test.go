package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"maunium.net/go/mautrix/id"

	"chancery"
)

func TestRequestIsSignedAsItIsSent(t *testing.T) {
	// spec: s2s#request-authentication
	ca := newAuthority(t)
	var them *KeyRing
	var name string
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		origin, err := them.VerifyRequest(r.Context(), Request{r.Method, r.RequestURI, body, r.Header.Values("Authorization")})
		if err != nil || origin != "us.example" {
			t.Errorf("%s %s by %q: %v", r.Method, r.RequestURI, origin, err)
		}
		answerJSON(w, 200, map[string]string{"uri": r.RequestURI, "proto": r.Proto})
	}, "them.example")
	name = "them.example:" + port
	c, ours := ca.us(t, &names{}, nil)
	them = ringOf(t, name, ours)
	for _, path := range []string{"/a", "/a?b=c&d=%2F", "/%2Fx%20y/!r:a.b/$e", "/a?", "/%E2%98%83?q=%E2%98%83", "/a//b/../c"} {
		for _, body := range []any{nil, map[string]any{"z": 1, "a": "<é\u2028\x00>"}, json.RawMessage(`{ "b":[1,{}], "a":-0 }`)} {
			var out struct {
				URI   string `json:"uri"`
				Proto string `json:"proto"`
			}
			must(t, c.Do(t.Context(), name, "PUT", path, body, &out, Opts{}))
			if out.URI != path || out.Proto != "HTTP/2.0" {
				t.Errorf("sent %q as %q over %s", path, out.URI, out.Proto)
			}
		}
	}
}

func TestErrorsOfPeers(t *testing.T) {
	ca := newAuthority(t)
	status, body := 0, ""
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) { answerJSON(w, status, body) }, "them.example")
	c, _ := ca.us(t, &names{}, nil)
	for _, tc := range []struct {
		status  int
		body    string
		code    chancery.Code // what the peer said
		seen    chancery.Code // what a client may see
		visible int
	}{
		{403, `{"errcode":"M_FORBIDDEN","error":"no"}`, "M_FORBIDDEN", "M_FORBIDDEN", 403},
		{404, `{"errcode":"M_NOT_FOUND"}`, "M_NOT_FOUND", "M_NOT_FOUND", 404},
		{400, `{"errcode":"M_INCOMPATIBLE_ROOM_VERSION","room_version":"7"}`, "M_INCOMPATIBLE_ROOM_VERSION", "M_INCOMPATIBLE_ROOM_VERSION", 400},
		{401, `{"errcode":"M_UNKNOWN_TOKEN","soft_logout":true}`, "M_UNKNOWN_TOKEN", "M_UNKNOWN", 502},
		{403, `{"errcode":"M_USER_DEACTIVATED"}`, "M_USER_DEACTIVATED", "M_UNKNOWN", 502},
		{500, `{"errcode":"M_FORBIDDEN"}`, "M_FORBIDDEN", "M_UNKNOWN", 502},
		{404, `<html>`, "", "M_UNKNOWN", 502},
		{302, ``, "", "M_UNKNOWN", 502},
	} {
		status, body = tc.status, tc.body
		err := c.Do(t.Context(), "them.example:"+port, "GET", "/", nil, nil, Opts{})
		var failure *Error
		if !errors.As(err, &failure) || failure.Status != tc.status || failure.Code != tc.code {
			t.Fatalf("%d %s: got %v", tc.status, tc.body, err)
		}
		if seen := chancery.As(err); seen.Code != tc.seen || seen.Status != tc.visible {
			t.Errorf("%d %s: a client would see %d %s", tc.status, tc.body, seen.Status, seen.Code)
		}
		if v := chancery.As(err).Extra["room_version"]; tc.status == 400 && v != "7" {
			t.Errorf("the room version was lost: %v", v)
		}
	}
}

func TestAnswersAreBounded(t *testing.T) {
	ca := newAuthority(t)
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/large":
			answerJSON(w, 200, `{"x":"`+strings.Repeat("x", 4000)+`"}`)
		case "/slow":
			<-r.Context().Done()
		case "/drip":
			w.WriteHeader(200)
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	}, "them.example")
	c, _ := ca.us(t, &names{}, nil)
	ask := func(path string, o Opts) error {
		o.IgnoreBackoff = true
		return c.Do(t.Context(), "them.example:"+port, "GET", path, nil, nil, o)
	}
	if err := ask("/large", Opts{MaxBytes: 3000}); !errors.Is(err, ErrAnswerTooLarge) {
		t.Errorf("a large answer was read: %v", err)
	}
	must(t, ask("/large", Opts{MaxBytes: 4008}))
	for _, path := range []string{"/slow", "/drip"} {
		started := time.Now()
		if err := ask(path, Opts{Timeout: 100 * time.Millisecond}); err == nil || time.Since(started) > 20*time.Second {
			t.Errorf("%s: waited %v: %v", path, time.Since(started), err)
		}
	}
}

func TestDeadDestinationIsLeftAlone(t *testing.T) {
	ca := newAuthority(t)
	var mu sync.Mutex
	status, asked := 502, 0
	set := func(s int) { mu.Lock(); status = s; mu.Unlock() }
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked++
		answerJSON(w, status, `{}`)
	}, "them.example")
	name := "them.example:" + port
	var told []Destination
	c, _ := ca.us(t, &names{}, func(o *Options) { o.Changed = func(d Destination) { told = append(told, d) } })
	now := time.Now()
	c.now = func() time.Time { return now }
	ask := func(o Opts) error { return c.Do(t.Context(), name, "GET", "/", nil, nil, o) }
	wantAsked := func(want int) {
		t.Helper()
		if mu.Lock(); asked != want {
			t.Errorf("asked %d times, want %d", asked, want)
		}
		mu.Unlock()
	}
	if ask(Opts{}) == nil || !errors.Is(ask(Opts{}), ErrBackedOff) {
		t.Fatal("the failure was not remembered")
	}
	wantAsked(1)
	first := c.Destination(name).RetryAt.Sub(now)
	if first < 50*time.Second || first > 70*time.Second {
		t.Errorf("the first retry comes after %v, want about RetryMin", first)
	}
	if ask(Opts{IgnoreBackoff: true}); c.Destination(name).Failures != 1 {
		t.Error("a request in spite of the back-off prolonged it")
	}
	wantAsked(2)
	for range 12 {
		now = c.Destination(name).RetryAt
		_ = ask(Opts{})
	}
	if d := c.Destination(name); d.Failures != 13 || d.RetryAt.Sub(now) > 70*time.Minute || d.RetryAt.Sub(now) < 50*time.Minute {
		t.Errorf("after many failures: %+v, in %v", d, d.RetryAt.Sub(now))
	}
	later, _ := ca.us(t, &names{}, nil) // a restart
	later.now = c.now
	later.Restore([]Destination{c.Destination(name)})
	if err := later.Do(t.Context(), name, "GET", "/", nil, nil, Opts{}); !errors.Is(err, ErrBackedOff) {
		t.Errorf("the restart forgot the back-off: %v", err)
	}
	c.HeardFrom(name)
	if !errors.Is(ask(Opts{}), ErrBackedOff) {
		t.Error("a peer that is heard but not reached is asked without a pause")
	}
	now = now.Add(heardPause)
	set(200)
	must(t, ask(Opts{}))
	if d := c.Destination(name); d.Failures != 0 || told[len(told)-1].Failures != 0 || c.backoff.failing.len() != 0 {
		t.Errorf("after a success: %+v, told %+v", d, told[len(told)-1])
	}
	set(404)
	if _ = ask(Opts{}); c.Destination(name).Failures != 0 {
		t.Error("a 404 counts as a failure of the destination")
	}
	if _, err := c.SendTransaction(t.Context(), name, "t", Transaction{}, Opts{}); err == nil || c.Destination(name).Failures != 1 {
		t.Errorf("a refused transaction does not count: %v", err)
	}
}

func TestRateLimitOfAPeerIsObeyed(t *testing.T) {
	// spec: c2s#rate-limiting
	ca := newAuthority(t)
	var header, body string
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		if header != "" {
			w.Header().Set("Retry-After", header)
		}
		answerJSON(w, 429, body)
	}, "them.example")
	now := time.Now().Truncate(time.Second)
	for _, tc := range []struct {
		header, body string
		want         time.Duration
	}{
		{"", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":20000}`, 20 * time.Second},
		{"30", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":20000}`, 30 * time.Second},
		{now.Add(time.Minute).UTC().Format(http.TimeFormat), `{}`, time.Minute},
		{"", `{}`, defaultRateLimit},
		{"soon", `<html>`, defaultRateLimit},
		{"0", `{}`, leastRateLimit}, // or it would be asked as fast as it answers
		{"", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":-5}`, leastRateLimit},
		{"", `{"errcode":"M_LIMIT_EXCEEDED","retry_after_ms":1e300}`, retryMax},
		{"4294967295", `{}`, retryMax},
	} {
		header, body = tc.header, tc.body
		c, _ := ca.us(t, &names{}, nil)
		c.now = func() time.Time { return now }
		_ = c.Do(t.Context(), "them.example:"+port, "GET", "/", nil, nil, Opts{})
		if d := c.Destination("them.example:" + port); d.Failures != 0 || d.RetryAt.Sub(now) != tc.want {
			t.Errorf("%q %s: %+v, in %v", tc.header, tc.body, d, d.RetryAt.Sub(now))
		}
	}
}

// A proxy that answers 200 with its own page has not taken a transaction: the back-off grows as for any failure.
func TestNonsenseIsNoSuccessOfATransaction(t *testing.T) {
	ca := newAuthority(t)
	body := ""
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) { answerJSON(w, 200, body) }, "them.example")
	name := "them.example:" + port
	c, _ := ca.us(t, &names{}, nil)
	now := time.Now()
	c.now = func() time.Time { return now }
	send := func() error {
		_, err := c.SendTransaction(t.Context(), name, "t", Transaction{}, Opts{})
		return err
	}
	for i, nonsense := range []string{"", "<html>welcome</html>", `{"pdus":`, `[]`, `"ok"`} {
		body = nonsense
		if send() == nil || c.Destination(name).Failures != i+1 {
			t.Errorf("%q: failures are %d, want %d", nonsense, c.Destination(name).Failures, i+1)
		}
		now = c.Destination(name).RetryAt
	}
	for answer, want := range map[string]map[id.EventID]string{
		`{}`:                   {},
		`{"pdus":[]}`:          {},
		`{"pdus":{"$a":5}}`:    {"$a": "no proper result"},
		`{"pdus":{"$a":null}}`: {},
		`{"pdus":{"$a":{"error":"no"},"$b":{"error":null},"$c":{}}}`: {"$a": "no"},
	} {
		body = answer
		refused, err := c.SendTransaction(t.Context(), name, "t", Transaction{}, Opts{})
		if err != nil || c.Destination(name).Failures != 0 || !maps.Equal(refused, want) {
			t.Errorf("%s: refused are %v, %v", answer, refused, err)
		}
	}
}

func TestRefusedConnectionsAreRetriedOverANewOne(t *testing.T) {
	// A peer that restarts leaves dead connections in the pool: a PUT must not fail for that.
	ca := newAuthority(t)
	handler := func(w http.ResponseWriter, r *http.Request) { answerJSON(w, 200, `{"pdus":{}}`) }
	srv := ca.start(t, handler, "127.0.0.1:0", "them.example")
	name := "them.example:" + portOf(srv)
	c, _ := ca.us(t, &names{}, nil)
	_, err := c.SendTransaction(t.Context(), name, "1", Transaction{}, Opts{})
	must(t, err)
	addr := srv.Listener.Addr().String()
	srv.CloseClientConnections()
	srv.Close()
	again := ca.start(t, handler, addr, "them.example")
	defer again.Close()
	_, err = c.SendTransaction(t.Context(), name, "2", Transaction{}, Opts{})
	must(t, err)
}

func TestCallsOfRooms(t *testing.T) {
	ca := newAuthority(t)
	answers := map[string]string{
		"GET /_matrix/federation/v1/make_join/%21r:a/@u:b?ver=11&ver=12": `{"room_version":"12","event":{"type":"m.room.member"}}`,
		"PUT /_matrix/federation/v2/send_join/%21r:a/$e?omit_members=true": `{"x":[[]],"members_omitted":true,"state":[{"a":1}, {"b":2}],
			"servers_in_room":["a","b"],"event":{"e":1},"auth_chain":[ {"c":3} ]}`,
		"PUT /_matrix/federation/v1/send_knock/%21r:a/$e":                             `{"knock_room_state":[{"type":"m.room.name"}]}`,
		"PUT /_matrix/federation/v1/invite/%21r:a/$e":                                 `[200,{"event":{"signed":true}}]`,
		"GET /_matrix/federation/v1/state/%21r:a?event_id=%24e":                       `{"pdus":[{"a":1}],"auth_chain":[]}`,
		"GET /_matrix/federation/v1/state_ids/%21r:a?event_id=%24e":                   `{"pdu_ids":["$1"],"auth_chain_ids":["$2"]}`,
		"GET /_matrix/federation/v1/event/$e":                                         `{"origin":"a","pdus":[{"a":1}]}`,
		"GET /_matrix/federation/v1/event_auth/%21r:a/$e":                             `{"auth_chain":[{"a":1}]}`,
		"GET /_matrix/federation/v1/backfill/%21r:a?limit=7&v=%241&v=%242":            `{"pdus":[{"a":1}]}`,
		"POST /_matrix/federation/v1/get_missing_events/%21r:a":                       `{"events":[{"a":1}]}`,
		"GET /_matrix/federation/v1/timestamp_to_event/%21r:a?dir=b&ts=5":             `{"event_id":"$x","origin_server_ts":4}`,
		"GET /_matrix/federation/v1/query/profile?field=displayname&user_id=%40u%3Aa": `{"displayname":"U"}`,
		"GET /_matrix/federation/v1/query/directory?room_alias=%23x%3Aa":              `{"room_id":"!r:a","servers":["a"]}`,
		"POST /_matrix/federation/v1/user/keys/query":                                 `{"device_keys":{"@u:a":{"D":{}}}}`,
		"POST /_matrix/federation/v1/user/keys/claim":                                 `{"one_time_keys":{"@u:a":{"D":{"signed_curve25519:A":{}}}}}`,
		"GET /_matrix/federation/v1/user/devices/@u:a":                                `{"user_id":"@u:a","stream_id":5,"devices":[{"device_id":"D","keys":{}}]}`,
		"POST /_matrix/federation/v1/publicRooms":                                     `{"chunk":[{"room_id":"!r:a"}],"next_batch":"n"}`,
		"GET /_matrix/federation/v1/hierarchy/%21r:a":                                 `{"room":{},"children":[{}],"inaccessible_children":["!x:a"]}`,
		"GET /_matrix/federation/v1/openid/userinfo?access_token=theirs":              `{"sub":"@u:b.example"}`,
		"GET /_matrix/federation/v1/version":                                          `{"server":{"name":"S","version":"1"}}`,
		"PUT /_matrix/federation/v1/send/t1":                                          `{"pdus":{"$1":{},"$2":{"error":"no"}}}`,
	}
	port := ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		answer, ok := answers[r.Method+" "+r.RequestURI]
		if !ok {
			if !strings.Contains(r.RequestURI, "/v2/invite/") {
				t.Errorf("asked for %s %s", r.Method, r.RequestURI)
			}
			answerJSON(w, 404, `{"errcode":"M_UNRECOGNIZED"}`)
			return
		}
		answerJSON(w, 200, answer)
	}, "a.example")
	a := "a.example:" + port
	answers["GET /_matrix/federation/v1/openid/userinfo?access_token=t"] = `{"sub":"@u:` + a + `"}`
	c, _ := ca.us(t, &names{}, nil)
	ctx := t.Context()
	room, event := id.RoomID("!r:a"), id.EventID("$e")
	check := func(what string, got any, err error, want string) {
		t.Helper()
		if s := fmt.Sprintf("%+v", got); err != nil || s != want {
			t.Errorf("%s: %v, %v; want %s", what, s, err, want)
		}
	}
	texts := func(list []json.RawMessage) (out []string) {
		for _, raw := range list {
			out = append(out, string(raw))
		}
		return out
	}
	template, err := c.MakeJoin(ctx, a, room, "@u:b", []id.RoomVersion{"11", "12"})
	check("make_join", template.RoomVersion, err, "12")
	joined, err := c.SendJoin(ctx, a, room, event, json.RawMessage(`{}`), true)
	check("send_join", []any{texts(joined.State), texts(joined.AuthChain), string(joined.Event), joined.MembersOmitted, joined.Servers}, err,
		`[[{"a":1} {"b":2}] [{"c":3}] {"e":1} true [a b]]`)
	knocked, err := c.SendKnock(ctx, a, room, event, json.RawMessage(`{}`))
	check("send_knock", texts(knocked), err, `[{"type":"m.room.name"}]`)
	invited, err := c.Invite(ctx, a, room, event, Invite{RoomVersion: "2", Event: json.RawMessage(`{}`)})
	check("invite", string(invited), err, `{"signed":true}`)
	if _, err = c.Invite(ctx, a, room, event, Invite{RoomVersion: "12", Event: json.RawMessage(`{}`)}); StatusOf(err) != 404 {
		t.Errorf("an invite to a room of version 12 went the old way: %v", err)
	}
	state, err := c.GetState(ctx, a, room, event)
	check("state", texts(state.PDUs), err, `[{"a":1}]`)
	ids, err := c.GetStateIDs(ctx, a, room, event)
	check("state_ids", *ids, err, `{PDUs:[$1] AuthChain:[$2]}`)
	one, err := c.GetEvent(ctx, a, event)
	check("event", string(one), err, `{"a":1}`)
	chain, err := c.GetEventAuth(ctx, a, room, event)
	check("event_auth", texts(chain), err, `[{"a":1}]`)
	filled, err := c.Backfill(ctx, a, room, 7, []id.EventID{"$1", "$2"})
	check("backfill", texts(filled), err, `[{"a":1}]`)
	missing, err := c.GetMissingEvents(ctx, a, room, MissingEvents{Latest: []id.EventID{"$1"}})
	check("get_missing_events", texts(missing), err, `[{"a":1}]`)
	near, ts, err := c.TimestampToEvent(ctx, a, room, 5, "b")
	check("timestamp_to_event", []any{near, ts}, err, `[$x 4]`)
	profile, err := c.QueryProfile(ctx, a, "@u:a", "displayname")
	check("profile", string(profile["displayname"]), err, `"U"`)
	found, servers, err := c.QueryDirectory(ctx, a, "#x:a")
	check("directory", []any{found, servers}, err, `[!r:a [a]]`)
	keys, err := c.UserKeysQuery(ctx, a, map[id.UserID][]id.DeviceID{"@u:a": nil}, Opts{})
	check("keys/query", len(keys.DeviceKeys["@u:a"]), err, "1")
	claimed, err := c.UserKeysClaim(ctx, a, map[id.UserID]map[id.DeviceID]string{"@u:a": {"D": "signed_curve25519"}}, Opts{})
	check("keys/claim", len(claimed["@u:a"]["D"]), err, "1")
	devices, err := c.UserDevices(ctx, a, "@u:a")
	check("devices", []any{devices.StreamID, devices.Devices[0].ID}, err, "[5 D]")
	public, err := c.PublicRooms(ctx, a, PublicRoomsQuery{Filter: json.RawMessage(`{}`)})
	check("publicRooms", []any{len(public.Chunk), public.NextBatch}, err, "[1 n]")
	space, err := c.Hierarchy(ctx, a, room, Opts{})
	check("hierarchy", space.Inaccessible, err, "[!x:a]")
	user, err := c.OpenIDUserinfo(ctx, a, "t")
	check("openid", user, err, "@u:"+a)
	if user, err := c.OpenIDUserinfo(ctx, a, "theirs"); err == nil {
		t.Errorf("a server vouches for %s, who is another's", user)
	}
	software, version, err := c.Version(ctx, a)
	check("version", software+version, err, "S1")
	refused, err := c.SendTransaction(ctx, a, "t1", Transaction{TS: 1}, Opts{})
	check("send", refused, err, "map[$2:no]")
}

func TestStreamedAnswersMustBeOfEvents(t *testing.T) {
	for _, text := range []string{``, `[]`, `{"state":[1]}`, `{"state":[[]]}`, `{"state":{}}`, `{"state":[{}]`, `{"state":[null]}`, `{"state":[{}],"n":"x"}`} {
		var list []json.RawMessage
		var n int
		if err := decodeObject(strings.NewReader(text), lists{"state": into(&list)}, map[string]any{"n": &n}); err == nil {
			t.Errorf("%s was taken", text)
		}
	}
}

func TestMedia(t *testing.T) {
	// spec: s2s/getContent
	ca := newAuthority(t)
	var port string
	const envelope = "--b\r\nContent-Type: application/json\r\n\r\n{}\r\n--b\r\n%s\r\n--b--\r\n"
	port = ca.serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "multipart/mixed; boundary=b")
		switch r.URL.Path {
		case "/_matrix/federation/v1/media/download/here":
			fmt.Fprintf(w, envelope, "Content-Type: image/png\r\nContent-Disposition: inline\r\n\r\nbytes")
		case "/_matrix/federation/v1/media/download/there", "/_matrix/federation/v1/media/thumbnail/there":
			fmt.Fprintf(w, envelope, "Location: https://store.example:"+port+"/object?signed=1\r\n\r\n")
		case "/_matrix/federation/v1/media/download/plain":
			fmt.Fprintf(w, envelope, "Location: http://store.example:"+port+"/object\r\n\r\n")
		case "/_matrix/federation/v1/media/download/half":
			fmt.Fprint(w, "--b\r\n\r\n{}\r\n--b--\r\n")
		case "/object":
			if r.Header.Get("Authorization") != "" {
				t.Error("the store was told who we are")
			}
			w.Header().Set("Content-Type", "image/gif")
			io.WriteString(w, "stored")
		case "/_matrix/media/v3/download/a.example:" + port + "/old":
			if r.URL.Query().Get("allow_remote") != "false" || r.Header.Get("Authorization") != "" {
				t.Errorf("the old endpoint was asked with %s", r.RequestURI)
			}
			w.Header().Set("Content-Type", "text/plain")
			io.WriteString(w, "old")
		default:
			answerJSON(w, 404, `{"errcode":"M_UNRECOGNIZED"}`)
		}
	}, "a.example", "store.example")
	a := "a.example:" + port
	c, _ := ca.us(t, &names{}, nil)
	read := func(m *Media, err error) string {
		if err != nil {
			return "error"
		}
		defer m.Body.Close()
		text, err := io.ReadAll(m.Body)
		return fmt.Sprint(m.ContentType, " ", m.Disposition, " ", string(text), " ", err)
	}
	for media, want := range map[string]string{
		"here": "image/png inline bytes <nil>", "there": "image/gif  stored <nil>", "old": "text/plain  old <nil>",
		"plain": "error", "half": "error", "none": "error", "..": "error", "a/b": "error", "": "error",
	} {
		if got := read(c.MediaDownload(t.Context(), a, media, MediaLimits{})); got != want {
			t.Errorf("%q: %s, want %s", media, got, want)
		}
	}
	if got := read(c.MediaThumbnail(t.Context(), a, "there", Thumbnail{Width: 1, Height: 1}, MediaLimits{})); got != "image/gif  stored <nil>" {
		t.Errorf("thumbnail: %s", got)
	}
	for _, media := range []string{"here", "there", "old"} {
		m, err := c.MediaDownload(t.Context(), a, media, MediaLimits{MaxBytes: 2})
		must(t, err)
		if text, err := io.ReadAll(m.Body); !errors.Is(err, ErrAnswerTooLarge) || len(text) != 2 {
			t.Errorf("%s: read %q of too large a file: %v", media, text, err)
		}
		m.Body.Close()
	}
}

// drops is an answer of which a byte comes now and then, for as long as anybody listens.
type drops struct{ ctx context.Context }

func (d drops) Read(p []byte) (int, error) {
	select {
	case <-d.ctx.Done():
		return 0, d.ctx.Err()
	case <-time.After(time.Millisecond):
		return copy(p, "x"), nil
	}
}

func (drops) Close() error { return nil }

func TestAnswerThatComesInDropsEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body := newLimitedBody(drops{ctx}, stateBytes, 50*time.Millisecond, cancel)
	defer body.Close()
	if n, err := io.Copy(io.Discard, body); !errors.Is(err, context.Canceled) || n >= stallBytes {
		t.Errorf("%d bytes, %v", n, err)
	}
}
