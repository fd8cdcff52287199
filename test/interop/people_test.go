//go:build goolm

package interop

import (
	"bytes"
	"encoding/json"
	"fmt"
	"image"
	_ "image/jpeg" // what some thumbnails are
	"image/png"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tidwall/gjson"

	"chancery/test/homeserver"
)

// The directory and aliases over federation.
func directory(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	name := fmt.Sprint("shared-", time.Now().UnixNano())
	id := alice.CreateRoom(J{"preset": "public_chat", "visibility": "public", "room_alias_name": name, "name": name, "topic": "for all"})
	alias := "#" + name + ":" + home.Name
	server := url.Values{"server": {home.Name}}.Encode()
	eventually(t, "the room is listed", func() bool {
		a := bob.Ask("GET", "/_matrix/client/v3/publicRooms?"+server, nil)
		return strings.Contains(a.Text, name)
	})
	found := bob.OK("POST", "/_matrix/client/v3/publicRooms?"+server, J{"filter": J{"generic_search_term": name}, "limit": 10}).Get("chunk").Array()
	if len(found) != 1 || found[0].Get("room_id").Str != id || found[0].Get("canonical_alias").Str != alias {
		t.Errorf("the search found %v", found)
	}
	if got := bob.OK("GET", "/_matrix/client/v3/directory/room/"+url.PathEscape(alias), nil).Get("room_id").Str; got != id {
		t.Errorf("the alias leads to %q, want %s", got, id)
	}
	bob.OK("POST", "/_matrix/client/v3/join/"+url.PathEscape(alias), J{})
	becomes(t, alice, id, bob.ID, "join")
	agree(t, id, alice, bob)
}

// spec: s2s/queryProfile
func profile(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	path := "/_matrix/client/v3/profile/" + url.PathEscape(alice.ID)
	alice.OK("PUT", path+"/displayname", J{"displayname": "Alice of home"})
	alice.OK("PUT", path+"/avatar_url", J{"avatar_url": "mxc://" + home.Name + "/alice"})
	got := bob.OK("GET", path, nil)
	if got.Get("displayname").Str != "Alice of home" || got.Get("avatar_url").Str != "mxc://"+home.Name+"/alice" {
		t.Errorf("the profile is %s", got)
	}
	id := public(t, home, away, alice, bob, nil)
	alice.OK("PUT", path+"/displayname", J{"displayname": "Alice anew"})
	eventually(t, "the member has the new name", func() bool {
		return bob.Ask("GET", room(id, "state", "m.room.member", alice.ID), nil).Get("displayname").Str == "Alice anew"
	})
	agree(t, id, alice, bob)
	bob.Refused(404, "M_NOT_FOUND", "GET", "/_matrix/client/v3/profile/"+url.PathEscape("@nobody:"+home.Name), nil)
}

// Typing, receipts and presence of the other server reach /sync.
func ephemeral(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id := public(t, home, away, alice, bob, nil)
	said := alice.Send(id, "are you there?")
	sees(t, bob, id, said)
	for _, pair := range [][2]*user{{alice, bob}, {bob, alice}} {
		from, to := pair[0], pair[1]
		since := to.Sync("").Get("next_batch").Str
		from.OK("PUT", room(id, "typing", from.ID), J{"typing": true, "timeout": 30000})
		from.OK("POST", room(id, "receipt", "m.read", said), J{})
		from.OK("PUT", "/_matrix/client/v3/presence/"+url.PathEscape(from.ID)+"/status", J{"presence": "unavailable", "status_msg": "at lunch"})
		typing, read, present := false, false, false
		eventually(t, to.ID+" sees typing, receipt and presence", func() bool {
			a := to.OK("GET", homeserver.SyncPath(since, 1000), nil)
			since = a.Get("next_batch").Str
			for _, ev := range a.Get("rooms.join").Map()[id].Get("ephemeral.events").Array() {
				typing = typing || ev.Get("type").Str == "m.typing" && strings.Contains(ev.Get("content.user_ids").Raw, from.ID)
				read = read || ev.Get("type").Str == "m.receipt" && ev.Get("content").Map()[said].Get(`m\.read`).Map()[from.ID].Exists()
			}
			for _, ev := range a.Get("presence.events").Array() {
				present = present || ev.Get("sender").Str == from.ID && ev.Get("content.status_msg").Str == "at lunch"
			}
			if typing && read && present {
				return true
			}
			t.Logf("typing %v, receipt %v, presence %v", typing, read, present)
			return false
		})
	}
}

// spec: s2s#content-repository
func mediaFiles(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	var picture bytes.Buffer
	if err := png.Encode(&picture, image.NewGray(image.Rect(0, 0, 640, 480))); err != nil {
		t.Fatal(err)
	}
	for kind, file := range map[string][]byte{"image/png": picture.Bytes(), "text/plain": bytes.Repeat([]byte("words "), 100_000)} {
		uri := upload(t, alice, kind, file)
		path := "/_matrix/client/v1/media/download/" + strings.TrimPrefix(uri, "mxc://")
		a := bob.OK("GET", path, nil)
		if a.Text != string(file) || !strings.HasPrefix(a.Header.Get("Content-Type"), kind) {
			t.Errorf("the download is %d bytes of %s, want %d of %s", len(a.Text), a.Header.Get("Content-Type"), len(file), kind)
		}
		if kind != "image/png" {
			continue
		}
		thumb := bob.OK("GET", strings.Replace(path, "/download/", "/thumbnail/", 1)+"?width=32&height=32&method=scale", nil)
		if small, _, err := image.Decode(strings.NewReader(thumb.Text)); err != nil || small.Bounds().Dx() > 320 {
			t.Errorf("the thumbnail is %v, %v", thumb.Header, err)
		}
	}
	if a := bob.Ask("GET", "/_matrix/client/v1/media/download/"+home.Name+"/nothing", nil); a.Status != 404 || a.Code() != "M_NOT_FOUND" {
		t.Errorf("a file that does not exist got %s", a)
	}
}

func upload(t *testing.T, u *user, kind string, file []byte) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", u.Server.URL+"/_matrix/media/v3/upload?filename=plan", bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+u.Token)
	req.Header.Set("Content-Type", kind)
	resp, err := u.Server.HTTP().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("upload: %d %s %v", resp.StatusCode, text, err)
	}
	return gjson.GetBytes(text, "content_uri").Str
}

// fetch asks a server's federation listener without a signature.
func fetch(t *testing.T, ca *homeserver.CA, method, address string, body any) gjson.Result {
	t.Helper()
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		sent = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(t.Context(), method, address, sent)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: ca.TLS(t)}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%s %s: %d %s %v", method, address, resp.StatusCode, text, err)
	}
	return gjson.ParseBytes(text)
}

// authority is what the two servers of a story trust.
func authority(home, away *server) *homeserver.CA {
	if home.fresh == nil {
		return home.CA
	}
	return away.CA
}

// A server vouches for the keys of the other one.
//
// spec: s2s#querying-keys-through-another-server
func notary(t *testing.T, home, away *server) {
	ca := authority(home, away)
	for name, got := range map[string]gjson.Result{
		"one":   fetch(t, ca, "GET", "https://"+home.Name+"/_matrix/key/v2/query/"+away.Name, nil),
		"batch": fetch(t, ca, "POST", "https://"+home.Name+"/_matrix/key/v2/query", J{"server_keys": J{away.Name: J{}}}),
	} {
		keys := got.Get("server_keys").Array()
		if len(keys) == 0 {
			t.Fatalf("%s: the notary knows nothing: %s", name, got)
		}
		by := keys[0].Get("signatures").Map()
		if keys[0].Get("server_name").Str != away.Name || !by[home.Name].Exists() || !by[away.Name].Exists() {
			t.Errorf("%s: the notary says %s", name, keys[0])
		}
	}
}

// spec: s2s/getEventByTimestamp
func eventAtTime(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id := alice.CreateRoom(J{"preset": "public_chat"})
	first := alice.Send(id, "first")
	at := alice.OK("GET", room(id, "event", first), nil).Get("origin_server_ts").Int()
	eventually(t, "the clock goes on", func() bool { return time.Now().UnixMilli() > at })
	say(alice, id, texts("more", 40))
	bob.Join(id, home.Name)
	q := url.Values{"ts": {fmt.Sprint(at)}, "dir": {"f"}}
	got := bob.OK("GET", "/_matrix/client/v1/rooms/"+url.PathEscape(id)+"/timestamp_to_event?"+q.Encode(), nil)
	if got.Get("event_id").Str != first {
		t.Errorf("the event at %d is %s, want %s", at, got, first)
	}
}

// spec: c2s#spaces
func space(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	top := alice.CreateRoom(J{"preset": "public_chat", "name": "top", "creation_content": J{"type": "m.space"}})
	inner := alice.CreateRoom(J{"preset": "public_chat", "name": "inner", "creation_content": J{"type": "m.space"}})
	leaf := alice.CreateRoom(J{"preset": "public_chat", "name": "leaf"})
	hidden := alice.CreateRoom(J{"preset": "private_chat", "name": "hidden"})
	child := func(parent, id string) {
		alice.OK("PUT", room(parent, "state", "m.space.child", id), J{"via": []string{home.Name}})
	}
	child(top, inner)
	child(top, hidden)
	child(inner, leaf)
	bob.Join(top, home.Name)
	var names []string
	for _, each := range bob.OK("GET", "/_matrix/client/v1/rooms/"+url.PathEscape(top)+"/hierarchy?limit=50", nil).Get("rooms").Array() {
		names = append(names, each.Get("name").Str)
	}
	if want := []string{"top", "inner", "leaf"}; !slices.Equal(names, want) {
		t.Errorf("the space holds %q, want %q", names, want)
	}
}

// spec: s2s/exchangeOpenIdToken
func openid(t *testing.T, home, away *server) {
	alice := home.user(t, "alice")
	token := alice.OK("POST", "/_matrix/client/v3/user/"+url.PathEscape(alice.ID)+"/openid/request_token", J{})
	if token.Get("matrix_server_name").Str != home.Name {
		t.Errorf("the token is of %s", token)
	}
	q := url.Values{"access_token": {token.Get("access_token").Str}}
	got := fetch(t, authority(home, away), "GET", "https://"+home.Name+"/_matrix/federation/v1/openid/userinfo?"+q.Encode(), nil)
	if got.Get("sub").Str != alice.ID {
		t.Errorf("the token belongs to %s", got)
	}
}

// One server is away while the other's user sends a thousand messages. All are there afterwards, once and in order.
func thousandWhileAway(t *testing.T, home, away *server) {
	alice, bob := home.user(t, "alice"), away.user(t, "bob")
	id := public(t, home, away, alice, bob, nil)
	said := alice.Send(id, "before 0")
	sees(t, bob, id, said)
	away.down(t)
	missed := texts("missed", 1000)
	began := time.Now()
	say(alice, id, missed)
	sent := time.Since(began)
	away.up(t)
	began = time.Now()
	after, spoke, sendsAll := []string{"after 0"}, time.Now(), home.can(t, "queues of more than 128")
	last := alice.Send(id, after[0])
	eventually(t, "bob sees what was said last", func() bool {
		if !sendsAll && time.Since(spoke) > 40*time.Second {
			more := fmt.Sprint("after ", len(after))
			alice.Send(id, more)
			after, spoke = append(after, more), time.Now()
		}
		return bob.Ask("GET", room(id, "event", last), nil).Status == 200
	})
	want := slices.Concat([]string{"before 0"}, missed, after)
	if sendsAll {
		reads(t, bob, id, alice.ID, want)
	} else {
		slices.Sort(want) // what it sends in disorder is read as it came
		eventually(t, "bob reads each text once", func() bool {
			return slices.Equal(slices.Sorted(slices.Values(bodies(t, bob, id, alice.ID))), want)
		})
	}
	t.Logf("1,000 sent in %v, read %v after the start", sent.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	mine := bob.Send(id, "back again")
	sees(t, alice, id, mine)
	agree(t, id, alice, bob)
	sameHistory(t, id, alice, bob, sendsAll)
}
