//go:build goolm

package interop

import (
	"testing"

	"chancery/test/device"

	"maunium.net/go/mautrix/id"
)

// Two people, one of whom has two devices, talk encrypted and know each other's devices by cross-signing.
func encrypted(t *testing.T, home, away *server) {
	aliceUser, bobUser := home.user(t, "alice"), away.user(t, "bob")
	c := device.Meet(t, aliceUser, bobUser)
	alice, bob, bob2, room := c.Alice, c.Bob, c.Bob2, c.Room
	c.Talk(25)

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
		d.Has(alice.UserID, append(c.FromAlice, "from the new device"))
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
