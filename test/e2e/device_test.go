//go:build goolm

package e2e

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

// message is one event of a timeline as a device got it; body is empty as long as it cannot be read.
type message struct {
	id      id.EventID
	sender  id.UserID
	body    string
	content *event.MessageEventContent
	trust   id.TrustState
	raw     *event.Event
	err     error
}

// device is an encrypting client that syncs all the time and writes down what it is told.
type device struct {
	*mautrix.Client
	mach  *crypto.OlmMachine
	state mautrix.StateStore
	t     *testing.T

	since, filter string // of the goroutine that syncs
	stop          func()

	mu       sync.Mutex // guards the rest
	timeline []*message
	seen     map[id.EventID]*message
	twice    []id.EventID
	gaps     int
	receipts map[id.UserID]id.EventID
	redacted map[id.EventID]bool
	invited  map[id.RoomID]bool
	joined   map[id.RoomID]bool
}

// newDevice makes a client of a user who is signed in, publishes its keys and begins to sync.
func newDevice(t *testing.T, u *homeserver.User) *device {
	t.Helper()
	client, err := mautrix.NewClient(u.Server.URL, id.UserID(u.ID), u.Token)
	if err != nil {
		t.Fatal(err)
	}
	client.DeviceID = id.DeviceID(u.Device)
	client.Client = u.Server.HTTP()
	d := &device{Client: client, state: mautrix.NewMemoryStateStore(), t: t, seen: map[id.EventID]*message{},
		receipts: map[id.UserID]id.EventID{}, redacted: map[id.EventID]bool{}, invited: map[id.RoomID]bool{}, joined: map[id.RoomID]bool{}}
	d.mach = crypto.NewOlmMachine(client, nil, crypto.NewMemoryStore(nil), d.state.(crypto.StateStore))
	must(t, d.mach.Load(t.Context()))
	must(t, d.mach.ShareKeys(t.Context(), 0))
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

func (d *device) start() {
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

func (d *device) sync(ctx context.Context) error {
	resp, err := d.FullSyncRequest(ctx, mautrix.ReqSync{Timeout: 5000, Since: d.since, FilterID: d.filter})
	if err != nil {
		return err
	}
	// The keys come before what they open.
	d.mach.ProcessSyncResponse(ctx, resp, d.since)
	d.mu.Lock()
	defer d.mu.Unlock()
	for room := range resp.Rooms.Invite {
		d.invited[room] = true
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
						d.receipts[user] = target
					}
				}
			}
		}
	}
	for _, m := range d.timeline {
		if m.body == "" && m.raw != nil {
			d.decrypt(ctx, m)
		}
	}
	d.since = resp.NextBatch
	return nil
}

func (d *device) stateEvent(ctx context.Context, room id.RoomID, ev *event.Event) {
	ev.RoomID, ev.Type.Class = room, event.StateEventType
	if ev.Content.ParseRaw(ev.Type) != nil {
		return
	}
	mautrix.UpdateStateStore(ctx, d.state, ev)
	if ev.Type == event.StateMember {
		d.mach.HandleMemberEvent(ctx, ev)
	}
}

func (d *device) timelineEvent(room id.RoomID, ev *event.Event) {
	ev.RoomID, ev.Type.Class = room, event.MessageEventType
	if ev.Type == event.EventRedaction {
		target, _ := ev.Content.Raw["redacts"].(string)
		d.redacted[id.EventID(target)] = true
		return
	}
	if ev.Type != event.EventEncrypted {
		return
	}
	if d.seen[ev.ID] != nil {
		d.twice = append(d.twice, ev.ID)
		return
	}
	m := &message{id: ev.ID, sender: ev.Sender, raw: ev}
	if m.err = ev.Content.ParseRaw(ev.Type); m.err != nil {
		m.raw = nil
	}
	d.timeline = append(d.timeline, m)
	d.seen[ev.ID] = m
}

func (d *device) decrypt(ctx context.Context, m *message) {
	ev, err := d.mach.DecryptMegolmEvent(ctx, m.raw)
	if m.err = err; err != nil {
		return
	}
	m.content, m.trust = ev.Content.AsMessage(), ev.Mautrix.TrustState
	m.body = m.content.Body
}

// verify makes the user's cross-signing keys, or takes those of another device of the same user, and signs the
// device with them.
func (d *device) verify(u *homeserver.User, other *device) {
	d.t.Helper()
	ctx := d.t.Context()
	if other != nil {
		must(d.t, d.mach.ImportCrossSigningKeys(other.mach.ExportCrossSigningKeys()))
	} else {
		keys, err := d.mach.GenerateCrossSigningKeys()
		must(d.t, err)
		must(d.t, d.mach.PublishCrossSigningKeys(ctx, keys, func(ui *mautrix.RespUserInteractive) any {
			return &mautrix.ReqUIAuthLogin{BaseAuthData: mautrix.BaseAuthData{Type: mautrix.AuthTypePassword, Session: ui.Session},
				User: u.ID, Password: u.Password()}
		}))
		must(d.t, d.mach.SignOwnMasterKey(ctx))
	}
	must(d.t, d.mach.SignOwnDevice(ctx, d.mach.OwnIdentity()))
}

// trust signs another user's master key, as people do who have compared emoji.
func (d *device) trust(user id.UserID) {
	d.t.Helper()
	ctx := d.t.Context()
	_, err := d.mach.FetchKeys(ctx, []id.UserID{user}, true)
	must(d.t, err)
	keys, err := d.mach.GetCrossSigningPublicKeys(ctx, user)
	must(d.t, err)
	if keys == nil {
		d.t.Fatalf("%s does not see cross-signing keys of %s", d.UserID, user)
	}
	must(d.t, d.mach.SignUser(ctx, user, keys.MasterKey))
}

// post encrypts and sends, sharing the room's key first where that is due.
func (d *device) post(room id.RoomID, content *event.MessageEventContent) id.EventID {
	d.t.Helper()
	ctx := d.t.Context()
	encrypted, err := d.mach.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
	if crypto.IsShareError(err) {
		members, err := d.state.GetRoomJoinedOrInvitedMembers(ctx, room)
		must(d.t, err)
		must(d.t, d.mach.ShareGroupSession(ctx, room, members))
		encrypted, err = d.mach.EncryptMegolmEvent(ctx, room, event.EventMessage, content)
		must(d.t, err)
	} else {
		must(d.t, err)
	}
	sent, err := d.SendMessageEvent(ctx, room, event.EventEncrypted, encrypted)
	must(d.t, err)
	return sent.EventID
}

func (d *device) say(room id.RoomID, body string) id.EventID {
	d.t.Helper()
	return d.post(room, &event.MessageEventContent{MsgType: event.MsgText, Body: body})
}

// wait waits until something is true, with the device's lock held while it is looked at.
func (d *device) wait(what string, true func() bool) {
	d.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
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
			for _, m := range d.timeline {
				if m.body == "" {
					unread++
					first = m.err
				}
			}
			d.t.Fatalf("%s %s waited in vain for: %s (%d messages, %d of them cannot be read: %v)", d.UserID, d.DeviceID, what, len(d.timeline), unread, first)
		}
	}
}

// has waits until the device has read these bodies of a sender, and checks that it got each once and in order.
func (d *device) has(sender id.UserID, bodies []string) {
	d.t.Helper()
	d.wait(fmt.Sprintf("%d messages of %s", len(bodies), sender), func() bool {
		readable := 0
		for _, m := range d.timeline {
			if m.sender == sender && m.body != "" {
				readable++
			}
		}
		return readable >= len(bodies)
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	var got []string
	for _, m := range d.timeline {
		if m.sender == sender {
			got = append(got, m.body)
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

// trusts checks that every message of a sender came from a device that is verified by cross-signing.
func (d *device) trusts(sender id.UserID) {
	d.t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, m := range d.timeline {
		if m.sender == sender && m.trust != id.TrustStateCrossSignedVerified && m.trust != id.TrustStateVerified {
			d.t.Errorf("%s %s: the trust in %q of %s is %s", d.UserID, d.DeviceID, m.body, sender, m.trust)
			return
		}
	}
}
