package badinput

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"testing"

	"chancery/clientapi"
	"chancery/endpoint"
	"chancery/federation"
	"chancery/test/homeserver"
)

// nonsense fills the parameters of a path.
var nonsense = []string{"x", "!none:127.0.0.1:9", "@none:127.0.0.1:9", "$none", "#none:127.0.0.1:9", "\x00", "é\u2028", "..", strings.Repeat("a", 300), "!", "@:", "-1", "{}"}

// queryNames are parameters of many operations; a nonsense value of each is sent to all.
var queryNames = strings.Fields(`from to dir limit since filter timeout at ver event_id v user_id membership not_membership server server_name via ts width height
	method animated allow_remote timeout_ms search_term recurse suggested_only max_depth format full_state set_presence use_state_after room_alias field kind only
	app_id device_id access_token_not token minimum_valid_until_ts order_by version room_id include_threads filename query_type`)

// bodyNames are members of many bodies.
var bodyNames = strings.Fields(`user_id room_id device_id device_keys one_time_keys fallback_keys signatures master_key self_signing_key user_signing_key messages
	content membership reason type state_key auth password new_password identifier username initial_state invite invite_3pid power_level_content_override room_alias_name
	name topic preset visibility is_direct creation_content room_version third_party_signed filter limit search_term search_categories pushkey kind app_id data lang
	display_name displayname avatar_url presence status_msg typing timeout event m.fully_read m.read m.read.private tags order events algorithm auth_data rooms sessions
	first_message_index forwarded_count is_verified session_data devices token refresh_token erase logout_devices actions conditions pattern default new_version additional_creators
	pdus edus origin origin_server_ts edu_type earliest_events latest_events min_depth invite_room_state server_keys body aliases thread_id join_rule allow url mxc`)

// bodies are wrong in every way.
func bodies() []string {
	list := []string{"", "{", "[]", "null", "5", `"x"`, "{}", strings.Repeat("[", 1000)}
	for _, value := range []any{5, -1.5, "x", "\x00", true, nil, []any{}, []any{5}, []any{J{}}, J{}, J{"x": J{"x": J{"x": 5}}}, J{"@none:127.0.0.1:9": []any{"x"}},
		J{"@none:127.0.0.1:9": J{"X": "signed_curve25519"}}, strings.Repeat("a", 5000)} {
		object := J{}
		for _, name := range bodyNames {
			object[name] = value
		}
		text, err := json.Marshal(object)
		if err != nil {
			panic(err)
		}
		list = append(list, string(text))
	}
	return list
}

var pathParameter = regexp.MustCompile(`\{[^}]*\}`)

// nowhere is a server that nobody can reach; other names would be asked of the name service.
const nowhere = "127.0.0.1:9"

// fill puts values into the parameters of a path.
func fill(path string, value func() string) string {
	return pathParameter.ReplaceAllStringFunc(path, func(name string) string {
		if name == "{serverName}" {
			return nowhere
		}
		return url.PathEscape(value())
	})
}

// wrong says what is wrong with an answer to nonsense: it must be no fault of the server's own.
func wrong(a homeserver.Answer) string {
	switch {
	case a.Status == http.StatusInternalServerError:
		return "the server found a fault in itself"
	case a.Status >= 400 && a.Code() == "" && !a.Get("flows").Exists(): // confirmation is asked for without one
		return "an error without a code"
	}
	return ""
}

// leaves are the operations by which a user or device goes away.
var leaves = []string{"logout", "logout_all", "deactivateAccount", "changePassword", "deleteDevice", "deleteDevices"}

// Whatever is sent to whichever operation of the client-server API: the server answers with an error of the client,
// or does it, and goes on.
func TestNonsenseOfClients(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh()})
		alice := s.Register(t, "alice")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		event := alice.Send(room, "good")
		good := []string{room, event, alice.ID, alice.Device, "m.room.message", "\x00"}
		asked := 0
		ask := func(r endpoint.Route, path string, body any) {
			asked++
			a, err := alice.Try(t.Context(), r.Method, path, body)
			if err != nil {
				t.Errorf("%s: %s %.200s: %v", r.ID, r.Method, path, err)
			} else if fault := wrong(a); fault != "" {
				t.Errorf("%s: %s %.200s %.200v: %s: %s", r.ID, r.Method, path, body, fault, a)
			}
		}
		for _, r := range (&clientapi.Server{Config: s.Config}).Routes() {
			if r.AnsweredBy != "" || r.Planned() || slices.Contains(leaves, r.ID) || !strings.HasPrefix(r.Path, "/_matrix/") {
				continue
			}
			tryRoute(r, good, func(path string, body any) { ask(r, path, body) })
		}
		t.Logf("%d requests", asked)
		alice.OK("GET", "/_matrix/client/v3/account/whoami", nil)
		alice.Send(alice.CreateRoom(J{}), "the server goes on")
		alice.Sync("")
	})
}

// tryRoute asks one operation in many wrong ways.
func tryRoute(r endpoint.Route, good []string, ask func(path string, body any)) {
	hasBody := r.Method == "PUT" || r.Method == "POST"
	var plain any
	if hasBody {
		plain = "{}"
	}
	parameters := len(pathParameter.FindAllString(r.Path, -1))
	// The first good value that fits the first parameter, so that nonsense gets further than the first check.
	fitting := func() string {
		switch {
		case strings.Contains(r.Path, "{roomId}"):
			return good[0]
		case strings.Contains(r.Path, "{userId}"):
			return good[2]
		case strings.Contains(r.Path, "{deviceId}"):
			return good[3]
		}
		return good[1]
	}()
	if parameters > 0 {
		for _, value := range nonsense {
			ask(fill(r.Path, func() string { return value }), plain)
			if parameters > 1 {
				n := 0
				ask(fill(r.Path, func() string {
					if n++; n == 1 {
						return fitting
					}
					return value
				}), plain)
			}
		}
		ask(pathParameter.ReplaceAllString(r.Path, "%ff"), plain)
	}
	n := 0
	path := fill(r.Path, func() string {
		if n++; n == 1 {
			return fitting
		}
		return good[1]
	})
	for _, value := range []string{"x", "", "-1", "99999999999999999999", "\x00", "\xff", `{"room":{"timeline":{"limit":-5}}}`} {
		q := url.Values{}
		for _, name := range queryNames {
			switch name {
			case "timeout": // of a long poll
			case "server", "server_name", "via":
				q.Set(name, nowhere)
			default:
				q.Set(name, value)
			}
		}
		ask(path+"?"+q.Encode(), plain)
	}
	if hasBody {
		for _, body := range bodies() {
			ask(path, body)
		}
	}
}

// The same for the server-server API.
func TestNonsenseOfServers(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh()})
		p := homeserver.NewPeer(t, s.CA)
		alice := s.Register(t, "alice")
		room := alice.CreateRoom(J{"preset": "public_chat"})
		event := alice.Send(room, "good")
		asked := 0
		for _, r := range (&federation.Server{Config: s.Config}).Routes() {
			if r.AnsweredBy != "" || r.Planned() || !strings.HasPrefix(r.Path, "/_matrix/") {
				continue
			}
			tryRoute(r, []string{room, event, alice.ID, alice.Device}, func(path string, body any) {
				asked++
				in := homeserver.Signed{Method: r.Method, Path: path}
				if text, ok := body.(string); ok {
					if !json.Valid([]byte(text)) {
						in.Sent = []byte(text) // nobody can sign it
					} else {
						in.Body = json.RawMessage(text)
					}
				}
				a := p.Ask(s, in)
				if fault := wrong(a); fault != "" {
					t.Errorf("%s: %s %.200s %.200v: %s: %s", r.ID, r.Method, path, body, fault, a)
				}
			})
		}
		t.Logf("%d requests", asked)
		if a := p.Ask(s, homeserver.Signed{Method: "GET", Path: fmt.Sprintf("/_matrix/federation/v1/make_join/%s/%s?ver=12", url.PathEscape(room), url.PathEscape("@eve:"+p.Name))}); a.Status != http.StatusOK {
			t.Errorf("a good request afterwards: %s", a)
		}
		alice.Send(room, "the server goes on")
	})
}
