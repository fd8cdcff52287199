package account_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"chancery/storage"
	"chancery/storage/sql"
)

func ids(a answer) string {
	var all []string
	list, _ := a.body["devices"].([]any)
	for _, d := range list {
		name, _ := d.(object)["device_id"].(string)
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

// spec: c2s/getDevices, c2s/getDevice, c2s/updateDevice
func TestDevicesAreListedAndRenamed(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		alice := s.login(s.register("alice").user, object{"device_id": "PHONE", "initial_device_display_name": "Phone"})
		bob := s.register("bob")
		d := s.want(200, "", alice.token, "GET", v3+"/devices/PHONE", nil)
		if d.text("display_name") != "Phone" || d.text("last_seen_ip") != "127.0.0.1" || d.body["last_seen_ts"] == nil {
			t.Fatalf("the device is %v", d.body)
		}
		s.want(200, "", alice.token, "PUT", v3+"/devices/PHONE", object{"display_name": "Tablet \x00"})
		if d := s.want(200, "", alice.token, "GET", v3+"/devices/PHONE", nil); d.text("display_name") != "Tablet \x00" {
			t.Fatalf("renamed to %v", d.body)
		}
		s.want(200, "", alice.token, "PUT", v3+"/devices/PHONE", object{})
		if list := s.want(200, "", alice.token, "GET", v3+"/devices", nil); !strings.HasSuffix(ids(list), " PHONE") {
			t.Fatalf("listed %v", list.body)
		}
		for _, c := range []struct {
			status int
			code   string
			token  string
			method string
			device string
			body   any
		}{
			{404, "M_NOT_FOUND", alice.token, "GET", "NONE", nil},
			{404, "M_NOT_FOUND", bob.token, "GET", "PHONE", nil},
			{404, "M_NOT_FOUND", bob.token, "PUT", "PHONE", object{"display_name": "mine"}},
			{404, "M_NOT_FOUND", bob.token, "PUT", "PHONE", object{}},
			{404, "M_NOT_FOUND", alice.token, "GET", "%00", nil},
			{400, "M_INVALID_PARAM", alice.token, "GET", "%ff", nil},
			{400, "M_INVALID_PARAM", alice.token, "PUT", "PHONE", object{"display_name": many(256)}},
			{400, "M_BAD_JSON", alice.token, "PUT", "PHONE", object{"display_name": 1}},
			{400, "M_NOT_JSON", alice.token, "PUT", "PHONE", "x"},
			{400, "M_NOT_JSON", alice.token, "PUT", "PHONE", nil},
			{401, "M_MISSING_TOKEN", "", "GET", "PHONE", nil},
		} {
			s.want(c.status, c.code, c.token, c.method, v3+"/devices/"+c.device, c.body)
		}
	})
}

// spec: c2s/deleteDevice, c2s/deleteDevices
func TestDevicesAreDeletedWithTheirTokens(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		alice := s.register("alice")
		gone, stays, third := s.login("alice", nil), s.login("alice", nil), s.login("alice", nil)
		bob := s.register("bob")

		first := s.want(401, "", alice.token, "DELETE", v3+"/devices/"+gone.device, object{})
		// A session is for one device; and the password must be the caller's.
		s.want(401, "M_UNAUTHORIZED", alice.token, "DELETE", v3+"/devices/"+stays.device, object{"auth": alice.confirm(first.text("session"))})
		s.want(401, "M_UNAUTHORIZED", stays.token, "DELETE", v3+"/devices/"+gone.device, object{"auth": alice.confirm(first.text("session"))})
		s.want(401, "M_FORBIDDEN", alice.token, "DELETE", v3+"/devices/"+gone.device, object{"auth": bob.confirm(first.text("session"))})
		s.want(401, "", alice.token, "DELETE", v3+"/devices/"+gone.device, object{"auth": object{"session": first.text("session")}})
		if s.whoami(gone) != 200 {
			t.Fatal("the device is gone without a confirmation")
		}
		s.want(200, "", alice.token, "DELETE", v3+"/devices/"+gone.device, object{"auth": alice.confirm(first.text("session"))})
		if s.whoami(gone) != 401 || s.whoami(alice) != 200 {
			t.Fatal("the wrong device is gone")
		}
		if a := s.confirmed(alice, "DELETE", v3+"/devices/"+gone.device, object{}); a.status != 200 {
			t.Fatalf("deleting it again: %d %v", a.status, a.body)
		}
		// used once, a confirmation is over
		s.want(401, "M_UNAUTHORIZED", alice.token, "DELETE", v3+"/devices/"+gone.device, object{"auth": alice.confirm(first.text("session"))})

		s.want(400, "M_MISSING_PARAM", alice.token, "POST", v3+"/delete_devices", object{})
		s.want(400, "M_BAD_JSON", alice.token, "POST", v3+"/delete_devices", object{"devices": "x"})
		s.want(400, "M_INVALID_PARAM", alice.token, "POST", v3+"/delete_devices", object{"devices": make([]string, 501)})
		a := s.confirmed(alice, "POST", v3+"/delete_devices", object{"devices": []string{stays.device, "NONE", bob.device}})
		if a.status != 200 || s.whoami(stays) != 401 || s.whoami(bob) != 200 || s.whoami(third) != 200 {
			t.Fatalf("%d %v", a.status, a.body)
		}
		if list := s.want(200, "", alice.token, "GET", v3+"/devices", nil); ids(list) != alice.device+" "+third.device && ids(list) != third.device+" "+alice.device {
			t.Fatalf("what is left: %v", list.body)
		}
	})
}

// spec: c2s/login
func TestDeviceIsNotCalledAsACrossSigningKey(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.register("alice")
		s.register("bob")
		err := s.db.Write(s.t.Context(), []string{alice.user}, func(tx storage.Tx) error {
			tx.SetCrossSigningKey(storage.CrossSigningKey{User: alice.user, Usage: "master", Public: "PUBLIC", Key: json.RawMessage(`{}`)})
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		body := login("alice", password)
		body["device_id"] = "PUBLIC"
		s.want(403, "M_FORBIDDEN", "", "POST", v3+"/login", body)
		s.login("bob", object{"device_id": "PUBLIC"})
	})
}

// spec: c2s/logout
func TestKeysGoWithTheDevice(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.register("alice")
		keys := func() (keys json.RawMessage) {
			s.t.Helper()
			err := s.db.Read(s.t.Context(), func(tx storage.Tx) (err error) {
				keys, err = tx.DeviceKeys(alice.user, alice.device)
				return err
			})
			if err != nil {
				s.t.Fatal(err)
			}
			return keys
		}
		err := s.db.Write(s.t.Context(), []string{alice.user}, func(tx storage.Tx) error {
			tx.SetDeviceKeys(alice.user, alice.device, json.RawMessage(`{"device_id":"x"}`))
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		if len(keys()) == 0 {
			s.t.Fatal("the keys were not kept")
		}
		s.want(200, "", alice.token, "POST", v3+"/logout", nil)
		if got := keys(); len(got) > 0 {
			s.t.Fatalf("keys outlive their device: %s", got)
		}
	})
}

// A bot that signs in anew each day has more devices than one transaction should remove.
func TestManyDevicesAreRemovedInPieces(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.register("alice")
		err := s.db.Write(s.t.Context(), []string{alice.user}, func(tx storage.Tx) error {
			for i := range 120 {
				if _, err := tx.InsertDevice(storage.Device{User: alice.user, ID: fmt.Sprint("D", i)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			s.t.Fatal(err)
		}
		s.want(200, "", alice.token, "POST", v3+"/logout/all", nil)
		alice = s.login("alice", nil)
		if list := s.want(200, "", alice.token, "GET", v3+"/devices", nil); ids(list) != alice.device {
			s.t.Fatalf("what is left: %v", list.body)
		}
	})
}

// Peers and the user's other devices hear of each change of the list.
//
// spec: s2s#device-management
func TestChangesOfTheDeviceListAreTold(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		told := func() (n int) {
			t.Helper()
			err := s.db.Read(t.Context(), func(tx storage.Tx) error {
				facts, err := tx.FactsOfKind(sql.FactDeviceList, 0, 1<<62)
				n = len(facts)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		alice := s.register("alice")
		if told() != 1 {
			t.Fatalf("after registering %d, want 1", told())
		}
		again := s.login("alice", object{"device_id": alice.device})
		if told() != 1 {
			t.Fatalf("after signing in on a known device %d, want 1", told())
		}
		s.want(200, "", again.token, "PUT", v3+"/devices/"+again.device, object{"display_name": "x"})
		if told() != 2 {
			t.Fatalf("after renaming %d, want 2", told())
		}
		s.want(200, "", again.token, "POST", v3+"/logout", nil)
		if told() != 3 {
			t.Fatalf("after signing out %d, want 3", told())
		}
	})
}
