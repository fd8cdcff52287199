package clientapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"chancery/clientapi"
	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/test/client"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

const (
	v3    = client.V3
	alice = "@alice:test"
	bob   = "@bob:test"
	carol = "@carol:test"
	guest = "@guest:test"
)

// house is a server in which alice, bob and carol live, who need not sign in.
type house struct {
	*client.Server
	*client.Parts
	users *users.Server
}

func eachEngine(t *testing.T, test func(*house)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) { test(build(t, fresh())) })
}

func build(t testing.TB, o sql.Options) *house {
	t.Helper()
	p := client.Open(t, o)
	people := users.New(users.Options{DB: p.DB, ServerName: "test", Config: p.Config, Log: p.Log,
		OnProfile: func(ctx context.Context, user id.UserID, room id.RoomID, content json.RawMessage) error {
			return p.Rooms.Join(ctx, roomserver.Join{User: user, Room: room, Content: content})
		}})
	err := p.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
		for _, user := range []string{alice, bob, carol} {
			if _, err := tx.InsertAccount(storage.Account{User: user}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = people.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	api := &clientapi.Server{Config: p.Config, DB: p.DB, Reader: p.Reader, Rooms: p.Rooms, Users: people, Log: p.Log, Auth: client.ByName{}}
	return &house{client.Serve(t, api), p, people}
}

// want asks and compares: an answer that begins with "M_" is an error's code.
func (h *house) want(user, method, path string, body any, status int, answer string) {
	h.T.Helper()
	got := h.Ask(user, method, path, body)
	if isCode := strings.HasPrefix(answer, "M_"); got.Status != status || isCode && got.Code() != answer ||
		!isCode && answer != "" && !sameJSON(h.T, got.Text, answer) {
		h.T.Errorf("%s %s %s %v: %s\nwant %d %s", user, method, path, body, got, status, answer)
	}
}

func sameJSON(t testing.TB, a, b string) bool {
	t.Helper()
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil {
		return false
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Fatalf("the test wants %s: %v", b, err)
	}
	p, _ := json.Marshal(x)
	q, _ := json.Marshal(y)
	return bytes.Equal(p, q)
}

// room makes a public room of alice's with the others in it.
func (h *house) room(others ...string) id.RoomID {
	h.T.Helper()
	empty, me := "", alice
	json := func(v any) json.RawMessage {
		text, err := json.Marshal(v)
		if err != nil {
			h.T.Fatal(err)
		}
		return text
	}
	room, err := h.Rooms.CreateRoom(h.T.Context(), roomserver.Create{Creator: alice, Version: "12", Content: json(map[string]string{"room_version": "12"}),
		Events: []roomserver.NewEvent{
			{Type: "m.room.member", StateKey: &me, Content: json(map[string]string{"membership": "join"})},
			{Type: "m.room.power_levels", StateKey: &empty, Content: json(map[string]any{})},
			{Type: "m.room.join_rules", StateKey: &empty, Content: json(map[string]string{"join_rule": "public"})},
		}})
	if err != nil {
		h.T.Fatal(err)
	}
	for _, other := range others {
		if err := h.Rooms.Join(h.T.Context(), roomserver.Join{User: id.UserID(other), Room: room}); err != nil {
			h.T.Fatal(err)
		}
	}
	return room
}

func (h *house) say(user string, room id.RoomID, content string) id.EventID {
	h.T.Helper()
	sent, err := h.Rooms.Send(h.T.Context(), roomserver.NewEvent{Room: room, Sender: id.UserID(user), Type: "m.room.message", Content: json.RawMessage(content)})
	if err != nil {
		h.T.Fatal(err)
	}
	return sent.ID
}

func (h *house) read(fn func(storage.Tx) error) {
	h.T.Helper()
	if err := h.DB.Read(h.T.Context(), fn); err != nil {
		h.T.Fatal(err)
	}
}

// facts lists the facts of one kind, without their positions.
func (h *house) facts(kind sql.FactKind) (list []storage.Fact) {
	h.T.Helper()
	h.read(func(tx storage.Tx) error {
		all, err := tx.FactsAfter(0, 100_000)
		for _, f := range all {
			if f.Kind == kind {
				list = append(list, f)
			}
		}
		for i := range list {
			list[i].Pos = 0
		}
		return err
	})
	return list
}

// spec: c2s/setProfileField, c2s/getProfileField, c2s/deleteProfileField, c2s/getUserProfile
func TestProfileFields(t *testing.T) {
	eachEngine(t, func(h *house) {
		at := v3 + "/profile/" + alice
		h.want("", "GET", at, nil, 200, `{}`)
		h.want("", "GET", at+"/displayname", nil, 404, "M_NOT_FOUND")
		h.want("", "GET", v3+"/profile/@nobody:test", nil, 404, "M_NOT_FOUND")
		h.want("", "GET", v3+"/profile/alice", nil, 400, "M_INVALID_PARAM")
		h.want(alice, "PUT", at+"/displayname", `{"displayname":"Alice \u0000 Ä"}`, 200, `{}`)
		h.want(alice, "PUT", at+"/avatar_url", `{"avatar_url":"mxc://test/a"}`, 200, `{}`)
		h.want(alice, "PUT", at+"/org.example.job", `{"org.example.job":{"title":null}}`, 200, `{}`)
		h.want("", "GET", at, nil, 200, `{"displayname":"Alice \u0000 Ä","avatar_url":"mxc://test/a","org.example.job":{"title":null}}`)
		h.want("", "GET", at+"/org.example.job", nil, 200, `{"org.example.job":{"title":null}}`)
		h.want(alice, "DELETE", at+"/org.example.job", nil, 200, `{}`)
		h.want(alice, "DELETE", at+"/org.example.job", nil, 200, `{}`) // or it doesn't exist
		h.want(alice, "PUT", at+"/avatar_url", `{"avatar_url":null}`, 200, `{}`)
		h.want("", "GET", at, nil, 200, `{"displayname":"Alice \u0000 Ä"}`)

		long := strings.Repeat("x", 255)
		for _, bad := range []struct {
			key, body string
			status    int
			code      string
		}{
			{"displayname", `{"displayname":1}`, 400, "M_INVALID_PARAM"},
			{"displayname", `{"display_name":"x"}`, 400, "M_MISSING_PARAM"},
			{"displayname", `{"displayname":"` + strings.Repeat("x", 2000) + `"}`, 400, "M_INVALID_PARAM"},
			{"displayname", `{`, 400, "M_NOT_JSON"},
			{"avatar_url", `{"avatar_url":"https://example.org/a"}`, 400, "M_INVALID_PARAM"},
			{"m.tz", `{"m.tz":null}`, 400, "M_INVALID_PARAM"},
			{"Upper.case", `{"Upper.case":1}`, 400, "M_INVALID_PARAM"},
			{"undotted", `{"undotted":1}`, 400, "M_INVALID_PARAM"},
			{"org." + long, `{"org.` + long + `":1}`, 400, "M_KEY_TOO_LARGE"},
			{"org.big", `{"org.big":"` + strings.Repeat("x", 65<<10) + `"}`, 400, "M_PROFILE_TOO_LARGE"},
			{"org.two", `{"org.two":1,"org.more":2}`, 400, "M_INVALID_PARAM"},
		} {
			h.want(alice, "PUT", at+"/"+bad.key, bad.body, bad.status, bad.code)
		}
		h.want(alice, "PUT", at+"/org.half", `{"org.half":"`+strings.Repeat("x", 40<<10)+`"}`, 200, `{}`)
		h.want(alice, "PUT", at+"/org.other", `{"org.other":"`+strings.Repeat("x", 40<<10)+`"}`, 400, "M_PROFILE_TOO_LARGE")
		h.want(bob, "PUT", at+"/displayname", `{"displayname":"x"}`, 403, "M_FORBIDDEN")
		h.want(bob, "DELETE", at+"/displayname", nil, 403, "M_FORBIDDEN")
		h.want("", "PUT", at+"/displayname", `{"displayname":"x"}`, 401, "M_MISSING_TOKEN")
	})
}

// spec: c2s#guest-access
func TestGuestsHaveOnlyAName(t *testing.T) {
	h := build(t, sqliteOf(t))
	h.account(storage.Account{User: guest, Guest: true})
	at := v3 + "/profile/" + guest
	h.want(guest, "PUT", at+"/displayname", `{"displayname":"Gustav"}`, 200, `{}`)
	h.want(guest, "PUT", at+"/avatar_url", `{"avatar_url":"mxc://test/a"}`, 403, "M_GUEST_ACCESS_FORBIDDEN")
	h.want(guest, "PUT", at+"/org.example.job", `{"org.example.job":1}`, 403, "M_GUEST_ACCESS_FORBIDDEN")
	h.want(guest, "DELETE", at+"/avatar_url", nil, 403, "M_GUEST_ACCESS_FORBIDDEN")
	h.want("", "GET", at, nil, 200, `{"displayname":"Gustav"}`)
	h.want(guest, "DELETE", at+"/displayname", nil, 200, `{}`)
	h.want("", "GET", at, nil, 200, `{}`)
}

func (h *house) account(v storage.Account) {
	h.T.Helper()
	err := h.DB.Write(h.T.Context(), nil, func(tx storage.Tx) error {
		_, err := tx.InsertAccount(v)
		return err
	})
	if err != nil {
		h.T.Fatal(err)
	}
}

// spec: c2s#events-on-change-of-profile-information
func TestRoomsLearnOfAChangedProfile(t *testing.T) {
	eachEngine(t, func(h *house) {
		first, second := h.room(bob), h.room(bob)
		h.want(bob, "PUT", v3+"/profile/"+bob+"/displayname", `{"displayname":"Bobby"}`, 200, `{}`)
		for _, room := range []id.RoomID{first, second} {
			h.eventually("the room shows the new name", func(tx storage.Tx) (bool, error) {
				row, _, err := tx.Room(string(room))
				if err != nil {
					return false, err
				}
				m, _, err := tx.Member(row.NID, bob)
				return m.DisplayName == "Bobby" && m.Membership == "join", err
			})
		}
		h.eventually("nothing is left to be told", func(tx storage.Tx) (bool, error) {
			p, err := tx.SpreadingProfiles()
			return len(p) == 0, err
		})
	})
}

func (h *house) eventually(what string, is func(storage.Tx) (bool, error)) {
	h.T.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		var done bool
		h.read(func(tx storage.Tx) (err error) {
			done, err = is(tx)
			return err
		})
		if done {
			return
		}
		if time.Now().After(deadline) {
			h.T.Fatalf("never: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// spec: c2s/setAccountData, c2s/getAccountData, c2s/setAccountDataPerRoom, c2s/getAccountDataPerRoom
func TestAccountData(t *testing.T) {
	eachEngine(t, func(h *house) {
		room := h.room()
		global := v3 + "/user/" + alice + "/account_data/"
		inRoom := v3 + "/user/" + alice + "/rooms/" + string(room) + "/account_data/"
		for _, at := range []string{global, inRoom} {
			h.want(alice, "GET", at+"org.x", nil, 404, "M_NOT_FOUND")
			h.want(alice, "PUT", at+"org.x", `{"a":"\u0000"}`, 200, `{}`)
			h.want(alice, "PUT", at+"org.x", `{"a":"\u0000","b":1}`, 200, `{}`)
			h.want(alice, "GET", at+"org.x", nil, 200, `{"a":"\u0000","b":1}`)
			h.want(alice, "PUT", at+"m.fully_read", `{"event_id":"$x"}`, 405, "M_BAD_JSON")
			h.want(alice, "PUT", at+"m.push_rules", `{}`, 405, "M_BAD_JSON")
			h.want(alice, "PUT", at+"org.x", `[]`, 400, "M_BAD_JSON")
			h.want(alice, "PUT", at+"org.x", `nonsense`, 400, "M_NOT_JSON")
			h.want(bob, "PUT", at+"org.x", `{}`, 403, "M_FORBIDDEN")
			h.want(bob, "GET", at+"org.x", nil, 403, "M_FORBIDDEN")
			h.want(alice, "PUT", at+"org.x", `{"a":"`+strings.Repeat("x", 600<<10)+`"}`, 413, "M_TOO_LARGE")
		}
		h.want(alice, "PUT", v3+"/user/"+alice+"/rooms/nonsense/account_data/org.x", `{}`, 400, "M_INVALID_PARAM")
		if rules := h.OK(alice, "GET", global+"m.push_rules", nil); rules.Value("global") == nil {
			t.Errorf("push rules are not among the account data: %v", rules)
		}
		facts := h.facts(sql.FactAccountData)
		if len(facts) != 4 || facts[0] != (storage.Fact{Kind: sql.FactAccountData, User: alice, Extra: "org.x"}) || facts[2].Room == 0 {
			t.Errorf("facts: %v", facts)
		}
	})
}

// spec: c2s/getRoomTags, c2s/setRoomTag, c2s/deleteRoomTag
func TestTags(t *testing.T) {
	eachEngine(t, func(h *house) {
		room := string(h.room())
		at := v3 + "/user/" + alice + "/rooms/" + room + "/tags"
		h.want(alice, "GET", at, nil, 200, `{"tags":{}}`)
		h.want(alice, "PUT", at+"/m.favourite", `{"order":0.5}`, 200, `{}`)
		h.want(alice, "PUT", at+"/u.work%2Fhome", `{}`, 200, `{}`)
		h.want(alice, "GET", at, nil, 200, `{"tags":{"m.favourite":{"order":0.5},"u.work/home":{}}}`)
		h.want(alice, "GET", v3+"/user/"+alice+"/rooms/"+room+"/account_data/m.tag", nil, 200, `{"tags":{"m.favourite":{"order":0.5},"u.work/home":{}}}`)
		h.want(alice, "DELETE", at+"/m.favourite", nil, 200, `{}`)
		h.want(alice, "DELETE", at+"/m.favourite", nil, 200, `{}`)
		h.want(alice, "GET", at, nil, 200, `{"tags":{"u.work/home":{}}}`)
		h.want(bob, "PUT", at+"/m.favourite", `{}`, 403, "M_FORBIDDEN")
		h.want(alice, "PUT", at+"/"+strings.Repeat("x", 256), `{}`, 400, "M_INVALID_PARAM")
	})
}

// spec: c2s/defineFilter, c2s/getFilter
func TestFilters(t *testing.T) {
	eachEngine(t, func(h *house) {
		at := v3 + "/user/" + alice + "/filter"
		filter := `{"room":{"timeline":{"limit":10,"types":["m.room.*"]},"state":{"lazy_load_members":true}},"org.unknown":1}`
		first := h.OK(alice, "POST", at, filter).Value("filter_id")
		if again := h.OK(alice, "POST", at, filter).Value("filter_id"); again != first {
			t.Errorf("the same filter is %v and then %v", first, again)
		}
		if other := h.OK(alice, "POST", at, `{}`).Value("filter_id"); other == first {
			t.Error("another filter has the same ID")
		}
		h.want(alice, "GET", at+"/"+fmt.Sprint(first), nil, 200, filter)
		h.want(alice, "GET", at+"/999", nil, 404, "M_NOT_FOUND")
		h.want(alice, "GET", at+"/x", nil, 404, "M_NOT_FOUND")
		h.want(bob, "GET", at+"/"+fmt.Sprint(first), nil, 403, "M_FORBIDDEN")
		for _, bad := range []string{`{"room":{"timeline":{"limit":"10"}}}`, `{"room":1}`, `{"presence":{"senders":["me"]}}`,
			`{"room":{"rooms":["here"]}}`, `{"event_format":"xml"}`, `{"room":{"timeline":{"limit":-1}}}`} {
			h.want(alice, "POST", at, bad, 400, "M_BAD_JSON")
		}
	})
}
