// Package badinput sends whole servers what no good client or server sends. Each gets the error that the
// specification has for it, and the server goes on.
package badinput

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"chancery/federation/peer"
	"chancery/test/homeserver"

	"github.com/tidwall/gjson"
)

type J = homeserver.J

// room is homeserver.Room, shorter.
func room(r string, rest ...string) string { return homeserver.Room(r, rest...) }

// clientCase is one bad request of a client.
type clientCase struct {
	name         string
	method, path string
	body         any
	status       int
	code         string
}

func TestBadRequestsOfClients(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh()})
		alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
		here := alice.CreateRoom(J{"preset": "private_chat"})
		foreign := bob.CreateRoom(J{"preset": "private_chat"})
		public := bob.CreateRoom(J{"preset": "public_chat"})
		alice.Join(public)
		theirs := bob.Send(public, "not alice's")
		first := alice.Send(here, "good")
		unknown := "!unknown:" + s.Name
		send := func(body any) clientCase {
			return clientCase{"", "PUT", room(here, "send", "m.room.message", homeserver.Txn()), body, 400, ""}
		}
		named := func(name string, c clientCase, status int, code string) clientCase {
			c.name, c.status, c.code = name, status, code
			return c
		}
		long := strings.Repeat("a", 256)
		cases := []clientCase{
			named("half an object", send(`{"body":`), 400, "M_NOT_JSON"),
			named("no JSON at all", send(`body=1`), 400, "M_NOT_JSON"),
			named("nothing", send(``), 400, "M_NOT_JSON"),
			named("two values", send(`{} {}`), 400, "M_NOT_JSON"),
			named("an array", send(`[]`), 400, "M_BAD_JSON"),
			named("null", send(`null`), 400, "M_BAD_JSON"),
			named("invalid UTF-8", send("{\"body\":\"\xff\xfe\"}"), 400, "M_NOT_JSON"),
			named("half of a surrogate pair", send(`{"body":"\ud800"}`), 400, "M_NOT_JSON"),
			named("a raw control character", send("{\"body\":\"\x01\"}"), 400, "M_NOT_JSON"),
			named("a name twice", send(`{"body":"a","body":"b"}`), 400, "M_BAD_JSON"),
			named("a name twice, below", send(`{"x":{"a":1,"\u0061":2}}`), 400, "M_BAD_JSON"),
			named("a fraction", send(`{"n":1.5}`), 400, "M_BAD_JSON"),
			named("a number out of range", send(`{"n":9007199254740992}`), 400, "M_BAD_JSON"),
			named("a number of 60,000 digits", send(`{"n":`+strings.Repeat("9", 60000)+`}`), 400, "M_BAD_JSON"),
			named("deep nesting", send(strings.Repeat(`{"a":`, 20000)+`1`+strings.Repeat(`}`, 20000)), 400, "M_BAD_JSON"),
			named("deep nesting without an end", send(`{"a":`+strings.Repeat(`[`, 500000)), 400, "M_BAD_JSON"),
			named("an event of 1 MB", send(`{"body":"`+strings.Repeat("x", 1<<20)+`"}`), 413, "M_TOO_LARGE"),
			named("an event of 66 KB", send(`{"body":"`+strings.Repeat("x", 66000)+`"}`), 413, "M_TOO_LARGE"),
			named("an event that only escapes make small", send(`{"body":"`+strings.Repeat(`\u00e9`, 33000)+`"}`), 413, "M_TOO_LARGE"),

			{"a wrong type", "POST", "/_matrix/client/v3/createRoom", `{"invite":"@bob:x"}`, 400, "M_BAD_JSON"},
			{"a wrong type below", "POST", "/_matrix/client/v3/createRoom", `{"initial_state":[{"type":5}]}`, 400, "M_BAD_JSON"},
			{"a preset that there is not", "POST", "/_matrix/client/v3/createRoom", `{"preset":"secret"}`, 400, "M_BAD_JSON"},
			{"a room version that there is not", "POST", "/_matrix/client/v3/createRoom", `{"room_version":"1000"}`, 400, "M_UNSUPPORTED_ROOM_VERSION"},
			{"an invite of nobody", "POST", "/_matrix/client/v3/createRoom", `{"invite":["bob"]}`, 400, "M_INVALID_PARAM"},
			{"a login of a wrong type", "POST", "/_matrix/client/v3/login", `{"type":5}`, 400, "M_BAD_JSON"},
			{"a login that there is not", "POST", "/_matrix/client/v3/login", `{"type":"m.login.magic"}`, 400, "M_UNKNOWN"},
			{"a wrong password", "POST", "/_matrix/client/v3/login", `{"type":"m.login.password","identifier":{"type":"m.id.user","user":"alice"},"password":"no"}`, 403, "M_FORBIDDEN"},
			{"an account name of 300 letters", "POST", "/_matrix/client/v3/register", `{"username":"` + strings.Repeat("a", 300) + `","password":"longenough","auth":{"type":"m.login.dummy"}}`, 400, "M_INVALID_USERNAME"},
			{"an account name with U+0000", "POST", "/_matrix/client/v3/register", `{"username":"a\u0000b","password":"longenough","auth":{"type":"m.login.dummy"}}`, 400, "M_INVALID_USERNAME"},
			{"an account that is there", "POST", "/_matrix/client/v3/register", `{"username":"alice","password":"longenough","auth":{"type":"m.login.dummy"}}`, 400, "M_USER_IN_USE"},

			{"a message to an unknown room", "PUT", room(unknown, "send", "m.room.message", "t"), `{}`, 403, "M_FORBIDDEN"},
			{"a message to a foreign room", "PUT", room(foreign, "send", "m.room.message", "t"), `{}`, 403, "M_FORBIDDEN"},
			{"state of an unknown room", "GET", room(unknown, "state"), nil, 403, "M_FORBIDDEN"},
			{"state of a foreign room", "GET", room(foreign, "state"), nil, 403, "M_FORBIDDEN"},
			{"one state of a foreign room", "GET", room(foreign, "state", "m.room.create"), nil, 403, "M_FORBIDDEN"},
			{"state that is not there", "GET", room(here, "state", "m.room.nothing"), nil, 404, "M_NOT_FOUND"},
			{"joining a room that nobody knows", "POST", room(unknown, "join"), `{}`, 404, "M_NOT_FOUND"},
			{"joining a private room", "POST", room(foreign, "join"), `{}`, 403, "M_FORBIDDEN"},
			{"a room ID that is none", "POST", room("nothing", "join"), `{}`, 404, "M_NOT_FOUND"},
			{"inviting into a foreign room", "POST", room(foreign, "invite"), J{"user_id": alice.ID}, 403, "M_FORBIDDEN"},
			{"inviting nobody", "POST", room(here, "invite"), J{"user_id": "bob"}, 400, "M_INVALID_PARAM"},
			{"inviting a user with a long ID", "POST", room(here, "invite"), J{"user_id": "@" + long + ":" + s.Name}, 400, "M_INVALID_PARAM"},
			{"kicking who is not there", "POST", room(here, "kick"), J{"user_id": bob.ID}, 403, "M_FORBIDDEN"},
			{"redacting what is somebody else's", "PUT", room(public, "redact", theirs, homeserver.Txn()), `{}`, 403, "M_FORBIDDEN"},
			{"redacting what is not there", "PUT", room(public, "redact", "$none", homeserver.Txn()), `{}`, 404, "M_NOT_FOUND"},
			{"redacting in a foreign room", "PUT", room(foreign, "redact", first, homeserver.Txn()), `{}`, 403, "M_FORBIDDEN"},

			{"a long type", "PUT", room(here, "send", long, homeserver.Txn()), `{}`, 413, "M_TOO_LARGE"},
			{"a long state key", "PUT", room(here, "state", "x", long), `{}`, 413, "M_TOO_LARGE"},
			{"a long transaction ID", "PUT", room(here, "send", "m.room.message", strings.Repeat(long, 8)), `{}`, 400, "M_INVALID_PARAM"},
			{"a path that is no UTF-8", "PUT", room(here, "state") + "/x/%ff", `{}`, 400, "M_INVALID_PARAM"},
			{"a member event with a wrong membership", "PUT", room(here, "state", "m.room.member", alice.ID), `{"membership":"friend"}`, 403, "M_FORBIDDEN"},
			{"a member event of somebody else", "PUT", room(here, "state", "m.room.member", bob.ID), `{"membership":"join"}`, 403, "M_FORBIDDEN"},
			{"another create event", "PUT", room(here, "state", "m.room.create"), `{}`, 400, "M_INVALID_PARAM"},
			{"power levels that are none", "PUT", room(here, "state", "m.room.power_levels"), `{"users":{"nobody":100}}`, 400, "M_INVALID_PARAM"},
			{"power levels as text", "PUT", room(here, "state", "m.room.power_levels"), `{"ban":"100"}`, 400, "M_INVALID_PARAM"},

			{"no such endpoint", "GET", "/_matrix/client/v3/nothing", nil, 404, "M_UNRECOGNIZED"},
			{"no such method", "DELETE", "/_matrix/client/v3/sync", nil, 405, "M_UNRECOGNIZED"},
			{"a sync token of nobody", "GET", "/_matrix/client/v3/sync?since=nonsense&timeout=0", nil, 400, "M_INVALID_PARAM"},
			{"a sync filter that is none", "GET", "/_matrix/client/v3/sync?timeout=0&filter=%7B%22room%22%3A5%7D", nil, 400, "M_INVALID_PARAM"},
			{"a page token of nobody", "GET", room(here, "messages") + "?dir=b&from=nonsense", nil, 400, "M_INVALID_PARAM"},
			{"a direction that is none", "GET", room(here, "messages") + "?dir=up", nil, 400, "M_INVALID_PARAM"},
			{"no direction", "GET", room(here, "messages"), nil, 400, "M_MISSING_PARAM"},
			{"history of a foreign room", "GET", room(foreign, "messages") + "?dir=b", nil, 403, "M_FORBIDDEN"},
			{"an event of a foreign room", "GET", room(foreign, "event", first), nil, 404, "M_NOT_FOUND"},
			{"account data of somebody else", "PUT", "/_matrix/client/v3/user/" + url.PathEscape(bob.ID) + "/account_data/x", `{}`, 403, "M_FORBIDDEN"},
			{"a profile of somebody else", "PUT", "/_matrix/client/v3/profile/" + url.PathEscape(bob.ID) + "/displayname", `{"displayname":"x"}`, 403, "M_FORBIDDEN"},
			{"keys of a wrong type", "POST", "/_matrix/client/v3/keys/upload", `{"one_time_keys":[]}`, 400, "M_BAD_JSON"},
			{"device keys of another device", "POST", "/_matrix/client/v3/keys/upload", J{"device_keys": J{"user_id": bob.ID, "device_id": "X", "algorithms": []any{}, "keys": J{}, "signatures": J{}}}, 400, "M_BAD_JSON"},
			{"a query of a wrong type", "POST", "/_matrix/client/v3/keys/query", `{"device_keys":[]}`, 400, "M_BAD_JSON"},
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				alice.As(t).Refused(c.status, c.code, c.method, c.path, c.body)
			})
		}

		t.Run("tokens", func(t *testing.T) {
			for token, code := range map[string]string{"": "M_MISSING_TOKEN", "nonsense": "M_UNKNOWN_TOKEN", alice.Token + "x": "M_UNKNOWN_TOKEN",
				strings.Repeat("x", 10000): "M_UNKNOWN_TOKEN", "' OR 1=1 --": "M_UNKNOWN_TOKEN"} {
				u := alice.As(t)
				u.Token = token
				a := u.Refused(401, code, "GET", "/_matrix/client/v3/account/whoami", nil)
				if code == "M_UNKNOWN_TOKEN" && a.Get("soft_logout").Bool() {
					t.Errorf("a token that never was is no soft logout: %s", a)
				}
			}
		})

		// U+0000 and all the other characters are good in a state key.
		t.Run("characters", func(t *testing.T) {
			alice := alice.As(t)
			for i, key := range []string{"\x00", "a\x00b", "\x00\x00", "\\0", "é\u2028\U0001F600", "%00", "'; DROP TABLE rooms; --", `"`} {
				alice.OK("PUT", room(here, "state", "org.example.test", key), J{"n": i, "text": key})
			}
			for i, key := range []string{"\x00", "a\x00b", "\x00\x00", "\\0", "é\u2028\U0001F600", "%00", "'; DROP TABLE rooms; --", `"`} {
				a := alice.OK("GET", room(here, "state", "org.example.test", key), nil)
				if a.Get("n").Int() != int64(i) || a.Get("text").Str != key {
					t.Errorf("the state of %q is %s", key, a)
				}
			}
			found := 0
			for _, ev := range alice.OK("GET", room(here, "state"), nil).Get("@this").Array() {
				if ev.Get("type").Str == "org.example.test" && ev.Get("content.text").Str == ev.Get("state_key").Str {
					found++
				}
			}
			if found != 8 {
				t.Errorf("%d of 8 states are there", found)
			}
			alice.Send(here, "a\x00b")
			alice.OK("PUT", room(here, "send", "org.example\x00test", "txn\x00id"), J{})
		})

		alice.Send(here, "the server goes on")
		alice.Sync("")
		s.Restart()
		alice.Send(here, "also after a restart")
	})
}

func TestBadRequestsOfServers(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh()})
		p := homeserver.NewPeer(t, s.CA)
		other := homeserver.NewPeer(t, s.CA)
		alice := s.Register(t, "alice")
		private := alice.CreateRoom(J{"preset": "private_chat"})
		public := alice.CreateRoom(J{"preset": "public_chat"})
		event := alice.Send(private, "not for peers")
		transaction := func(pdus, edus []any) J {
			if pdus == nil {
				pdus = []any{}
			}
			body := J{"origin": p.Name, "origin_server_ts": 1, "pdus": pdus}
			if edus != nil {
				body["edus"] = edus
			}
			return body
		}
		txn := func() string { return "/_matrix/federation/v1/send/" + homeserver.Txn() }
		put := func(body any) homeserver.Signed { return homeserver.Signed{Method: "PUT", Path: txn(), Body: body} }
		many := func(n int, v any) []any {
			list := make([]any, n)
			for i := range list {
				list[i] = v
			}
			return list
		}
		good := put(transaction(nil, nil))
		spoilt := func(change func(*homeserver.Signed)) homeserver.Signed {
			in := put(transaction(nil, nil))
			change(&in)
			return in
		}
		text := func(s string) *string { return &s }
		foreignKey, sameName := other.Keys.Key(), peer.NewSigningKey()
		sameName.ID = p.Keys.Key().ID
		goodHeader := peer.SignRequest(p.Keys.Key(), p.Name, s.Name, "PUT", "/_matrix/federation/v1/send/x", []byte(`{"pdus":[]}`))
		get := func(path string) homeserver.Signed { return homeserver.Signed{Method: "GET", Path: path} }
		fed := func(format string, args ...string) string {
			escaped := make([]any, len(args))
			for i, a := range args {
				escaped[i] = url.PathEscape(a)
			}
			return "/_matrix/federation/" + fmt.Sprintf(format, escaped...)
		}
		eve := "@eve:" + p.Name

		for _, c := range []struct {
			name   string
			in     homeserver.Signed
			status int
			code   string
		}{
			{"no signature", spoilt(func(in *homeserver.Signed) { in.Header = text("") }), 401, "M_UNAUTHORIZED"},
			{"no X-Matrix", spoilt(func(in *homeserver.Signed) { in.Header = text("Bearer x") }), 401, "M_UNAUTHORIZED"},
			{"half a header", spoilt(func(in *homeserver.Signed) { in.Header = text(`X-Matrix origin="` + p.Name) }), 401, "M_UNAUTHORIZED"},
			{"a signature that is none", spoilt(func(in *homeserver.Signed) {
				in.Header = text(peer.XMatrix{Origin: p.Name, Destination: s.Name, Key: p.Keys.Key().ID, Signature: "AAAA"}.Header())
			}), 401, "M_UNAUTHORIZED"},
			{"the signature of another request", spoilt(func(in *homeserver.Signed) { in.Header = text(goodHeader) }), 401, "M_UNAUTHORIZED"},
			{"a wrong key under the right name", spoilt(func(in *homeserver.Signed) { in.Key = &sameName }), 401, "M_UNAUTHORIZED"},
			{"a key that nobody knows", spoilt(func(in *homeserver.Signed) { k := peer.NewSigningKey(); in.Key = &k }), 401, "M_UNAUTHORIZED"},
			{"the key of another server", spoilt(func(in *homeserver.Signed) { in.Key = &foreignKey }), 401, "M_UNAUTHORIZED"},
			{"another origin", spoilt(func(in *homeserver.Signed) { in.Origin = other.Name }), 401, "M_UNAUTHORIZED"},
			{"our own name as origin", spoilt(func(in *homeserver.Signed) { in.Origin = s.Name }), 401, "M_UNAUTHORIZED"},
			{"an origin that does not answer", spoilt(func(in *homeserver.Signed) { in.Origin = "127.0.0.1:9" }), 401, "M_UNAUTHORIZED"},
			{"an origin that is no name", spoilt(func(in *homeserver.Signed) { in.Origin = "a b" }), 401, "M_UNAUTHORIZED"},
			{"a wrong destination", spoilt(func(in *homeserver.Signed) { in.Destination = "elsewhere.example" }), 401, "M_UNAUTHORIZED"},
			{"another body than was signed", spoilt(func(in *homeserver.Signed) { in.Sent = []byte(`{"pdus":[],"edus":[]}`) }), 401, "M_UNAUTHORIZED"},
			{"malformed JSON", spoilt(func(in *homeserver.Signed) { in.Sent = []byte(`{"pdus":[`) }), 400, "M_NOT_JSON"},

			{"wrong types", put(J{"pdus": 5}), 400, "M_BAD_JSON"},
			{"an EDU that is none", put(transaction(nil, []any{5})), 200, ""}, // it spoils no other
			{"51 PDUs", put(transaction(many(51, J{}), nil)), 400, "M_BAD_JSON"},
			{"101 EDUs", put(transaction(nil, many(101, J{"edu_type": "m.typing", "content": J{}}))), 400, "M_BAD_JSON"},
			{"20 MB", put(transaction([]any{J{"x": strings.Repeat("x", 20<<20)}}, nil)), 413, "M_TOO_LARGE"},
			{"a long transaction ID", homeserver.Signed{Method: "PUT", Path: "/_matrix/federation/v1/send/" + strings.Repeat("t", 300), Body: transaction(nil, nil)}, 400, "M_INVALID_PARAM"},

			{"an event that is not for this server", get(fed("v1/event/%s", event)), 403, "M_FORBIDDEN"},
			{"an event that there is not", get(fed("v1/event/%s", "$none")), 404, "M_NOT_FOUND"},
			{"state of a room without them", get(fed("v1/state/%s?event_id=%s", private, event)), 403, "M_FORBIDDEN"},
			{"state IDs of a room without them", get(fed("v1/state_ids/%s?event_id=%s", private, event)), 403, "M_FORBIDDEN"},
			{"state of an unknown room", get(fed("v1/state/%s?event_id=%s", "!none:"+s.Name, event)), 404, "M_NOT_FOUND"},
			{"history of a room without them", get(fed("v1/backfill/%s?v=%s&limit=10", private, event)), 403, "M_FORBIDDEN"},
			{"auth of a room without them", get(fed("v1/event_auth/%s/%s", private, event)), 403, "M_FORBIDDEN"},
			{"missing events of a room without them", homeserver.Signed{Method: "POST", Path: fed("v1/get_missing_events/%s", private), Body: J{"earliest_events": []any{}, "latest_events": []any{event}}}, 403, "M_FORBIDDEN"},
			{"joining an unknown room", get(fed("v1/make_join/%s/%s?ver=12", "!none:"+s.Name, eve)), 404, "M_NOT_FOUND"},
			{"joining for a user of another server", get(fed("v1/make_join/%s/%s?ver=12", public, "@eve:"+other.Name)), 403, "M_FORBIDDEN"},
			{"joining with a version of old", get(fed("v1/make_join/%s/%s?ver=1", public, eve)), 400, "M_INCOMPATIBLE_ROOM_VERSION"},
			{"joining a private room", get(fed("v1/make_join/%s/%s?ver=12", private, eve)), 403, "M_FORBIDDEN"},
			{"joining by an event that is none", homeserver.Signed{Method: "PUT", Path: fed("v2/send_join/%s/%s", public, "$x"), Body: J{"type": "m.room.member"}}, 400, "M_BAD_JSON"},
			{"an invite that is none", homeserver.Signed{Method: "PUT", Path: fed("v2/invite/%s/%s", "!r:"+p.Name, "$x"), Body: J{"room_version": "11", "event": J{}, "invite_room_state": []any{}}}, 400, "M_BAD_JSON"},
			{"an invite to a version that there is not", homeserver.Signed{Method: "PUT", Path: fed("v2/invite/%s/%s", "!r:"+p.Name, "$x"), Body: J{"room_version": "1000", "event": J{}, "invite_room_state": []any{}}}, 400, "M_INCOMPATIBLE_ROOM_VERSION"},
			{"no such endpoint", get("/_matrix/federation/v1/nothing"), 404, "M_UNRECOGNIZED"},
			{"no such method", homeserver.Signed{Method: "DELETE", Path: "/_matrix/federation/v1/version"}, 405, "M_UNRECOGNIZED"},
		} {
			t.Run(c.name, func(t *testing.T) { p.As(t).Refused(s, c.status, c.code, c.in) })
		}

		// What is wrong with one PDU is its own affair: the transaction is taken.
		t.Run("events that are none", func(t *testing.T) {
			p := p.As(t)
			deep := strings.Repeat(`{"a":`, 90) + `1` + strings.Repeat(`}`, 90)
			for name, pdu := range map[string]any{
				"a number": 5, "an empty object": J{}, "an unknown room": J{"room_id": "!none:" + p.Name, "type": "m.room.message"},
				"no signature": J{"room_id": public, "type": "m.room.message", "sender": eve, "content": J{"body": "x"}, "depth": 5,
					"prev_events": []any{event}, "auth_events": []any{}, "origin_server_ts": 1, "hashes": J{"sha256": "x"}},
				"a room ID of a wrong type": J{"room_id": 5}, "65 KB": J{"room_id": public, "type": "m.room.message", "content": J{"body": strings.Repeat("x", 66000)}},
				"deep nesting": json.RawMessage(`{"room_id":"` + public + `","content":` + deep + `}`),
			} {
				a := p.Ask(s, put(transaction([]any{pdu}, nil)))
				// Deep nesting may be refused as a whole.
				if a.Status != 200 && !(a.Status == 400 && a.Code() == "M_BAD_JSON" && (name == "deep nesting" || name == "a number")) {
					t.Errorf("%s: %s", name, a)
				}
				a.Get("pdus").ForEach(func(id, result gjson.Result) bool {
					if result.Get("error").Str == "" {
						t.Errorf("%s: %s was taken", name, id)
					}
					return true
				})
			}
			for _, edu := range []any{J{"edu_type": "m.typing", "content": 5}, J{"edu_type": "m.typing", "content": J{"room_id": private, "user_id": alice.ID, "typing": true}},
				J{"edu_type": "m.receipt", "content": J{private: 5}}, J{"edu_type": "m.direct_to_device", "content": J{"sender": alice.ID, "type": "x", "message_id": "1", "messages": J{}}},
				J{"edu_type": "m.device_list_update", "content": J{"user_id": alice.ID, "device_id": "X", "stream_id": "x"}},
				J{"edu_type": "m.presence", "content": J{"push": []any{J{"user_id": alice.ID}}}}, J{"edu_type": "org.example.unknown", "content": J{}},
				J{"edu_type": "m.signing_key_update", "content": J{"user_id": alice.ID}}} {
				if a := p.Ask(s, put(transaction(nil, []any{edu}))); a.Status != 200 {
					t.Errorf("%v: %s", edu, a)
				}
			}
		})

		if a := p.Ask(s, good); a.Status != 200 {
			t.Errorf("a good transaction afterwards: %s", a)
		}
		alice.Send(public, "the server goes on")
		alice.Sync("")
	})
}
