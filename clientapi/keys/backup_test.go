package keys_test

import (
	"testing"
)

const algorithm = "m.megolm_backup.v1.curve25519-aes-sha2"

func (s *server) newBackup(p person) string {
	s.t.Helper()
	return s.want(200, "", p.token, "POST", v3+"/room_keys/version", object{"algorithm": algorithm, "auth_data": object{"public_key": "abc"}}).text("version")
}

func backedUp(first, forwarded int, verified bool, text string) object {
	return object{"first_message_index": first, "forwarded_count": forwarded, "is_verified": verified,
		"session_data": object{"ciphertext": text, "ephemeral": "e", "mac": "m"}}
}

// spec: c2s/postRoomKeysVersion, c2s/getRoomKeysVersion, c2s/putRoomKeysVersion, c2s/deleteRoomKeysVersion
func TestBackupVersions(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		alice, bob := s.register("alice"), s.register("bob")
		path := v3 + "/room_keys/version"
		s.want(404, "M_NOT_FOUND", alice.token, "GET", path, nil)
		s.want(400, "M_MISSING_PARAM", alice.token, "POST", path, object{"algorithm": algorithm})
		s.want(400, "M_BAD_JSON", alice.token, "POST", path, object{"algorithm": algorithm, "auth_data": "x"})
		if v := s.newBackup(alice); v != "1" {
			t.Fatalf("the first version is %q", v)
		}
		if v := s.newBackup(alice); v != "2" {
			t.Fatalf("the second version is %q", v)
		}
		a := s.want(200, "", alice.token, "GET", path, nil)
		if a.text("version") != "2" || a.text("algorithm") != algorithm || a.at("auth_data", "public_key") != "abc" || a.body["count"] != 0.0 || a.text("etag") == "" {
			t.Fatalf("current is %v", a.body)
		}
		if a := s.want(200, "", alice.token, "GET", path+"/1", nil); a.text("version") != "1" {
			t.Fatalf("version 1 is %v", a.body)
		}
		for _, v := range []string{"3", "0", "01", "x", "-1"} {
			s.want(404, "M_NOT_FOUND", alice.token, "GET", path+"/"+v, nil)
			s.want(404, "M_NOT_FOUND", alice.token, "DELETE", path+"/"+v, nil)
		}
		s.want(404, "M_NOT_FOUND", bob.token, "GET", path+"/1", nil)
		s.want(200, "", alice.token, "PUT", path+"/2", object{"algorithm": algorithm, "auth_data": object{"public_key": "def"}, "version": "2"})
		s.want(200, "", alice.token, "PUT", path+"/2", object{"algorithm": algorithm, "auth_data": object{"public_key": "def"}})
		s.want(400, "M_INVALID_PARAM", alice.token, "PUT", path+"/2", object{"algorithm": algorithm, "auth_data": object{}, "version": "1"})
		s.want(400, "M_INVALID_PARAM", alice.token, "PUT", path+"/2", object{"algorithm": "other", "auth_data": object{}})
		s.want(404, "M_NOT_FOUND", alice.token, "PUT", path+"/9", object{"algorithm": algorithm, "auth_data": object{}})
		if a := s.want(200, "", alice.token, "GET", path+"/2", nil); a.at("auth_data", "public_key") != "def" {
			t.Fatalf("updated %v", a.body)
		}
		s.want(200, "", alice.token, "DELETE", path+"/2", nil)
		s.want(200, "", alice.token, "DELETE", path+"/2", nil) // deleted before: no fault
		s.want(404, "M_NOT_FOUND", alice.token, "GET", path+"/2", nil)
		if a := s.want(200, "", alice.token, "GET", path, nil); a.text("version") != "1" {
			t.Fatalf("current is %v", a.body)
		}
		if v := s.newBackup(alice); v != "3" {
			t.Fatalf("a version was used again: %q", v)
		}
	})
}

// spec: c2s/putRoomKeys: which of two keys for a session is kept
func TestABackedUpKeyIsReplacedByABetterOneOnly(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		alice := s.register("alice")
		version := s.newBackup(alice)
		for _, c := range []struct {
			name     string
			old, new object
			replaced bool
		}{
			{"verified over unverified", backedUp(1, 1, false, "old"), backedUp(5, 5, true, "new"), true},
			{"unverified never over verified", backedUp(5, 5, true, "old"), backedUp(1, 1, false, "new"), false},
			{"lower index", backedUp(5, 0, true, "old"), backedUp(4, 9, true, "new"), true},
			{"higher index", backedUp(4, 9, true, "old"), backedUp(5, 0, true, "new"), false},
			{"forwarded less", backedUp(4, 2, false, "old"), backedUp(4, 1, false, "new"), true},
			{"forwarded more", backedUp(4, 1, false, "old"), backedUp(4, 2, false, "new"), false},
			{"equal", backedUp(4, 1, false, "old"), backedUp(4, 1, false, "new"), false},
		} {
			at := v3 + "/room_keys/keys/!r:agency.example/" + c.name[:4] + "?version=" + version
			s.want(200, "", alice.token, "DELETE", v3+"/room_keys/keys?version="+version, nil)
			before := s.want(200, "", alice.token, "PUT", at, c.old)
			after := s.want(200, "", alice.token, "PUT", at, c.new)
			got := s.want(200, "", alice.token, "GET", at, nil)
			want := "old"
			if c.replaced {
				want = "new"
			}
			if got.at("session_data", "ciphertext") != want || before.body["count"] != 1.0 || after.body["count"] != 1.0 {
				t.Errorf("%s: %v", c.name, got.body)
			}
			if (before.text("etag") != after.text("etag")) != c.replaced {
				t.Errorf("%s: etag %s, then %s", c.name, before.text("etag"), after.text("etag"))
			}
		}
	})
}

// spec: c2s/putRoomKeys, c2s/getRoomKeys, c2s/deleteRoomKeys and their forms for a room and a session
func TestKeysOfABackup(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.t
		alice := s.register("alice")
		path := v3 + "/room_keys/keys"
		s.want(404, "M_NOT_FOUND", alice.token, "PUT", path+"?version=1", object{"rooms": object{}})
		s.want(404, "M_NOT_FOUND", alice.token, "GET", path+"?version=1", nil)
		old, version := s.newBackup(alice), s.newBackup(alice)
		v := "?version=" + version
		a := s.want(200, "", alice.token, "PUT", path+v, object{"rooms": object{
			"!a:x": object{"sessions": object{"1": backedUp(0, 0, true, "a1"), "2": backedUp(0, 0, true, "a2")}},
			"!b:x": object{"sessions": object{"1": backedUp(0, 0, true, "b1")}},
		}})
		if a.body["count"] != 3.0 {
			t.Fatalf("stored %v", a.body)
		}
		etag := a.text("etag")
		a = s.want(200, "", alice.token, "PUT", path+"/!b:x"+v, object{"sessions": object{"2": backedUp(0, 0, true, "b2")}})
		if a.body["count"] != 4.0 || a.text("etag") == etag {
			t.Fatalf("stored %v", a.body)
		}
		all := s.want(200, "", alice.token, "GET", path+v, nil)
		if all.at("rooms", "!a:x", "sessions", "2", "session_data", "ciphertext") != "a2" || all.at("rooms", "!b:x", "sessions", "2") == nil {
			t.Fatalf("all: %v", all.body)
		}
		room := s.want(200, "", alice.token, "GET", path+"/!a:x"+v, nil)
		if len(room.at("sessions").(object)) != 2 {
			t.Fatalf("a room: %v", room.body)
		}
		if none := s.want(200, "", alice.token, "GET", path+"/!none:x"+v, nil); len(none.at("sessions").(object)) != 0 {
			t.Fatalf("no room: %v", none.body)
		}
		s.want(404, "M_NOT_FOUND", alice.token, "GET", path+"/!a:x/9"+v, nil)
		s.want(400, "M_MISSING_PARAM", alice.token, "GET", path, nil)

		wrong := s.want(403, "M_WRONG_ROOM_KEYS_VERSION", alice.token, "PUT", path+"/!a:x/1?version="+old, backedUp(0, 0, true, "x"))
		if wrong.text("current_version") != version {
			t.Fatalf("%v", wrong.body)
		}
		s.want(400, "M_BAD_JSON", alice.token, "PUT", path+"/!a:x/1"+v, object{"first_message_index": 1})
		s.want(400, "M_BAD_JSON", alice.token, "PUT", path+"/!a:x/1"+v, object{"first_message_index": "1"})
		s.want(400, "M_MISSING_PARAM", alice.token, "PUT", path+"/!a:x"+v, object{})
		s.want(400, "M_MISSING_PARAM", alice.token, "PUT", path+v, object{})

		if a := s.want(200, "", alice.token, "DELETE", path+"/!a:x/1"+v, nil); a.body["count"] != 3.0 {
			t.Fatalf("without one: %v", a.body)
		}
		if a := s.want(200, "", alice.token, "DELETE", path+"/!b:x"+v, nil); a.body["count"] != 1.0 {
			t.Fatalf("without a room: %v", a.body)
		}
		if a := s.want(200, "", alice.token, "DELETE", path+v, nil); a.body["count"] != 0.0 {
			t.Fatalf("without all: %v", a.body)
		}
		s.want(404, "M_NOT_FOUND", alice.token, "DELETE", path+"?version=9", nil)
		if a := s.want(200, "", alice.token, "GET", path+v, nil); len(a.at("rooms").(object)) != 0 {
			t.Fatalf("left: %v", a.body)
		}
	})
}
