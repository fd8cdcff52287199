package durability

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/test/homeserver"

	"github.com/tidwall/gjson"
)

func idsOf(events []gjson.Result) (ids []string) {
	for _, ev := range events {
		ids = append(ids, ev.Get("event_id").Str)
	}
	return ids
}

// prevOf reads the prev events of the newest event of a room.
func prevOf(t *testing.T, u *homeserver.User, room, event string) (prev []string) {
	t.Helper()
	filter := fmt.Sprintf(`{"event_format":"federation","room":{"rooms":[%q],"timeline":{"limit":5}}}`, room)
	a := u.OK("GET", "/_matrix/client/v3/sync?filter="+url.QueryEscape(filter), nil)
	for _, ev := range a.Get("rooms.join").Map()[room].Get("timeline.events").Array() {
		if ev.Get("event_id").Str == event {
			for _, p := range ev.Get("prev_events").Array() {
				prev = append(prev, p.Str)
			}
			return prev
		}
	}
	t.Fatalf("%s is not in the timeline: %.1000s", event, a)
	return nil
}

// order.md 3: after yesterday's database was put back, other servers have what we lost, our own events too. Rooms get
// it back, and what is sent at once builds on it.
func TestOtherServersHaveWhatARestoreLost(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		where := fresh()
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: where})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh()})
		alice, carol, bob := a.Register(t, "alice"), a.Register(t, "carol"), b.Register(t, "bob")
		few, many := alice.CreateRoom(J{"preset": "public_chat"}), alice.CreateRoom(J{"preset": "public_chat"})
		alone := alice.CreateRoom(J{"preset": "public_chat"})
		bob.Join(few, a.Name)
		bob.Join(many, a.Name)
		if strings.Contains(b.Log(), "state moved without an event") {
			t.Error("that a room begins is taken for a state that moved")
		}
		for _, room := range []string{few, many, alone} {
			alice.Send(room, "yesterday")
		}
		db := databaseOf(t, a, where)
		a.Stop()
		db.save(t)
		a.Start()

		alice.Send(few, "today")
		carol.Join(few)
		alice.OK("PUT", homeserver.Room(few, "state", "m.room.topic", ""), J{"topic": "today"})
		topic := history(t, alice, few)
		eventually(t, "the other server has the topic", func() bool {
			return slices.Contains(idsOf(history(t, bob, few)), topic[len(topic)-1].Get("event_id").Str)
		})
		said := bob.Send(few, "from the other server")
		eventually(t, "what the other server said is here", func() bool { return slices.Contains(idsOf(history(t, alice, few)), said) })
		last := alice.Send(few, "the last before the disk broke")
		for i := range 70 { // more than are fetched at once
			alice.Send(many, fmt.Sprint("lost ", i))
		}
		alice.Send(alone, "nobody else has this")
		want := map[string][]string{few: idsOf(history(t, alice, few)), many: idsOf(history(t, alice, many))}
		for room, ids := range want {
			eventually(t, "the other server has the last of it", func() bool { return slices.Contains(idsOf(history(t, bob, room)), ids[len(ids)-1]) })
		}

		a.Stop()
		db.restore(t)
		a.Start()
		next := alice.Send(few, "after the restore")
		if prev := prevOf(t, alice, few, next); !slices.Equal(prev, []string{last}) {
			t.Errorf("what is sent after the restore builds on %v, the last event is %s", prev, last)
		}
		want[few] = append(want[few], next)
		for room, ids := range want {
			eventually(t, "what was lost is back", func() bool { return slices.Equal(idsOf(history(t, alice, room)), ids) })
		}
		if topic := alice.OK("GET", homeserver.Room(few, "state", "m.room.topic", ""), nil).Get("topic").Str; topic != "today" {
			t.Errorf("the topic is %q", topic)
		}
		if rooms := carol.OK("GET", "/_matrix/client/v3/joined_rooms", nil).Text; !strings.Contains(rooms, few) {
			t.Errorf("carol, whose join was lost, is in %s", rooms)
		}
		eventually(t, "the other server has what came after", func() bool { return slices.Contains(idsOf(history(t, bob, few)), next) })
		if status := alice.Ask("PUT", homeserver.Room(alone, "send", "m.room.message", homeserver.Txn()), J{"msgtype": "m.text", "body": "alone"}).Status; status != http.StatusOK {
			t.Errorf("in a room of our own: %d", status)
		}
		// Asked once, the rooms ask no more.
		a.Stop()
		a.Start()
		alice.Send(many, "and on")
		if strings.Contains(a.Log(), "could not ask for the lost events") {
			t.Error("the rooms asked again")
		}
	})
}

// eventually waits for what another server or a goroutine brings about.
func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after two minutes it is not so that %s", what)
		}
	}
}

// A server that is killed again and again while it asks others for what a restore lost gets it back all the same, with what
// they have said meanwhile.
func TestKilledWhileALossIsMended(t *testing.T) {
	homeserver.EachEngine(t, func(t *testing.T, fresh func() string) {
		ca := homeserver.NewCA(t)
		where := fresh()
		a := homeserver.Start(t, homeserver.Options{CA: ca, Database: where, Process: true})
		b := homeserver.Start(t, homeserver.Options{CA: ca, Database: fresh(), Process: true})
		alice, bob := a.Register(t, "alice"), b.Register(t, "bob")
		rooms := make([]string, 6)
		for i := range rooms {
			rooms[i] = alice.CreateRoom(J{"preset": "public_chat"})
			bob.Join(rooms[i], a.Name)
			alice.Send(rooms[i], "yesterday")
		}
		db := databaseOf(t, a, where)
		a.Stop()
		db.save(t)
		a.Start()
		has := func(u *homeserver.User, room, event string) bool {
			return slices.Contains(idsOf(history(t, u, room)), event)
		}
		for _, room := range rooms {
			var last string
			for i := range 25 {
				last = alice.Send(room, fmt.Sprint("lost ", i))
			}
			eventually(t, "the other server has the last of it", func() bool { return has(bob, room, last) })
		}
		a.Stop()
		db.restore(t)
		for range 4 {
			a.Start()
			for _, room := range rooms {
				bob.Send(room, "meanwhile")
			}
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
			a.Kill()
		}
		a.Start()
		for _, room := range rooms {
			alice.Send(room, "after the restore")
			last := bob.Send(room, "and on")
			eventually(t, "what came last is here", func() bool { return has(alice, room, last) })
			eventually(t, "both servers have the same events", func() bool {
				ours, theirs := idsOf(history(t, alice, room)), idsOf(history(t, bob, room))
				slices.Sort(ours)
				slices.Sort(theirs)
				return slices.Equal(ours, theirs)
			})
			times := map[string]int{}
			for _, ev := range history(t, alice, room) {
				times[ev.Get("content.body").Str]++
			}
			for i := range 25 {
				if n := times[fmt.Sprint("lost ", i)]; n != 1 {
					t.Errorf("what was lost is back %d times", n)
				}
			}
			if times["meanwhile"] != 4 {
				t.Errorf("%d of the 4 messages are here that were sent while the server came and went", times["meanwhile"])
			}
		}
	})
}
