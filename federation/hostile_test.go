package federation_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"chancery/federation/peer"
	"chancery/roomserver"

	"maunium.net/go/mautrix/id"
)

// request makes a request of a to b as a likes it; sign is how it is signed.
func (n *node) request(to *node, method, path string, body []byte, sign func(method, uri string, canonical []byte) string) (int, string) {
	n.t.Helper()
	req, err := http.NewRequest(method, "https://"+to.name+path, bytes.NewReader(body))
	if err != nil {
		n.t.Fatal(err)
	}
	var canonical []byte
	if len(body) > 0 {
		canonical, _ = peer.CanonicalJSON(body)
	}
	if sign != nil {
		if header := sign(method, req.URL.RequestURI(), canonical); header != "" {
			req.Header.Set("Authorization", header)
		}
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: n.authority.pool}}}
	defer client.CloseIdleConnections()
	res, err := client.Do(req)
	if err != nil {
		n.t.Fatal(err)
	}
	defer res.Body.Close()
	text, _ := io.ReadAll(res.Body)
	var v struct {
		Code string `json:"errcode"`
	}
	_ = json.Unmarshal(text, &v)
	return res.StatusCode, v.Code
}

func TestHostileRequestsGetTheSpecsErrors(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := b.room(bob, nil)
		a.join(alice, room, b)
		secret := b.room(bob, nil) // a is not in it
		event := b.say(bob, room, "x")
		proper := func(method, uri string, body []byte) string {
			return peer.SignRequest(a.keys.Key(), a.name, b.name, method, uri, body)
		}
		as := func(key peer.SigningKey, origin, destination string) func(string, string, []byte) string {
			return func(method, uri string, body []byte) string {
				return peer.SignRequest(key, origin, destination, method, uri, body)
			}
		}
		_, private, _ := ed25519.GenerateKey(rand.Reader)
		unknown := peer.SigningKey{ID: "ed25519:nobody", Private: private}
		false1 := peer.SigningKey{ID: a.keys.Key().ID, Private: private}
		send := "/_matrix/federation/v1/send/"
		r, e := url.PathEscape(string(room)), url.PathEscape(string(event))
		list := func(n int) string { return "[" + strings.TrimSuffix(strings.Repeat("{},", n), ",") + "]" }
		for i, c := range []struct {
			name, method, path, body string
			sign                     func(string, string, []byte) string
			status                   int
			code                     string
		}{
			{"unsigned", "PUT", send + "u", `{}`, nil, 401, "M_UNAUTHORIZED"},
			{"token of a client", "PUT", send + "u", `{}`, func(string, string, []byte) string { return "Bearer abc" }, 401, "M_UNAUTHORIZED"},
			{"malformed", "PUT", send + "u", `{}`, func(string, string, []byte) string { return `X-Matrix origin=` }, 401, "M_UNAUTHORIZED"},
			{"for another server", "PUT", send + "u", `{}`, as(a.keys.Key(), a.name, "other.example"), 401, "M_UNAUTHORIZED"},
			{"by an unknown key", "PUT", send + "u", `{}`, as(unknown, a.name, b.name), 401, "M_UNAUTHORIZED"},
			{"false signature", "PUT", send + "u", `{}`, as(false1, a.name, b.name), 401, "M_UNAUTHORIZED"},
			{"of a name that is none", "PUT", send + "u", `{}`, as(a.keys.Key(), "a b", b.name), 401, "M_UNAUTHORIZED"},
			{"no JSON", "PUT", send + "u", `{"pdus":`, proper, 400, "M_NOT_JSON"},
			{"wrong type", "PUT", send + "u", `{"pdus":5}`, proper, 400, "M_BAD_JSON"},
			{"duplicate name", "PUT", send + "u", `{"pdus":[],"pdus":[]}`, nil, 401, "M_UNAUTHORIZED"},
			{"nested beyond what anybody reads", "PUT", send + "deep", `{"pdus":[` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `]}`, proper, 400, "M_NOT_JSON"},
			{"no object", "PUT", send + "list", `[]`, proper, 400, "M_BAD_JSON"},
			{"signed list twice", "PUT", send + "twice", `{"pdus":[],"edus":[],"pdus":[{}]}`, proper, 400, "M_BAD_JSON"},
			{"too many PDUs", "PUT", send + "many", `{"pdus":` + list(51) + `}`, proper, 400, "M_BAD_JSON"},
			{"too many EDUs", "PUT", send + "many", `{"pdus":[],"edus":` + list(101) + `}`, proper, 400, "M_BAD_JSON"},
			{"over-long transaction ID", "PUT", send + strings.Repeat("x", 300), `{"pdus":[]}`, proper, 400, "M_INVALID_PARAM"},
			{"huge body", "PUT", send + "huge", `{"pdus":["` + strings.Repeat("x", 17<<20) + `"]}`, nil, 413, "M_TOO_LARGE"},
			{"PDUs that are none", "PUT", send + "junk", `{"pdus":[{},{"room_id":5},{"room_id":"` + string(room) + `"},{"room_id":"!x:y"}]}`, proper, 200, ""},
			{"state of a foreign room", "GET", "/_matrix/federation/v1/state/" + url.PathEscape(string(secret)) + "?event_id=$x", "", proper, 403, "M_FORBIDDEN"},
			{"state of an unknown room", "GET", "/_matrix/federation/v1/state/!unknown:x?event_id=$x", "", proper, 404, "M_NOT_FOUND"},
			{"state before an unknown event", "GET", "/_matrix/federation/v1/state_ids/" + r + "?event_id=$x", "", proper, 404, "M_NOT_FOUND"},
			{"state without an event", "GET", "/_matrix/federation/v1/state/" + r, "", proper, 400, "M_MISSING_PARAM"},
			{"unknown event", "GET", "/_matrix/federation/v1/event/$unknown", "", proper, 404, "M_NOT_FOUND"},
			{"auth of an unknown event", "GET", "/_matrix/federation/v1/event_auth/" + r + "/$unknown", "", proper, 404, "M_NOT_FOUND"},
			{"backfill with a bad limit", "GET", "/_matrix/federation/v1/backfill/" + r + "?v=" + e + "&limit=x", "", proper, 400, "M_INVALID_PARAM"},
			{"backfill of a foreign room", "GET", "/_matrix/federation/v1/backfill/" + url.PathEscape(string(secret)) + "?v=" + e + "&limit=5", "", proper, 403, "M_FORBIDDEN"},
			{"missing events without a list", "POST", "/_matrix/federation/v1/get_missing_events/" + r, `{"latest_events":[]}`, proper, 400, "M_MISSING_PARAM"},
			{"make_join for another server's user", "GET", "/_matrix/federation/v1/make_join/" + r + "/" + url.PathEscape(string(bob)) + "?ver=12", "", proper, 403, "M_FORBIDDEN"},
			{"make_join without the version", "GET", "/_matrix/federation/v1/make_join/" + r + "/" + url.PathEscape(string(alice)), "", proper, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
			{"send_join of no event", "PUT", "/_matrix/federation/v2/send_join/" + r + "/$x", `{"type":"m.room.member"}`, proper, 400, "M_BAD_JSON"},
			{"invite of an unknown version", "PUT", "/_matrix/federation/v2/invite/" + r + "/$x", `{"room_version":"99","event":{}}`, proper, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
			{"invite without an event", "PUT", "/_matrix/federation/v2/invite/" + r + "/$x", `{"room_version":"12"}`, proper, 400, "M_MISSING_PARAM"},
			{"profile of nobody", "GET", "/_matrix/federation/v1/query/profile?user_id=" + url.QueryEscape("@no:"+b.name), "", proper, 404, "M_NOT_FOUND"},
			{"profile of somebody else's user", "GET", "/_matrix/federation/v1/query/profile?user_id=@x:example.org", "", proper, 404, "M_NOT_FOUND"},
			{"unknown alias", "GET", "/_matrix/federation/v1/query/directory?room_alias=" + url.QueryEscape("#x:"+b.name), "", proper, 404, "M_NOT_FOUND"},
			{"unknown token", "GET", "/_matrix/federation/v1/openid/userinfo?access_token=x", "", nil, 401, "M_UNKNOWN_TOKEN"},
			{"unknown path", "GET", "/_matrix/federation/v1/nothing", "", proper, 404, "M_UNRECOGNIZED"},
			{"wrong method", "POST", "/_matrix/federation/v1/version", `{}`, proper, 405, "M_UNRECOGNIZED"},
		} {
			status, code := a.request(b, c.method, c.path, []byte(c.body), c.sign)
			if status != c.status || code != c.code {
				t.Errorf("%d %s: %d %s, want %d %s", i, c.name, status, code, c.status, c.code)
			}
		}
		// It goes on.
		a.say(alice, room, "still here")
		b.hears(room, []string{"x", "still here"})
	})
}

// A forged event is refused, and the honest one beside it is taken.
func TestOneBadPDUFailsNoOther(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.user("alice"), b.user("bob")
		room := b.room(bob, nil)
		a.join(alice, room, b)
		b.deaf.Store(true)
		eventID := a.say(alice, room, "honest")
		good := a.pdu(eventID)
		forged := bytes.Replace(good, []byte("honest"), []byte("forged"), 1)
		stranger := bytes.Replace(good, []byte("@alice:"), []byte("@mallory:"), -1)
		b.deaf.Store(false)
		if _, err := a.peer.SendTransaction(t.Context(), b.name, "mixed", peer.Transaction{PDUs: rawList(stranger, []byte(`{"room_id":7}`), forged, good)},
			peer.Opts{IgnoreBackoff: true}); err != nil {
			t.Fatal(err)
		}
		// The forged one has the honest one's ID: its content goes, as if redacted, so whichever came first stays.
		eventually(t, "the event is there", func() bool { return len(b.said(room)) == 1 })
		if got := fmt.Sprint(b.said(room)); strings.Contains(got, "forged") {
			t.Errorf("the room says %s", got)
		}
	})
}

// What two parsers would read differently spoils itself alone, and is read in neither way.
//
// spec: s2s#transactions
func TestOneUnreadablePieceFailsNoOther(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := b.room(bob, nil)
		a.join(alice, room, b)
		b.deaf.Store(true)
		good := string(a.pdu(a.say(alice, room, "honest")))
		b.deaf.Store(false)
		toDevice := func(id, rest string) string {
			return fmt.Sprintf(`{"edu_type":"m.direct_to_device","content":{"sender":%q,"type":"m.x","message_id":%q,"messages":{%q:{"B":{"n":%q}}}%s}}`, alice, id, bob, id, rest)
		}
		deep := strings.Repeat("[", 500) + strings.Repeat("]", 500)
		body := `{"origin":"` + a.name + `","origin_server_ts":1,"pdus":[` + strings.Join([]string{
			`{"room_id":"` + string(room) + `","type":"m.x","type":"m.y"}`,
			strings.Replace(good, `"type":`, `"type":"m.room.name","type":`, 1),
			`{"room_id":"` + string(room) + `","content":{"deep":` + deep + `}}`,
			`null`, `5`, `"text"`, `[]`, good,
		}, ",") + `],"edus":[` + strings.Join([]string{
			`{"edu_type":5,"content":{}}`, `{"edu_type":null}`, `null`, `7`, `{"edu_type":"m.typing","content":` + deep + `}`,
			toDevice("twice", `,"sender":"@mallory:`+a.name+`"`),
			strings.Replace(toDevice("within", ""), `{"n":"within"}`, `{"n":1,"n":2}`, 1),
			toDevice("proper", ""),
		}, ",") + `]}`
		status, code := a.request(b, "PUT", "/_matrix/federation/v1/send/pieces", []byte(body), func(method, uri string, canonical []byte) string {
			return peer.SignRequest(a.keys.Key(), a.name, b.name, method, uri, canonical)
		})
		if status != 200 {
			t.Fatalf("the transaction is answered with %d %s", status, code)
		}
		if got := fmt.Sprint(b.said(room)); got != "[honest]" {
			t.Errorf("the room says %s", got)
		}
		if got := fmt.Sprintf("%s", b.inbox(bob, "B")); !strings.Contains(got, "proper") || strings.Contains(got, "twice") || strings.Contains(got, "within") {
			t.Errorf("bob's device has %s", got)
		}
	})
}

// A server that we ask to join a restricted room may not name one of our users as who lets the user in: what
// we sign as the server of who joins would hold as our word for it.
//
// spec: s2s#restricted-rooms
func TestNobodyElseMakesUsVouchForAJoin(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, carol := a.user("alice"), a.user("carol")
		for name, via := range map[string]string{"ours": string(carol), "theirs": "@bob:" + b.name} {
			signed := false
			b.before = func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.Contains(r.URL.Path, "/make_join/"):
					fmt.Fprintf(w, `{"room_version":"11","event":{"type":"m.room.member","sender":%q,"state_key":%q,"room_id":"!r:%s","depth":5,
						"content":{"membership":"join","join_authorised_via_users_server":%q},"prev_events":["$p"],"auth_events":["$a"]}}`, alice, alice, b.name, via)
				case strings.Contains(r.URL.Path, "/send_join/"):
					signed = true
					http.Error(w, `{"errcode":"M_FORBIDDEN","error":"no"}`, http.StatusForbidden)
				default:
					return false
				}
				return true
			}
			if err := a.rooms.Join(t.Context(), roomserver.Join{User: alice, Room: id.RoomID("!r:" + b.name), Via: []string{b.name}}); err == nil {
				t.Errorf("%s: the join went through", name)
			}
			if signed != (name == "theirs") {
				t.Errorf("%s: signed %v", name, signed)
			}
		}
	})
}
