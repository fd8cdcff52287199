package federation_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Events that others did not sign are dropped, whoever brings them, and servers that do not answer for their keys
// hold up no honest event for long.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu 2
func TestForgedSendersAreDropped(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		var txn peer.Transaction
		var forged []*event.Event
		forge := func(sender id.UserID) {
			ev := e.says("forged", func(p *event.Proto) { p.Sender = sender })
			forged = append(forged, ev)
			txn.PDUs = append(txn.PDUs, ev.JSON())
		}
		forge(e.bob)
		for i := range 40 {
			forge(id.UserID(fmt.Sprintf("@x:127.0.0.1:%d", i+1))) // nobody is there
		}
		forge("@x:[::1]:1")
		forge("@x:" + id.UserID(strings.Repeat("a", 200)) + ".example")
		honest := e.says("honest", nil)
		txn.PDUs = append(txn.PDUs, honest.JSON())
		began := time.Now()
		refused := e.sendsRaw(txn)
		t.Logf("%d forged events took %v", len(forged), time.Since(began))
		e.want("the honest event", honest, storage.Accepted)
		for _, ev := range forged {
			if e.want(string(ev.Sender()), ev, notThere); refused[ev.ID()] == "" {
				t.Errorf("nothing was said against %s", ev.Sender())
			}
		}
		// A signature that is false, or that of another event.
		for name, text := range map[string]string{
			"changed":      strings.Replace(string(honest.JSON()), `"depth":20`, `"depth":22`, 1),
			"unsigned":     string(honest.JSON())[:strings.Index(string(honest.JSON()), `"signatures":`)] + `"signatures":{},` + string(honest.JSON())[strings.Index(string(honest.JSON()), `"type":`):],
			"of the other": strings.Replace(string(e.says("another", nil).JSON()), `"ed25519:`, `"ed25519:x`, 1),
		} {
			before := e.victim.rows("events")
			e.sendsRaw(peer.Transaction{PDUs: rawList([]byte(text))})
			if e.victim.rows("events") != before {
				t.Errorf("%s: it was taken", name)
			}
		}
	})
}

// In versions 1 and 2 senders choose event IDs: the first event of an ID stays, in whatever room it is. Where two rooms
// get one at the same moment, nobody else has to pay for it.
//
// spec: rooms/v1#event-ids
func TestTheSameIDWithAnotherBodyChangesNothing(t *testing.T) {
	for _, version := range []string{"1", "2"} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				const twins = 30
				eventID := "$mine:" + e.name
				body := func(text string) func(map[string]any) {
					return func(v map[string]any) { v["content"] = map[string]any{"body": text, "msgtype": "m.text"} }
				}
				first := e.chosen(eventID, e.room, body("first"))
				e.sends(first, e.chosen(eventID, e.room, body("second")))
				e.sends(e.chosen(eventID, e.room, body("third")))
				if said := e.victim.said(e.room); len(said) != 1 || said[0] != "first" {
					t.Errorf("the room says %q", said)
				}
				// Of somebody else's server: its signature is wanted too.
				theirs := e.chosen("$theirs:"+e.victim.name, e.room, body("under bob's server's name"))
				e.sends(theirs)
				e.want("an event under another server's name", theirs, notThere)

				// Another room: the event is refused, and bob's messages there are not.
				other := newEvil(t, e.node, e.victim, version)
				there := other.chosen(eventID, other.room, body("elsewhere"))
				stop := other.meanwhile()
				if refused := other.sends(there); refused[there.ID()] == "" {
					t.Error("an event of another room's event's ID was taken")
				}
				for i := range twins { // the turns of the two rooms meet
					both := peer.Transaction{}
					for _, of := range []*evil{e, other} {
						both.PDUs = append(both.PDUs, of.chosen(fmt.Sprintf("$both%d:%s", i, e.name), of.room, body("in both")).JSON())
					}
					other.sendsRaw(both)
				}
				stop()
				if said := e.victim.said(e.room); said[0] != "first" {
					t.Errorf("the first room says %q", said)
				}
				in := 0
				for _, room := range []id.RoomID{e.room, other.room} {
					in += strings.Count(fmt.Sprint(e.victim.said(room)), "in both")
				}
				if in != twins {
					t.Errorf("%d IDs are those of %d events", twins, in)
				}
			})
		})
	}
}

// What is too large, or names too many events, is dropped; what is just right beside it is taken.
//
// spec: c2s#size-limits, rooms/v4#event-format
func TestOversizeEventsAreDropped(t *testing.T) {
	for _, version := range []string{"3", "6", "10", "11", "12"} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				good := e.says(strings.Repeat("x", 60_000), nil)
				text := string(good.JSON())
				many := func(n int) string {
					return `["$` + strings.Join(strings.Split(strings.Repeat("x", n), ""), `","$`) + `"]`
				}
				var txn peer.Transaction
				for _, bad := range []string{
					strings.Replace(text, "xxxx", strings.Repeat("x", 6000), 1),
					strings.Replace(text, `"type":"m.room.message"`, `"type":"`+strings.Repeat("t", 256)+`"`, 1),
					strings.Replace(text, `"type":"m.room.message"`, `"state_key":"`+strings.Repeat("k", 256)+`","type":"m.room.message"`, 1),
					strings.Replace(text, `"sender":"@`, `"sender":"@`+strings.Repeat("s", 256), 1),
					strings.Replace(text, `"prev_events":[`, `"prev_events":`+many(5000)+`,"was":[`, 1),
					strings.Replace(text, `"auth_events":[`, `"auth_events":`+many(5000)+`,"was":[`, 1),
					strings.Replace(text, `"depth":20`, `"depth":-1`, 1),
					strings.Replace(text, `"depth":20`, `"depth":1e400`, 1),
					strings.Replace(text, `"depth":20`, `"depth":9223372036854775808`, 1),
					strings.Replace(text, `"content":{`, `"content":{"a":`+strings.Repeat("[", 900)+strings.Repeat("]", 900)+`,`, 1),
				} {
					if bad == text {
						t.Fatal("nothing was changed")
					}
					txn.PDUs = append(txn.PDUs, rehashed(bad))
				}
				before := e.victim.rows("events")
				e.tolerant(txn)
				if more := e.victim.rows("events") - before; more > 0 {
					t.Errorf("%d of them were stored", more)
				}
				e.sends(good)
				e.want("the good event", good, storage.Accepted)
			})
		})
	}
}

// tolerant sends a transaction that may be refused as a whole.
func (e *evil) tolerant(txn peer.Transaction) {
	for _, pdu := range txn.PDUs {
		_, _ = e.peer.SendTransaction(e.t.Context(), e.victim.name, fmt.Sprint("evil", evilTxns.Add(1)), peer.Transaction{PDUs: rawList(pdu)},
			peer.Opts{IgnoreBackoff: true})
	}
}

// A server that a room's ACL bars is refused everywhere, event by event and EDU by EDU, and other rooms do not mind.
//
// spec: s2s#server-access-control-lists-acls
func TestServerACLsHoldOnEveryPath(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		b := e.victim
		open := newEvil(t, e.node, b, "12")
		b.sets(e.bob, e.room, "m.room.server_acl", map[string]any{"allow": []string{"*"}, "deny": []string{"127.0.0.1"}})
		proper := func(method, uri string, body []byte) string {
			return peer.SignRequest(e.keys.Key(), e.name, b.name, method, uri, body)
		}
		r, v := url.PathEscape(string(e.room)), url.PathEscape(string(e.join))
		user, new := url.PathEscape(string(e.mallory)), e.user("new")
		join, leave, knock := e.member(new, "join"), e.member(e.mallory, "leave"), e.member(new, "knock")
		key := string(e.bob)
		invite := e.says("", func(p *event.Proto) {
			p.Type, p.StateKey, p.Content = "m.room.member", &key, content(map[string]any{"membership": "invite"})
		})
		create := string(b.pdu(b.stateID(e.room, "m.room.create", "")))
		body := func(ev *event.Event) string { return string(ev.JSON()) }
		const v1, v2 = "/_matrix/federation/v1/", "/_matrix/federation/v2/"
		for _, c := range []struct{ method, path, body string }{
			{"GET", v1 + "make_join/" + r + "/" + url.PathEscape(string(new)) + "?ver=12", ""},
			{"GET", v1 + "make_leave/" + r + "/" + user, ""},
			{"GET", v1 + "make_knock/" + r + "/" + url.PathEscape(string(new)) + "?ver=12", ""},
			{"PUT", v2 + "send_join/" + r + "/" + url.PathEscape(string(join.ID())), body(join)},
			{"PUT", v2 + "send_leave/" + r + "/" + url.PathEscape(string(leave.ID())), body(leave)},
			{"PUT", v1 + "send_knock/" + r + "/" + url.PathEscape(string(knock.ID())), body(knock)},
			{"PUT", v2 + "invite/" + r + "/" + url.PathEscape(string(invite.ID())), `{"room_version":"12","event":` + body(invite) + `,"invite_room_state":[` + create + `]}`},
			{"GET", v1 + "state/" + r + "?event_id=" + v, ""},
			{"GET", v1 + "state_ids/" + r + "?event_id=" + v, ""},
			{"GET", v1 + "backfill/" + r + "?limit=5&v=" + v, ""},
			{"GET", v1 + "event_auth/" + r + "/" + v, ""},
			{"GET", v1 + "event/" + v, ""},
			{"GET", v1 + "timestamp_to_event/" + r + "?dir=f&ts=1", ""},
			{"POST", v1 + "get_missing_events/" + r, `{"earliest_events":[],"latest_events":["` + string(e.join) + `"]}`},
		} {
			if status, code := e.request(b, c.method, c.path, []byte(c.body), proper); status != 403 || code != "M_FORBIDDEN" {
				t.Errorf("%s %s: %d %s", c.method, c.path, status, code)
			}
		}
		if status, code := e.request(b, "GET", v1+"make_knock/"+r+"/"+url.PathEscape(string(new)), nil, proper); status != 400 || code != "M_MISSING_PARAM" {
			t.Errorf("a knock without versions: %d %s", status, code)
		}
		here, there := e.says("in the barred room", nil), open.says("in the open room", nil)
		refused := e.sendsRaw(peer.Transaction{PDUs: rawList(here.JSON(), there.JSON()), EDUs: []peer.EDU{
			{Type: "m.typing", Content: content(map[string]any{"room_id": e.room, "user_id": e.mallory, "typing": true})},
			{Type: "m.receipt", Content: content(map[string]any{
				string(e.room):    map[string]any{"m.read": map[string]any{string(e.mallory): map[string]any{"event_ids": []string{string(e.join)}, "data": map[string]any{"ts": 1}}}},
				string(open.room): map[string]any{"m.read": map[string]any{string(e.mallory): map[string]any{"event_ids": []string{string(open.join)}, "data": map[string]any{"ts": 1}}}}})},
		}})
		if refused[here.ID()] == "" || refused[there.ID()] != "" {
			t.Errorf("refused were %v", refused)
		}
		e.want("the event of the barred room", here, notThere)
		e.want("that of the open room", there, storage.Accepted)
		if n := b.rows("receipts"); n != 1 {
			t.Errorf("%d receipts were taken, want that of the open room", n)
		}
	})
}

// An event whose signer's keys cannot be had now is not lost: it is judged when they can be, also after a restart, and a
// copy of it that is falsely signed does not stand in its way.
//
// spec: s2s#validating-hashes-and-signatures-on-received-events
func TestAnEventWaitsForItsKeys(t *testing.T) {
	attack(t, "11", func(t *testing.T, e *evil) {
		e.hasNot("keys")
		_, private, _ := ed25519.GenerateKey(rand.Reader)
		fresh := peer.SigningKey{ID: "ed25519:fresh", Private: private}
		bare := func(ev *event.Event) *event.Event {
			var v map[string]any
			if err := json.Unmarshal(ev.JSON(), &v); err != nil {
				t.Fatal(err)
			}
			v["signatures"] = map[string]any{}
			bare, err := event.Parse(e.version, content(v))
			if err != nil {
				t.Fatal(err)
			}
			return bare
		}
		sign := func(ev *event.Event, private ed25519.PrivateKey) *event.Event {
			signed, err := ev.Sign(e.name, fresh.ID, private)
			if err != nil {
				t.Fatal(err)
			}
			return signed
		}
		ev, forged := sign(bare(e.says("by a fresh key", nil)), private), bare(e.says("by a false key", nil))
		_, other, _ := ed25519.GenerateKey(rand.Reader)
		forged = sign(forged, other)
		copied := bare(ev)
		copied = sign(copied, other)
		for _, c := range []*event.Event{copied, copied, ev, copied} {
			origin := "elsewhere.example"
			if c == ev {
				origin = e.name
			}
			if err := e.victim.rooms.Receive(t.Context(), origin, []json.RawMessage{c.JSON()})[ev.ID()]; err == nil {
				t.Fatal("an event of which no key can be had was taken")
			}
		}
		if refused := e.sends(forged); len(refused) != 1 {
			t.Fatalf("refused: %v", refused)
		}
		e.want("the event", ev, notThere)
		e.sends(e.says("on it", func(p *event.Proto) { p.PrevEvents = []id.EventID{forged.ID()} }))
		e.want("what is falsely signed, below what is not", forged, notThere)
		keys := &peer.Keys{ServerName: e.name, Signing: []peer.SigningKey{e.keys.Key(), fresh}}
		e.answer("keys", func(w http.ResponseWriter, _ *http.Request) {
			list, _ := keys.ServerKeys(time.Now())
			w.Header().Set("Content-Type", "application/json")
			w.Write(list)
		})
		e.victim.halt() // what it keeps is in storage
		e.victim.again()
		eventually(t, "the event is judged", func() bool { return e.status(ev) == storage.Accepted })
		eventually(t, "none waits any more", func() bool { return e.victim.rows("unjudged") == 0 })
		e.want("what is falsely signed", forged, notThere)
	})
}
