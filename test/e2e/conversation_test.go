//go:build goolm

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"net/url"
	"testing"
	"time"

	"chancery/test/device"
	"chancery/test/homeserver"
	"chancery/test/notice"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const each = 200 // messages each way

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Alice of one server and Bob, with two devices, of another talk to each other. Bob's server, a process, is
// killed while Alice goes on; afterwards Bob has all of it.
func TestConversationOfTwoServers(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		aliceUser, bobUser := a.Register(t, "alice"), b.Register(t, "bob")
		c := device.Meet(t, aliceUser, bobUser)
		alice, bob, bob2, room := c.Alice, c.Bob, c.Bob2, c.Room
		began := time.Now()
		c.Talk(each)
		took := time.Since(began)

		fromAlice, fromBob := c.FromAlice, c.FromBob
		fromAlice = append(fromAlice, attachAndCheck(t, room, alice, bob))
		fromAlice = append(fromAlice, editAndCheck(t, room, alice, bob, bobUser)...)
		fromAlice = append(fromAlice, redactAndCheck(t, room, alice, bob, bob2, bobUser))
		receiptAndCheck(t, room, alice, bob)

		// What Bob's server said yes to goes out after it is killed.
		last := homeserver.Texts("bob says at the end", 20)
		for _, body := range last {
			bob.Say(room, body)
		}
		fromBob = append(fromBob, last...)
		b.Kill()
		meanwhile := homeserver.Texts("alice goes on", 100)
		var alice2 *device.Device
		for i, body := range meanwhile {
			alice.Say(room, body)
			if i == 30 {
				// A new device of Alice: its keys, and a new key of the room that Alice shares for its sake, have
				// to wait for Bob's server.
				u := a.Login(t, "alice")
				was, err := alice.Mach.CryptoStore.GetOutboundGroupSession(t.Context(), room)
				must(t, err)
				alice2 = device.New(t, u)
				alice2.Verify(u, alice)
				alice.Wait("a new key for the new device", func() bool {
					now, err := alice.Mach.CryptoStore.GetOutboundGroupSession(t.Context(), room)
					return err == nil && (now == nil || now.ID() != was.ID())
				})
			}
		}
		fromAlice = append(fromAlice, meanwhile...)
		b.Start()
		for _, d := range []*device.Device{bob, bob2} {
			d.Has(alice.UserID, fromAlice)
		}
		alice.Has(bob.UserID, fromBob)
		checkHistory(t, room, bobUser, alice)

		// Both new devices and old ones go on together.
		alice2.Wait("the room", func() bool { return alice2.State.IsInRoom(t.Context(), room, bob.UserID) })
		alice2.Say(room, "from the new device")
		fromAlice = append(fromAlice, "from the new device")
		bob2.Say(room, "to the new device")
		for _, d := range []*device.Device{bob, bob2} {
			d.Has(alice.UserID, fromAlice)
		}
		bob.Trusts(alice.UserID)
		alice2.Wait("the message to the new device", func() bool {
			n := len(alice2.Timeline)
			return n > 0 && alice2.Timeline[n-1].Body == "to the new device"
		})
		notice.Print("%s: %d encrypted messages each way between two servers in %v", t.Name(), each, took.Round(time.Millisecond))
	})
}

// attachAndCheck sends an encrypted file from one server to the other.
func attachAndCheck(t *testing.T, room id.RoomID, alice, bob *device.Device) (body string) {
	t.Helper()
	plain := make([]byte, 300_000)
	rand.Read(plain)
	file := attachment.NewEncryptedFile()
	sealed := bytes.Clone(plain)
	file.EncryptInPlace(sealed)
	uploaded, err := alice.UploadBytes(t.Context(), sealed, "application/octet-stream")
	must(t, err)
	sent := alice.Post(room, &event.MessageEventContent{MsgType: event.MsgFile, Body: "plan.pdf",
		File: &event.EncryptedFileInfo{EncryptedFile: *file, URL: uploaded.ContentURI.CUString()}})
	bob.Wait("the file", func() bool { return bob.Seen[sent] != nil && bob.Seen[sent].Body != "" })
	got := bob.Seen[sent].Content
	if got.File == nil {
		t.Fatalf("the file's keys are missing: %+v", got)
	}
	uri, err := got.File.URL.Parse()
	must(t, err)
	opened, err := bob.DownloadBytes(t.Context(), uri)
	must(t, err)
	must(t, got.File.DecryptInPlace(opened))
	if !bytes.Equal(opened, plain) {
		t.Error("the file is not what was sent")
	}
	return "plan.pdf"
}

// editAndCheck replaces a message; the other server bundles the replacement with it.
//
// spec: c2s#event-replacements
func editAndCheck(t *testing.T, room id.RoomID, alice, bob *device.Device, bobUser *homeserver.User) []string {
	t.Helper()
	first := alice.Say(room, "a message with a mistale")
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "* a message with a mistake",
		NewContent: &event.MessageEventContent{MsgType: event.MsgText, Body: "a message with a mistake"},
		RelatesTo:  &event.RelatesTo{Type: event.RelReplace, EventID: first}}
	second := alice.Post(room, edit)
	bob.Wait("the edit", func() bool { return bob.Seen[second] != nil && bob.Seen[second].Body != "" })
	if got := bob.Seen[second].Content; got.NewContent == nil || got.NewContent.Body != "a message with a mistake" || got.RelatesTo.GetReplaceID() != first {
		t.Errorf("the edit is %+v", got)
	}
	ev := bobUser.OK("GET", homeserver.Room(string(room), "event", string(first)), nil)
	if got := ev.Get(`unsigned.m\.relations.m\.replace.event_id`).Str; got != string(second) {
		t.Errorf("the replacement bundled with the message is %q, want %s: %s", got, second, ev)
	}
	return []string{"a message with a mistale", "* a message with a mistake"}
}

// redactAndCheck takes a message back, on both servers.
func redactAndCheck(t *testing.T, room id.RoomID, alice, bob, bob2 *device.Device, bobUser *homeserver.User) string {
	t.Helper()
	sent := alice.Say(room, "a secret")
	for _, d := range []*device.Device{alice, bob, bob2} {
		d.Wait("the message", func() bool { return d.Seen[sent] != nil && d.Seen[sent].Body != "" })
	}
	_, err := alice.RedactEvent(t.Context(), room, sent)
	must(t, err)
	bob.Wait("the redaction", func() bool { return bob.Redacted[sent] })
	ev := bobUser.OK("GET", homeserver.Room(string(room), "event", string(sent)), nil)
	if ev.Get("content").Raw != "{}" || !ev.Get("unsigned.redacted_because").Exists() {
		t.Errorf("after the redaction the event is %s", ev)
	}
	return "a secret"
}

func receiptAndCheck(t *testing.T, room id.RoomID, alice, bob *device.Device) {
	t.Helper()
	var last id.EventID
	bob.Look(func() { last = bob.Timeline[len(bob.Timeline)-1].ID })
	must(t, bob.MarkRead(t.Context(), room, last))
	alice.Wait("the receipt", func() bool { return alice.Receipts[bob.UserID] == last })
}

// checkHistory compares /messages of the server that was killed with what its peer's user saw: all events, once.
func checkHistory(t *testing.T, room id.RoomID, bob *homeserver.User, alice *device.Device) {
	t.Helper()
	var order []string
	count := map[string]int{}
	for from := ""; ; {
		q := url.Values{"dir": {"b"}, "limit": {"100"}}
		if from != "" {
			q.Set("from", from)
		}
		page := bob.OK("GET", homeserver.Room(string(room), "messages")+"?"+q.Encode(), nil)
		page.Get("chunk").ForEach(func(_, ev gjson.Result) bool {
			count[ev.Get("event_id").Str]++
			if ev.Get("sender").Str == string(alice.UserID) && ev.Get("type").Str == "m.room.encrypted" {
				order = append(order, ev.Get("event_id").Str)
			}
			return true
		})
		next := page.Get("end").Str
		if next == "" || next == from {
			break
		}
		from = next
	}
	alice.Look(func() { compareOwn(t, alice, count, order) })
}

// compareOwn looks for what Alice saw in the history of the other server, newest first.
func compareOwn(t *testing.T, alice *device.Device, count map[string]int, order []string) {
	t.Helper()
	var own []string
	for _, m := range alice.Timeline {
		if count[string(m.ID)] != 1 {
			text, _ := json.Marshal(m.Raw)
			t.Errorf("%s stands %d times in the history of the other server: %.300s", m.ID, count[string(m.ID)], text)
		}
		if m.Sender == alice.UserID && !alice.Redacted[m.ID] {
			own = append(own, string(m.ID))
		}
	}
	redacted := 0
	for i := range own {
		at := len(order) - 1 - i - redacted
		for at >= 0 && alice.Redacted[id.EventID(order[at])] {
			redacted++
			at--
		}
		if at < 0 || order[at] != own[i] {
			t.Fatalf("message %d of alice stands elsewhere in the history of the other server", i)
		}
	}
}
