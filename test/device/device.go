//go:build goolm

package device

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"

	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

// Message is one event of a timeline as a device got it; Body is empty as long as it cannot be read.
type Message struct {
	ID      id.EventID
	Sender  id.UserID
	Body    string
	Content *event.MessageEventContent
	Trust   id.TrustState
	Raw     *event.Event
	err     error
}

// Device is an encrypting client that syncs all the time and writes down what it is told.
type Device struct {
	*mautrix.Client
	Mach  *crypto.OlmMachine
	State mautrix.StateStore
	t     *testing.T

	since, filter string // of the goroutine that syncs
	stop          func()

	mu       sync.Mutex // guards the rest
	Timeline []*Message
	Seen     map[id.EventID]*Message
	twice    []id.EventID
	gaps     int
	Receipts map[id.UserID]id.EventID
	Redacted map[id.EventID]bool
	Invited  map[id.RoomID]bool
	joined   map[id.RoomID]bool
}

// New makes a client of a user who is signed in, publishes its keys and begins to sync.
func New(t *testing.T, u *homeserver.User) *Device {
	t.Helper()
	client, err := mautrix.NewClient(u.Server.URL, id.UserID(u.ID), u.Token)
	if err != nil {
		t.Fatal(err)
	}
	client.DeviceID = id.DeviceID(u.Device)
	client.Client = u.Server.HTTP()
	d := &Device{Client: client, State: mautrix.NewMemoryStateStore(), t: t, Seen: map[id.EventID]*Message{},
		Receipts: map[id.UserID]id.EventID{}, Redacted: map[id.EventID]bool{}, Invited: map[id.RoomID]bool{}, joined: map[id.RoomID]bool{}}
	d.Mach = crypto.NewOlmMachine(client, nil, crypto.NewMemoryStore(nil), d.State.(crypto.StateStore))
	must(t, d.Mach.Load(t.Context()))
	must(t, d.Mach.ShareKeys(t.Context(), 0))
	filter, err := client.CreateFilter(t.Context(), &mautrix.Filter{Room: &mautrix.RoomFilter{Timeline: &mautrix.FilterPart{Limit: 1000}}})
	must(t, err)
	d.filter = filter.FilterID
	d.start()
	return d
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (d *Device) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := d.sync(ctx); err != nil && ctx.Err() == nil {
				if errors.Is(err, mautrix.MUnknownToken) {
					d.t.Errorf("%s: %v", d.UserID, err)
					return
				}
				time.Sleep(100 * time.Millisecond) // the server is down
			}
		}
	}()
	d.stop = func() { cancel(); <-done }
	d.t.Cleanup(func() { d.stop() })
}

func (d *Device) sync(ctx context.Context) error {
	resp, err := d.FullSyncRequest(ctx, mautrix.ReqSync{Timeout: 5000, Since: d.since, FilterID: d.filter})
	if err != nil {
		return err
	}
	// The keys come before what they open.
	d.Mach.ProcessSyncResponse(ctx, resp, d.since)
	d.mu.Lock()
	defer d.mu.Unlock()
	for room := range resp.Rooms.Invite {
		d.Invited[room] = true
	}
	for room, joined := range resp.Rooms.Join {
		if joined.Timeline.Limited && d.joined[room] {
			d.gaps++
		}
		d.joined[room] = true // what was before the own join may well be cut off
		for _, ev := range joined.State.Events {
			d.stateEvent(ctx, room, ev)
		}
		for _, ev := range joined.Timeline.Events {
			if ev.StateKey != nil {
				d.stateEvent(ctx, room, ev)
			} else {
				d.timelineEvent(room, ev)
			}
		}
		for _, ev := range joined.Ephemeral.Events {
			ev.Type.Class = event.EphemeralEventType
			if ev.Type == event.EphemeralEventReceipt && ev.Content.ParseRaw(ev.Type) == nil {
				for target, kinds := range *ev.Content.AsReceipt() {
					for user := range kinds[event.ReceiptTypeRead] {
						d.Receipts[user] = target
					}
				}
			}
		}
	}
	for _, m := range d.Timeline {
		if m.Body == "" && m.Raw != nil {
			d.decrypt(ctx, m)
		}
	}
	d.since = resp.NextBatch
	return nil
}

func (d *Device) stateEvent(ctx context.Context, room id.RoomID, ev *event.Event) {
	ev.RoomID, ev.Type.Class = room, event.StateEventType
	if ev.Content.ParseRaw(ev.Type) != nil {
		return
	}
	mautrix.UpdateStateStore(ctx, d.State, ev)
	if ev.Type == event.StateMember {
		d.Mach.HandleMemberEvent(ctx, ev)
	}
}

func (d *Device) timelineEvent(room id.RoomID, ev *event.Event) {
	ev.RoomID, ev.Type.Class = room, event.MessageEventType
	if ev.Type == event.EventRedaction {
		target, _ := ev.Content.Raw["redacts"].(string)
		d.Redacted[id.EventID(target)] = true
		return
	}
	if ev.Type != event.EventEncrypted {
		return
	}
	if d.Seen[ev.ID] != nil {
		d.twice = append(d.twice, ev.ID)
		return
	}
	m := &Message{ID: ev.ID, Sender: ev.Sender, Raw: ev}
	if m.err = ev.Content.ParseRaw(ev.Type); m.err != nil {
		m.Raw = nil
	}
	d.Timeline = append(d.Timeline, m)
	d.Seen[ev.ID] = m
}

func (d *Device) decrypt(ctx context.Context, m *Message) {
	ev, err := d.Mach.DecryptMegolmEvent(ctx, m.Raw)
	if m.err = err; err != nil {
		return
	}
	m.Content, m.Trust = ev.Content.AsMessage(), ev.Mautrix.TrustState
	m.Body = m.Content.Body
}

// Verify makes the user's cross-signing keys, or takes those of another device of the same user, and signs the
// device with them.
func (d *Device) Verify(u *homeserver.User, other *Device) {
	d.t.Helper()
	ctx := d.t.Context()
	if other != nil {
		must(d.t, d.Mach.ImportCrossSigningKeys(other.Mach.ExportCrossSigningKeys()))
	} else {
		keys, err := d.Mach.GenerateCrossSigningKeys()
		must(d.t, err)
		must(d.t, d.Mach.PublishCrossSigningKeys(ctx, keys, func(ui *mautrix.RespUserInteractive) any {
			return &mautrix.ReqUIAuthLogin{BaseAuthData: mautrix.BaseAuthData{Type: mautrix.AuthTypePassword, Session: ui.Session},
				User: u.ID, Password: u.Password()}
		}))
		must(d.t, d.Mach.SignOwnMasterKey(ctx))
	}
	must(d.t, d.Mach.SignOwnDevice(ctx, d.Mach.OwnIdentity()))
}

// Trust signs another user's master key, as people do who have compared emoji.
func (d *Device) Trust(user id.UserID) {
	d.t.Helper()
	ctx := d.t.Context()
	_, err := d.Mach.FetchKeys(ctx, []id.UserID{user}, true)
	must(d.t, err)
	keys, err := d.Mach.GetCrossSigningPublicKeys(ctx, user)
	must(d.t, err)
	if keys == nil {
		d.t.Fatalf("%s does not see cross-signing keys of %s", d.UserID, user)
	}
	must(d.t, d.Mach.SignUser(ctx, user, keys.MasterKey))
}

// Post encrypts and sends, sharing the room's key first where that is due.
func (d *Device) Post(room id.RoomID, content *event.MessageEventContent) id.EventID {
	d.t.Helper()
	ctx := d.t.Context()
	encrypted, err := d.Mach.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
	if crypto.IsShareError(err) {
		members, err := d.State.GetRoomJoinedOrInvitedMembers(ctx, room)
		must(d.t, err)
		must(d.t, d.Mach.ShareGroupSession(ctx, room, members))
		encrypted, err = d.Mach.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
		must(d.t, err)
	} else {
		must(d.t, err)
	}
	sent, err := d.SendMessageEvent(ctx, room, event.EventEncrypted, encrypted)
	must(d.t, err)
	return sent.EventID
}

func (d *Device) Say(room id.RoomID, body string) id.EventID {
	d.t.Helper()
	return d.Post(room, &event.MessageEventContent{MsgType: event.MsgText, Body: body})
}

// Stop ends the syncing, before the device signs out.
func (d *Device) Stop() { d.stop() }

// Look gives the device's view to a function, which must not keep it.
func (d *Device) Look(see func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	see()
}

// Wait waits until something is true, with the device's lock held while it is looked at.
func (d *Device) Wait(what string, true func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
		d.mu.Lock()
		ok := true()
		d.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			d.mu.Lock()
			defer d.mu.Unlock()
			unread, first := 0, error(nil)
			for _, m := range d.Timeline {
				if m.Body == "" {
					unread++
					first = m.err
				}
			}
			d.t.Fatalf("%s %s waited in vain for: %s (%d messages, %d of them cannot be read: %v)", d.UserID, d.DeviceID, what, len(d.Timeline), unread, first)
		}
	}
}

// Has waits until the device has read these bodies of a sender, and checks that it got each once and in order.
func (d *Device) Has(sender id.UserID, bodies []string) {
	d.t.Helper()
	d.Wait(fmt.Sprintf("%d messages of %s", len(bodies), sender), func() bool {
		readable := 0
		for _, m := range d.Timeline {
			if m.Sender == sender && m.Body != "" {
				readable++
			}
		}
		return readable >= len(bodies)
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	var got []string
	for _, m := range d.Timeline {
		if m.Sender == sender {
			got = append(got, m.Body)
		}
	}
	for i := range max(len(got), len(bodies)) {
		if i >= len(got) || i >= len(bodies) || got[i] != bodies[i] {
			d.t.Fatalf("%s %s: message %d of %s: got %q, want %q (%d, want %d)", d.UserID, d.DeviceID, i, sender, at(got, i), at(bodies, i), len(got), len(bodies))
		}
	}
	if len(d.twice) > 0 || d.gaps > 0 {
		d.t.Errorf("%s %s was told %d events twice and missed something %d times", d.UserID, d.DeviceID, len(d.twice), d.gaps)
	}
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return "(nothing)"
}

// Trusts checks that every message of a sender came from a device that is verified by cross-signing.
func (d *Device) Trusts(sender id.UserID) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.Timeline {
		if m.Sender == sender && m.Trust != id.TrustStateCrossSignedVerified && m.Trust != id.TrustStateVerified {
			d.t.Errorf("%s %s: the trust in %q of %s is %s", d.UserID, d.DeviceID, m.Body, sender, m.Trust)
			return
		}
	}
}
