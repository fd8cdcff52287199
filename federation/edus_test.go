package federation_test

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// account makes a user with a device that has keys.
func (n *node) account(name string, device id.DeviceID) id.UserID {
	n.t.Helper()
	tokens, err := n.users.Create(n.t.Context(), users.NewAccount{Name: name, Password: "a long enough password"}, &users.NewDevice{ID: device, Name: "phone"})
	if err != nil {
		n.t.Fatal(err)
	}
	_ = tokens
	user := n.user(name)
	keys := content(map[string]any{"user_id": user, "device_id": device, "algorithms": []string{"m.olm.v1.curve25519-aes-sha2"},
		"keys":       map[string]string{"curve25519:" + string(device): "QUJD", "ed25519:" + string(device): "QUJD"},
		"signatures": map[string]any{string(user): map[string]string{"ed25519:" + string(device): "QUJD"}}})
	one := func(s string) json.RawMessage {
		return content(map[string]any{"key": s, "signatures": map[string]any{string(user): map[string]string{"ed25519:" + string(device): "QUJD"}}})
	}
	if _, err := n.users.UploadKeys(n.t.Context(), user, device, users.KeyUpload{DeviceKeys: keys,
		OneTimeKeys: map[string]json.RawMessage{"signed_curve25519:AAAAAA": one("Zmlyc3Q")}}); err != nil {
		n.t.Fatal(err)
	}
	return user
}

func (n *node) inbox(user id.UserID, device id.DeviceID) (events []json.RawMessage) {
	n.t.Helper()
	if err := n.db.Read(context.Background(), func(tx storage.Tx) (err error) {
		events, _, _, err = n.users.ToDevice(tx, user, device, 0, 100)
		return err
	}); err != nil {
		n.t.Fatal(err)
	}
	return events
}

// spec: s2s#send-to-device-messaging, s2s#end-to-end-encryption
func TestDevicesOfTwoServersSpeakToEachOther(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		keys, err := a.users.QueryKeys(t.Context(), alice, users.KeyQuery{bob: nil}, 0)
		if err != nil || len(keys.Devices[bob]) != 1 {
			t.Fatalf("keys of bob: %+v %v", keys, err)
		}
		claimed, failures, err := a.users.ClaimKeys(t.Context(), users.KeyClaims{bob: {"B": "signed_curve25519"}}, 0)
		if err != nil || len(claimed[bob]["B"]) != 1 {
			t.Fatalf("claimed %v, failures %v, %v", claimed, failures, err)
		}
		b.deaf.Store(true)
		if err := a.users.SendToDevice(t.Context(), alice, "A", "m.room.encrypted", "t1",
			users.Messages{bob: {"B": json.RawMessage(`{"secret":1}`)}}); err != nil {
			t.Fatal(err)
		}
		b.halt()
		b.deaf.Store(false)
		b.again()
		eventually(t, "the message arrives", func() bool { return len(b.inbox(bob, "B")) == 1 })
		if got := string(b.inbox(bob, "B")[0]); got != `{"sender":"`+string(alice)+`","type":"m.room.encrypted","content":{"secret":1}}` {
			t.Errorf("it says %s", got)
		}
		devices, err := a.peer.UserDevices(t.Context(), b.name, bob)
		if err != nil || len(devices.Devices) != 1 {
			t.Errorf("devices of bob: %+v %v", devices, err)
		}
	})
}

// Updates of device lists that nobody fetched for a month are gone: that there were any is not, and a server that
// comes back after that learns of our users' devices.
//
// spec: s2s#device-management
func TestDeviceListsThatWereMissedForTooLongAreToldAnew(t *testing.T) {
	pair(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.whole(room)
		devices := func() int {
			got, err := b.users.QueryKeys(t.Context(), bob, users.KeyQuery{alice: nil}, 0)
			if err != nil {
				t.Fatal(err)
			}
			return len(got.Devices[alice])
		}
		fresh := func() (fresh bool) {
			if err := b.db.Read(context.Background(), func(tx storage.Tx) error {
				lists, err := tx.RemoteDeviceLists([]string{string(alice)})
				fresh = len(lists) == 1 && !lists[0].Stale
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return fresh
		}
		devices() // somebody asked: from now on her list is kept
		eventually(t, "her list is kept", fresh)
		b.deaf.Store(true)
		if err := a.users.RenameDevice(t.Context(), alice, "A", "old phone"); err != nil {
			t.Fatal(err)
		}
		a.queue(b, "lost")
		a.halt()
		db, err := storage.Open(context.Background(), a.open)
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Write(context.Background(), nil, func(tx storage.Tx) error {
			n, err := tx.TrimEDUs(time.Now().Add(time.Hour), 500)
			if n < 2 {
				t.Errorf("%d EDUs are trimmed", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		db.Close()
		a.again()
		b.deaf.Store(false)
		eventually(t, "nothing waits", func() bool { return !a.keeps() })
		eventually(t, "the new name is known", func() (known bool) {
			if err := b.db.Read(context.Background(), func(tx storage.Tx) error {
				list, err := tx.RemoteDevicesOf([]string{string(alice)})
				known = len(list) == 1 && list[0].Name == "old phone"
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return known
		})
	})
}

// Synapse tells cross-signing keys under the old name too, and older servers under that alone.
//
// spec: s2s#end-to-end-encryption
func TestSigningKeysAreKnownUnderTheirOldName(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.whole(room)
		keys := func() *users.Keys {
			got, err := b.users.QueryKeys(t.Context(), bob, users.KeyQuery{alice: nil}, 0)
			if err != nil {
				t.Fatal(err)
			}
			return got
		}
		keys() // somebody asked: from now on her list is kept
		eventually(t, "her list is kept", func() (kept bool) {
			if err := b.db.Read(context.Background(), func(tx storage.Tx) error {
				lists, err := tx.RemoteDeviceLists([]string{string(alice)})
				kept = len(lists) == 1 && !lists[0].Stale
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return kept
		})
		edu := peer.EDU{Type: "org.matrix.signing_key_update", Content: content(map[string]any{"user_id": alice,
			"master_key": map[string]any{"user_id": alice, "usage": []string{"master"}, "keys": map[string]string{"ed25519:QUJD": "QUJD"}}})}
		if _, err := a.peer.SendTransaction(t.Context(), b.name, "keys", peer.Transaction{EDUs: []peer.EDU{edu}}, peer.Opts{}); err != nil {
			t.Fatal(err)
		}
		if got := keys(); got.Master[alice] == nil {
			t.Errorf("her keys are %+v", got)
		}
	})
}

// crossSigns gives a user of the node new cross-signing keys.
func (n *node) crossSigns(user id.UserID) (master, self string) {
	n.t.Helper()
	first := peer.NewSigningKey()
	master = base64.RawStdEncoding.EncodeToString(first.Public())
	key := func(usage string) (public string, signed json.RawMessage) {
		of := first
		if usage != "master" {
			of = peer.NewSigningKey()
		}
		public = base64.RawStdEncoding.EncodeToString(of.Public())
		signed, err := peer.SignJSON(string(user), peer.SigningKey{ID: "ed25519:" + master, Private: first.Private},
			content(map[string]any{"user_id": user, "usage": []string{usage}, "keys": map[string]string{"ed25519:" + public: public}}))
		if err != nil {
			n.t.Fatal(err)
		}
		return public, signed
	}
	up := users.CrossSigningUpload{}
	_, up.Master = key("master")
	self, up.SelfSigning = key("self_signing")
	_, up.UserSigning = key("user_signing")
	change, err := n.users.CheckCrossSigning(n.t.Context(), user, up)
	if err == nil {
		err = n.users.MakeCrossSigning(n.t.Context(), change)
	}
	if err != nil {
		n.t.Fatal(err)
	}
	return master, self
}

// Cross-signing keys that change are told to the servers that one shares a room with, those that everybody may see: nobody
// has to ask. Of what changes while a server is away it ends up with the latest.
//
// spec: s2s#end-to-end-encryption
func TestCrossSigningKeysAreToldToOtherServers(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		b.whole(room)
		if _, err := b.users.QueryKeys(t.Context(), bob, users.KeyQuery{alice: nil}, 0); err != nil { // from now on her list is kept
			t.Fatal(err)
		}
		read := func(ok func(tx storage.Tx) (bool, error)) func() bool {
			return func() (is bool) {
				if err := b.db.Read(context.Background(), func(tx storage.Tx) (err error) { is, err = ok(tx); return err }); err != nil {
					t.Fatal(err)
				}
				return is
			}
		}
		eventually(t, "her list is kept", read(func(tx storage.Tx) (bool, error) {
			lists, err := tx.RemoteDeviceLists([]string{string(alice)})
			return len(lists) == 1 && !lists[0].Stale, err
		}))
		a.before = func(w http.ResponseWriter, r *http.Request) bool { // what comes now was not asked for
			asked := strings.Contains(r.URL.Path, "/user/")
			if asked {
				w.WriteHeader(http.StatusForbidden)
			}
			return asked
		}
		arrive := func(master, self string) {
			t.Helper()
			eventually(t, "the two keys are there", read(func(tx storage.Tx) (bool, error) {
				keys, err := tx.CrossSigningKeys([]string{string(alice)})
				public := map[string]string{}
				for _, k := range keys {
					public[k.Usage] = k.Public
				}
				return len(keys) == 2 && public["master"] == master && public["self_signing"] == self, err
			}))
		}
		arrive(a.crossSigns(alice))
		b.deaf.Store(true)
		a.crossSigns(alice)
		master, self := a.crossSigns(alice)
		a.backsOff(b)
		b.deaf.Store(false)
		arrive(master, self)
	})
}

func TestReceiptsTypingAndPresenceGoAcross(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		said := a.say(alice, room, "read this")
		b.hears(room, []string{"read this"})
		if err := b.users.SetTyping(t.Context(), bob, room, true, time.Minute); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bob is seen to type", func() bool { return slices.Contains(a.users.Typing().In(room), bob) })
		if err := b.users.SetTyping(t.Context(), bob, room, false, 0); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bob is seen to stop", func() bool { return len(a.users.Typing().In(room)) == 0 })
		if err := b.users.SetPresence(bob, "online", nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "bob is seen online", func() bool { p, _ := a.users.Presences().Of(bob); return p.Presence == "online" })
		for _, typ := range []string{users.ReceiptReadPrivate, users.ReceiptRead} {
			if err := b.users.SetReceipts(t.Context(), users.Receipt{User: bob, Room: room, Type: typ, Event: said}); err != nil {
				t.Fatal(err)
			}
		}
		eventually(t, "bob's receipt is there, and only the public one", func() bool {
			var list []storage.Receipt
			if err := a.db.Read(context.Background(), func(tx storage.Tx) error {
				row, _, err := tx.Room(string(room))
				if err == nil {
					list, err = tx.ReceiptsBy([]int64{row.NID}, []string{string(bob)})
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return len(list) == 1 && list[0].Type == users.ReceiptRead && list[0].EventID == string(said)
		})
	})
}

// Nobody speaks for the users of another server, and one bad EDU leaves the others alone.
func TestForeignEDUsArePassedOver(t *testing.T) {
	onSQLite(t, func(t *testing.T, a, b *node) {
		alice, bob := a.account("alice", "A"), b.account("bob", "B")
		room := a.room(alice, nil)
		b.join(bob, room, a)
		edu := func(typ string, v any) peer.EDU { return peer.EDU{Type: typ, Content: content(v)} }
		direct := func(sender id.UserID, message string) peer.EDU {
			return edu("m.direct_to_device", map[string]any{"sender": sender, "type": "m.x", "message_id": message,
				"messages": map[id.UserID]any{bob: map[string]any{"B": map[string]any{"from": sender}}}})
		}
		list := []peer.EDU{
			direct(bob, "forged"),
			{Type: "m.direct_to_device", Content: json.RawMessage(`[]`)},
			{Type: "m.typing", Content: json.RawMessage(`{"room_id":7}`)},
			{Type: "m.receipt", Content: json.RawMessage(`"x"`)},
			{Type: "m.presence", Content: json.RawMessage(`{"push":[{"user_id":5}]}`)},
			edu("m.typing", map[string]any{"room_id": room, "user_id": bob, "typing": true}),
			edu("m.typing", map[string]any{"room_id": "!other:example.org", "user_id": alice, "typing": true}),
			edu("m.typing", map[string]any{"room_id": room, "user_id": a.user("stranger"), "typing": true}),
			edu("m.device_list_update", map[string]any{"user_id": bob, "device_id": "X", "stream_id": 1}),
			edu("m.signing_key_update", map[string]any{"user_id": bob}),
			edu("org.example.unknown", map[string]any{}),
			direct(alice, "honest"),
			direct(alice, "honest"),
		}
		if _, err := a.peer.SendTransaction(t.Context(), b.name, "t", peer.Transaction{EDUs: list}, peer.Opts{}); err != nil {
			t.Fatal(err)
		}
		if got := b.inbox(bob, "B"); len(got) != 1 {
			t.Errorf("bob's device has %s", got)
		}
		if got := b.users.Typing().In(room); len(got) != 0 {
			t.Errorf("%s seem to type", got)
		}
	})
}
