package users

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

const (
	carol  = id.UserID("@carol:elsewhere.example")
	far    = "elsewhere.example"
	ours   = "agency.example"
	ourOwn = id.UserID("@alice:agency.example")
)

// elsewhere is the other server: it has one user and counts what it is asked.
type elsewhere struct {
	mu      sync.Mutex // guards the rest
	devices []string
	stream  int64
	down    bool
	queries int
	lists   int
	before  func() // is called while a list is on its way
}

func keysOf(user id.UserID, device string) json.RawMessage {
	return json.RawMessage(fmt.Sprintf(`{"algorithms":["m.olm"],"device_id":%q,"keys":{"ed25519:%s":"key"},"signatures":{%q:{"ed25519:%s":"sig"}},"user_id":%q}`,
		device, device, user, device, user))
}

func (e *elsewhere) UserKeysQuery(_ context.Context, _ string, asked map[id.UserID][]id.DeviceID, _ peer.Opts) (*peer.UserKeys, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.queries++
	if e.down {
		return nil, errors.New("down")
	}
	out := &peer.UserKeys{DeviceKeys: map[id.UserID]map[id.DeviceID]json.RawMessage{}}
	if _, ok := asked[carol]; ok {
		out.DeviceKeys[carol] = map[id.DeviceID]json.RawMessage{}
		for _, d := range e.devices {
			out.DeviceKeys[carol][id.DeviceID(d)] = keysOf(carol, d)
		}
		// What nobody asked for, and what belongs to somebody else, is not believed.
		out.DeviceKeys[ourOwn] = map[id.DeviceID]json.RawMessage{"EVIL": keysOf(ourOwn, "EVIL")}
		out.DeviceKeys[carol]["FORGED"] = keysOf(carol, "OTHER")
	}
	return out, nil
}

func (e *elsewhere) UserKeysClaim(context.Context, string, map[id.UserID]map[id.DeviceID]string, peer.Opts) (peer.OneTimeKeys, error) {
	return peer.OneTimeKeys{
		carol:  {"A": {"signed_curve25519:1": json.RawMessage(`{"key":"k"}`)}, "UNASKED": {"signed_curve25519:2": json.RawMessage(`{"key":"k"}`)}},
		ourOwn: {"EVIL": {"signed_curve25519:1": json.RawMessage(`{"key":"k"}`)}},
	}, nil
}

func (e *elsewhere) UserDevices(_ context.Context, _ string, user id.UserID) (*peer.UserDevices, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.lists++
	if e.down {
		return nil, errors.New("down")
	}
	out := &peer.UserDevices{User: user, StreamID: e.stream}
	for _, d := range e.devices {
		out.Devices = append(out.Devices, peer.UserDevice{ID: id.DeviceID(d), Keys: keysOf(user, d)})
	}
	if e.before != nil {
		e.before()
	}
	return out, nil
}

func (e *elsewhere) asked() (queries, lists int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.queries, e.lists
}

// meet puts users into a room together, or out of it.
func (s *Server) meet(t *testing.T, room int64, membership string, users ...id.UserID) {
	t.Helper()
	err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
		for _, u := range users {
			tx.SetMember(storage.Member{Room: room, User: string(u), Server: u.Homeserver(), Membership: membership})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// moved has the follower of rooms hear that a user came or went.
func (s *Server) moved(t *testing.T, room int64, user id.UserID) {
	t.Helper()
	var at int64
	if err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) { at, err = tx.Cursor(keysReader); return err }); err != nil {
		t.Fatal(err)
	}
	err := s.membersMoved(t.Context(), []storage.Fact{{Kind: sql.FactEvent, Room: room, User: string(user)}}, at, at+1)
	if err != nil {
		t.Fatal(err)
	}
}

func (s *Server) queryCarol(t *testing.T, devices ...id.DeviceID) []string {
	t.Helper()
	keys, err := s.QueryKeys(t.Context(), ourOwn, KeyQuery{carol: devices}, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if keys.Devices[ourOwn] != nil || len(keys.Failures) > 1 {
		t.Fatalf("unexpected %v", keys)
	}
	if len(keys.Failures) > 0 {
		return []string{"failed"}
	}
	var list []string
	for d := range keys.Devices[carol] {
		list = append(list, string(d))
	}
	slices.Sort(list)
	return list
}

func update(stream int64, prev []int64, device string, deleted bool) json.RawMessage {
	u := deviceListUpdate{User: carol, Device: id.DeviceID(device), Stream: stream, Prev: prev, Deleted: deleted}
	if !deleted {
		u.Keys = keysOf(carol, device)
	}
	raw, _ := json.Marshal(u)
	return raw
}

func (s *Server) receive(t *testing.T, content json.RawMessage) {
	t.Helper()
	if err := s.ReceiveDeviceList(t.Context(), far, content); err != nil {
		t.Fatal(err)
	}
}

func (s *Server) fetchDue(t *testing.T) {
	t.Helper()
	for range 10 {
		due, _, err := s.dueLists(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		for server, lists := range due {
			if err := s.fetchListsOf(t.Context(), server, lists); err != nil {
				t.Fatal(err)
			}
		}
		if len(due) == 0 {
			return
		}
	}
	t.Fatal("fetching device lists has no end")
}

// kept reads what is kept of her list.
func (s *Server) kept(t *testing.T) (list storage.RemoteDeviceList, ok bool) {
	t.Helper()
	if err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) { list, ok, err = remoteList(tx, string(carol)); return err }); err != nil {
		t.Fatal(err)
	}
	return list, ok
}

// follow has a list of hers kept and known, as of a while ago.
func (s *Server) follow(t *testing.T) {
	t.Helper()
	s.meet(t, 1, "join", ourOwn, carol)
	s.queryCarol(t)
	s.place(t)
	s.aged(t)
}

// place has her list fetched, so that it has its place in the stream of updates.
func (s *Server) place(t *testing.T) {
	t.Helper()
	if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error { tx.MarkDeviceListStale(string(carol), far, 0); return nil }); err != nil {
		t.Fatal(err)
	}
	s.fetchDue(t)
}

// aged makes as if her list had been fetched a while ago, or were due by now.
func (s *Server) aged(t *testing.T) {
	t.Helper()
	list, ok := s.kept(t)
	if !ok {
		t.Fatal("her list is not kept")
	}
	list.RetryAt = now() - doubtAgain.Milliseconds()
	if err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error { tx.SetRemoteDeviceList(list); return nil }); err != nil {
		t.Fatal(err)
	}
}

func eachHouse(t *testing.T, test func(*testing.T, *Server, *elsewhere)) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s, other := house(t, fresh()), &elsewhere{devices: []string{"A", "B"}, stream: 10}
		s.Peers = other
		test(t, s, other)
	})
}

func same(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("devices %v, want %v", got, want)
	}
}

// spec: s2s#device-management
func TestADeviceListIsKeptWhileItsUpdatesFollowEachOther(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, other *elsewhere) {
		// Nobody meets her: her server is asked each time, and nothing is kept.
		same(t, s.queryCarol(t), "A", "B")
		s.fetchDue(t)
		same(t, s.queryCarol(t), "A", "B")
		if q, l := other.asked(); q != 2 || l != 0 {
			t.Fatalf("%d questions, %d lists", q, l)
		}
		// The answer to the first question fills the list; the first update says that it has no place in the stream.
		s.meet(t, 1, "join", ourOwn, carol)
		same(t, s.queryCarol(t, "A"), "A") // single devices are no list
		if list, ok := s.kept(t); !ok || !list.Stale {
			t.Fatalf("kept is %+v", list)
		}
		same(t, s.queryCarol(t), "A", "B")
		s.fetchDue(t)
		same(t, s.queryCarol(t), "A", "B")
		if q, l := other.asked(); q != 4 || l != 0 {
			t.Fatalf("%d questions, %d lists", q, l)
		}
		s.receive(t, update(10, []int64{9}, "B", false))
		s.fetchDue(t)
		if q, l := other.asked(); q != 4 || l != 1 {
			t.Fatalf("%d questions, %d lists", q, l)
		}
		s.receive(t, update(11, []int64{10}, "C", false))
		s.receive(t, update(11, []int64{10}, "C", false)) // again
		s.receive(t, update(12, []int64{11}, "A", true))
		same(t, s.queryCarol(t), "B", "C")
		same(t, s.queryCarol(t, "C"), "C")
		if q, _ := other.asked(); q != 4 {
			t.Fatalf("the list is known, and %d questions were asked", q)
		}
		// A device that we never heard of is asked for.
		other.devices = []string{"B", "C", "D"}
		same(t, s.queryCarol(t, "D"), "D")
		s.fetchDue(t)
		// A gap: until the list is there again keys are asked for live.
		other.stream, other.devices = 20, []string{"E"}
		s.receive(t, update(20, []int64{19}, "E", false))
		same(t, s.queryCarol(t), "E")
		other.down = true
		same(t, s.queryCarol(t), "failed")
		s.fetchDue(t)
		other.down = false
		_, before := other.asked()
		s.fetchDue(t) // it has failed: not yet
		if _, l := other.asked(); l != before {
			t.Fatal("no pause after a failure")
		}
		if err := s.ServerIsBack(t.Context(), far); err != nil {
			t.Fatal(err)
		}
		s.fetchDue(t)
		q, _ := other.asked()
		same(t, s.queryCarol(t), "E")
		if now, _ := other.asked(); now != q {
			t.Fatal("the list is not known again")
		}
		// An update that overtakes the list makes it stale again.
		s.receive(t, update(30, []int64{29}, "F", false))
		other.stream, other.devices = 28, []string{"E"}
		once := sync.OnceFunc(func() {
			other.stream, other.devices = 31, []string{"E", "F", "G"}
			s.receive(t, update(31, []int64{30}, "G", false))
		})
		other.before = once
		s.fetchDue(t)
		same(t, s.queryCarol(t), "E", "F", "G")
		// While a room is shared the list stays. When the last one goes, so does the list:
		// whoever leaves it.
		gone := carol
		if strings.HasSuffix(t.Name(), "SQLite") {
			gone = ourOwn
		}
		s.meet(t, 2, "join", ourOwn, carol)
		s.meet(t, 1, "leave", gone)
		s.moved(t, 1, gone)
		q, _ = other.asked()
		same(t, s.queryCarol(t), "E", "F", "G")
		if now, _ := other.asked(); now != q {
			t.Fatal("the list went though a room is shared")
		}
		s.meet(t, 2, "leave", gone)
		same(t, s.queryCarol(t), "E", "F", "G")
		if now, _ := other.asked(); now != q+1 {
			t.Fatal("a list that nobody keeps true is believed until it goes")
		}
		s.moved(t, 2, gone)
		err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
			lists, err := tx.RemoteDeviceLists([]string{string(carol)})
			if len(lists) != 0 {
				t.Errorf("kept %v", lists)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

func TestWhatAnotherServerMayNotSayIsRefused(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		device := func(o string) json.RawMessage { return json.RawMessage(o) }
		for _, c := range []struct {
			name string
			err  error
		}{
			{"another's user", s.ReceiveDeviceList(t.Context(), "third.example", update(1, nil, "A", false))},
			{"our user", s.ReceiveDeviceList(t.Context(), ours, device(`{"user_id":"@alice:agency.example","device_id":"X","stream_id":1}`))},
			{"no device", s.ReceiveDeviceList(t.Context(), far, device(`{"user_id":"@carol:elsewhere.example","stream_id":1}`))},
			{"keys of another", s.ReceiveDeviceList(t.Context(), far, device(`{"user_id":"@carol:elsewhere.example","device_id":"A","stream_id":1,"keys":`+string(keysOf(carol, "B"))+`}`))},
			{"no JSON", s.ReceiveDeviceList(t.Context(), far, device(`x`))},
			{"signing keys of another", s.ReceiveSigningKeys(t.Context(), "third.example", device(`{"user_id":"@carol:elsewhere.example"}`))},
			{"malformed signing keys", s.ReceiveSigningKeys(t.Context(), far, device(`{"user_id":"@carol:elsewhere.example","master_key":{"user_id":"@dave:elsewhere.example","usage":["master"],"keys":{"ed25519:x":"x"}}}`))},
			{"a message in another's name", s.ReceiveToDevice(t.Context(), "third.example", device(`{"sender":"@carol:elsewhere.example","type":"m.x","message_id":"1","messages":{}}`))},
			{"a message without ID", s.ReceiveToDevice(t.Context(), far, device(`{"sender":"@carol:elsewhere.example","type":"m.x","messages":{}}`))},
		} {
			if c.err == nil {
				t.Errorf("%s is believed", c.name)
			}
		}
		got, failures, err := s.ClaimKeys(t.Context(), KeyClaims{carol: {"A": "signed_curve25519"}}, time.Second)
		if err != nil || len(failures) != 0 || len(got) != 1 || len(got[carol]) != 1 || got[carol]["A"] == nil {
			t.Errorf("claimed %v %v %v", got, failures, err)
		}
	})
}

// spec: s2s#send-to-device-messaging
func TestAMessageFromElsewhereIsStoredOnce(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		edu := json.RawMessage(`{"sender":"@carol:elsewhere.example","type":"m.x","message_id":"1","messages":{"@alice:agency.example":{"*":{"a":1},"PHONE":1},"@dave:third.example":{"X":{}}}}`)
		for range 3 {
			if err := s.ReceiveToDevice(t.Context(), far, edu); err != nil {
				t.Fatal(err)
			}
		}
		err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
			events, _, more, err := s.ToDevice(tx, ourOwn, "PHONE", 0, 10)
			if len(events) != 1 || more || string(events[0]) != `{"sender":"@carol:elsewhere.example","type":"m.x","content":{"a":1}}` {
				t.Errorf("stored %s", events)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// told reads what waits for the other server, and empties it.
func (s *Server) told(t *testing.T) (updates []deviceListUpdate, signing int) {
	t.Helper()
	err := s.DB.Write(t.Context(), nil, func(tx storage.Tx) error {
		edus, err := tx.EDUs(far, 100)
		updates, signing = nil, 0
		var ids []int64
		for _, e := range edus {
			ids = append(ids, e.ID)
			if e.Type == "m.signing_key_update" {
				signing++
				continue
			}
			var u deviceListUpdate
			if err := json.Unmarshal(e.Content, &u); err != nil {
				return err
			}
			updates = append(updates, u)
		}
		tx.DeleteEDUs(far, ids)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return updates, signing
}

// spec: s2s#device-management
func TestOtherServersHearOfEachChangeInOneSequence(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		alice := s.made(t, "alice", NewDevice{ID: "PHONE", Name: "Phone"})
		if got, _ := s.told(t); len(got) != 0 {
			t.Fatalf("told a server that shares no room: %v", got)
		}
		upload := KeyUpload{DeviceKeys: keysOf(ourOwn, "PHONE")}
		if _, err := s.UploadKeys(t.Context(), ourOwn, "PHONE", upload); err != nil {
			t.Fatal(err)
		}
		// She comes into a room with them: they are told, once.
		s.meet(t, 1, "join", ourOwn, carol)
		s.moved(t, 1, ourOwn)
		s.moved(t, 1, ourOwn)
		first, _ := s.told(t)
		if len(first) != 1 || first[0].Device != "PHONE" || first[0].Name != "Phone" || first[0].Keys == nil {
			t.Fatalf("on joining: %+v", first)
		}
		if _, err := s.UploadKeys(t.Context(), ourOwn, "PHONE", upload); err != nil {
			t.Fatal(err)
		}
		if got, _ := s.told(t); len(got) != 0 {
			t.Fatalf("the same keys again are news: %+v", got)
		}
		if err := s.RenameDevice(t.Context(), ourOwn, "PHONE", "Tablet"); err != nil {
			t.Fatal(err)
		}
		if err := s.DeleteDevices(t.Context(), ourOwn, []id.DeviceID{alice.Device}); err != nil {
			t.Fatal(err)
		}
		got, _ := s.told(t)
		if len(got) != 2 || got[0].Name != "Tablet" || got[0].Deleted || !got[1].Deleted || got[1].Keys != nil {
			t.Fatalf("told %+v", got)
		}
		last := first[0].Stream
		for _, u := range got {
			if !slices.Equal(u.Prev, []int64{last}) || u.Stream <= last {
				t.Fatalf("%d is told to follow %v, and follows %d", u.Stream, u.Prev, last)
			}
			last = u.Stream
		}
		list, err := s.UserDevices(t.Context(), ourOwn)
		if err != nil || list.StreamID != last || len(list.Devices) != 0 {
			t.Fatalf("the list is %+v, %v", list, err)
		}
		if _, err := s.UserDevices(t.Context(), "@nobody:agency.example"); err == nil {
			t.Fatal("a list of nobody")
		}
		// She leaves, and comes back: they are told again.
		s.meet(t, 1, "leave", ourOwn)
		s.moved(t, 1, ourOwn)
		s.made(t, "bob", NewDevice{ID: "LAPTOP"})
		s.meet(t, 2, "join", "@bob:agency.example", carol)
		if _, err := s.UploadKeys(t.Context(), "@bob:agency.example", "LAPTOP", KeyUpload{DeviceKeys: keysOf("@bob:agency.example", "LAPTOP")}); err != nil {
			t.Fatal(err)
		}
		if got, _ := s.told(t); len(got) != 1 || got[0].User != "@bob:agency.example" {
			t.Fatalf("told %+v", got)
		}
		s.moved(t, 2, "@bob:agency.example")
		if got, _ := s.told(t); len(got) != 0 {
			t.Fatalf("told again: %+v", got)
		}
	})
}

// A restored database would give out one-time keys again that were given out.
func TestANewEpochDropsOneTimeKeysAndAnnouncesDevices(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		s.meet(t, 1, "join", ourOwn, carol)
		_, err := s.UploadKeys(t.Context(), ourOwn, "PHONE", KeyUpload{DeviceKeys: keysOf(ourOwn, "PHONE"),
			OneTimeKeys:  map[string]json.RawMessage{"c:1": json.RawMessage(`"a"`), "c:2": json.RawMessage(`"b"`)},
			FallbackKeys: map[string]json.RawMessage{"c:f": json.RawMessage(`"f"`)}})
		if err != nil {
			t.Fatal(err)
		}
		claim := func() string {
			got, err := s.ClaimLocalKeys(t.Context(), KeyClaims{ourOwn: {"PHONE": "c"}})
			if err != nil {
				t.Fatal(err)
			}
			for name := range got[ourOwn]["PHONE"] {
				return name
			}
			return ""
		}
		if got := claim(); got != "c:1" {
			t.Fatalf("claimed %s", got)
		}
		before, _ := s.told(t)
		last := before[len(before)-1].Stream
		if err := s.DB.BeginEpoch(t.Context(), "test"); err != nil {
			t.Fatal(err)
		}
		if got := claim(); got != "c:f" {
			t.Fatalf("after the restore %s was claimed", got)
		}
		got, _ := s.told(t)
		if len(got) != 1 || len(got[0].Prev) != 1 || got[0].Prev[0] <= last {
			t.Fatalf("announced %+v after %d: it shows no gap", got, last)
		}
		// Once for an epoch: keys uploaded since then stay.
		if _, err := s.UploadKeys(t.Context(), ourOwn, "PHONE", KeyUpload{OneTimeKeys: map[string]json.RawMessage{"c:3": json.RawMessage(`"c"`)}}); err != nil {
			t.Fatal(err)
		}
		s.keysEpoch.Store(0) // as after a restart
		if got := claim(); got != "c:3" {
			t.Fatalf("claimed %s", got)
		}
	})
}

// spec: c2s/getKeysChanges
func TestChangesNameThoseWhoShareARoom(t *testing.T) {
	eachHouse(t, func(t *testing.T, s *Server, _ *elsewhere) {
		s.made(t, "alice", NewDevice{ID: "PHONE"})
		s.made(t, "bob", NewDevice{ID: "B"})
		s.meet(t, 1, "join", ourOwn, carol)
		pos := func() (p int64) {
			if err := s.DB.Read(t.Context(), func(tx storage.Tx) (err error) { p, err = tx.MaxPos(); return err }); err != nil {
				t.Fatal(err)
			}
			return p
		}
		from := pos()
		s.receive(t, update(1, nil, "A", false))
		for u, d := range map[id.UserID]id.DeviceID{"@bob:agency.example": "B", ourOwn: "PHONE"} {
			if _, err := s.UploadKeys(t.Context(), u, d, KeyUpload{DeviceKeys: keysOf(u, string(d))}); err != nil {
				t.Fatal(err)
			}
		}
		to := pos()
		err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
			changed, left, err := s.DeviceListChanges(tx, ourOwn, from, to)
			if !slices.Equal(changed, []id.UserID{ourOwn, carol}) || len(left) != 0 {
				t.Errorf("changed %v, left %v", changed, left)
			}
			changed, _, err2 := s.DeviceListChanges(tx, ourOwn, to, to)
			if len(changed) != 0 {
				t.Errorf("nothing happened, and %v changed", changed)
			}
			return errors.Join(err, err2)
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}
