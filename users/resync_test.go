package users

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// A server that was restored begins its stream anew: its updates have numbers that are behind us, and are not
// taken for old ones.
//
// spec: s2s#device-management
func TestAStreamThatBeginsAnewIsNoticed(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, other *elsewhere) {
		other.stream = 1000
		s.follow(t)
		s.receive(t, update(1000, []int64{999}, "A", false)) // late, and what we have
		if list, _ := s.kept(t); list.Stale {
			t.Fatal("an update that we have makes the list stale")
		}
		other.stream, other.devices = 7, []string{"A", "NEW"}
		s.receive(t, update(7, []int64{6}, "NEW", false))
		same(t, s.queryCarol(t), "A", "NEW") // live
		s.fetchDue(t)
		if list, _ := s.kept(t); list.Stale || list.Stream != 7 {
			t.Fatalf("kept is %+v", list)
		}
		s.receive(t, update(8, []int64{7}, "NEXT", false))
		q, _ := other.asked()
		same(t, s.queryCarol(t), "A", "NEW", "NEXT")
		if now, _ := other.asked(); now != q {
			t.Error("the list is not followed again")
		}
		// It cannot keep us fetching.
		s.receive(t, update(3, []int64{2}, "FALSE", false))
		_, before := other.asked()
		s.fetchDue(t)
		if _, now := other.asked(); now != before {
			t.Error("a list that was just fetched is fetched again at once")
		}
	})
}

// A message from a device that is not in the list shows that an update was lost.
//
// spec: s2s#send-to-device-messaging
func TestAMessageFromAnUnknownDeviceMakesTheListStale(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, other *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		s.follow(t)
		known := deviceListUpdate{User: carol, Device: "C", Stream: 11, Prev: []int64{10}, Keys: json.RawMessage(
			`{"algorithms":["m.olm"],"device_id":"C","keys":{"curve25519:C":"known+key","ed25519:C":"k"},"signatures":{},"user_id":"@carol:elsewhere.example"}`)}
		raw, _ := json.Marshal(known)
		s.receive(t, raw)
		n := 0
		send := func(typ, content string) (stale bool) {
			t.Helper()
			n++
			edu := fmt.Sprintf(`{"sender":%q,"type":%q,"message_id":"%d","messages":{"@alice:agency.example":{"PHONE":%s}}}`, carol, typ, n, content)
			if err := s.ReceiveToDevice(t.Context(), far, json.RawMessage(edu)); err != nil {
				t.Fatal(err)
			}
			list, _ := s.kept(t)
			return list.Stale
		}
		for typ, content := range map[string]string{
			"m.room.encrypted":           `{"algorithm":"m.olm.v1.curve25519-aes-sha2","sender_key":"known+key"}`,
			"m.room_key_request":         `{"action":"request","requesting_device_id":"A"}`,
			"m.secret.request":           `{"action":"request","requesting_device_id":"B"}`,
			"m.key.verification.request": `{"from_device":"C"}`,
			"m.dummy":                    `{"from_device":"NOBODY"}`,
			"m.key.verification.done":    `{}`,
			"m.x":                        `{"requesting_device_id":5}`,
		} {
			if send(typ, content) {
				t.Fatalf("%s %s makes the list stale", typ, content)
			}
		}
		other.devices, other.stream = []string{"A", "B", "C", "D"}, 12
		for typ, content := range map[string]string{
			"m.room.encrypted":           `{"algorithm":"m.olm.v1.curve25519-aes-sha2","sender_key":"unknown+key"}`,
			"m.room_key_request":         `{"action":"request","requesting_device_id":"D"}`,
			"m.secret.request":           `{"action":"request","requesting_device_id":"D"}`,
			"m.key.verification.request": `{"from_device":"D"}`,
		} {
			if !send(typ, content) {
				t.Errorf("%s from an unknown device does not make the list stale", typ)
			}
			s.fetchDue(t)
			if list, _ := s.kept(t); list.Stale {
				t.Fatalf("after %s it is not fetched", typ)
			}
			if _, lists := other.asked(); lists < 2 {
				t.Fatal("nothing was fetched")
			}
			// As if D were unknown again.
			if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error { tx.DeleteRemoteDevice(string(carol), "D"); return nil }); err != nil {
				t.Fatal(err)
			}
			s.aged(t)
		}
	})
}

// So does a message in a room.
//
// spec: c2s#mroomencrypted
func TestARoomMessageFromAnUnknownDeviceMakesTheListStale(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, other *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		s.follow(t)
		nid := int64(1000)
		say := func(sender id.UserID, typ, content string) (stale bool) {
			t.Helper()
			nid++
			text := fmt.Sprintf(`{"sender":%q,"type":%q,"content":%s}`, sender, typ, content)
			if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
				tx.InsertEvent(&storage.Event{NID: nid, Room: 1, ID: fmt.Sprint("$", nid), Type: typ, Sender: string(sender), JSON: []byte(text)})
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			if err := s.doubtSenders(t.Context(), []int64{nid}); err != nil {
				t.Fatal(err)
			}
			list, _ := s.kept(t)
			return list.Stale
		}
		const encrypted = "m.room.encrypted"
		for _, known := range [][3]string{{string(carol), encrypted, `{"device_id":"A","sender_key":"x"}`}, {string(carol), encrypted, `{"ciphertext":"names none"}`},
			{string(carol), encrypted, `{"device_id":5}`}, {string(carol), encrypted, `[]`}, {string(carol), "m.room.message", `{"device_id":"D"}`},
			{string(ourOwn), encrypted, `{"device_id":"D"}`}, {"@nobody:elsewhere.example", encrypted, `{"device_id":"D"}`}} {
			if say(id.UserID(known[0]), known[1], known[2]) {
				t.Fatalf("%v makes the list stale", known)
			}
		}
		other.devices, other.stream = []string{"A", "B", "D"}, 12
		if !say(carol, encrypted, `{"device_id":"D","sender_key":"x"}`) {
			t.Fatal("an unknown device does not make the list stale")
		}
		s.fetchDue(t)
		if list, _ := s.kept(t); list.Stale {
			t.Fatal("it is not fetched")
		}
		if say(carol, encrypted, `{"device_id":"D"}`) {
			t.Error("a device of the list fetched is unknown")
		}
		s.aged(t)
		if !say(carol, encrypted, `{"sender_key":"unknown"}`) {
			t.Error("an unknown key does not make the list stale")
		}
	})
}

// Whoever left and came back before we looked may have been out of all rooms: nobody told us of their devices then.
func TestTheListOfWhoeverReturnedIsFetchedAnew(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, other *elsewhere) {
		s.follow(t)
		facts := func(events ...int64) (list []storage.Fact) {
			for _, e := range events {
				list = append(list, storage.Fact{Kind: sql.FactEvent, Room: 1, User: string(carol), Event: e})
			}
			return list
		}
		member := func(event int64) {
			if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
				tx.SetMember(storage.Member{Room: 1, User: string(carol), Server: far, Membership: "join", Event: event})
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		moved := func(at int64, events ...int64) (stale bool) {
			if err := s.membersMoved(t.Context(), facts(events...), at, at+1); err != nil {
				t.Fatal(err)
			}
			list, ok := s.kept(t)
			if !ok {
				t.Fatal("the list is gone though she is there")
			}
			return list.Stale
		}
		member(5)
		if moved(0, 5) {
			t.Error("her join alone makes the list stale")
		}
		member(9)
		if !moved(1, 7, 9) {
			t.Error("she left and came back, and the list is not fetched")
		}
		s.fetchDue(t)
		member(12)
		if !moved(2, 11) { // the way back comes in the next piece
			t.Error("she left and is there, and the list is not fetched")
		}
		_ = other
	})
}

// Memberships may move without an event, and the servers of a room be known only long after the join.
func TestDevicesFollowMembershipsThatNoEventTells(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		if _, err := s.UploadKeys(t.Context(), ourOwn, "PHONE", KeyUpload{DeviceKeys: keysOf(ourOwn, "PHONE")}); err != nil {
			t.Fatal(err)
		}
		for _, kind := range []sql.FactKind{sql.FactEvent, sql.FactState} {
			if !movesMember(storage.Fact{Kind: kind, User: string(carol)}) || movesMember(storage.Fact{Kind: kind}) {
				t.Errorf("facts of kind %d are not understood", kind)
			}
		}
		s.meet(t, 1, "join", ourOwn, carol)
		facts, err := s.ourMembers(t.Context(), 1)
		if err != nil || len(facts) != 1 || facts[0].User != string(ourOwn) {
			t.Fatalf("ours are %v, %v", facts, err)
		}
		if err := s.membersMoved(t.Context(), facts, 0, 1); err != nil {
			t.Fatal(err)
		}
		if told, _ := s.told(t); len(told) != 1 || told[0].Device != "PHONE" {
			t.Errorf("told %+v", told)
		}
		var from int64
		if err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) { from, err = tx.MaxPos(); return err }); err != nil {
			t.Fatal(err)
		}
		if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			tx.Announce(storage.Fact{Kind: sql.FactState, Room: 1, User: string(carol)})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
			changed, _, err := s.DeviceListChanges(tx, ourOwn, from, 1<<62)
			if !slices.Equal(changed, []id.UserID{carol}) {
				t.Errorf("changed are %v", changed)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

func signingKeys(usage, public string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"keys":{"ed25519:%s":%q},"signatures":{},"usage":[%q],"user_id":%q}`, public, public, usage, carol))
}

// spec: s2s#end-to-end-encryption
func TestSigningKeysThatAreKnownAreNoNews(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.follow(t)
		news := func(master, self json.RawMessage) (facts int) {
			t.Helper()
			var from int64
			if err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) { from, err = tx.MaxPos(); return err }); err != nil {
				t.Fatal(err)
			}
			content, _ := json.Marshal(signingKeyUpdate{User: carol, Master: master, SelfSigning: self})
			if err := s.ReceiveSigningKeys(t.Context(), far, content); err != nil {
				t.Fatal(err)
			}
			if err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
				list, err := tx.FactsOfDeviceLists(from, 1<<62)
				facts = len(list)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return facts
		}
		if n := news(signingKeys(master, "m1"), signingKeys(selfSigning, "s1")); n != 1 {
			t.Errorf("new keys are told %d times", n)
		}
		if n := news(signingKeys(master, "m1"), signingKeys(selfSigning, "s1")); n != 0 {
			t.Errorf("the same keys again are told %d times", n)
		}
		if list, _ := s.kept(t); list.Stale {
			t.Error("new keys make the list stale")
		}
		if n := news(signingKeys(master, "m2"), nil); n != 1 {
			t.Errorf("a new master key is told %d times", n)
		}
		if list, _ := s.kept(t); !list.Stale {
			t.Error("what the old master key has signed is still believed")
		}
	})
}

// slowServer answers for one server and lets all others wait.
type slowServer struct {
	elsewhere
	asking chan string
	go_    chan struct{}
}

func (e *slowServer) UserDevices(ctx context.Context, server string, user id.UserID) (*peer.UserDevices, error) {
	e.asking <- server
	if server != far {
		select {
		case <-e.go_:
		case <-ctx.Done():
		}
	}
	return e.elsewhere.UserDevices(ctx, server, user)
}

// Many stale lists of a server that takes its time do not hold up those of others.
func TestASlowServersListsHoldUpNoOthers(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		other := &slowServer{asking: make(chan string, 10), go_: make(chan struct{})}
		s.Peers = other
		if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			for i := range 2 * fetchPiece {
				tx.MarkDeviceListStale(fmt.Sprintf("@u%d:slow.example", i), "slow.example", int64(i))
			}
			tx.MarkDeviceListStale(string(carol), far, now())
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { _ = s.watchDeviceLists(ctx) })
		for range 2 {
			select {
			case <-other.asking:
			case <-time.After(time.Minute):
				t.Fatal("a server that does not answer holds up the others")
			}
		}
		for deadline := time.Now().Add(time.Minute); ; {
			if list, ok := s.kept(t); ok && !list.Stale {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the list is not fetched")
			}
			time.Sleep(5 * time.Millisecond)
		}
		cancel()
		running.Wait()
	})
}

// Two processes give out the keys of one device at once: each key once, and those uploaded first first.
//
// spec: s2s/claimUserEncryptionKeys
func TestOneTimeKeysGoOutOnceFromTwoProcesses(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		o := fresh()
		houses := []*Server{house(t, o)}
		if o.URL != "" { // SQLite has one process
			houses = append(houses, house(t, o))
		}
		houses[0].made(t, "alice", NewDevice{ID: "PHONE"})
		const uploads, each = 4, 10
		for upload := range uploads {
			up := KeyUpload{OneTimeKeys: map[string]json.RawMessage{}, FallbackKeys: map[string]json.RawMessage{"c:fallback": json.RawMessage(`"f"`)}}
			for i := range each {
				// The names do not sort as the uploads do.
				up.OneTimeKeys[fmt.Sprintf("c:%d-%d", uploads-upload, i)] = json.RawMessage(fmt.Sprintf(`"key %d %d"`, upload, i))
			}
			if _, err := houses[upload%len(houses)].UploadKeys(t.Context(), ourOwn, "PHONE", up); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		given, fallbacks := map[string]int{}, 0
		var claiming sync.WaitGroup
		for _, s := range houses {
			for range 4 {
				claiming.Go(func() {
					last := -1
					for range uploads * each / 4 {
						got, err := s.ClaimLocalKeys(context.Background(), KeyClaims{ourOwn: {"PHONE": "c"}})
						if err != nil {
							t.Error(err)
							return
						}
						for name, raw := range got[ourOwn]["PHONE"] {
							var upload, i int
							_, err := fmt.Sscanf(string(raw), `"key %d %d"`, &upload, &i)
							mu.Lock()
							if name == "c:fallback" {
								fallbacks++
							} else if given[string(raw)]++; err != nil || upload < last {
								t.Errorf("%s of upload %d came after one of %d", raw, upload, last)
							}
							mu.Unlock()
							last = max(last, upload)
						}
					}
				})
			}
		}
		claiming.Wait()
		for key, n := range given {
			if n != 1 {
				t.Errorf("%s was given out %d times", key, n)
			}
		}
		if len(given) != uploads*each || fallbacks != (len(houses)-1)*uploads*each {
			t.Errorf("%d keys and %d fallback keys were given out", len(given), fallbacks)
		}
	})
}

// A device that heard no answer uploads its keys again: those that somebody has by now are not given out again.
func TestAKeyThatIsUploadedAgainIsNotGivenOutAgain(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		upload := func(keys map[string]json.RawMessage, want int64) {
			t.Helper()
			counts, err := s.UploadKeys(t.Context(), ourOwn, "PHONE", KeyUpload{OneTimeKeys: keys})
			if err != nil || counts["c"] != want {
				t.Errorf("there are %v, want %d; %v", counts, want, err)
			}
		}
		claim := func() (name string) {
			t.Helper()
			got, err := s.ClaimLocalKeys(t.Context(), KeyClaims{ourOwn: {"PHONE": "c"}})
			if err != nil {
				t.Fatal(err)
			}
			for name = range got[ourOwn]["PHONE"] {
			}
			return name
		}
		keys := map[string]json.RawMessage{"c:1": json.RawMessage(`"a"`), "c:2": json.RawMessage(`"b"`)}
		upload(keys, 2)
		if got := claim(); got != "c:1" {
			t.Fatalf("claimed %s", got)
		}
		upload(keys, 1)
		if first, second := claim(), claim(); first != "c:2" || second != "" {
			t.Errorf("then %q and %q were given out", first, second)
		}
		// Another key under the name of one that is gone is another key.
		upload(map[string]json.RawMessage{"c:1": json.RawMessage(`"new"`)}, 1)
		if got := claim(); got != "c:1" {
			t.Errorf("claimed %q", got)
		}
		// What was given out long ago is forgotten.
		if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
			n, err := tx.TrimClaimedKeys(now()+1, 100)
			if n != 2 {
				t.Errorf("%d are forgotten", n)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	})
}

// A server that missed updates is told of each list by the newest one again: that follows one it does not know.
func TestAServerThatMissedUpdatesIsToldOfAllLists(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		bob := id.UserID("@bob:agency.example")
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		s.made(t, "bob", NewDevice{ID: "B"})
		s.meet(t, 1, "join", ourOwn, carol)
		for user, device := range map[id.UserID]id.DeviceID{ourOwn: "PHONE", bob: "B"} {
			if _, err := s.UploadKeys(t.Context(), user, device, KeyUpload{DeviceKeys: keysOf(user, string(device))}); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.RenameDevice(t.Context(), ourOwn, "PHONE", "Tablet"); err != nil {
			t.Fatal(err)
		}
		before, _ := s.told(t)
		last := before[len(before)-1]
		for range 2 {
			if err := s.AnnounceTo(t.Context(), far); err != nil {
				t.Fatal(err)
			}
			again, _ := s.told(t)
			if len(again) != 1 || again[0].User != ourOwn || again[0].Stream != last.Stream || !slices.Equal(again[0].Prev, last.Prev) || again[0].Name != "Tablet" {
				t.Errorf("told %+v, want %+v again", again, last)
			}
		}
		if err := s.AnnounceTo(t.Context(), "stranger.example"); err != nil {
			t.Fatal(err)
		}
	})
}
