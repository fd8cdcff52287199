package clientapi_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/roomserver"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/users"
	"chancery/users/pushrules"

	"maunium.net/go/mautrix/id"
)

// unread counts what a user has not read in a room, by thread: "main 2/1" is two, one of them highlighted.
func (h *house) unread(user string, room id.RoomID, ignored ...string) string {
	h.T.Helper()
	var parts []string
	h.read(func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		counts, err := h.Reader.UnreadCounts(tx, user, []int64{row.NID}, ignored)
		parts = nil
		for _, c := range counts {
			name := "thread"
			if c.Thread == "main" {
				name = "main"
			}
			parts = append(parts, fmt.Sprintf("%s %d/%d", name, c.Notification, c.Highlight))
		}
		return err
	})
	slices.Sort(parts)
	return strings.Join(parts, ", ")
}

func (h *house) wantUnread(user string, room id.RoomID, want string) {
	h.T.Helper()
	if got := h.unread(user, room); got != want {
		h.T.Errorf("unread of %s: %q, want %q", user, got, want)
	}
}

// spec: c2s#receiving-notifications, c2s#marking-notifications-as-read
func TestUnreadCounts(t *testing.T) {
	eachEngine(t, func(h *house) {
		h.say(alice, h.room(bob), `{"msgtype":"m.text","body":"another room"}`)
		room := h.room(bob)
		text := `{"msgtype":"m.text","body":"hello"}`
		h.wantUnread(bob, room, "")
		root := h.say(alice, room, text)
		h.say(alice, room, `{"msgtype":"m.notice","body":"no matter"}`)
		second := h.say(alice, room, text)
		h.wantUnread(bob, room, "main 2/0")
		h.wantUnread(alice, room, "")
		if got := h.unread(bob, room, alice); got != "" {
			t.Errorf("messages of an ignored user are counted: %q", got)
		}
		read := func(event id.EventID, typ, body string) {
			t.Helper()
			h.want(bob, "POST", v3+"/rooms/"+string(room)+"/receipt/"+typ+"/"+string(event), body, 200, `{}`)
		}
		read(root, "m.read", `{}`)
		h.wantUnread(bob, room, "main 1/0")
		inThread := func() id.EventID {
			return h.say(alice, room, `{"msgtype":"m.text","body":"t","m.relates_to":{"rel_type":"m.thread","event_id":"`+string(root)+`"}}`)
		}
		one := inThread()
		inThread()
		h.wantUnread(bob, room, "main 1/0, thread 2/0")
		read(one, "m.read", `{"thread_id":"`+string(root)+`"}`)
		h.wantUnread(bob, room, "main 1/0, thread 1/0")
		read(second, "m.read.private", `{"thread_id":"main"}`)
		h.wantUnread(bob, room, "thread 1/0")
		// An unthreaded receipt covers everything below it, and a receipt does not go back.
		third := h.say(alice, room, text)
		h.wantUnread(bob, room, "main 1/0, thread 1/0")
		read(third, "m.read.private", `{}`)
		h.wantUnread(bob, room, "")
		read(root, "m.read.private", `{}`)
		h.wantUnread(bob, room, "")
		h.say(alice, room, text)
		h.wantUnread(bob, room, "main 1/0")
		// Whoever writes has read.
		h.say(bob, room, text)
		h.wantUnread(bob, room, "")
		h.wantUnread(alice, room, "main 1/0")
	})
}

// spec: c2s/postReceipt, c2s/setReadMarker
func TestReceipts(t *testing.T) {
	eachEngine(t, func(h *house) {
		room, other := h.room(bob), h.room()
		first := h.say(alice, room, `{"msgtype":"m.text","body":"1"}`)
		second := h.say(alice, room, `{"msgtype":"m.text","body":"2"}`)
		elsewhere := h.say(alice, other, `{"msgtype":"m.text","body":"3"}`)
		at := v3 + "/rooms/" + string(room) + "/receipt/"
		for _, bad := range []struct {
			user, path, body string
			status           int
			code             string
		}{
			{carol, "m.read/" + string(first), `{}`, 403, "M_FORBIDDEN"},
			{bob, "m.read/" + string(elsewhere), `{}`, 404, "M_NOT_FOUND"},
			{bob, "m.read/$unknown", `{}`, 404, "M_NOT_FOUND"},
			{bob, "m.seen/" + string(first), `{}`, 400, "M_INVALID_PARAM"},
			{bob, "m.read/" + string(first), `{"thread_id":""}`, 400, "M_INVALID_PARAM"},
			{bob, "m.read/" + string(first), `{"thread_id":1}`, 400, "M_INVALID_PARAM"},
			{bob, "m.read/" + string(first), `{"thread_id":"` + string(second) + `"}`, 400, "M_INVALID_PARAM"},
			{bob, "m.fully_read/" + string(first), `{"thread_id":"main"}`, 400, "M_INVALID_PARAM"},
			{bob, "m.read/" + string(first), `[]`, 400, "M_BAD_JSON"},
		} {
			h.want(bad.user, "POST", at+bad.path, bad.body, bad.status, bad.code)
		}
		h.want(bob, "POST", at+"m.read/"+string(second), `{}`, 200, `{}`)
		h.want(bob, "POST", at+"m.read/"+string(second), `{}`, 200, `{}`) // nothing new: no fact
		h.want(bob, "POST", at+"m.read.private/"+string(first), `{"thread_id":"main"}`, 200, `{}`)
		h.want(bob, "POST", at+"m.fully_read/"+string(second), `{}`, 200, `{}`)
		h.want(bob, "POST", v3+"/rooms/"+string(room)+"/read_markers", `{"m.fully_read":"`+string(first)+`"}`, 200, `{}`) // it does not go back
		h.want(bob, "GET", v3+"/user/"+bob+"/rooms/"+string(room)+"/account_data/m.fully_read", nil, 200, `{"event_id":"`+string(second)+`"}`)
		h.want(bob, "POST", v3+"/rooms/"+string(room)+"/read_markers", `{}`, 200, `{}`)
		h.want(bob, "POST", v3+"/rooms/"+string(room)+"/read_markers", `{"m.read":1}`, 400, "M_BAD_JSON")

		facts := h.facts(sql.FactReceipt)
		var extra struct{ Type, Event, Thread string }
		if len(facts) != 2 || facts[0].User != bob || json.Unmarshal([]byte(facts[0].Extra), &extra) != nil || extra.Type != "m.read" || extra.Event != string(second) {
			t.Errorf("facts: %v", facts)
		}
		h.read(func(tx storage.Tx) error {
			row, _, err := tx.Room(string(room))
			if err != nil {
				return err
			}
			seen, err := tx.ReceiptsIn([]int64{row.NID}, alice)
			if len(seen) != 1 || seen[0].Type != "m.read" || seen[0].Ord == 0 || seen[0].TS == 0 {
				t.Errorf("alice sees the receipts %v", seen)
			}
			own, err2 := tx.ReceiptsIn([]int64{row.NID}, bob)
			if len(own) != 2 {
				t.Errorf("bob sees the receipts %v", own)
			}
			if err == nil {
				err = err2
			}
			return err
		})
	})
}

// spec: s2s#receipts
func TestReceiptsFromOtherServers(t *testing.T) {
	h := build(t, sqliteOf(t))
	room := h.room()
	said := h.say(alice, room, `{"msgtype":"m.text","body":"1"}`)
	h.addMember(room, "@remote:far")
	list := []users.Receipt{
		{User: "@remote:far", Room: room, Type: "m.read", Event: said},
		{User: "@stranger:far", Room: room, Type: "m.read", Event: said},
		{User: "@remote:other", Room: room, Type: "m.read", Event: said},
		{User: "@remote:far", Room: room, Type: "m.read.private", Event: said},
		{User: "@remote:far", Room: "!unknown", Type: "m.read", Event: said},
		{User: "@remote:far", Room: room, Type: "m.read", Event: "no event ID"},
		{User: "@remote:far", Room: room, Type: "m.read", Event: h.say(alice, h.room(), `{"body":"in another room"}`)},
		{User: "@remote:far", Room: room, Type: "m.read", Event: said, Thread: "no thread"},
		{User: "@remote:far", Room: room, Type: "m.read", Event: said, Thread: "$invented"},
		{User: "@remote:far", Room: room, Type: "m.read", Event: "$unknown", Thread: "$invented"},
	}
	if err := h.users.ReceiveReceipts(t.Context(), "far", list); err != nil {
		t.Fatal(err)
	}
	if facts := h.facts(sql.FactReceipt); len(facts) != 1 || facts[0].User != "@remote:far" {
		t.Errorf("facts: %v", facts)
	}
	// An event may come after its receipt; and a thread is known by its root, or by what is in it.
	reply := h.say(alice, room, `{"msgtype":"m.text","body":"2","m.relates_to":{"rel_type":"m.thread","event_id":"$before_we_came"}}`)
	for i, r := range []users.Receipt{{Event: "$coming"}, {Event: said, Thread: "main"}, {Event: "$coming", Thread: string(said)}, {Event: reply, Thread: "$before_we_came"}} {
		r.User, r.Room, r.Type = "@remote:far", room, "m.read"
		if err := h.users.ReceiveReceipts(t.Context(), "far", []users.Receipt{r}); err != nil {
			t.Fatal(err)
		}
		if facts := h.facts(sql.FactReceipt); len(facts) != i+2 {
			t.Errorf("%s in the thread %q was passed over", r.Event, r.Thread)
		}
	}
}

func sqliteOf(t *testing.T) sql.Options {
	return sql.Options{Path: t.TempDir() + "/chancery.db", MaxConnections: 4}
}

// addMember puts a user of another server into the table of members.
func (h *house) addMember(room id.RoomID, user string) {
	h.T.Helper()
	err := h.DB.Write(h.T.Context(), nil, func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		tx.SetMember(storage.Member{Room: row.NID, User: user, Server: id.UserID(user).Homeserver(), Membership: "join", DisplayName: "Rémi Far"})
		return nil
	})
	if err != nil {
		h.T.Fatal(err)
	}
}

// spec: c2s/setTyping
func TestTyping(t *testing.T) {
	h := build(t, sqliteOf(t))
	room := h.room(bob)
	at := v3 + "/rooms/" + string(room) + "/typing/"
	changes := make(chan users.TypingChange, 10)
	stop := h.users.Typing().Watch(changes)
	defer stop()
	before := h.users.Typing().Serial()
	h.want(alice, "PUT", at+alice, `{"typing":true,"timeout":60000}`, 200, `{}`)
	h.want(bob, "PUT", at+bob, `{"typing":true,"timeout":60000}`, 200, `{}`)
	h.want(bob, "PUT", at+bob, `{"typing":true,"timeout":60000}`, 200, `{}`)
	if got := h.users.Typing().In(room); !slices.Equal(got, []id.UserID{alice, bob}) {
		t.Errorf("typing: %v", got)
	}
	if !h.users.Typing().ChangedIn(room, before) || h.users.Typing().ChangedIn(room, h.users.Typing().Serial()) {
		t.Error("what changed since is not told rightly")
	}
	h.want(alice, "PUT", at+alice, `{"typing":true,"timeout":1}`, 200, `{}`)
	for deadline := time.Now().Add(time.Minute); len(h.users.Typing().In(room)) != 1; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("alice never stopped typing")
		}
	}
	h.want(bob, "PUT", at+bob, `{"typing":false}`, 200, `{}`)
	if got := h.users.Typing().In(room); len(got) != 0 {
		t.Errorf("typing: %v", got)
	}
	if len(changes) != 4 {
		t.Errorf("%d changes were told, want 4", len(changes))
	}
	h.want(carol, "PUT", at+carol, `{"typing":true}`, 403, "M_FORBIDDEN")
	h.want(alice, "PUT", at+bob, `{"typing":true}`, 403, "M_FORBIDDEN")
	h.want(alice, "PUT", at+alice, `{}`, 400, "M_MISSING_PARAM")
	h.want(alice, "PUT", at+alice, `{"typing":true,"timeout":-5}`, 400, "M_INVALID_PARAM")
	if err := h.users.ReceiveTyping(t.Context(), "far", "@stranger:far", room, true); err != nil || len(h.users.Typing().In(room)) != 0 {
		t.Errorf("a stranger types: %v", err)
	}
}

// spec: c2s/setPresence, c2s/getPresence
func TestPresence(t *testing.T) {
	h := build(t, sqliteOf(t))
	h.room(bob)
	at := v3 + "/presence/"
	h.want(alice, "GET", at+bob+"/status", nil, 200, `{"presence":"offline"}`)
	h.want(bob, "PUT", at+bob+"/status", `{"presence":"unavailable","status_msg":"away"}`, 200, `{}`)
	got := h.OK(alice, "GET", at+bob+"/status", nil)
	if got.Value("presence") != "unavailable" || got.Value("status_msg") != "away" || got.Value("last_active_ago") == nil {
		t.Errorf("presence: %v", got)
	}
	h.want(carol, "GET", at+bob+"/status", nil, 403, "M_FORBIDDEN")
	h.want(alice, "PUT", at+bob+"/status", `{"presence":"online"}`, 403, "M_FORBIDDEN")
	h.want(bob, "PUT", at+bob+"/status", `{"presence":"busy"}`, 400, "M_INVALID_PARAM")
	h.want(bob, "PUT", at+bob+"/status", `{}`, 400, "M_MISSING_PARAM")
	serial := h.users.Presences().Serial()
	h.users.Synced(bob, "B", "")
	changed, _ := h.users.Presences().Changed([]id.UserID{alice, bob}, serial)
	if len(changed) != 1 || changed[0].Presence != "online" || !changed[0].CurrentlyActive || *changed[0].StatusMsg != "away" {
		t.Errorf("after a sync: %v", changed)
	}
	serial = h.users.Presences().Serial()
	h.users.Synced(bob, "B", "")
	if changed, _ := h.users.Presences().Changed([]id.UserID{bob}, serial); len(changed) != 0 {
		t.Errorf("the next sync is told too: %v", changed)
	}
	for _, step := range []struct{ device, sets, want string }{
		{"C", "unavailable", "online"}, // in the background of another device
		{"B", "unavailable", "unavailable"},
		{"C", "", "online"},
	} {
		h.users.Synced(bob, id.DeviceID(step.device), step.sets)
		if p, _ := h.users.Presences().Of(bob); p.Presence != step.want || p.CurrentlyActive != (step.want == "online") {
			t.Errorf("%s of %s: %v", step.sets, step.device, p)
		}
	}
}

// spec: c2s/searchUserDirectory
func TestUserDirectory(t *testing.T) {
	eachEngine(t, func(h *house) {
		room := h.room(bob)
		h.setState(room, "m.room.join_rules", `{"join_rule":"invite"}`)
		h.addMember(room, "@remi:far")
		h.want(bob, "PUT", v3+"/profile/"+bob+"/displayname", `{"displayname":"Bobby ÉTOILE"}`, 200, `{}`)
		bobby := `{"results":[{"user_id":"@bob:test","display_name":"Bobby ÉTOILE"}],"limited":false}`
		none := `{"results":[],"limited":false}`
		for term, want := range map[string]string{
			"bob": bobby, "BOBBY": bobby, "etoile": bobby, "étoile bob": bobby, "@bob:test": bobby, "b": bobby,
			"remi":   `{"results":[{"user_id":"@remi:far","display_name":"Rémi Far"}],"limited":false}`,
			"nobody": none, "%": none, "_": none, "": none, "alice": none, // oneself
			"carol": none, // in no room with alice
		} {
			h.want(alice, "POST", v3+"/user_directory/search", map[string]any{"search_term": term}, 200, want)
		}
		h.want(carol, "POST", v3+"/user_directory/search", `{"search_term":"bob"}`, 200, none)
		err := h.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			tx.Exec(`INSERT INTO published (room_id) VALUES ($1)`, string(room))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		h.want(carol, "POST", v3+"/user_directory/search", `{"search_term":"bob"}`, 200, bobby)
		limited := h.OK(carol, "POST", v3+"/user_directory/search", `{"search_term":"i","limit":1}`)
		if limited.Value("limited") != true || len(limited.List("results")) != 1 {
			t.Errorf("limited: %v", limited)
		}
		h.want(carol, "POST", v3+"/user_directory/search", `{}`, 400, "M_MISSING_PARAM")
		h.want(carol, "POST", v3+"/user_directory/search", `{"search_term":"x","limit":-1}`, 400, "M_INVALID_PARAM")
	})
}

// spec: c2s/getMutualRooms
func TestMutualRooms(t *testing.T) {
	h := build(t, sqliteOf(t))
	both := h.room(bob)
	h.room()
	at := "/_matrix/client/v1/mutual_rooms"
	h.want(alice, "GET", at+"?user_id="+bob, nil, 200, `{"joined":["`+string(both)+`"],"count":1}`)
	h.want(alice, "GET", at+"?user_id="+carol, nil, 200, `{"joined":[],"count":0}`)
	h.want(alice, "GET", at+"?user_id="+alice, nil, 400, "M_INVALID_PARAM")
	h.want(alice, "GET", at+"?user_id=bob", nil, 400, "M_INVALID_PARAM")
	h.want(alice, "GET", at, nil, 400, "M_MISSING_PARAM")
	h.want(alice, "GET", at+"?user_id="+bob+"&from=!!!", nil, 400, "M_INVALID_PARAM")
}

// spec: c2s/getPushRules, c2s/setPushRule, c2s/deletePushRule, c2s/setPushRuleEnabled, c2s/setPushRuleActions
func TestPushRules(t *testing.T) {
	eachEngine(t, func(h *house) {
		at := v3 + "/pushrules/global/"
		ids := func(kind string) (list []string) {
			t.Helper()
			for _, v := range h.OK(alice, "GET", at, nil).List(kind) {
				list = append(list, v.(map[string]any)["rule_id"].(string))
			}
			return list
		}
		if got := ids("override"); len(got) != 10 || got[0] != ".m.rule.master" {
			t.Errorf("override: %v", got)
		}
		h.want(alice, "GET", at+"override/.m.rule.is_user_mention", nil, 200, `{"rule_id":".m.rule.is_user_mention","default":true,"enabled":true,
			"conditions":[{"kind":"event_property_contains","key":"content.m\\.mentions.user_ids","value":"@alice:test"}],
			"actions":["notify",{"set_tweak":"sound","value":"default"},{"set_tweak":"highlight"}]}`)
		put := `{"actions":["notify","dont_notify"],"pattern":"tea"}`
		h.want(alice, "PUT", at+"content/a", put, 200, `{}`)
		h.want(alice, "PUT", at+"content/b", put, 200, `{}`)
		h.want(alice, "PUT", at+"content/c?after=b", put, 200, `{}`)
		h.want(alice, "PUT", at+"content/d?before=a", put, 200, `{}`)
		if got := ids("content"); !slices.Equal(got, []string{"b", "c", "d", "a"}) {
			t.Errorf("content: %v", got)
		}
		h.want(alice, "PUT", at+"content/a?before=b&after=c", put, 200, `{}`)
		if got := ids("content"); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
			t.Errorf("content: %v", got)
		}
		h.want(alice, "GET", at+"content/a", nil, 200, `{"rule_id":"a","default":false,"enabled":true,"actions":["notify","dont_notify"],"pattern":"tea"}`)
		h.want(alice, "PUT", at+"content/a/enabled", `{"enabled":false}`, 200, `{}`)
		h.want(alice, "PUT", at+"content/a", `{"actions":[],"pattern":"coffee"}`, 200, `{}`)
		h.want(alice, "GET", at+"content/a", nil, 200, `{"rule_id":"a","default":false,"enabled":false,"actions":[],"pattern":"coffee"}`)
		h.want(alice, "GET", at+"content/a/enabled", nil, 200, `{"enabled":false}`)
		h.want(alice, "PUT", at+"override/.m.rule.tombstone/actions", `{"actions":["notify"]}`, 200, `{}`)
		h.want(alice, "PUT", at+"override/.m.rule.tombstone/enabled", `{"enabled":false}`, 200, `{}`)
		h.want(alice, "GET", at+"override/.m.rule.tombstone/actions", nil, 200, `{"actions":["notify"]}`)
		h.want(alice, "GET", at+"override/.m.rule.tombstone/enabled", nil, 200, `{"enabled":false}`)
		h.want(bob, "GET", at+"override/.m.rule.tombstone/enabled", nil, 200, `{"enabled":true}`)
		h.want(alice, "PUT", at+"override/mine", `{"actions":["notify"],"conditions":[{"kind":"event_match","key":"type","pattern":"x","org.more":1}]}`, 200, `{}`)
		if got := ids("override"); got[0] != ".m.rule.master" || got[1] != "mine" {
			t.Errorf("override: %v", got)
		}
		h.want(alice, "DELETE", at+"content/a", nil, 200, `{}`)
		for _, bad := range []struct {
			method, path, body string
			status             int
			code               string
		}{
			{"DELETE", "content/a", "", 404, "M_NOT_FOUND"},
			{"GET", "content/a", "", 404, "M_NOT_FOUND"},
			{"GET", "content/a/enabled", "", 404, "M_NOT_FOUND"},
			{"GET", "content/a/actions", "", 404, "M_NOT_FOUND"},
			{"PUT", "content/a/enabled", `{"enabled":true}`, 404, "M_NOT_FOUND"},
			{"PUT", "content/a/actions", `{"actions":[]}`, 404, "M_NOT_FOUND"},
			{"PUT", "content/b/enabled", `{}`, 400, "M_MISSING_PARAM"},
			{"PUT", "content/b/actions", `{"actions":["dance"]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "content/x", `{"actions":[]}`, 400, "M_MISSING_PARAM"},
			{"PUT", "content/x", `{"pattern":"x"}`, 400, "M_MISSING_PARAM"},
			{"PUT", "content/x?before=none", put, 400, "M_UNKNOWN"},
			{"PUT", "override/x?after=.m.rule.master", put, 400, "M_UNKNOWN"},
			{"PUT", "override/.mine", put, 400, "M_INVALID_PARAM"},
			{"PUT", "override/a%2Fb", put, 400, "M_INVALID_PARAM"},
			{"PUT", "override/x", `{"actions":[],"conditions":[1]}`, 400, "M_INVALID_PARAM"},
			{"PUT", "sideways/x", put, 400, "M_INVALID_PARAM"},
			{"GET", "sideways/x", "", 400, "M_INVALID_PARAM"},
			{"DELETE", "override/.m.rule.master", "", 400, "M_INVALID_PARAM"},
		} {
			var body any
			if bad.body != "" {
				body = bad.body
			}
			h.want(alice, bad.method, at+bad.path, body, bad.status, bad.code)
		}
		if facts := h.facts(sql.FactAccountData); len(facts) == 0 || facts[0] != (storage.Fact{Kind: sql.FactAccountData, User: alice, Extra: "m.push_rules"}) {
			t.Errorf("facts: %v", facts)
		}
	})
}

// What rules say other than the default is kept where counting finds it.
func TestHighlightsAreCounted(t *testing.T) {
	eachEngine(t, func(h *house) {
		room := h.room(bob)
		said := h.say(alice, room, `{"msgtype":"m.text","body":"bob?","m.mentions":{"user_ids":["@bob:test"]}}`)
		notice := h.say(alice, room, `{"msgtype":"m.notice","body":"tea"}`)
		muted := h.say(alice, room, `{"msgtype":"m.text","body":"not for bob"}`)
		err := h.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			var list []storage.Notification
			for _, v := range []struct {
				event             id.EventID
				notify, highlight bool
			}{{said, true, true}, {notice, true, false}, {muted, false, false}} {
				ev, _, err := tx.Event(string(v.event))
				if err != nil {
					return err
				}
				list = append(list, storage.Notification{User: bob, Room: ev.Room, Ord: *ev.Ord, Event: ev.NID, Notify: v.notify, Highlight: v.highlight, Thread: "main"})
			}
			return tx.InsertNotifications(list)
		})
		if err != nil {
			t.Fatal(err)
		}
		h.wantUnread(bob, room, "main 2/1")
		// What was said is taken back.
		if _, err := h.Rooms.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.redaction",
			Content: json.RawMessage(`{"redacts":"` + string(said) + `"}`), Redacts: said}); err != nil {
			t.Fatal(err)
		}
		h.wantUnread(bob, room, "main 1/0")
		h.want(bob, "PUT", v3+"/pushrules/global/content/tea", `{"actions":["notify"],"pattern":"tea"}`, 200, `{}`)
		h.read(func(tx storage.Tx) error {
			row, _, err := tx.Room(string(room))
			if err != nil {
				return err
			}
			owners, err := tx.RuleOwners(row.NID)
			if err != nil {
				return err
			}
			if len(owners) != 1 || owners[0].User != bob {
				t.Fatalf("who has rules: %v", owners)
			}
			changes, err := pushrules.Parse(owners[0].Rules)
			if _, ok := changes.Ruleset(bob).Find(pushrules.Content, "tea"); !ok {
				t.Error("the rule is not found again")
			}
			return err
		})
	})
}

// spec: c2s/postPusher, c2s/getPushers
func TestPushers(t *testing.T) {
	eachEngine(t, func(h *house) {
		set := v3 + "/pushers/set"
		pusher := func(change func(map[string]any)) map[string]any {
			p := map[string]any{"kind": "http", "app_id": "org.app", "pushkey": "key", "app_display_name": "App", "device_display_name": "Phone",
				"lang": "en", "data": map[string]any{"url": "https://push.example/_matrix/push/v1/notify", "org.more": 1}}
			if change != nil {
				change(p)
			}
			return p
		}
		h.want(alice, "GET", v3+"/pushers", nil, 200, `{"pushers":[]}`)
		h.want(alice, "POST", set, pusher(nil), 200, `{}`)
		h.want(alice, "POST", set, pusher(func(p map[string]any) { p["lang"] = "de" }), 200, `{}`)
		h.want(alice, "GET", v3+"/pushers", nil, 200, `{"pushers":[{"kind":"http","app_id":"org.app","pushkey":"key","app_display_name":"App","device_display_name":"Phone",
			"lang":"de","data":{"url":"https://push.example/_matrix/push/v1/notify","org.more":1}}]}`)
		h.want(bob, "POST", set, pusher(func(p map[string]any) { p["append"] = true }), 200, `{}`)
		if n := len(h.OK(alice, "GET", v3+"/pushers", nil).List("pushers")); n != 1 {
			t.Errorf("alice has %d pushers beside bob's, want 1", n)
		}
		h.want(bob, "POST", set, pusher(nil), 200, `{}`)
		h.want(alice, "GET", v3+"/pushers", nil, 200, `{"pushers":[]}`)
		for what, bad := range map[string]struct {
			change func(map[string]any)
			code   string
		}{
			"no kind":     {func(p map[string]any) { delete(p, "kind") }, "M_MISSING_PARAM"},
			"no language": {func(p map[string]any) { delete(p, "lang") }, "M_MISSING_PARAM"},
			"no data":     {func(p map[string]any) { delete(p, "data") }, "M_MISSING_PARAM"},
			"no url":      {func(p map[string]any) { p["data"] = map[string]any{} }, "M_MISSING_PARAM"},
			"wrong path":  {func(p map[string]any) { p["data"] = map[string]any{"url": "https://x/notify"} }, "M_INVALID_PARAM"},
			"wrong kind":  {func(p map[string]any) { p["kind"] = "pigeon" }, "M_INVALID_PARAM"},
			"long key":    {func(p map[string]any) { p["pushkey"] = strings.Repeat("x", 513) }, "M_INVALID_PARAM"},
			"long app":    {func(p map[string]any) { p["app_id"] = strings.Repeat("x", 65) }, "M_INVALID_PARAM"},
			"no app":      {func(p map[string]any) { delete(p, "app_id") }, "M_MISSING_PARAM"},
		} {
			t.Log(what)
			h.want(alice, "POST", set, pusher(bad.change), 400, bad.code)
		}
		h.want(bob, "POST", set, `{"kind":null,"app_id":"org.app","pushkey":"key"}`, 200, `{}`)
		h.want(bob, "GET", v3+"/pushers", nil, 200, `{"pushers":[]}`)
	})
}
