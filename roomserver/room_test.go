package roomserver_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"sync"
	"testing"

	"chancery"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const (
	alice = id.UserID("@alice:a.example")
	bob   = id.UserID("@bob:a.example")
)

// engine is a room engine without a network.
func engine(t testing.TB, open sql.Options) *roomserver.Server {
	t.Helper()
	db, err := storage.Open(t.Context(), open)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := roomserver.New(roomserver.Options{DB: db, Reader: roomserver.NewReader(8 << 20), ServerName: "a.example",
		KeyID: "ed25519:1", Key: key, Log: zap.NewNop()})
	ownShards(t, s)
	return s
}

// ownShards takes the shards and keeps them until the test ends: on a busy machine it lasts longer than a lease.
func ownShards(t testing.TB, s *roomserver.Server) {
	t.Helper()
	if err := s.Own(t.Context(), "test"); err != nil {
		t.Fatal(err)
	}
	var leases sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	leases.Go(func() { _ = s.KeepShards(ctx) }) // a commit tells when they are lost
	t.Cleanup(func() { stop(); leases.Wait() })
}

func content(v any) json.RawMessage {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return text
}

func newRoom(t testing.TB, s *roomserver.Server, version string) id.RoomID {
	t.Helper()
	empty, me := "", string(alice)
	creator := map[string]any{"room_version": version}
	if v, _ := event.Lookup(version); !v.CreatorFromSender {
		creator["creator"] = alice
	}
	levels := map[string]any{"users": map[string]any{string(alice): 100}}
	if version == "12" {
		levels = map[string]any{}
	}
	room, err := s.CreateRoom(t.Context(), roomserver.Create{Creator: alice, Version: version, Content: content(creator), Events: []roomserver.NewEvent{
		{Type: "m.room.member", StateKey: &me, Content: content(map[string]any{"membership": "join"})},
		{Type: "m.room.power_levels", StateKey: &empty, Content: content(levels)},
		{Type: "m.room.join_rules", StateKey: &empty, Content: content(map[string]any{"join_rule": "public"})},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return room
}

func TestRoomsOfOneMillisecondAreTwo(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		s := engine(t, fresh())
		const many = 50
		rooms := make([]id.RoomID, many)
		var all sync.WaitGroup
		for i := range rooms {
			all.Go(func() {
				me := string(alice)
				var err error
				rooms[i], err = s.CreateRoom(context.Background(), roomserver.Create{Creator: alice, Version: "12", Content: content(map[string]any{"room_version": "12"}),
					Events: []roomserver.NewEvent{{Type: "m.room.member", StateKey: &me, Content: content(map[string]any{"membership": "join"})}}})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		different := map[id.RoomID]bool{}
		for _, room := range rooms {
			different[room] = true
		}
		if len(different) != many {
			t.Errorf("%d rooms were made, want %d", len(different), many)
		}
	})
}

func TestMessagesStandInOrder(t *testing.T) {
	for _, version := range []string{"11", "12"} {
		t.Run(version, func(t *testing.T) {
			sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
				s := engine(t, fresh())
				room := newRoom(t, s, version)
				if err := s.Join(t.Context(), roomserver.Join{User: bob, Room: room}); err != nil {
					t.Fatal(err)
				}
				var all sync.WaitGroup
				for sender := range 8 {
					all.Go(func() {
						for i := range 25 {
							user := alice
							if sender%2 == 1 {
								user = bob
							}
							_, err := s.Send(context.Background(), roomserver.NewEvent{Room: room, Sender: user, Type: "m.room.message",
								Content: content(map[string]any{"body": fmt.Sprint(sender, i), "msgtype": "m.text"}),
								Once:    &roomserver.Once{Device: id.DeviceID(fmt.Sprint(sender)), Txn: fmt.Sprint(i)}})
							if err != nil {
								t.Error(err)
							}
						}
					})
				}
				all.Wait()
				err := s.DB.Read(t.Context(), func(tx storage.Tx) error {
					row, _, err := tx.Room(string(room))
					if err != nil {
						return err
					}
					events, err := tx.EventsAbove(row.NID, 0, 1<<62, 1000)
					if err != nil {
						return err
					}
					if len(events) != 5+200 {
						t.Errorf("the room has %d events, want 205", len(events))
					}
					ends, err := tx.Extremities(row.NID)
					if err != nil {
						return err
					}
					if len(ends) != 1 {
						t.Errorf("the room has %d open ends, want 1", len(ends))
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			})
		})
	}
}

func TestRepeatedTransactionFindsTheFirstEvent(t *testing.T) {
	s := engine(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	n := roomserver.NewEvent{Room: room, Sender: alice, Type: "m.room.message", Content: content(map[string]any{"body": "x"}),
		Once: &roomserver.Once{Device: "D", Txn: "t1"}}
	first, err := s.Send(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Send(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	if first != again {
		t.Errorf("the repetition made %s, the first was %s", again.ID, first.ID)
	}
}

func TestStrangerMayNotSend(t *testing.T) {
	s := engine(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	_, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: bob, Type: "m.room.message", Content: content(map[string]any{"body": "x"})})
	if !chancery.IsCode(err, chancery.CodeForbidden) {
		t.Errorf("a stranger's message got %v, want M_FORBIDDEN", err)
	}
	_, err = s.Send(t.Context(), roomserver.NewEvent{Room: "!nowhere:a.example", Sender: bob, Type: "m.room.message", Content: content(map[string]any{})})
	if !chancery.IsCode(err, chancery.CodeNotFound) {
		t.Errorf("a message to an unknown room got %v, want M_NOT_FOUND", err)
	}
}

func TestStateThatIsAlreadySoMakesNoEvent(t *testing.T) {
	s := engine(t, sqltest.SQLite(t))
	room := newRoom(t, s, "12")
	empty := ""
	name := func(sender id.UserID, text string) id.EventID {
		t.Helper()
		sent, err := s.Send(t.Context(), roomserver.NewEvent{Room: room, Sender: sender, Type: "m.room.name", StateKey: &empty,
			Content: content(map[string]any{"name": text})})
		if err != nil {
			t.Fatal(err)
		}
		return sent.ID
	}
	first := name(alice, "Budget")
	if again := name(alice, "Budget"); again != first {
		t.Errorf("the same name made the event %s after %s", again, first)
	}
	if other := name(alice, "Budget 2027"); other == first {
		t.Error("another name made no event")
	}
}
