package federation_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// 10,000 joins come into a room. Bob speaks meanwhile: each of his messages waits for a few of them only, which is
// counted, and how long it took is printed.
//
// spec: s2s/sendTransaction
func TestAJoinFloodLetsOurUsersSpeak(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		count := sized(600, 10_000)
		joins := make([]*event.Event, count)
		for i := range joins {
			joins[i] = e.member(e.user(fmt.Sprint("u", i)), "join", e.join)
			if i > 0 {
				joins[i] = e.member(e.user(fmt.Sprint("u", i)), "join", joins[i-1].ID())
			}
		}
		var most, said int64
		done := make(chan struct{})
		var longest time.Duration
		go func() {
			defer close(done)
			e.sends(joins...)
		}()
		for more := true; more; {
			before, began := e.victim.rows("events"), time.Now()
			e.victim.say(e.bob, e.room, "between")
			took := time.Since(began)
			// How many of the flood's events were taken while bob's one waited.
			passed := e.victim.rows("events") - before - 1
			most, longest, said = max(most, passed), max(longest, took), said+1
			select {
			case <-done:
				more = false
			case <-time.After(10 * time.Millisecond):
			}
		}
		t.Logf("%d joins: bob spoke %d times, the slowest message took %v and let %d joins go ahead", count, said, longest, most)
		if said < 3 {
			t.Fatal("the flood was too short to say anything")
		}
		// A transaction has 50: those being committed with bob's, and those whose turn it is.
		if most > 150 {
			t.Errorf("%d joins went ahead of one message", most)
		}
		if full && longest > time.Second {
			t.Errorf("a message took %v", longest)
		}
		e.want("the last join", joins[count-1], storage.Accepted)
	})
}

// 10,000 events each fork the room from the same place: the open ends stay few, and so does what a message costs.
func TestTenThousandForwardExtremities(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		stop := e.meanwhile()
		for from, count := 0, sized(400, 10_000); from < count; from += 50 {
			forks := make([]*event.Event, 50)
			for i := range forks {
				forks[i] = e.says(fmt.Sprint("fork ", from+i), nil)
			}
			e.sends(forks...)
			if ends := e.victim.ends(e.room); ends > 25 {
				t.Fatalf("after %d forks there are %d open ends", from+50, ends)
			}
		}
		longest, count := stop()
		t.Logf("bob said %d messages meanwhile, the slowest took %v", count, longest)
	})
}

// Somebody forks the room with one change of the power levels after the other, and so does bob: resolving the two
// chains is work that grows with the chains and not with what could be made of them.
//
// spec: rooms/v12#state-resolution
func TestChainsOfPowerLevelChangesAreResolvedInBoundedTime(t *testing.T) {
	for _, version := range []string{"1", "10", "12"} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				levels := func(n int) map[string]any {
					users := map[string]any{string(e.mallory): 90}
					if !e.version.PrivilegedCreators {
						users[string(e.bob)] = 100
					}
					return map[string]any{"users": users, "events": map[string]any{fmt.Sprint("x", n): 1}}
				}
				base := e.victim.sets(e.bob, e.room, "m.room.power_levels", levels(0))
				const changes = 40
				for i := range changes {
					e.victim.sets(e.bob, e.room, "m.room.power_levels", levels(i+1))
				}
				empty := ""
				chain := make([]*event.Event, changes)
				last := base
				for i := range chain {
					chain[i] = e.says("", func(p *event.Proto) {
						p.Type, p.StateKey, p.Content = "m.room.power_levels", &empty, content(levels(1000+i))
						p.PrevEvents, p.AuthEvents = []id.EventID{last}, append([]id.EventID{e.join, last}, e.auth[2:]...)
						p.Depth = int64(20 + i)
					})
					last = chain[i].ID()
				}
				began := time.Now()
				if refused := e.sends(chain...); len(refused) > 0 {
					t.Fatalf("refused: %v", refused)
				}
				took := time.Since(began)
				t.Logf("%d changes in a fork of %d took %v", changes, changes, took)
				if took > 2*time.Minute { // an algorithm that tries all paths between them would not end
					t.Errorf("%d changes took %v", changes, took)
				}
				// On top of both ends: a last change by bob settles it.
				settled := e.victim.sets(e.bob, e.room, "m.room.power_levels", levels(5000))
				if got := e.victim.stateID(e.room, "m.room.power_levels", ""); got != settled {
					t.Error("bob's change is not the room's state")
				}
			})
		})
	}
}

// A depth is its sender's word: the largest stops nothing.
//
// spec: s2s#pdus
func TestTheLargestDepthStopsNothing(t *testing.T) {
	for _, version := range []string{"5", "12"} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				deep := e.says("deep", func(p *event.Proto) { p.Depth = 1<<53 - 1 })
				e.sends(deep)
				e.want("the deepest event", deep, storage.Accepted)
				mine := e.victim.say(e.bob, e.room, "on top of it")
				if row, _ := e.victim.knows(mine); row.Depth != 1<<53-1 {
					t.Errorf("the next has depth %d", row.Depth)
				}
				shallow := e.says("shallow", func(p *event.Proto) { p.PrevEvents, p.Depth = []id.EventID{mine}, 0 })
				e.sends(shallow)
				e.want("a shallow event", shallow, storage.Accepted)
				if got := strings.Join(e.victim.said(e.room), ","); got != "deep,on top of it,shallow" {
					t.Errorf("the order is %s", got)
				}
			})
		})
	}
}

// Where signing keys are good for a time only, an event from the future is not signed; elsewhere it moves nothing.
//
// spec: rooms/v5#signing-key-validity-period
func TestEventsFromTheFuture(t *testing.T) {
	for version, want := range map[string]storage.EventStatus{"4": storage.Accepted, "12": notThere} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				future := e.at(time.UnixMilli(1<<53-1), "from the future")
				e.sends(future)
				e.want("the event", future, want)
				e.victim.say(e.bob, e.room, "now")
				if said := e.victim.said(e.room); said[len(said)-1] != "now" {
					t.Errorf("the order is %v", said)
				}
			})
		})
	}
}

// Redactions of one event, and of events that nobody has, are kept and no more; the one that counts takes effect.
//
// spec: rooms/v3#handling-redactions
func TestARedactionFloodTakesEffectOnce(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		target := e.says("to be redacted", nil)
		redaction := func(of id.EventID, n int) *event.Event {
			return e.says("", func(p *event.Proto) {
				p.Type, p.Redacts, p.Content = "m.room.redaction", of, content(map[string]any{"reason": fmt.Sprint(n)})
			})
		}
		bobs := e.victim.say(e.bob, e.room, "bob's")
		facts := e.victim.rows("facts")
		count := sized(200, 10_000)
		flood := make([]*event.Event, 0, count)
		for i := range count {
			of := []id.EventID{target.ID(), bobs, "$" + id.EventID(fmt.Sprintf("%043d", i))}[i%3]
			flood = append(flood, redaction(of, i))
		}
		stop := e.meanwhile()
		e.sends(flood...)
		e.sends(target)
		longest, said := stop()
		t.Logf("%d redactions, bob said %d messages meanwhile, the slowest took %v", count, said, longest)
		if row, _ := e.victim.knows(target.ID()); row.RedactedBy == "" || strings.Contains(string(row.JSON), "to be redacted") {
			t.Error("an event that was redacted before it came is not redacted")
		}
		if row, _ := e.victim.knows(bobs); row.RedactedBy != "" {
			t.Error("bob's message was redacted by somebody without the level")
		}
		if more := e.victim.rows("facts") - facts - int64(said); more > int64(count)+int64(count)/10+10 {
			t.Errorf("%d redactions made %d facts", count, more)
		}
	})
}

// A transaction that comes again, also while it is being taken, is taken once; its events under other transaction
// IDs change nothing.
//
// spec: s2s#transactions
func TestTransactionReplaysChangeNothing(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		events := make([]*event.Event, 20)
		txn := peer.Transaction{}
		for i := range events {
			events[i] = e.says(fmt.Sprint("once ", i), nil)
			txn.PDUs = append(txn.PDUs, events[i].JSON())
		}
		forged := strings.Replace(string(events[0].JSON()), `"depth":20`, `"depth":21`, 1)
		txn.PDUs = append(txn.PDUs, []byte(forged))
		var all sync.WaitGroup
		answers := make([]map[id.EventID]string, 10)
		for i := range answers {
			all.Go(func() {
				answer, err := e.peer.SendTransaction(t.Context(), e.victim.name, "the same", txn, peer.Opts{IgnoreBackoff: true})
				if err != nil {
					t.Error(err)
				}
				answers[i] = answer
			})
		}
		all.Wait()
		for _, answer := range answers {
			if fmt.Sprint(answer) != fmt.Sprint(answers[0]) || len(answer) != 1 {
				t.Errorf("the same transaction is answered %v and %v", answers[0], answer)
			}
		}
		rows, facts, kept := e.victim.rows("events"), e.victim.rows("facts"), e.victim.rows("received_transactions")
		for range 10 {
			e.sends(events...)
		}
		if rows != e.victim.rows("events") || facts != e.victim.rows("facts") {
			t.Error("replayed events made rows")
		}
		if more := e.victim.rows("received_transactions") - kept; more != 10 {
			t.Errorf("10 transactions are remembered as %d", more)
		}
	})
}

// Messages to devices that there are not, or of users of others, leave nothing; one transaction has at most 100.
//
// spec: s2s#send-to-device-messaging
func TestAToDeviceFloodLeavesNothing(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		devices := map[string]any{}
		for i := range 100 {
			devices[fmt.Sprint("DEVICE", i)] = map[string]any{"x": strings.Repeat("y", 100)}
		}
		var edus []peer.EDU
		for i := range 100 {
			edus = append(edus, peer.EDU{Type: "m.direct_to_device", Content: content(map[string]any{"sender": e.mallory, "type": "m.test",
				"message_id": fmt.Sprint("m", i), "messages": map[string]any{string(e.bob): devices, string(e.victim.user("nobody")): devices,
					"@x:third.example": devices}})})
		}
		for range 3 { // the message IDs repeat
			e.sendsRaw(peer.Transaction{EDUs: edus})
		}
		if n := e.victim.rows("to_device"); n > 0 {
			t.Errorf("%d messages wait for devices that there are not", n)
		}
		if _, err := e.peer.SendTransaction(t.Context(), e.victim.name, "too many", peer.Transaction{EDUs: append(edus, edus[0])},
			peer.Opts{IgnoreBackoff: true}); err == nil {
			t.Error("101 EDUs were taken")
		}
	})
}

// One server puts a bounded number of invites before one of our users.
//
// spec: s2s/sendInviteV2
func TestAnInviteFloodIsBounded(t *testing.T) {
	attack(t, "11", func(t *testing.T, e *evil) {
		refused := 0
		const count = 130
		for i := range count {
			key := string(e.bob)
			room := id.RoomID(fmt.Sprintf("!flood%d:%s", i, e.name))
			ev := e.says("", func(p *event.Proto) {
				p.RoomID, p.Type, p.StateKey, p.Content = room, "m.room.member", &key, content(map[string]any{"membership": "invite"})
			})
			if _, err := e.peer.Invite(t.Context(), e.victim.name, room, ev.ID(), peer.Invite{RoomVersion: "11", Event: ev.JSON()}); err != nil {
				refused++
			}
		}
		if n := e.victim.rows("invites"); n > 100 || n < 50 || refused != count-int(n) {
			t.Errorf("of %d invites %d wait, and %d were refused", count, n, refused)
		}
	})
}

// at makes a message of another time.
func (e *evil) at(when time.Time, body string) *event.Event {
	e.t.Helper()
	p := event.Proto{RoomID: e.room, Sender: e.mallory, Type: "m.room.message", Content: content(map[string]any{"body": body, "msgtype": "m.text"}),
		PrevEvents: []id.EventID{e.join}, AuthEvents: e.auth, Depth: 20}
	key := e.keys.Key()
	ev, err := event.Build(e.version, p, e.name, key.ID, key.Private, when)
	if err != nil {
		e.t.Fatal(err)
	}
	return ev
}

// What somebody who was banned says on top of what was before the ban reaches nobody, and brings nobody back.
//
// spec: s2s#soft-failure
func TestBanEvasionByOldPrevEvents(t *testing.T) {
	for _, version := range []string{"2", "10", "12"} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				accomplice := e.user("accomplice")
				e.sends(e.member(accomplice, "join"))
				release := hold(e.node)
				defer release()
				for _, user := range []id.UserID{e.mallory, accomplice} {
					if err := e.victim.rooms.ChangeMember(t.Context(), roomserver.Change{Room: e.room, Sender: e.bob, Target: user, Membership: "ban"}); err != nil {
						t.Fatal(err)
					}
				}
				message := e.says("from before", nil)
				again := e.member(e.mallory, "join")
				leave := e.member(e.mallory, "leave")
				rejoin := e.member(e.mallory, "join", leave.ID())
				chain := []*event.Event{message, again, leave, rejoin}
				last := rejoin.ID()
				for i := range 20 {
					next := e.says(fmt.Sprint("on and on ", i), func(p *event.Proto) { p.PrevEvents = []id.EventID{last} })
					last = next.ID()
					chain = append(chain, next)
				}
				e.sends(chain...)
				for _, ev := range chain {
					if got := e.status(ev); got == storage.Accepted {
						t.Errorf("%s of somebody who was banned was accepted", ev.Type())
					}
				}
				if got := e.victim.membership(e.room, e.mallory); got != "ban" {
					t.Errorf("mallory is %s", got)
				}
				if said := e.victim.said(e.room); len(said) > 0 {
					t.Errorf("the room says %q", said)
				}
				if ends := e.victim.ends(e.room); ends != 1 {
					t.Errorf("there are %d open ends", ends)
				}
			})
		})
	}
}
