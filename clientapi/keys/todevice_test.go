package keys_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// waiting lists what waits for a device above a number.
func (s *server) waiting(p person, above int64, limit int) (texts []string, last int64, more bool) {
	s.T.Helper()
	err := s.DB.Read(s.T.Context(), func(tx storage.Tx) error {
		events, l, m, err := s.Users.ToDevice(tx, id.UserID(p.User), id.DeviceID(p.Device), above, limit)
		last, more = l, m
		for _, e := range events {
			var v struct {
				Sender, Type string
				Content      struct{ Text string }
			}
			if err := json.Unmarshal(e, &v); err != nil {
				return err
			}
			texts = append(texts, v.Content.Text)
		}
		return err
	})
	if err != nil {
		s.T.Fatal(err)
	}
	return texts, last, more
}

// spec: c2s/sendToDevice
func TestMessagesReachTheirDevicesOnceAndInOrder(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Register("alice")
		bob := s.Register("bob")
		phone := s.Login("bob", object{"device_id": "PHONE"})
		send := func(txn string, to object) {
			t.Helper()
			s.Want(200, "", alice.Token, "PUT", v3+"/sendToDevice/m.test/"+txn, object{"messages": to})
		}
		text := func(v string) object { return object{"text": v} }
		send("t1", object{bob.User: object{bob.Device: text("one"), "NONE": text("lost")}, "@nobody:agency.example": object{"*": text("lost")}})
		send("t1", object{bob.User: object{bob.Device: text("again")}})
		send("t2", object{bob.User: object{"*": text("two")}})
		for i := range 5 {
			send(fmt.Sprint("u", i), object{bob.User: object{bob.Device: text(fmt.Sprint(i))}})
		}
		got, last, more := s.waiting(bob, 0, 3)
		if strings.Join(got, " ") != "one two 0" || !more {
			t.Fatalf("first %v, more %v", got, more)
		}
		// Not acknowledged: the same again.
		if again, _, _ := s.waiting(bob, 0, 3); strings.Join(again, " ") != "one two 0" {
			t.Fatalf("again %v", again)
		}
		if err := s.Users.DeleteToDevice(t.Context(), id.UserID(bob.User), id.DeviceID(bob.Device), last); err != nil {
			t.Fatal(err)
		}
		if got, _, more := s.waiting(bob, 0, 100); strings.Join(got, " ") != "1 2 3 4" || more {
			t.Fatalf("after the acknowledgement %v, more %v", got, more)
		}
		if got, _, _ := s.waiting(bob, last, 100); strings.Join(got, " ") != "1 2 3 4" {
			t.Fatalf("above the number %v", got)
		}
		if got, _, _ := s.waiting(phone, 0, 100); strings.Join(got, " ") != "two" {
			t.Fatalf("the other device has %v", got)
		}
		for _, c := range []struct {
			status int
			code   string
			body   any
		}{
			{400, "M_MISSING_PARAM", object{}},
			{400, "M_BAD_JSON", object{"messages": "x"}},
			{400, "M_BAD_JSON", object{"messages": object{bob.User: object{"PHONE": "x"}}}},
			{400, "M_INVALID_PARAM", object{"messages": object{"bob": object{"PHONE": object{}}}}},
			{413, "M_TOO_LARGE", object{"messages": object{bob.User: object{"PHONE": text(strings.Repeat("x", 200_000))}}}},
		} {
			s.Want(c.status, c.code, alice.Token, "PUT", v3+"/sendToDevice/m.test/bad", c.body)
		}
		// A device takes its messages with it.
		s.Want(200, "", phone.Token, "POST", v3+"/logout", object{})
		s.Login("bob", object{"device_id": "PHONE"})
		if got, _, _ := s.waiting(phone, 0, 100); len(got) != 0 {
			t.Fatalf("a new device of the same name gets %v", got)
		}
	})
}

// What is for other servers waits in the outbox, in pieces of a bounded size.
//
// spec: s2s#send-to-device-messaging
func TestMessagesForOtherServersAreQueued(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Register("alice")
		devices := object{}
		for i := range 20 {
			devices[fmt.Sprintf("D%02d", i)] = object{"text": strings.Repeat("x", 5000)}
		}
		s.Want(200, "", alice.Token, "PUT", v3+"/sendToDevice/m.test/t1", object{"messages": object{"@carol:elsewhere.example": devices}})
		s.Want(200, "", alice.Token, "PUT", v3+"/sendToDevice/m.test/t1", object{"messages": object{"@carol:elsewhere.example": devices}})
		var edus []storage.EDU
		err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) {
			edus, err = tx.EDUs("elsewhere.example", 100)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		seen, ids := map[string]bool{}, map[string]bool{}
		for _, e := range edus {
			var content struct {
				Sender    string                       `json:"sender"`
				Type      string                       `json:"type"`
				MessageID string                       `json:"message_id"`
				Messages  map[string]map[string]object `json:"messages"`
			}
			if err := json.Unmarshal(e.Content, &content); err != nil || e.Type != "m.direct_to_device" {
				t.Fatal(e.Type, err)
			}
			if content.Sender != alice.User || content.Type != "m.test" || len(e.Content) > 64_000 || len(content.MessageID) > 32 {
				t.Fatalf("%+v of %d bytes", content.MessageID, len(e.Content))
			}
			ids[content.MessageID] = true
			for device := range content.Messages["@carol:elsewhere.example"] {
				if seen[device] {
					t.Fatalf("%s twice", device)
				}
				seen[device] = true
			}
		}
		if len(seen) != 20 || len(edus) < 2 || len(ids) != len(edus) {
			t.Fatalf("%d devices in %d EDUs with %d IDs", len(seen), len(edus), len(ids))
		}
	})
}
