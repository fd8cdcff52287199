package identity

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"chancery/federation/peer"
	"chancery/test/homeserver"
)

type J = homeserver.J

const v3 = "/_matrix/client/v3/"

// spec: c2s/inviteBy3PID, c2s/joinRoomById, c2s/createRoom
func TestClientsInviteByAnAddress(t *testing.T) {
	ca := homeserver.NewCA(t)
	certFile, keyFile := ca.Issue(t)
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		t.Fatal(err)
	}
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := base64.RawStdEncoding.EncodeToString(public)
	known := ""
	stored := 0
	directory := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch strings.TrimPrefix(r.URL.Path, "/_matrix/identity/v2/") {
		case "hash_details":
			fmt.Fprint(w, `{"lookup_pepper":"pepper","algorithms":["sha256"]}`)
		case "lookup":
			sum := sha256.Sum256([]byte("bob@example.org email pepper"))
			found := J{}
			if known != "" {
				found[base64.RawURLEncoding.EncodeToString(sum[:])] = known
			}
			_ = json.NewEncoder(w).Encode(J{"mappings": found})
		case "store-invite":
			stored++
			_ = json.NewEncoder(w).Encode(J{"token": fmt.Sprint("t", stored), "display_name": "b...", "public_keys": []J{{"public_key": key,
				"key_validity_url": "https://" + r.Host + "/_matrix/identity/v2/pubkey/isvalid"}}})
		case "pubkey/isvalid":
			fmt.Fprint(w, `{"valid":true}`)
		}
	}))
	directory.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	directory.StartTLS()
	defer directory.Close()
	name := strings.TrimPrefix(directory.URL, "https://")
	s := homeserver.Start(t, homeserver.Options{CA: ca, Settings: map[string]string{"CHANCERY_IDENTITY_SERVERS": name}})
	alice, bob := s.Register(t, "alice"), s.Register(t, "bob")
	by := func(server string) J {
		return J{"id_server": server, "id_access_token": "token", "medium": "email", "address": "Bob@Example.org"}
	}
	room := alice.CreateRoom(J{"preset": "private_chat"})
	at := v3 + "rooms/" + url.PathEscape(room)
	alice.Refused(400, "M_SERVER_NOT_TRUSTED", "POST", at+"/invite", by("elsewhere.example"))
	alice.Refused(400, "M_MISSING_PARAM", "POST", at+"/invite", J{"id_server": name, "medium": "email"})
	alice.Refused(400, "M_SERVER_NOT_TRUSTED", "POST", v3+"createRoom", J{"invite_3pid": []J{by("elsewhere.example")}})
	bob.Refused(403, "M_FORBIDDEN", "POST", at+"/invite", by(name))
	alice.OK("POST", at+"/invite", by(name))
	if got := alice.OK("GET", at+"/state/m.room.third_party_invite/t1", nil); got.Get("display_name").Str != "b..." || got.Get("public_keys.0.public_key").Str != key {
		t.Errorf("the room says %s", got)
	}
	// With the proof that the address is theirs somebody comes in without waiting for the identity server.
	signed, err := peer.SignJSON(name, peer.SigningKey{ID: "ed25519:0", Private: private}, []byte(fmt.Sprintf(`{"mxid":%q,"token":"t1","sender":%q}`, bob.ID, alice.ID)))
	if err != nil {
		t.Fatal(err)
	}
	bob.Refused(403, "M_FORBIDDEN", "POST", at+"/join", J{})
	bob.Refused(403, "M_FORBIDDEN", "POST", at+"/join", J{"third_party_signed": json.RawMessage(strings.Replace(string(signed), "t1", "t2", 1))})
	bob.OK("POST", at+"/join", J{"third_party_signed": json.RawMessage(signed)})

	// Whom the identity server knows is invited by user ID.
	known = bob.ID
	second := alice.CreateRoom(J{"preset": "private_chat", "invite_3pid": []J{by(name)}, "is_direct": true})
	if got := alice.OK("GET", v3+"rooms/"+url.PathEscape(second)+"/state/m.room.member/"+url.PathEscape(bob.ID), nil); got.Get("membership").Str != "invite" || !got.Get("is_direct").Bool() {
		t.Errorf("bob is %s", got)
	}
}
