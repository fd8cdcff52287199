package federation_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"chancery/federation/peer"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
)

// Every operation is asked with what a server may sign that wants us ill: the answer is the spec's error or a proper one,
// never a panic, a fault of ours, or silence.
//
// spec: s2s#api-standards
func TestNoOperationBreaksOverSignedJunk(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		core, faults := observer.New(zapcore.ErrorLevel)
		b.halt()
		b.log = zap.New(core)
		b.again()
		b.keepMedia(1 << 20)
		alice, bob := a.user("alice"), b.user("bob")
		room := b.room(bob, nil)
		a.join(alice, room, b)
		said := b.say(bob, room, "x")
		secret := b.room(bob, nil)
		client := &http.Client{Timeout: 2 * time.Minute, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: a.authority.pool}}}
		defer client.CloseIdleConnections()

		paths := func(name string) []string {
			all := []string{"", "x", "%00", "%FF%FE", "%2F..%2F..", "%F0%9F%92%A9", strings.Repeat("x", 5000), "!:" + b.name, "@:" + b.name, "$", "!unknown:x",
				url.PathEscape(string(room)), url.PathEscape(string(secret)), url.PathEscape(string(alice)), url.PathEscape(string(bob)), url.PathEscape(string(said))}
			if name == "txnId" {
				all = append(all, "junk")
			}
			return all
		}
		good := map[string]string{"roomId": url.PathEscape(string(room)), "userId": url.PathEscape(string(alice)), "eventId": url.PathEscape(string(said)),
			"txnId": "junk", "serverName": a.name, "queryType": "profile", "mediaId": "abc", "keyId": "ed25519:x"}
		queries := []string{"", "ver=12", "ver=%FF", "event_id=" + url.QueryEscape(string(said)), "event_id=%FF%00", "v=" + strings.Repeat("x", 3000),
			"v=" + url.QueryEscape(string(said)) + "&limit=-1", "v=$x&limit=1e400", "v=$x&limit=99999999999999999999", strings.Repeat("v=$x&", 500) + "limit=5",
			"ts=-9223372036854775808&dir=b", "ts=x&dir=x", "ts=1e308&dir=f", "user_id=%FF", "user_id=" + url.QueryEscape(string(bob)) + "&field=%00", "room_alias=%23x",
			"room_alias=%23%00:" + b.name, "access_token=%FF", "limit=-5&since=%FF", "limit=0&since=" + strings.Repeat("9", 500), "minimum_valid_until_ts=-1", "minimum_valid_until_ts=x",
			"suggested_only=maybe", "width=-1&height=99999999999&method=x", "width=32&height=32&timeout_ms=-1", "%zz", "a;b=c"}

		bodies := []string{"", "null", "[]", `"x"`, "5", "-0", "1e400", "{", `{"a":1,"a":2}`, "\xff\xfe", `{"a":"` + "\xff" + `"}`, `{"a":"\ud800"}`,
			strings.Repeat("[", 20_000), strings.Repeat(`{"a":`, 20_000) + "1" + strings.Repeat("}", 20_000), `{"x":"` + strings.Repeat("y", 700_000) + `"}`, `{}`}
		pdu := a.pdu(b.stateID(room, "m.room.member", string(alice)))
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(pdu, &fields); err != nil {
			t.Fatal(err)
		}
		wrong := []string{"null", "true", "-1", "1.5", "1e400", "9223372036854775808", `"x"`, `"\u0000"`, `[]`, `[[]]`, `[null]`, `{}`, `{"":{"":{"":[]}}}`, `{"@x:y":{"*":{"a":5}}}`,
			strings.Repeat("[", 400) + strings.Repeat("]", 400), `"` + strings.Repeat("z", 70_000) + `"`}
		with := func(base map[string]json.RawMessage, name, v string) string {
			var parts []string
			for k, old := range base {
				if k != name {
					parts = append(parts, fmt.Sprintf("%q:%s", k, old))
				}
			}
			return "{" + strings.Join(append(parts, fmt.Sprintf("%q:%s", name, v)), ",") + "}"
		}
		var events []string
		for name := range fields {
			for _, v := range wrong {
				events = append(events, with(fields, name, v))
			}
		}
		for _, name := range []string{"membership", "third_party_invite", "join_authorised_via_users_server", "displayname"} {
			for _, v := range wrong {
				events = append(events, with(fields, "content", with(map[string]json.RawMessage{"membership": []byte(`"join"`)}, name, v)))
			}
		}
		edus := []string{"m.typing", "m.presence", "m.receipt", "m.direct_to_device", "m.device_list_update", "m.signing_key_update", "m.\u0000", ""}
		eduFields := []string{"room_id", "user_id", "typing", "push", string(room), "sender", "type", "message_id", "messages", "device_id", "stream_id", "prev_id", "deleted", "keys", "master_key", "self_signing_key"}
		proper := map[string]json.RawMessage{"room_id": []byte(fmt.Sprintf("%q", room)), "user_id": []byte(fmt.Sprintf("%q", alice)), "sender": []byte(fmt.Sprintf("%q", alice)),
			"type": []byte(`"m.x"`), "message_id": []byte(`"m"`), "device_id": []byte(`"D"`), "stream_id": []byte("5"), "messages": []byte(fmt.Sprintf(`{%q:{"*":{}}}`, bob))}
		// bodiesOf are those for one operation.
		bodiesOf := func(operation string) []string {
			own := map[string][]string{
				"sendTransaction":            {"origin", "origin_server_ts", "pdus", "edus"},
				"sendInviteV2":               {"room_version", "event", "invite_room_state"},
				"exchangeThirdPartyInvite":   {"type", "room_id", "sender", "state_key", "content"},
				"onBindThirdPartyIdentifier": {"medium", "address", "mxid", "invites"},
				"getMissingPreviousEvents":   {"latest_events", "earliest_events", "limit", "min_depth"},
				"queryPublicRooms":           {"limit", "since", "filter", "include_all_networks", "third_party_instance_id"},
				"claimUserEncryptionKeys":    {"one_time_keys"},
				"queryUserEncryptionKeys":    {"device_keys"},
				"bulkPerspectivesKeyQuery":   {"server_keys"},
			}[operation]
			base := map[string]json.RawMessage{"room_version": []byte(`"12"`), "event": pdu, "medium": []byte(`"email"`), "address": []byte(`"x@y"`), "mxid": []byte(fmt.Sprintf("%q", bob)),
				"invites": []byte("[]"), "latest_events": []byte(`["$x"]`), "earliest_events": []byte("[]"), "type": []byte(`"m.room.member"`), "room_id": []byte(fmt.Sprintf("%q", room)),
				"sender": []byte(fmt.Sprintf("%q", bob)), "state_key": []byte(fmt.Sprintf("%q", alice)), "content": []byte(`{"membership":"invite","third_party_invite":{"signed":{"mxid":"x"}}}`)}
			all := append([]string(nil), bodies...)
			for _, name := range own {
				for _, v := range wrong {
					all = append(all, with(base, name, v))
				}
			}
			switch operation {
			case "sendJoinV2", "sendLeaveV2", "sendKnock", "sendInviteV1", "askPolicyServerToSign":
				all = append(all, events...)
			case "sendInviteV2":
				for _, ev := range events {
					all = append(all, with(base, "event", ev))
				}
			case "sendTransaction":
				for i := 0; i < len(events); i += 40 {
					all = append(all, `{"pdus":[`+strings.Join(events[i:min(len(events), i+40)], ",")+`]}`)
				}
				for _, typ := range edus {
					var list []string
					for _, name := range eduFields {
						for _, v := range wrong {
							list = append(list, fmt.Sprintf(`{"edu_type":%q,"content":%s}`, typ, with(proper, name, v)))
						}
					}
					for i := 0; i < len(list); i += 90 {
						all = append(all, `{"pdus":[],"edus":[`+strings.Join(list[i:min(len(list), i+90)], ",")+`]}`)
					}
				}
			}
			return all
		}

		asked, ids := 0, map[string]bool{}
		ask := func(operation, method, path string, body []byte) {
			t.Helper()
			if operation == "sendTransaction" { // each its own, else it is a repetition
				path = strings.Replace(path, "/junk", fmt.Sprint("/junk", asked), 1)
			}
			req, err := http.NewRequestWithContext(t.Context(), method, "https://"+b.name+path, bytes.NewReader(body))
			if err != nil {
				return // no client could send it
			}
			var canonical []byte
			if len(body) > 0 {
				canonical, _ = peer.CanonicalJSON(body)
			}
			req.Header.Set("Authorization", peer.SignRequest(a.keys.Key(), a.name, b.name, method, req.URL.RequestURI(), canonical))
			asked++
			ids[operation] = true
			res, err := client.Do(req)
			if err != nil {
				t.Errorf("%s %.200s with %.200q: no answer: %v", operation, path, body, err)
				return
			}
			defer res.Body.Close()
			text, err := io.ReadAll(res.Body)
			if err != nil {
				t.Errorf("%s %.200s with %.200q: half an answer: %v", operation, path, body, err)
			}
			var v struct {
				Code string `json:"errcode"`
			}
			_ = json.Unmarshal(text, &v)
			if res.StatusCode >= 500 && res.StatusCode != 502 || res.StatusCode >= 400 && v.Code == "" {
				t.Errorf("%s %.200s with %.200q is answered %d %.200s", operation, path, body, res.StatusCode, text)
			}
		}
		parameter := regexp.MustCompile(`\{(\w+)\}`)
		fill := func(path, but, value string) string {
			return parameter.ReplaceAllStringFunc(path, func(s string) string {
				if name := s[1 : len(s)-1]; name != but {
					return good[name]
				}
				return value
			})
		}
		for _, route := range b.fed.Routes() {
			if route.API != "server-server" {
				continue
			}
			for _, p := range parameter.FindAllStringSubmatch(route.Path, -1) {
				for _, value := range paths(p[1]) {
					ask(route.ID, route.Method, fill(route.Path, p[1], value), nil)
				}
			}
			path := fill(route.Path, "", "")
			if route.Method == "GET" {
				for _, q := range queries {
					ask(route.ID, route.Method, path+"?"+q, nil)
				}
				continue
			}
			for _, body := range bodiesOf(route.ID) {
				ask(route.ID, route.Method, path, []byte(body))
			}
		}
		t.Logf("%d requests to %d operations", asked, len(ids))
		if len(ids) < 36 {
			t.Errorf("only %d operations were asked", len(ids))
		}
		for _, fault := range faults.All() {
			t.Errorf("a fault of ours: %s %v", fault.Message, fault.ContextMap())
		}
		a.say(alice, room, "still here")
		b.hears(room, []string{"x", "still here"})
	})
}
