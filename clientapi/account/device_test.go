package account_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"chancery/storage"
	"chancery/test/client"
)

func ids(a answer) string {
	var all []string
	list, _ := a.Value("devices").([]any)
	for _, d := range list {
		name, _ := d.(object)["device_id"].(string)
		all = append(all, name)
	}
	return strings.Join(all, " ")
}

// spec: c2s/getDevices, c2s/getDevice, c2s/updateDevice
func TestDevicesAreListedAndRenamed(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Login(s.Register("alice").User, object{"device_id": "PHONE", "initial_device_display_name": "Phone"})
		bob := s.Register("bob")
		d := s.Want(200, "", alice.Token, "GET", v3+"/devices/PHONE", nil)
		if d.Str("display_name") != "Phone" || d.Str("last_seen_ip") != "127.0.0.1" || d.Value("last_seen_ts") == nil {
			t.Fatalf("the device is %v", d)
		}
		s.Want(200, "", alice.Token, "PUT", v3+"/devices/PHONE", object{"display_name": "Tablet \x00"})
		if d := s.Want(200, "", alice.Token, "GET", v3+"/devices/PHONE", nil); d.Str("display_name") != "Tablet \x00" {
			t.Fatalf("renamed to %v", d)
		}
		s.Want(200, "", alice.Token, "PUT", v3+"/devices/PHONE", object{})
		if list := s.Want(200, "", alice.Token, "GET", v3+"/devices", nil); !strings.HasSuffix(ids(list), " PHONE") {
			t.Fatalf("listed %v", list)
		}
		for _, c := range []struct {
			status int
			code   string
			token  string
			method string
			device string
			body   any
		}{
			{404, "M_NOT_FOUND", alice.Token, "GET", "NONE", nil},
			{404, "M_NOT_FOUND", bob.Token, "GET", "PHONE", nil},
			{404, "M_NOT_FOUND", bob.Token, "PUT", "PHONE", object{"display_name": "mine"}},
			{404, "M_NOT_FOUND", bob.Token, "PUT", "PHONE", object{}},
			{404, "M_NOT_FOUND", alice.Token, "GET", "%00", nil},
			{400, "M_INVALID_PARAM", alice.Token, "GET", "%ff", nil},
			{400, "M_INVALID_PARAM", alice.Token, "PUT", "PHONE", object{"display_name": many(256)}},
			{400, "M_BAD_JSON", alice.Token, "PUT", "PHONE", object{"display_name": 1}},
			{400, "M_NOT_JSON", alice.Token, "PUT", "PHONE", "x"},
			{400, "M_NOT_JSON", alice.Token, "PUT", "PHONE", nil},
			{401, "M_MISSING_TOKEN", "", "GET", "PHONE", nil},
		} {
			s.Want(c.status, c.code, c.token, c.method, v3+"/devices/"+c.device, c.body)
		}
	})
}

// spec: c2s/deleteDevice, c2s/deleteDevices
func TestDevicesAreDeletedWithTheirTokens(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Register("alice")
		gone, stays, third := s.Login("alice", nil), s.Login("alice", nil), s.Login("alice", nil)
		bob := s.Register("bob")

		first := s.Want(401, "", alice.Token, "DELETE", v3+"/devices/"+gone.Device, object{})
		// A session is for one device; and the password must be the caller's.
		s.Want(401, "M_UNAUTHORIZED", alice.Token, "DELETE", v3+"/devices/"+stays.Device, object{"auth": alice.Confirm(first.Str("session"))})
		s.Want(401, "M_UNAUTHORIZED", stays.Token, "DELETE", v3+"/devices/"+gone.Device, object{"auth": alice.Confirm(first.Str("session"))})
		s.Want(401, "M_FORBIDDEN", alice.Token, "DELETE", v3+"/devices/"+gone.Device, object{"auth": bob.Confirm(first.Str("session"))})
		s.Want(401, "", alice.Token, "DELETE", v3+"/devices/"+gone.Device, object{"auth": object{"session": first.Str("session")}})
		if s.whoami(gone) != 200 {
			t.Fatal("the device is gone without a confirmation")
		}
		s.Want(200, "", alice.Token, "DELETE", v3+"/devices/"+gone.Device, object{"auth": alice.Confirm(first.Str("session"))})
		if s.whoami(gone) != 401 || s.whoami(alice) != 200 {
			t.Fatal("the wrong device is gone")
		}
		if a := s.Confirmed(alice, "DELETE", v3+"/devices/"+gone.Device, object{}); a.Status != 200 {
			t.Fatalf("deleting it again: %d %v", a.Status, a)
		}
		// used once, a confirmation is over
		s.Want(401, "M_UNAUTHORIZED", alice.Token, "DELETE", v3+"/devices/"+gone.Device, object{"auth": alice.Confirm(first.Str("session"))})

		s.Want(400, "M_MISSING_PARAM", alice.Token, "POST", v3+"/delete_devices", object{})
		s.Want(400, "M_BAD_JSON", alice.Token, "POST", v3+"/delete_devices", object{"devices": "x"})
		s.Want(400, "M_INVALID_PARAM", alice.Token, "POST", v3+"/delete_devices", object{"devices": make([]string, 501)})
		a := s.Confirmed(alice, "POST", v3+"/delete_devices", object{"devices": []string{stays.Device, "NONE", bob.Device}})
		if a.Status != 200 || s.whoami(stays) != 401 || s.whoami(bob) != 200 || s.whoami(third) != 200 {
			t.Fatalf("%d %v", a.Status, a)
		}
		if list := s.Want(200, "", alice.Token, "GET", v3+"/devices", nil); ids(list) != alice.Device+" "+third.Device && ids(list) != third.Device+" "+alice.Device {
			t.Fatalf("what is left: %v", list)
		}
	})
}

// spec: c2s/login
func TestDeviceIsNotCalledAsACrossSigningKey(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.Register("alice")
		s.Register("bob")
		err := s.DB.Write(s.T.Context(), []string{alice.User}, func(tx storage.Tx) error {
			tx.SetCrossSigningKey(storage.CrossSigningKey{User: alice.User, Usage: "master", Public: "PUBLIC", Key: json.RawMessage(`{}`)})
			return nil
		})
		if err != nil {
			s.T.Fatal(err)
		}
		body := client.Login("alice", password)
		body["device_id"] = "PUBLIC"
		s.Want(403, "M_FORBIDDEN", "", "POST", v3+"/login", body)
		s.Login("bob", object{"device_id": "PUBLIC"})
	})
}

// spec: c2s/logout
func TestKeysGoWithTheDevice(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.Register("alice")
		keys := func() (keys json.RawMessage) {
			s.T.Helper()
			err := s.DB.Read(s.T.Context(), func(tx storage.Tx) (err error) {
				keys, err = tx.DeviceKeys(alice.User, alice.Device)
				return err
			})
			if err != nil {
				s.T.Fatal(err)
			}
			return keys
		}
		err := s.DB.Write(s.T.Context(), []string{alice.User}, func(tx storage.Tx) error {
			tx.SetDeviceKeys(alice.User, alice.Device, json.RawMessage(`{"device_id":"x"}`))
			return nil
		})
		if err != nil {
			s.T.Fatal(err)
		}
		if len(keys()) == 0 {
			s.T.Fatal("the keys were not kept")
		}
		s.Want(200, "", alice.Token, "POST", v3+"/logout", nil)
		if got := keys(); len(got) > 0 {
			s.T.Fatalf("keys outlive their device: %s", got)
		}
	})
}

// A bot that signs in anew each day has more devices than one transaction should remove.
func TestManyDevicesAreRemovedInPieces(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		alice := s.Register("alice")
		err := s.DB.Write(s.T.Context(), []string{alice.User}, func(tx storage.Tx) error {
			for i := range 120 {
				if _, err := tx.InsertDevice(storage.Device{User: alice.User, ID: fmt.Sprint("D", i)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			s.T.Fatal(err)
		}
		s.Want(200, "", alice.Token, "POST", v3+"/logout/all", nil)
		alice = s.Login("alice", nil)
		if list := s.Want(200, "", alice.Token, "GET", v3+"/devices", nil); ids(list) != alice.Device {
			s.T.Fatalf("what is left: %v", list)
		}
	})
}

// Peers and the user's other devices hear of each change of the list.
//
// spec: s2s#device-management
func TestChangesOfTheDeviceListAreTold(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		told := func() (n int) {
			t.Helper()
			err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
				facts, err := tx.FactsOfDeviceLists(0, 1<<62)
				n = len(facts)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		alice := s.Register("alice")
		if told() != 1 {
			t.Fatalf("after registering %d, want 1", told())
		}
		again := s.Login("alice", object{"device_id": alice.Device})
		if told() != 1 {
			t.Fatalf("after signing in on a known device %d, want 1", told())
		}
		s.Want(200, "", again.Token, "PUT", v3+"/devices/"+again.Device, object{"display_name": "x"})
		if told() != 2 {
			t.Fatalf("after renaming %d, want 2", told())
		}
		s.Want(200, "", again.Token, "POST", v3+"/logout", nil)
		if told() != 3 {
			t.Fatalf("after signing out %d, want 3", told())
		}
	})
}
