package roomserver_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// again is another engine on the same database, as after a restart.
func again(t testing.TB, s *roomserver.Server) *roomserver.Server {
	t.Helper()
	o := s.Options
	o.Reader, o.Log, o.Metrics = roomserver.NewReader(8<<20), zap.NewNop(), nil
	next := roomserver.New(o)
	ownShards(t, next)
	return next
}

// spec: rooms/v3#handling-redactions
func TestRedactionMayComeBeforeWhatItRedacts(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		auth := authIDs(t, s, version, room, join.ID())
		said := b.message(t, version, room, []id.EventID{join.ID()}, auth, "said")
		redaction := b.sign(t, version, nil, func(p *event.Proto) {
			p.RoomID, p.Sender, p.Type, p.Redacts = room, carol, "m.room.redaction", said.ID()
			p.PrevEvents, p.AuthEvents, p.Depth = []id.EventID{join.ID()}, auth, 51
		})
		for _, ev := range []*event.Event{redaction, said} {
			if err := s.ReceiveFor(t.Context(), room, ev); err != nil {
				t.Fatal(err)
			}
		}
		if got := stored(t, s, room, said.ID()); got.RedactedBy != redaction.ID() || gjson.GetBytes(got.Content(), "body").Exists() {
			t.Errorf("redacted by %q, it says %s", got.RedactedBy, got.Content())
		}
	})
}

// spec: rooms/v3#handling-redactions
func TestRedactionWithoutRightChangesNothing(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		s, b := beside(t, o)
		room := newRoom(t, s, version)
		join := b.join(t, s, room)
		said := send(t, s, room, "m.room.message", nil, map[string]any{"body": "stays", "msgtype": "m.text"})
		redaction := b.sign(t, version, nil, func(p *event.Proto) {
			p.RoomID, p.Sender, p.Type, p.Redacts = room, carol, "m.room.redaction", said
			p.PrevEvents, p.AuthEvents, p.Depth = []id.EventID{said}, authIDs(t, s, version, room, join.ID()), 51
		})
		if err := s.ReceiveFor(t.Context(), room, redaction); err != nil {
			t.Fatal(err)
		}
		if got := stored(t, s, room, said); got.RedactedBy != "" || gjson.GetBytes(got.Content(), "body").Str != "stays" {
			t.Errorf("redacted by %q, it says %s", got.RedactedBy, got.Content())
		}
	})
}

func stored(t *testing.T, s *roomserver.Server, room id.RoomID, eventID id.EventID) (ev *roomserver.Stored) {
	t.Helper()
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		var ok bool
		if ev, ok, err = s.Reader.One(tx, row, eventID); err == nil && !ok {
			err = fmt.Errorf("%s is not stored", eventID)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return ev
}

// members reads who is what by the table, and by the state.
func members(t *testing.T, s *roomserver.Server, room id.RoomID) (table, current map[string]string) {
	t.Helper()
	table, current = map[string]string{}, map[string]string{}
	counted := map[string]int64{}
	err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
		row, _, err := tx.Room(string(room))
		if err != nil {
			return err
		}
		rows, err := tx.Members(row.NID, []string{"join", "invite", "leave", "ban", "knock"})
		if err != nil {
			return err
		}
		for _, m := range rows {
			table[m.User] = m.Membership
			counted[m.Membership]++
			if m.Membership == "join" {
				counted[m.Server]++
			}
		}
		kept := map[string]int64{"join": row.Joined, "invite": row.Invited}
		servers, err := tx.ServersIn(row.NID)
		if err != nil {
			return err
		}
		for _, c := range servers {
			kept[c.Server] = c.Count
		}
		for of, n := range kept {
			if counted[of] != n || len(servers) == 0 && counted["join"] > 0 {
				t.Errorf("%d of %s, and the room keeps count of %d", counted[of], of, n)
			}
		}
		events, err := s.Reader.StateOfType(tx, row, state.Root(row.Root), "m.room.member")
		for _, ev := range events {
			key, _ := ev.StateKey()
			current[key] = ev.Membership()
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return table, current
}

// Whatever people do at once, the table of members says what the state says, and so does an engine that
// was just started.
func TestMembersFollowTheState(t *testing.T) {
	for seed := range uint64(2) {
		sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
			s := engine(t, fresh())
			room := newRoom(t, s, "12")
			var all sync.WaitGroup
			for worker := range uint64(4) {
				all.Go(func() {
					r := rand.New(rand.NewPCG(seed, worker))
					for range 60 {
						user := id.UserID(fmt.Sprintf("@u%d:a.example", r.IntN(6)))
						switch r.IntN(6) {
						case 0, 1:
							_ = s.Join(t.Context(), roomserver.Join{User: user, Room: room})
						case 2:
							_ = s.Leave(t.Context(), user, room, nil)
						case 3:
							_ = s.Invite(t.Context(), roomserver.Invite{Room: room, Sender: alice, Target: user})
						case 4:
							_ = s.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: user, Membership: "ban"})
						case 5:
							_ = s.ChangeMember(t.Context(), roomserver.Change{Room: room, Sender: alice, Target: user, Membership: "leave", Only: []string{"ban", "join"}})
						}
					}
				})
			}
			all.Wait()
			for restarted := range 2 {
				if restarted == 1 {
					s = again(t, s)
				}
				send(t, s, room, "m.room.message", nil, map[string]any{"body": "x"})
				table, current := members(t, s, room)
				if len(table) < 4 || fmt.Sprint(table) != fmt.Sprint(current) {
					t.Errorf("the table says %v, the state says %v", table, current)
				}
			}
		})
	}
}

// spec: c2s#transaction-identifiers
func TestTransactionIsOneEventAlsoAtOnceAndAfterARestart(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := engine(t, fresh())
		room := newRoom(t, s, "12")
		once := func(s *roomserver.Server) id.EventID {
			sent, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.message",
				Content: content(map[string]any{"body": "x"}), Once: &roomserver.Once{Device: "D", Txn: "t"}})
			if err != nil {
				t.Error(err)
			}
			return sent.ID
		}
		var mu sync.Mutex
		made := map[id.EventID]bool{}
		var all sync.WaitGroup
		for range 20 {
			all.Go(func() {
				eventID := once(s)
				mu.Lock()
				defer mu.Unlock()
				made[eventID] = true
			})
		}
		all.Wait()
		made[once(again(t, s))] = true
		if len(made) != 1 {
			t.Errorf("one transaction made %d events", len(made))
		}
	})
}

// spec: c2s#restricted-rooms
func TestRestrictedRoomLetsInWhoIsInTheOther(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := engine(t, fresh())
		other, room := newRoom(t, s, "12"), newRoom(t, s, "12")
		send(t, s, room, "m.room.join_rules", new(string), map[string]any{"join_rule": "restricted",
			"allow": []any{map[string]any{"type": "m.room_membership", "room_id": other}}})
		if err := s.Join(t.Context(), roomserver.Join{User: bob, Room: room}); err == nil {
			t.Fatal("bob is in none of the rooms that let in")
		}
		if err := s.Join(t.Context(), roomserver.Join{User: bob, Room: other}); err != nil {
			t.Fatal(err)
		}
		if err := s.Join(t.Context(), roomserver.Join{User: bob, Room: room}); err != nil {
			t.Fatal(err)
		}
		if via := gjson.GetBytes(stateOf(t, s, room, "m.room.member", string(bob)).Content(), "join_authorised_via_users_server").Str; via != string(alice) {
			t.Errorf("let in by %q", via)
		}
		// He is a member now: what he says of himself needs nobody's leave.
		if err := s.Join(t.Context(), roomserver.Join{User: bob, Room: room, Content: content(map[string]any{"displayname": "Bob"})}); err != nil {
			t.Error(err)
		}
	})
}

// A gap can be closed between when somebody saw it and when they ask for what it lacks: they read again.
func TestBackfillOfAGapThatIsClosed(t *testing.T) {
	s := engine(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	if more, err := s.Backfill(t.Context(), room, 1<<60, 100); err != nil || !more {
		t.Errorf("%v %v", more, err)
	}
}
