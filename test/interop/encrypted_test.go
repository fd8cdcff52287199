//go:build goolm

package interop

import (
	"sync"
	"testing"

	"chancery/test/device"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Two people, one of whom has two devices, talk encrypted and know each other's devices by cross-signing.
func encrypted(t *testing.T, home, away *server) {
	aliceUser, bobUser := home.user(t, "alice"), away.user(t, "bob")
	alice, bob := device.New(t, aliceUser), device.New(t, bobUser)
	alice.Verify(aliceUser, nil)
	bob.Verify(bobUser, nil)
	bobUser2 := away.Login(t, id.UserID(bobUser.ID).Localpart())
	bob2 := device.New(t, bobUser2)
	bob2.Verify(bobUser2, bob)

	created, err := alice.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bob.UserID},
		InitialState: []*event.Event{{Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}}}}})
	must(t, err)
	room := created.RoomID
	bob.Wait("the invite", func() bool { return bob.Invited[room] })
	_, err = bob.JoinRoomByID(t.Context(), room)
	must(t, err)
	for _, d := range []*device.Device{alice, bob, bob2} {
		d.Wait("both in the encrypted room", func() bool {
			encrypted, _ := d.State.IsEncrypted(t.Context(), room)
			return encrypted && d.State.IsInRoom(t.Context(), room, alice.UserID) && d.State.IsInRoom(t.Context(), room, bob.UserID)
		})
	}
	alice.Trust(bob.UserID)
	bob.Trust(alice.UserID)
	_, err = bob2.Mach.FetchKeys(t.Context(), []id.UserID{bob.UserID, alice.UserID}, true)
	must(t, err)

	fromAlice, fromBob := texts("alice says", 25), texts("bob says", 25)
	var talk sync.WaitGroup
	for d, bodies := range map[*device.Device][]string{alice: fromAlice, bob: fromBob} {
		talk.Go(func() {
			for _, body := range bodies {
				d.Say(room, body)
			}
		})
	}
	talk.Wait()
	for _, d := range []*device.Device{alice, bob, bob2} {
		d.Has(alice.UserID, fromAlice)
		d.Has(bob.UserID, fromBob)
	}
	alice.Trusts(bob.UserID)
	bob.Trusts(alice.UserID)

	// A new device on either side: the list of devices goes over federation, and the room's key with it.
	aliceUser2 := home.Login(t, id.UserID(aliceUser.ID).Localpart())
	alice2 := device.New(t, aliceUser2)
	alice2.Verify(aliceUser2, alice)
	alice2.Wait("the room", func() bool { return alice2.State.IsInRoom(t.Context(), room, bob.UserID) })
	for _, d := range []*device.Device{bob, bob2} {
		eventually(t, "the new device is known", func() bool {
			devices, err := d.Mach.CryptoStore.GetDevices(t.Context(), alice.UserID)
			return err == nil && devices[alice2.DeviceID] != nil
		})
	}
	bob.Say(room, "to the new device")
	bob.Say(room, "and on")
	alice2.Wait("the message to the new device", func() bool {
		n := len(alice2.Timeline)
		return n > 0 && alice2.Timeline[n-1].Body == "and on"
	})
	alice2.Say(room, "from the new device")
	for _, d := range []*device.Device{alice, bob, bob2} {
		d.Has(alice.UserID, append(fromAlice, "from the new device"))
	}
	if home.can(t, "updates of signatures") {
		bob.Trusts(alice.UserID)
	}

	// A device that is signed out is forgotten on the other side.
	alice2.Stop()
	aliceUser2.OK("POST", "/_matrix/client/v3/logout", J{})
	eventually(t, "the device that left is forgotten", func() bool {
		keys := bobUser.OK("POST", "/_matrix/client/v3/keys/query", J{"device_keys": J{aliceUser.ID: []string{}}})
		return len(keys.Get("device_keys").Map()[aliceUser.ID].Map()) == 1
	})
	agree(t, string(room), aliceUser, bobUser)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
