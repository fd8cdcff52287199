package keys_test

import (
	"testing"
)

const algorithm = "m.megolm_backup.v1.curve25519-aes-sha2"

func (s *server) newBackup(p person) string {
	s.T.Helper()
	return s.Want(200, "", p.Token, "POST", v3+"/room_keys/version", object{"algorithm": algorithm, "auth_data": object{"public_key": "abc"}}).Str("version")
}

func backedUp(first, forwarded int, verified bool, text string) object {
	return object{"first_message_index": first, "forwarded_count": forwarded, "is_verified": verified,
		"session_data": object{"ciphertext": text, "ephemeral": "e", "mac": "m"}}
}

// spec: c2s/postRoomKeysVersion, c2s/getRoomKeysVersion, c2s/putRoomKeysVersion, c2s/deleteRoomKeysVersion
func TestBackupVersions(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice, bob := s.Register("alice"), s.Register("bob")
		path := v3 + "/room_keys/version"
		s.Want(404, "M_NOT_FOUND", alice.Token, "GET", path, nil)
		s.Want(400, "M_MISSING_PARAM", alice.Token, "POST", path, object{"algorithm": algorithm})
		s.Want(400, "M_BAD_JSON", alice.Token, "POST", path, object{"algorithm": algorithm, "auth_data": "x"})
		if v := s.newBackup(alice); v != "1" {
			t.Fatalf("the first version is %q", v)
		}
		if v := s.newBackup(alice); v != "2" {
			t.Fatalf("the second version is %q", v)
		}
		a := s.Want(200, "", alice.Token, "GET", path, nil)
		if a.Str("version") != "2" || a.Str("algorithm") != algorithm || a.Value("auth_data", "public_key") != "abc" || a.Value("count") != 0.0 || a.Str("etag") == "" {
			t.Fatalf("current is %v", a)
		}
		if a := s.Want(200, "", alice.Token, "GET", path+"/1", nil); a.Str("version") != "1" {
			t.Fatalf("version 1 is %v", a)
		}
		for _, v := range []string{"3", "0", "01", "x", "-1"} {
			s.Want(404, "M_NOT_FOUND", alice.Token, "GET", path+"/"+v, nil)
			s.Want(404, "M_NOT_FOUND", alice.Token, "DELETE", path+"/"+v, nil)
		}
		s.Want(404, "M_NOT_FOUND", bob.Token, "GET", path+"/1", nil)
		s.Want(200, "", alice.Token, "PUT", path+"/2", object{"algorithm": algorithm, "auth_data": object{"public_key": "def"}, "version": "2"})
		s.Want(200, "", alice.Token, "PUT", path+"/2", object{"algorithm": algorithm, "auth_data": object{"public_key": "def"}})
		s.Want(400, "M_INVALID_PARAM", alice.Token, "PUT", path+"/2", object{"algorithm": algorithm, "auth_data": object{}, "version": "1"})
		s.Want(400, "M_INVALID_PARAM", alice.Token, "PUT", path+"/2", object{"algorithm": "other", "auth_data": object{}})
		s.Want(404, "M_NOT_FOUND", alice.Token, "PUT", path+"/9", object{"algorithm": algorithm, "auth_data": object{}})
		if a := s.Want(200, "", alice.Token, "GET", path+"/2", nil); a.Value("auth_data", "public_key") != "def" {
			t.Fatalf("updated %v", a)
		}
		s.Want(200, "", alice.Token, "DELETE", path+"/2", nil)
		s.Want(200, "", alice.Token, "DELETE", path+"/2", nil) // deleted before: no fault
		s.Want(404, "M_NOT_FOUND", alice.Token, "GET", path+"/2", nil)
		if a := s.Want(200, "", alice.Token, "GET", path, nil); a.Str("version") != "1" {
			t.Fatalf("current is %v", a)
		}
		if v := s.newBackup(alice); v != "3" {
			t.Fatalf("a version was used again: %q", v)
		}
	})
}

// spec: c2s/putRoomKeys: which of two keys for a session is kept
func TestABackedUpKeyIsReplacedByABetterOneOnly(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Register("alice")
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
			s.Want(200, "", alice.Token, "DELETE", v3+"/room_keys/keys?version="+version, nil)
			before := s.Want(200, "", alice.Token, "PUT", at, c.old)
			after := s.Want(200, "", alice.Token, "PUT", at, c.new)
			got := s.Want(200, "", alice.Token, "GET", at, nil)
			want := "old"
			if c.replaced {
				want = "new"
			}
			if got.Value("session_data", "ciphertext") != want || before.Value("count") != 1.0 || after.Value("count") != 1.0 {
				t.Errorf("%s: %v", c.name, got)
			}
			if (before.Str("etag") != after.Str("etag")) != c.replaced {
				t.Errorf("%s: etag %s, then %s", c.name, before.Str("etag"), after.Str("etag"))
			}
		}
	})
}

// spec: c2s/putRoomKeys, c2s/getRoomKeys, c2s/deleteRoomKeys and their forms for a room and a session
func TestKeysOfABackup(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Register("alice")
		path := v3 + "/room_keys/keys"
		s.Want(404, "M_NOT_FOUND", alice.Token, "PUT", path+"?version=1", object{"rooms": object{}})
		s.Want(404, "M_NOT_FOUND", alice.Token, "GET", path+"?version=1", nil)
		old, version := s.newBackup(alice), s.newBackup(alice)
		v := "?version=" + version
		a := s.Want(200, "", alice.Token, "PUT", path+v, object{"rooms": object{
			"!a:x": object{"sessions": object{"1": backedUp(0, 0, true, "a1"), "2": backedUp(0, 0, true, "a2")}},
			"!b:x": object{"sessions": object{"1": backedUp(0, 0, true, "b1")}},
		}})
		if a.Value("count") != 3.0 {
			t.Fatalf("stored %v", a)
		}
		etag := a.Str("etag")
		a = s.Want(200, "", alice.Token, "PUT", path+"/!b:x"+v, object{"sessions": object{"2": backedUp(0, 0, true, "b2")}})
		if a.Value("count") != 4.0 || a.Str("etag") == etag {
			t.Fatalf("stored %v", a)
		}
		all := s.Want(200, "", alice.Token, "GET", path+v, nil)
		if all.Value("rooms", "!a:x", "sessions", "2", "session_data", "ciphertext") != "a2" || all.Value("rooms", "!b:x", "sessions", "2") == nil {
			t.Fatalf("all: %v", all)
		}
		room := s.Want(200, "", alice.Token, "GET", path+"/!a:x"+v, nil)
		if len(room.Value("sessions").(object)) != 2 {
			t.Fatalf("a room: %v", room)
		}
		if none := s.Want(200, "", alice.Token, "GET", path+"/!none:x"+v, nil); len(none.Value("sessions").(object)) != 0 {
			t.Fatalf("no room: %v", none)
		}
		s.Want(404, "M_NOT_FOUND", alice.Token, "GET", path+"/!a:x/9"+v, nil)
		s.Want(400, "M_MISSING_PARAM", alice.Token, "GET", path, nil)

		wrong := s.Want(403, "M_WRONG_ROOM_KEYS_VERSION", alice.Token, "PUT", path+"/!a:x/1?version="+old, backedUp(0, 0, true, "x"))
		if wrong.Str("current_version") != version {
			t.Fatalf("%v", wrong)
		}
		s.Want(400, "M_BAD_JSON", alice.Token, "PUT", path+"/!a:x/1"+v, object{"first_message_index": 1})
		s.Want(400, "M_BAD_JSON", alice.Token, "PUT", path+"/!a:x/1"+v, object{"first_message_index": "1"})
		s.Want(400, "M_MISSING_PARAM", alice.Token, "PUT", path+"/!a:x"+v, object{})
		s.Want(400, "M_MISSING_PARAM", alice.Token, "PUT", path+v, object{})

		if a := s.Want(200, "", alice.Token, "DELETE", path+"/!a:x/1"+v, nil); a.Value("count") != 3.0 {
			t.Fatalf("without one: %v", a)
		}
		if a := s.Want(200, "", alice.Token, "DELETE", path+"/!b:x"+v, nil); a.Value("count") != 1.0 {
			t.Fatalf("without a room: %v", a)
		}
		if a := s.Want(200, "", alice.Token, "DELETE", path+v, nil); a.Value("count") != 0.0 {
			t.Fatalf("without all: %v", a)
		}
		s.Want(404, "M_NOT_FOUND", alice.Token, "DELETE", path+"?version=9", nil)
		if a := s.Want(200, "", alice.Token, "GET", path+v, nil); len(a.Value("rooms").(object)) != 0 {
			t.Fatalf("left: %v", a)
		}
	})
}
