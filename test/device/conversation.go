//go:build goolm

package device

import (
	"slices"
	"sync"
	"testing"

	"chancery/test/homeserver"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Conversation is an encrypted room of Alice and of Bob, who has two devices.
type Conversation struct {
	Room               id.RoomID
	Alice, Bob, Bob2   *Device
	FromAlice, FromBob []string // what they said, in order
}

// Meet lets two users, each with keys to sign their devices with, come together in an encrypted room, and trust
// each other.
//
// spec: c2s#end-to-end-encryption, c2s#cross-signing
func Meet(t *testing.T, alice, bob *homeserver.User) *Conversation {
	t.Helper()
	c := &Conversation{Alice: New(t, alice), Bob: New(t, bob)}
	c.Alice.Verify(alice, nil)
	c.Bob.Verify(bob, nil)
	second := bob.Server.Login(t, c.Bob.UserID.Localpart())
	c.Bob2 = New(t, second)
	c.Bob2.Verify(second, c.Bob)

	created, err := c.Alice.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{c.Bob.UserID},
		InitialState: []*event.Event{{Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}}}}})
	must(t, err)
	c.Room = created.RoomID
	c.Bob.Wait("the invite", func() bool { return c.Bob.Invited[c.Room] })
	_, err = c.Bob.JoinRoomByID(t.Context(), c.Room)
	must(t, err)
	for _, d := range c.devices() {
		d.Wait("both in the encrypted room", func() bool {
			encrypted, _ := d.State.IsEncrypted(t.Context(), c.Room)
			return encrypted && d.State.IsInRoom(t.Context(), c.Room, c.Alice.UserID) && d.State.IsInRoom(t.Context(), c.Room, c.Bob.UserID)
		})
	}
	c.Alice.Trust(c.Bob.UserID)
	c.Bob.Trust(c.Alice.UserID)
	// Bob's second device learns of the signature that the first one made.
	_, err = c.Bob2.Mach.FetchKeys(t.Context(), []id.UserID{c.Bob.UserID, c.Alice.UserID}, true)
	must(t, err)
	return c
}

func (c *Conversation) devices() []*Device { return []*Device{c.Alice, c.Bob, c.Bob2} }

// Talk lets both say so many things at once, and waits until all devices have read them, from devices they trust.
func (c *Conversation) Talk(each int) {
	c.Alice.t.Helper()
	fromAlice, fromBob := homeserver.Texts("alice says", each), homeserver.Texts("bob says", each)
	var talk sync.WaitGroup
	for d, bodies := range map[*Device][]string{c.Alice: fromAlice, c.Bob: fromBob} {
		talk.Go(func() {
			for _, body := range bodies {
				d.Say(c.Room, body)
			}
		})
	}
	talk.Wait()
	c.FromAlice, c.FromBob = slices.Concat(c.FromAlice, fromAlice), slices.Concat(c.FromBob, fromBob)
	for _, d := range c.devices() {
		d.Has(c.Alice.UserID, c.FromAlice)
		d.Has(c.Bob.UserID, c.FromBob)
	}
	c.Alice.Trusts(c.Bob.UserID)
	c.Bob.Trusts(c.Alice.UserID)
}
