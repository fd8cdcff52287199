package federation_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// directory is an identity server.
type directory struct {
	*httptest.Server
	t       *testing.T
	name    string
	public  string
	private ed25519.PrivateKey
	known   map[string]id.UserID // by address
	stored  []map[string]any
	revoked bool
}

func newDirectory(t *testing.T, ca authority) *directory {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := &directory{t: t, public: base64.RawStdEncoding.EncodeToString(public), private: private, known: map[string]id.UserID{}}
	d.Server = httptest.NewUnstartedServer(http.HandlerFunc(d.serve))
	d.TLS = &tls.Config{Certificates: []tls.Certificate{ca.cert}}
	d.StartTLS()
	t.Cleanup(d.Close)
	d.name = strings.TrimPrefix(d.URL, "https://")
	return d
}

func (d *directory) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimPrefix(r.URL.Path, "/_matrix/identity/v2/")
	if path != "pubkey/isvalid" && r.Header.Get("Authorization") != "Bearer token" {
		w.WriteHeader(http.StatusUnauthorized)
		fmt.Fprint(w, `{"errcode":"M_UNAUTHORIZED","error":"who are you"}`)
		return
	}
	var in map[string]any
	_ = json.NewDecoder(r.Body).Decode(&in)
	switch path {
	case "hash_details":
		fmt.Fprint(w, `{"lookup_pepper":"pepper","algorithms":["none","sha256"]}`)
	case "lookup":
		out := map[string]id.UserID{}
		for address, user := range d.known {
			if hash := addressHash(address); strings.Contains(fmt.Sprint(in["addresses"]), hash) {
				out[hash] = user
			}
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"mappings": out})
	case "store-invite":
		d.stored = append(d.stored, in)
		_ = json.NewEncoder(w).Encode(map[string]any{"token": fmt.Sprint("token", len(d.stored)), "display_name": "b...@e...",
			"public_keys": []any{map[string]any{"public_key": d.public, "key_validity_url": d.URL + "/_matrix/identity/v2/pubkey/isvalid"}}})
	case "pubkey/isvalid":
		fmt.Fprintf(w, `{"valid":%v}`, !d.revoked && r.URL.Query().Get("public_key") == d.public)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
}

// proof signs that a user owns the address of an invite.
func (d *directory) proof(token string, user id.UserID, sender id.UserID) json.RawMessage {
	d.t.Helper()
	signed, err := peer.SignJSON(d.name, peer.SigningKey{ID: "ed25519:0", Private: d.private}, content(map[string]any{"mxid": user, "token": token, "sender": sender}))
	if err != nil {
		d.t.Fatal(err)
	}
	return signed
}

// onBind tells a server that an address is one of its users'.
func (d *directory) onBind(n *node, room id.RoomID, user, sender id.UserID, signed json.RawMessage) int {
	d.t.Helper()
	status, _ := n.request(n, "PUT", "/_matrix/federation/v1/3pid/onbind", content(map[string]any{"medium": "email", "address": "x@example.org", "mxid": user,
		"invites": []any{map[string]any{"medium": "email", "address": "x@example.org", "mxid": user, "room_id": room, "sender": sender, "signed": signed}}}), nil)
	return status
}

func (n *node) member(room id.RoomID, user id.UserID) (event []byte) {
	n.t.Helper()
	if err := n.db.Read(context.Background(), func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(room))
		if err != nil || !ok {
			return err
		}
		ev, err := n.reader.StateEvent(tx, row, stateRoot(row), "m.room.member", string(user))
		if ev != nil {
			event = ev.JSON()
		}
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return event
}

// spec: c2s#third-party-invites, s2s#third-party-invites, s2s/exchangeThirdPartyInvite, s2s/onBindThirdPartyIdentifier
func TestSomebodyIsInvitedByAnAddress(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		d := newDirectory(t, a.authority)
		alice, second, bob, carol := a.user("alice"), a.user("second"), b.user("bob"), b.user("carol")
		room := a.room(alice, map[string]any{"m.room.join_rules": map[string]any{"join_rule": "invite"}, "m.room.name": map[string]any{"name": "Den"}})
		contact := peer.Contact{Server: d.name, Token: "token", Medium: "email", Address: "Bob@Example.org"}
		if user, err := a.rooms.FindInvited(t.Context(), contact); err != nil || user != "" {
			t.Fatalf("whose the address is: %q, %v", user, err)
		}
		invite := func(sender id.UserID) error {
			return a.rooms.InviteAddress(t.Context(), roomserver.AddressInvite{Room: room, Sender: sender, Contact: contact, Names: map[string]string{"sender_display_name": "Alice"}})
		}
		if err := invite(second); !chancery.IsCode(err, chancery.CodeForbidden) || len(d.stored) != 0 {
			t.Errorf("somebody outside invites: %v", err)
		}
		for range 4 {
			if err := invite(alice); err != nil {
				t.Fatal(err)
			}
		}
		if in := d.stored[0]; in["room_name"] != "Den" || in["sender_display_name"] != "Alice" || in["address"] != "Bob@Example.org" {
			t.Errorf("the identity server is told %v", in)
		}

		// Of another server, that is not in the room.
		if status := d.onBind(b, room, bob, alice, d.proof("token1", bob, alice)); status != 200 {
			t.Fatalf("onbind answers %d", status)
		}
		if got := b.stripped(bob, room); got.Membership != "invite" {
			t.Fatalf("bob has %q", got.Membership)
		}
		if got := gjson.GetBytes(a.member(room, bob), "content.third_party_invite"); got.Get("display_name").Str != "b...@e..." || got.Get("signed.token").Str != "token1" {
			t.Errorf("the invite holds %s", got.Raw)
		}
		b.join(bob, room, a)
		b.whole(room)

		// Of a server that is in the room, but is not that of who invited: it makes the event itself.
		if status := d.onBind(b, room, carol, alice, d.proof("token2", carol, alice)); status != 200 {
			t.Fatalf("onbind answers %d", status)
		}
		eventually(t, "the invite that carol's server made arrives", func() bool { return a.membership(room, carol) == "invite" })
		if got := gjson.GetBytes(a.member(room, carol), "sender").Str; got != string(alice) {
			t.Errorf("carol is invited by %s", got)
		}
		b.join(carol, room, a)

		// Of the same server.
		if status := d.onBind(a, room, second, alice, d.proof("token3", second, alice)); status != 200 || a.membership(room, second) != "invite" {
			t.Errorf("the second user of the server is %q", a.membership(room, second))
		}

		// What is not proved is not believed.
		for name, c := range map[string]struct {
			user   id.UserID
			sender id.UserID
			proof  json.RawMessage
		}{
			"another user's proof":  {b.user("eve"), alice, d.proof("token4", bob, alice)},
			"an unknown token":      {b.user("eve"), alice, d.proof("token9", b.user("eve"), alice)},
			"another sender":        {b.user("eve"), bob, d.proof("token4", b.user("eve"), bob)},
			"a false signature":     {b.user("eve"), alice, json.RawMessage(strings.Replace(string(d.proof("token4", bob, alice)), string(bob), string(b.user("eve")), 1))},
			"no signature":          {b.user("eve"), alice, content(map[string]any{"mxid": b.user("eve"), "token": "token4", "signatures": map[string]any{}})},
			"signatures of nothing": {b.user("eve"), alice, content(map[string]any{"mxid": b.user("eve"), "token": "token4", "signatures": 5})},
		} {
			if status := d.onBind(b, room, c.user, c.sender, c.proof); status != 200 {
				t.Errorf("%s: onbind answers %d", name, status)
			}
			if got := b.membership(room, c.user); got != "" {
				t.Errorf("%s: the user is %q", name, got)
			}
		}
		// Anybody may bring proofs, so a server that refuses a few is left alone for a while.
		c := newNode(t, a.authority, sqliteOf(t))
		var asked atomic.Int64
		a.before = func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/exchange_third_party_invite/") {
				asked.Add(1)
			}
			return false
		}
		eve := c.user("eve")
		d.onBind(c, room, eve, alice, content(map[string]any{"mxid": eve, "token": "token4", "signatures": map[string]any{d.name: map[string]any{"ed25519:0": "no"}}}))
		if n := asked.Load(); n != 0 {
			t.Errorf("%d requests for what nobody signed", n)
		}
		for range 20 {
			d.onBind(c, room, eve, alice, d.proof("token9", eve, alice))
		}
		if n := asked.Load(); n == 0 || n > 3 {
			t.Errorf("%d requests for 20 false proofs", n)
		}
		d.revoked = true
		d.onBind(b, room, b.user("eve"), alice, d.proof("token4", b.user("eve"), alice))
		if got := b.membership(room, b.user("eve")); got != "" {
			t.Errorf("with a revoked key the user is %q", got)
		}
		if status := d.onBind(b, room, alice, alice, d.proof("token4", alice, alice)); status != 400 {
			t.Errorf("for another server's user onbind answers %d", status)
		}
		d.known["bob@example.org"] = bob
		if user, err := a.rooms.FindInvited(t.Context(), contact); err != nil || user != bob {
			t.Errorf("the address is that of %q, %v", user, err)
		}
		contact.Token = "wrong"
		if _, err := a.rooms.FindInvited(t.Context(), contact); err == nil || chancery.As(err).Status == 401 {
			t.Errorf("an identity server that does not know the token: %v", err)
		}
	})
}

// spec: s2s/exchangeThirdPartyInvite
func TestAnExchangeOfAnInviteIsChecked(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		d := newDirectory(t, a.authority)
		alice, bob := a.user("alice"), b.user("bob")
		room := a.room(alice, nil)
		a.set(alice, room, "m.room.third_party_invite", "tok", map[string]any{"display_name": "b", "public_key": d.public, "key_validity_url": d.URL + "/_matrix/identity/v2/pubkey/isvalid"})
		body := func(change map[string]any) []byte {
			v := map[string]any{"type": "m.room.member", "room_id": room, "sender": alice, "state_key": bob,
				"content": map[string]any{"membership": "invite", "third_party_invite": map[string]any{"display_name": "", "signed": d.proof("tok", bob, alice)}}}
			for k, w := range change {
				v[k] = w
			}
			return content(v)
		}
		path := "/_matrix/federation/v1/exchange_third_party_invite/" + url.PathEscape(string(room))
		ask := func(path string, body []byte) (int, string) {
			return b.request(a, "PUT", path, body, func(method, uri string, text []byte) string {
				return peer.SignRequest(b.keys.Key(), b.name, a.name, method, uri, text)
			})
		}
		for name, c := range map[string]struct {
			path   string
			change map[string]any
			status int
			code   string
		}{
			"another type":         {path, map[string]any{"type": "m.room.name"}, 400, "M_INVALID_PARAM"},
			"another room":         {path, map[string]any{"room_id": "!x:y"}, 400, "M_INVALID_PARAM"},
			"an unknown room":      {"/_matrix/federation/v1/exchange_third_party_invite/!x:y", map[string]any{"room_id": "!x:y"}, 404, "M_NOT_FOUND"},
			"somebody else's user": {path, map[string]any{"state_key": "@x:example.org"}, 403, "M_FORBIDDEN"},
			"no sender of ours":    {path, map[string]any{"sender": bob}, 400, "M_INVALID_PARAM"},
			"no content":           {path, map[string]any{"content": map[string]any{}}, 400, "M_INVALID_PARAM"},
			"no proof":             {path, map[string]any{"content": map[string]any{"membership": "invite"}}, 400, "M_MISSING_PARAM"},
			"a proof of nothing":   {path, map[string]any{"content": map[string]any{"membership": "invite", "third_party_invite": map[string]any{"signed": map[string]any{}}}}, 403, "M_FORBIDDEN"},
		} {
			if status, code := ask(c.path, body(c.change)); status != c.status || code != c.code {
				t.Errorf("%s: %d %s, want %d %s", name, status, code, c.status, c.code)
			}
		}
		if status, code := ask(path, body(nil)); status != 200 {
			t.Fatalf("the honest one: %d %s", status, code)
		}
		b.join(bob, room, a)
		if status, _ := ask(path, body(nil)); status != 200 || a.membership(room, bob) != "join" {
			t.Errorf("once more: %d, bob is %q", status, a.membership(room, bob))
		}
	})
}
