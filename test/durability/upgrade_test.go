package durability

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"chancery/test/homeserver"
)

// replaced is a room that is to be replaced while the server is killed.
type replaced struct {
	room, alias string
	told        string // the room that an answer named, empty when none came
}

func (r *replaced) upgrade(ctx context.Context, u *homeserver.User) (homeserver.Answer, error) {
	return u.Try(ctx, "POST", homeserver.Room(r.room, "upgrade"), J{"new_version": "12"})
}

// check looks at what a kill has left: the room is replaced in all ways or in none.
func (r *replaced) check(t *testing.T, u *homeserver.User) (done bool) {
	t.Helper()
	next := ""
	if a := u.Ask("GET", homeserver.Room(r.room, "state", "m.room.tombstone"), nil); a.Status == http.StatusOK {
		next = a.Get("replacement_room").Str
	}
	if r.told != "" && r.told != next {
		t.Errorf("%s was acknowledged to be replaced by %s, its tombstone names %q", r.room, r.told, next)
	}
	means := u.OK("GET", "/_matrix/client/v3/directory/room/"+url.PathEscape(r.alias), nil).Get("room_id").Str
	if next == "" {
		if means != r.room {
			t.Errorf("%s means %s, and %s is not replaced", r.alias, means, r.room)
		}
		return false
	}
	if means != next {
		t.Errorf("%s means %s, and %s is replaced by %s", r.alias, means, r.room, next)
	}
	if from := u.OK("GET", homeserver.Room(next, "state", "m.room.create"), nil).Get("predecessor.room_id").Str; from != r.room {
		t.Errorf("%s is replaced by the room that replaces %q", r.room, from)
	}
	u.Refused(400, "M_BAD_STATE", "POST", homeserver.Room(r.room, "upgrade"), J{"new_version": "12"})
	return true
}

// A room that is being replaced when the server is killed is replaced, or it is as it was and can be replaced again.
func TestKilledWhileRoomsAreReplaced(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		s := homeserver.Start(t, homeserver.Options{Database: fresh(), Process: true})
		alice := s.Register(t, "alice")
		rooms := make([]*replaced, 36)
		for i := range rooms {
			name := fmt.Sprint("room", i)
			rooms[i] = &replaced{room: alice.CreateRoom(J{"preset": "public_chat", "room_version": "11", "room_alias_name": name}), alias: "#" + name + ":" + s.Name}
		}
		acknowledged := 0
		for round := range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			some := make(chan struct{}, len(rooms))
			var group sync.WaitGroup
			for half := range 2 {
				group.Go(func() {
					for i := round*12 + half; i < round*12+12; i += 2 {
						a, err := rooms[i].upgrade(ctx, alice)
						if err == nil && a.Status != http.StatusOK {
							t.Errorf("upgrade: %s", a)
						}
						if err == nil {
							rooms[i].told = a.Get("replacement_room").Str
						}
						some <- struct{}{}
					}
				})
			}
			for range 1 + rand.IntN(8) {
				<-some
			}
			time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
			s.Kill()
			cancel()
			group.Wait()
			s.Start()
			for _, r := range rooms[round*12 : round*12+12] {
				if r.told != "" {
					acknowledged++
				}
				if r.check(t, alice) {
					continue
				}
				if a, err := r.upgrade(t.Context(), alice); err != nil || a.Status != http.StatusOK {
					t.Fatalf("%s cannot be replaced any more: %s %v", r.room, a, err)
				}
				if !r.check(t, alice) {
					t.Errorf("%s is not replaced", r.room)
				}
			}
		}
		t.Logf("%d of %d replacements were acknowledged before a kill", acknowledged, len(rooms))
		if joined := alice.OK("GET", "/_matrix/client/v3/joined_rooms", nil).Get("joined_rooms").Array(); len(joined) != 2*len(rooms) {
			t.Errorf("alice is in %d rooms, want each and what replaces it, %d", len(joined), 2*len(rooms))
		}
	})
}
