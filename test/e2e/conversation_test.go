//go:build goolm

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/url"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"
	"chancery/test/notice"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix"
	"maunium.net/go/mautrix/crypto/attachment"
	"maunium.net/go/mautrix/event"
	"maunium.net/go/mautrix/id"
)

const each = 200 // messages each way

func numbered(prefix string, n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprint(prefix, " ", i)
	}
	return list
}

// Alice of one server and Bob, with two devices, of another talk to each other. Bob's server, a process, is
// killed while Alice goes on; afterwards Bob has all of it.
func TestConversationOfTwoServers(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		aliceUser, bobUser, bobUser2 := a.Register(t, "alice"), b.Register(t, "bob"), (*homeserver.User)(nil)
		alice, bob := newDevice(t, aliceUser), newDevice(t, bobUser)
		alice.verify(aliceUser, nil)
		bob.verify(bobUser, nil)
		bobUser2 = b.Login(t, "bob")
		bob2 := newDevice(t, bobUser2)
		bob2.verify(bobUser2, bob)

		created, err := alice.CreateRoom(t.Context(), &mautrix.ReqCreateRoom{Preset: "private_chat", Invite: []id.UserID{bob.UserID},
			InitialState: []*event.Event{{Type: event.StateEncryption, Content: event.Content{Parsed: &event.EncryptionEventContent{Algorithm: id.AlgorithmMegolmV1}}}}})
		must(t, err)
		room := created.RoomID
		bob.wait("the invite", func() bool { return bob.invited[room] })
		_, err = bob.JoinRoomByID(t.Context(), room)
		must(t, err)
		for _, d := range []*device{alice, bob, bob2} {
			d.wait("both in the encrypted room", func() bool {
				encrypted, _ := d.state.IsEncrypted(t.Context(), room)
				return encrypted && d.state.IsInRoom(t.Context(), room, alice.UserID) && d.state.IsInRoom(t.Context(), room, bob.UserID)
			})
		}
		alice.trust(bob.UserID)
		bob.trust(alice.UserID)
		// Bob's second device learns of the signature that the first one made.
		_, err = bob2.mach.FetchKeys(t.Context(), []id.UserID{bob.UserID, alice.UserID}, true)
		must(t, err)

		began := time.Now()
		fromAlice, fromBob := numbered("alice says", each), numbered("bob says", each)
		var talk sync.WaitGroup
		for d, bodies := range map[*device][]string{alice: fromAlice, bob: fromBob} {
			talk.Go(func() {
				for _, body := range bodies {
					d.say(room, body)
				}
			})
		}
		talk.Wait()
		for _, d := range []*device{alice, bob, bob2} {
			d.has(alice.UserID, fromAlice)
			d.has(bob.UserID, fromBob)
		}
		alice.trusts(bob.UserID)
		bob.trusts(alice.UserID)
		took := time.Since(began)

		fromAlice = append(fromAlice, attachAndCheck(t, room, alice, bob))
		fromAlice = append(fromAlice, editAndCheck(t, room, alice, bob, bobUser)...)
		fromAlice = append(fromAlice, redactAndCheck(t, room, alice, bob, bob2, bobUser))
		receiptAndCheck(t, room, alice, bob)

		// What Bob's server said yes to goes out after it is killed.
		last := numbered("bob says at the end", 20)
		for _, body := range last {
			bob.say(room, body)
		}
		fromBob = append(fromBob, last...)
		b.Kill()
		meanwhile := numbered("alice goes on", 100)
		var alice2 *device
		for i, body := range meanwhile {
			alice.say(room, body)
			if i == 30 {
				// A new device of Alice: its keys, and a new key of the room that Alice shares for its sake, have
				// to wait for Bob's server.
				u := a.Login(t, "alice")
				was, err := alice.mach.CryptoStore.GetOutboundGroupSession(t.Context(), room)
				must(t, err)
				alice2 = newDevice(t, u)
				alice2.verify(u, alice)
				alice.wait("a new key for the new device", func() bool {
					now, err := alice.mach.CryptoStore.GetOutboundGroupSession(t.Context(), room)
					return err == nil && (now == nil || now.ID() != was.ID())
				})
			}
		}
		fromAlice = append(fromAlice, meanwhile...)
		b.Start()
		for _, d := range []*device{bob, bob2} {
			d.has(alice.UserID, fromAlice)
		}
		alice.has(bob.UserID, fromBob)
		checkHistory(t, room, bobUser, alice)

		// Both new devices and old ones go on together.
		alice2.wait("the room", func() bool { return alice2.state.IsInRoom(t.Context(), room, bob.UserID) })
		alice2.say(room, "from the new device")
		fromAlice = append(fromAlice, "from the new device")
		bob2.say(room, "to the new device")
		for _, d := range []*device{bob, bob2} {
			d.has(alice.UserID, fromAlice)
		}
		bob.trusts(alice.UserID)
		alice2.wait("the message to the new device", func() bool {
			n := len(alice2.timeline)
			return n > 0 && alice2.timeline[n-1].body == "to the new device"
		})
		notice.Print("%s: %d encrypted messages each way between two servers in %v", t.Name(), each, took.Round(time.Millisecond))
	})
}

// attachAndCheck sends an encrypted file from one server to the other.
func attachAndCheck(t *testing.T, room id.RoomID, alice, bob *device) (body string) {
	t.Helper()
	plain := make([]byte, 300_000)
	rand.Read(plain)
	file := attachment.NewEncryptedFile()
	sealed := bytes.Clone(plain)
	file.EncryptInPlace(sealed)
	uploaded, err := alice.UploadBytes(t.Context(), sealed, "application/octet-stream")
	must(t, err)
	sent := alice.post(room, &event.MessageEventContent{MsgType: event.MsgFile, Body: "plan.pdf",
		File: &event.EncryptedFileInfo{EncryptedFile: *file, URL: uploaded.ContentURI.CUString()}})
	bob.wait("the file", func() bool { return bob.seen[sent] != nil && bob.seen[sent].body != "" })
	got := bob.seen[sent].content
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
func editAndCheck(t *testing.T, room id.RoomID, alice, bob *device, bobUser *homeserver.User) []string {
	t.Helper()
	first := alice.say(room, "a message with a mistale")
	edit := &event.MessageEventContent{MsgType: event.MsgText, Body: "* a message with a mistake",
		NewContent: &event.MessageEventContent{MsgType: event.MsgText, Body: "a message with a mistake"},
		RelatesTo:  &event.RelatesTo{Type: event.RelReplace, EventID: first}}
	second := alice.post(room, edit)
	bob.wait("the edit", func() bool { return bob.seen[second] != nil && bob.seen[second].body != "" })
	if got := bob.seen[second].content; got.NewContent == nil || got.NewContent.Body != "a message with a mistake" || got.RelatesTo.GetReplaceID() != first {
		t.Errorf("the edit is %+v", got)
	}
	ev := bobUser.OK("GET", homeserver.Room(string(room), "event", string(first)), nil)
	if got := ev.Get(`unsigned.m\.relations.m\.replace.event_id`).Str; got != string(second) {
		t.Errorf("the replacement bundled with the message is %q, want %s: %s", got, second, ev)
	}
	return []string{"a message with a mistale", "* a message with a mistake"}
}

// redactAndCheck takes a message back, on both servers.
func redactAndCheck(t *testing.T, room id.RoomID, alice, bob, bob2 *device, bobUser *homeserver.User) string {
	t.Helper()
	sent := alice.say(room, "a secret")
	for _, d := range []*device{alice, bob, bob2} {
		d.wait("the message", func() bool { return d.seen[sent] != nil && d.seen[sent].body != "" })
	}
	_, err := alice.RedactEvent(t.Context(), room, sent)
	must(t, err)
	bob.wait("the redaction", func() bool { return bob.redacted[sent] })
	ev := bobUser.OK("GET", homeserver.Room(string(room), "event", string(sent)), nil)
	if ev.Get("content").Raw != "{}" || !ev.Get("unsigned.redacted_because").Exists() {
		t.Errorf("after the redaction the event is %s", ev)
	}
	return "a secret"
}

func receiptAndCheck(t *testing.T, room id.RoomID, alice, bob *device) {
	t.Helper()
	bob.mu.Lock()
	last := bob.timeline[len(bob.timeline)-1].id
	bob.mu.Unlock()
	must(t, bob.MarkRead(t.Context(), room, last))
	alice.wait("the receipt", func() bool { return alice.receipts[bob.UserID] == last })
}

// checkHistory compares /messages of the server that was killed with what its peer's user saw: all events, once.
func checkHistory(t *testing.T, room id.RoomID, bob *homeserver.User, alice *device) {
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
	alice.mu.Lock()
	defer alice.mu.Unlock()
	var own []string
	for _, m := range alice.timeline {
		if count[string(m.id)] != 1 {
			text, _ := json.Marshal(m.raw)
			t.Errorf("%s stands %d times in the history of the other server: %.300s", m.id, count[string(m.id)], text)
		}
		if m.sender == alice.UserID && !alice.redacted[m.id] {
			own = append(own, string(m.id))
		}
	}
	redacted := 0
	for i := range own {
		at := len(order) - 1 - i - redacted
		for at >= 0 && alice.redacted[id.EventID(order[at])] {
			redacted++
			at--
		}
		if at < 0 || order[at] != own[i] {
			t.Fatalf("message %d of alice stands elsewhere in the history of the other server", i)
		}
	}
}
