package keys_test

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"

	"chancery/federation/peer"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// seed gives a key pair that is the same in every run.
func seed(name string) (public string, private ed25519.PrivateKey) {
	s := make([]byte, ed25519.SeedSize)
	copy(s, name)
	private = ed25519.NewKeyFromSeed(s)
	return base64.RawStdEncoding.EncodeToString(private.Public().(ed25519.PublicKey)), private
}

// signed adds a signature to a key object.
func signed(t testing.TB, o object, user, keyID string, private ed25519.PrivateKey) object {
	t.Helper()
	bare := object{}
	for k, v := range o {
		if k != "signatures" && k != "unsigned" {
			bare[k] = v
		}
	}
	raw, err := json.Marshal(bare)
	if err == nil {
		raw, err = peer.CanonicalJSON(raw)
	}
	if err != nil {
		t.Fatal(err)
	}
	all := object{}
	if old, ok := o["signatures"].(object); ok {
		for k, v := range old {
			all[k] = v
		}
	}
	own, _ := all[user].(object)
	mine := object{keyID: base64.RawStdEncoding.EncodeToString(ed25519.Sign(private, raw))}
	for k, v := range own {
		mine[k] = v
	}
	all[user] = mine
	bare["signatures"] = all
	return bare
}

func deviceKeys(t testing.TB, p person) object {
	public, private := seed(p.User + p.Device)
	return signed(t, object{
		"user_id": p.User, "device_id": p.Device,
		"algorithms": []string{"m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"},
		"keys":       object{"curve25519:" + p.Device: "3C5BFWi2Y8MaVvjM8M22DBmh24PmgR0nPvJOIArzgyI", "ed25519:" + p.Device: public},
	}, p.User, "ed25519:"+p.Device, private)
}

func oneTimeKeys(from, to int) object {
	keys := object{}
	for i := from; i < to; i++ {
		keys[fmt.Sprintf("signed_curve25519:%04d", i)] = object{"key": fmt.Sprintf("key %d", i), "signatures": object{}}
	}
	return keys
}

// spec: c2s/uploadKeys, c2s/queryKeys
func TestDeviceKeysAreCheckedAndShown(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Login(s.Register("alice").User, object{"device_id": "PHONE", "initial_device_display_name": "Alice's phone"})
		bob := s.Register("bob")
		upload := v3 + "/keys/upload"
		good := deviceKeys(t, alice)
		with := func(change object) object {
			o := object{}
			for k, v := range good {
				o[k] = v
			}
			for k, v := range change {
				if o[k] = v; v == nil {
					delete(o, k)
				}
			}
			return object{"device_keys": o}
		}
		for _, c := range []struct {
			status int
			code   string
			body   any
		}{
			{400, "M_BAD_JSON", with(object{"user_id": bob.User})},
			{400, "M_BAD_JSON", with(object{"device_id": "OTHER"})},
			{400, "M_BAD_JSON", with(object{"algorithms": nil})},
			{400, "M_BAD_JSON", with(object{"keys": nil})},
			{400, "M_BAD_JSON", with(object{"signatures": nil})},
			{400, "M_BAD_JSON", with(object{"keys": object{"ed25519:OTHER": "x"}})},
			{400, "M_BAD_JSON", with(object{"keys": object{"ed25519": "x"}})},
			{400, "M_BAD_JSON", with(object{"keys": "x"})},
			{400, "M_BAD_JSON", object{"one_time_keys": object{"nocolon": "x"}}},
			{400, "M_BAD_JSON", object{"one_time_keys": object{"a:b": 1}}},
			{400, "M_BAD_JSON", object{"one_time_keys": object{"a:b": object{}}}},
			{400, "M_NOT_JSON", "{"},
		} {
			s.Want(c.status, c.code, alice.Token, "POST", upload, c.body)
		}
		a := s.Want(200, "", alice.Token, "POST", upload, object{"device_keys": good, "one_time_keys": oneTimeKeys(0, 3)})
		if a.Value("one_time_key_counts", "signed_curve25519") != 3.0 {
			t.Fatalf("counted %v", a)
		}
		a = s.Want(200, "", alice.Token, "POST", upload, object{})
		if a.Value("one_time_key_counts", "signed_curve25519") != 3.0 {
			t.Fatalf("counted %v", a)
		}
		query := func(ask object) answer {
			return s.Want(200, "", bob.Token, "POST", v3+"/keys/query", object{"device_keys": ask})
		}
		a = query(object{alice.User: []string{}, "@nobody:agency.example": []string{}})
		if a.Value("device_keys", alice.User, "PHONE", "unsigned", "device_display_name") != "Alice's phone" ||
			a.Value("device_keys", alice.User, "PHONE", "keys", "curve25519:PHONE") == nil ||
			a.Value("device_keys", alice.User, "PHONE", "signatures", alice.User, "ed25519:PHONE") == nil {
			t.Fatalf("queried %v", a)
		}
		if a.Value("device_keys", "@nobody:agency.example") != nil || len(a.Value("failures").(object)) != 0 {
			t.Fatalf("a user that is not there: %v", a)
		}
		if a := query(object{alice.User: []string{"OTHER"}}); a.Value("device_keys", alice.User, "PHONE") != nil {
			t.Fatalf("a device that was not asked for: %v", a)
		}
		s.Want(400, "M_INVALID_PARAM", bob.Token, "POST", v3+"/keys/query", object{"device_keys": object{"nobody": []string{}}})
		s.Want(400, "M_BAD_JSON", bob.Token, "POST", v3+"/keys/query", object{"device_keys": object{alice.User: object{}}})
		s.Want(400, "M_MISSING_PARAM", bob.Token, "POST", v3+"/keys/query", object{})
		// Another server that is not asked by anyone is named.
		a = query(object{"@carol:elsewhere.example": []string{}})
		if a.Value("failures", "elsewhere.example") == nil {
			t.Fatalf("failures of %v", a)
		}
		// The keys go with the device.
		s.Want(200, "", alice.Token, "POST", v3+"/logout", object{})
		if a := query(object{alice.User: []string{}}); a.Value("device_keys", alice.User, "PHONE") != nil {
			t.Fatalf("keys of a device that is gone: %v", a)
		}
	})
}

// spec: c2s/uploadKeys: the same key again is no fault, another under its ID is
func TestOneTimeKeysAreUploadedOnce(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice := s.Register("alice")
		upload := v3 + "/keys/upload"
		s.Want(200, "", alice.Token, "POST", upload, object{"one_time_keys": oneTimeKeys(0, 2)})
		a := s.Want(200, "", alice.Token, "POST", upload, object{"one_time_keys": oneTimeKeys(1, 4)})
		if a.Value("one_time_key_counts", "signed_curve25519") != 4.0 {
			t.Fatalf("counted %v", a)
		}
		other := oneTimeKeys(1, 6)
		other["signed_curve25519:0001"] = object{"key": "another", "signatures": object{}}
		s.Want(400, "M_UNKNOWN", alice.Token, "POST", upload, object{"one_time_keys": other})
		a = s.Want(200, "", alice.Token, "POST", upload, object{})
		if a.Value("one_time_key_counts", "signed_curve25519") != 4.0 {
			t.Fatalf("a refused upload changed something: %v", a)
		}
	})
}

// spec: c2s/claimKeys
func TestOneTimeKeysAreGivenOutOnceInOrderThenTheFallback(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice, bob := s.Register("alice"), s.Register("bob")
		const uploads, each = 4, 25
		// Names descend, so that an order by name would be the wrong one.
		for u := range uploads {
			from := (uploads - u - 1) * each
			s.Want(200, "", alice.Token, "POST", v3+"/keys/upload", object{"one_time_keys": oneTimeKeys(from, from+each)})
		}
		s.Want(200, "", alice.Token, "POST", v3+"/keys/upload", object{"fallback_keys": object{
			"signed_curve25519:fall": object{"key": "back", "fallback": true, "signatures": object{}}}})
		unused := func() []string {
			var counts storage.KeyCounts
			err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) {
				counts, err = s.Users.KeyCounts(tx, id.UserID(alice.User), id.DeviceID(alice.Device))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			return counts.UnusedFallback
		}
		claim := func() string {
			a := s.Want(200, "", bob.Token, "POST", v3+"/keys/claim", object{"one_time_keys": object{alice.User: object{alice.Device: "signed_curve25519"}}})
			keys, _ := a.Value("one_time_keys", alice.User, alice.Device).(object)
			if len(keys) != 1 {
				t.Errorf("claimed %v", a)
			}
			for name := range keys {
				return name
			}
			return ""
		}
		seen := map[string]int{}
		for u := range uploads { // each round takes what one upload brought, by 50 at a time
			var mu sync.Mutex
			var all sync.WaitGroup
			for range each {
				all.Go(func() {
					name := claim()
					mu.Lock()
					defer mu.Unlock()
					seen[name]++
					var n int
					if _, err := fmt.Sscanf(name, "signed_curve25519:%d", &n); err != nil || n/each != uploads-u-1 {
						t.Errorf("round %d got %s", u, name)
					}
				})
			}
			all.Wait()
		}
		if len(seen) != uploads*each {
			t.Fatalf("%d different keys of %d", len(seen), uploads*each)
		}
		if got := unused(); len(got) != 1 || got[0] != "signed_curve25519" {
			t.Fatalf("unused fallback keys: %v", got)
		}
		for range 2 {
			if name := claim(); name != "signed_curve25519:fall" {
				t.Fatalf("the fallback key is %s", name)
			}
			if got := unused(); len(got) != 0 {
				t.Fatalf("the fallback key still counts as unused: %v", got)
			}
		}
		s.Want(200, "", alice.Token, "POST", v3+"/keys/upload", object{"fallback_keys": object{
			"signed_curve25519:fall": object{"key": "back", "fallback": true, "signatures": object{}}}})
		if got := unused(); len(got) != 0 {
			t.Fatal("the same fallback key counts as a new one")
		}
		s.Want(200, "", alice.Token, "POST", v3+"/keys/upload", object{"fallback_keys": object{
			"signed_curve25519:new": object{"key": "back2", "fallback": true, "signatures": object{}}}})
		if got := unused(); len(got) != 1 {
			t.Fatal("a new fallback key is not unused")
		}
		a := s.Want(200, "", bob.Token, "POST", v3+"/keys/claim", object{"one_time_keys": object{
			alice.User: object{alice.Device: "other"}, "@nobody:agency.example": object{"X": "signed_curve25519"}}})
		if len(a.Value("one_time_keys").(object)) != 0 || len(a.Value("failures").(object)) != 0 {
			t.Fatalf("claimed what is not there: %v", a)
		}
	})
}

// Fifty claimers at once reach for thirty keys: nobody gets another's.
func TestNoTwoClaimersGetTheSameKey(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice, bob := s.Register("alice"), s.Register("bob")
		s.Want(200, "", alice.Token, "POST", v3+"/keys/upload", object{"one_time_keys": oneTimeKeys(0, 30)})
		var mu sync.Mutex
		var all sync.WaitGroup
		seen, empty := map[string]int{}, 0
		for range 50 {
			all.Go(func() {
				a := s.Ask(bob.Token, "POST", v3+"/keys/claim", object{"one_time_keys": object{alice.User: object{alice.Device: "signed_curve25519"}}})
				keys, _ := a.Value("one_time_keys", alice.User, alice.Device).(object)
				mu.Lock()
				defer mu.Unlock()
				for name := range keys {
					seen[name]++
				}
				if len(keys) == 0 && a.Status == http.StatusOK {
					empty++
				}
			})
		}
		all.Wait()
		if len(seen) != 30 || empty != 20 {
			t.Fatalf("%d keys, %d without: %v", len(seen), empty, seen)
		}
	})
}

func crossSigning(t testing.TB, user, usage, name string, signers ...string) object {
	public, _ := seed(name)
	o := object{"user_id": user, "usage": []string{usage}, "keys": object{"ed25519:" + public: public}}
	for _, signer := range signers {
		by, private := seed(signer)
		o = signed(t, o, user, "ed25519:"+by, private)
	}
	return o
}

// spec: c2s/uploadCrossSigningKeys
func TestCrossSigningKeysAreConfirmedWhenTheyChange(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice, bob := s.Register("alice"), s.Register("bob")
		upload := v3 + "/keys/device_signing/upload"
		u := alice.User
		for _, c := range []struct {
			status int
			code   string
			body   object
		}{
			{400, "M_MISSING_PARAM", object{"self_signing_key": crossSigning(t, u, "self_signing", "self", "master")}},
			{400, "M_INVALID_SIGNATURE", object{"master_key": crossSigning(t, u, "master", "master"), "self_signing_key": crossSigning(t, u, "self_signing", "self")}},
			{400, "M_INVALID_SIGNATURE", object{"master_key": crossSigning(t, u, "master", "master"), "user_signing_key": crossSigning(t, u, "user_signing", "user", "other")}},
			{400, "M_INVALID_PARAM", object{"master_key": crossSigning(t, bob.User, "master", "master")}},
			{400, "M_INVALID_PARAM", object{"master_key": crossSigning(t, u, "self_signing", "master")}},
			{400, "M_INVALID_PARAM", object{"master_key": object{"user_id": u, "usage": []string{"master"}, "keys": object{}}}},
			{400, "M_BAD_JSON", object{"master_key": object{"user_id": u, "usage": "master", "keys": object{}}}},
		} {
			s.Want(c.status, c.code, alice.Token, "POST", upload, c.body)
		}
		first := object{"master_key": crossSigning(t, u, "master", "master"),
			"self_signing_key": crossSigning(t, u, "self_signing", "self", "master"),
			"user_signing_key": crossSigning(t, u, "user_signing", "user", "master")}
		s.Want(200, "", alice.Token, "POST", upload, first)
		s.Want(200, "", alice.Token, "POST", upload, first) // the same keys again need no password
		public, _ := seed("user")
		own := s.Want(200, "", alice.Token, "POST", v3+"/keys/query", object{"device_keys": object{u: []string{}}})
		if own.Value("user_signing_keys", u, "keys", "ed25519:"+public) != public || own.Value("master_keys", u) == nil || own.Value("self_signing_keys", u) == nil {
			t.Fatalf("alice sees %v", own)
		}
		others := s.Want(200, "", bob.Token, "POST", v3+"/keys/query", object{"device_keys": object{u: []string{}}})
		if others.Value("user_signing_keys", u) != nil || others.Value("master_keys", u) == nil || others.Value("self_signing_keys", u) == nil {
			t.Fatalf("bob sees %v", others)
		}
		second := object{"master_key": crossSigning(t, u, "master", "master2")}
		if a := s.Confirmed(alice, "POST", upload, second); a.Status != 200 {
			t.Fatalf("%d %v", a.Status, a)
		}
		public, _ = seed("master2")
		if a := s.Want(200, "", bob.Token, "POST", v3+"/keys/query", object{"device_keys": object{u: []string{}}}); a.Value("master_keys", u, "keys", "ed25519:"+public) == nil {
			t.Fatalf("the new key is not there: %v", a)
		}
		// The name of a device is no name for a key.
		public, _ = seed("clash")
		s.Login("bob", object{"device_id": public})
		s.Want(403, "M_FORBIDDEN", bob.Token, "POST", upload, object{"master_key": crossSigning(t, bob.User, "master", "clash")})
	})
}

// spec: c2s/uploadCrossSigningSignatures
func TestSignaturesAreCheckedAndSeenByWhoMay(t *testing.T) {
	eachEngine(t, nil, func(s *server) {
		t := s.T
		alice, bob, carol := s.Register("alice"), s.Register("bob"), s.Register("carol")
		for _, p := range []person{alice, bob} {
			s.Want(200, "", p.Token, "POST", v3+"/keys/upload", object{"device_keys": deviceKeys(t, p)})
			n := p.User
			s.Want(200, "", p.Token, "POST", v3+"/keys/device_signing/upload", object{"master_key": crossSigning(t, p.User, "master", n+"m"),
				"self_signing_key": crossSigning(t, p.User, "self_signing", n+"s", n+"m"),
				"user_signing_key": crossSigning(t, p.User, "user_signing", n+"u", n+"m")})
		}
		upload := v3 + "/keys/signatures/upload"
		masterOf := func(p person) (string, object) {
			public, _ := seed(p.User + "m")
			return public, crossSigning(t, p.User, "master", p.User+"m")
		}
		by := func(p person, what string) (string, ed25519.PrivateKey) { return seed(p.User + what) }
		selfPublic, selfPrivate := by(alice, "s")
		userPublic, userPrivate := by(alice, "u")
		_, devicePrivate := seed(alice.User + alice.Device)
		aliceMaster, aliceObject := masterOf(alice)
		bobMaster, bobObject := masterOf(bob)

		a := s.Want(200, "", alice.Token, "POST", upload, object{
			alice.User: object{
				alice.Device: signed(t, deviceKeys(t, alice), alice.User, "ed25519:"+selfPublic, selfPrivate),
				aliceMaster:  signed(t, aliceObject, alice.User, "ed25519:"+alice.Device, devicePrivate),
			},
			bob.User: object{bobMaster: signed(t, bobObject, alice.User, "ed25519:"+userPublic, userPrivate)},
		})
		if len(a.Value("failures").(object)) != 0 {
			t.Fatalf("refused %v", a)
		}
		see := func(p person) answer {
			return s.Want(200, "", p.Token, "POST", v3+"/keys/query", object{"device_keys": object{alice.User: []string{}, bob.User: []string{}}})
		}
		for _, p := range []person{alice, bob, carol} {
			a := see(p)
			if a.Value("device_keys", alice.User, alice.Device, "signatures", alice.User, "ed25519:"+selfPublic) == nil ||
				a.Value("device_keys", alice.User, alice.Device, "signatures", alice.User, "ed25519:"+alice.Device) == nil ||
				a.Value("master_keys", alice.User, "signatures", alice.User, "ed25519:"+alice.Device) == nil {
				t.Errorf("%s does not see what alice signed of her own: %v", p.User, a)
			}
			// Whom alice has verified is nobody's business.
			if got := a.Value("master_keys", bob.User, "signatures", alice.User, "ed25519:"+userPublic); (got != nil) != (p == alice) {
				t.Errorf("%s sees of alice's signature on bob: %v", p.User, got)
			}
		}

		wrong := func(code, target string, o object) {
			t.Helper()
			a := s.Want(200, "", alice.Token, "POST", upload, object{o["user_id"].(string): object{target: o}})
			if a.Value("failures", o["user_id"].(string), target, "errcode") != code {
				t.Errorf("want %s: %v", code, a)
			}
		}
		other, otherPrivate := seed("other")
		wrong("M_INVALID_SIGNATURE", alice.Device, signed(t, deviceKeys(t, alice), alice.User, "ed25519:"+other, otherPrivate))
		wrong("M_INVALID_SIGNATURE", alice.Device, signed(t, deviceKeys(t, alice), alice.User, "ed25519:"+selfPublic, otherPrivate))
		wrong("M_INVALID_SIGNATURE", aliceMaster, signed(t, aliceObject, alice.User, "ed25519:"+alice.Device, otherPrivate))
		wrong("M_INVALID_SIGNATURE", bobMaster, signed(t, bobObject, alice.User, "ed25519:"+selfPublic, selfPrivate))
		wrong("M_NOT_FOUND", "NONE", signed(t, deviceKeys(t, alice), alice.User, "ed25519:"+selfPublic, selfPrivate))
		wrong("M_NOT_FOUND", bob.Device, signed(t, deviceKeys(t, bob), alice.User, "ed25519:"+userPublic, userPrivate))
		changed := deviceKeys(t, alice)
		changed["algorithms"] = []string{}
		wrong("M_INVALID_PARAM", alice.Device, signed(t, changed, alice.User, "ed25519:"+selfPublic, selfPrivate))
		s.Want(400, "M_BAD_JSON", alice.Token, "POST", upload, object{alice.User: "x"})
	})
}
