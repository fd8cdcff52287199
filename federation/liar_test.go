package federation_test

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// gap makes an event whose prev event nobody has.
func (e *evil) gap(body string) *event.Event {
	return e.says(body, func(p *event.Proto) { p.PrevEvents = []id.EventID{"$" + id.EventID(strings.Repeat("x", 42)) + "g"} })
}

// State that cannot be is not believed, and the event that it was told for is not rejected for good because of it.
//
// spec: s2s/getRoomStateIds, s2s#checks-performed-on-receipt-of-a-pdu
func TestLyingStateIDsAreNotBelieved(t *testing.T) {
	attack(t, "11", func(t *testing.T, e *evil) {
		b := e.victim
		e.hasNot("get_missing_events", "event", "event_auth")
		e.tells("state", map[string]any{"pdus": []any{}, "auth_chain": []any{}})
		other := b.roomOf("11", e.bob, nil)
		state := b.present(e.room)
		without := func(eventID id.EventID) (ids []string) {
			for _, v := range state {
				if v != string(eventID) {
					ids = append(ids, v)
				}
			}
			return ids
		}
		create := b.stateID(e.room, "m.room.create", "")
		old := b.stateID(e.room, "m.room.power_levels", "")
		b.sets(e.bob, e.room, "m.room.power_levels", map[string]any{"users": map[string]any{string(e.bob): 100}, "invite": 1})
		empty := ""
		rejected := e.says("", func(p *event.Proto) {
			p.Type, p.StateKey, p.Content = "m.room.name", &empty, content(map[string]any{"name": "mine"})
		})
		e.sends(rejected)
		e.want("a name without the level", rejected, storage.Rejected)
		message := b.say(e.bob, e.room, "no state")
		for i, c := range []struct {
			name  string
			ids   []string
			taken bool
		}{
			{"the truth", state, true},
			{"duplicates", append(append([]string{}, state...), state...), true},
			{"a rejected event", append([]string{string(rejected.ID())}, state...), true},
			{"nothing", []string{}, false},
			{"no create event", without(create), false},
			{"events of another room", b.present(other), false},
			{"the create event of another room", append(without(create), string(b.stateID(other, "m.room.create", ""))), false},
			{"two events for one key", append(append([]string{}, state...), string(b.stateID(e.room, "m.room.power_levels", ""))), false},
			{"an event that is no state", append([]string{string(message)}, state...), false},
			{"an event that nobody has", append([]string{"$" + strings.Repeat("y", 43)}, state...), false},
		} {
			e.tells("state_ids", map[string]any{"pdu_ids": c.ids, "auth_chain_ids": []string{}})
			ev := e.gap(fmt.Sprint("gap ", i))
			refused := e.sends(ev)
			if c.taken {
				e.want(c.name, ev, storage.Accepted)
			} else if e.want(c.name, ev, notThere); refused[ev.ID()] == "" {
				t.Errorf("%s: nothing was said against it", c.name)
			}
		}
		if got := b.stateID(e.room, "m.room.name", ""); got != "" {
			t.Error("the rejected name is the room's")
		}
		if got := b.stateID(e.room, "m.room.power_levels", ""); got == old {
			t.Error("the old power levels are back")
		}
	})
}

// Where a server says that it has no state, an event is judged by what is known: that of somebody who may speak is
// taken, that of somebody who was banned is not.
//
// spec: s2s#checks-performed-on-receipt-of-a-pdu
func TestAStateThatNobodyHasIsMadeOfWhatIsKnown(t *testing.T) {
	for _, version := range []string{"1", "6", "12"} {
		t.Run(version, func(t *testing.T) {
			attack(t, version, func(t *testing.T, e *evil) {
				e.hasNot("get_missing_events", "event", "event_auth", "state", "state_ids")
				prev := id.EventID("$nobodyhasit")
				if e.version.EventFormat == event.FormatReferences {
					prev = "$nobodyhasit:example.org"
				}
				onNothing := func(body string) *event.Event {
					return e.says(body, func(p *event.Proto) { p.PrevEvents = []id.EventID{prev} })
				}
				ev := onNothing("after a gap")
				if refused := e.sends(ev); len(refused) > 0 {
					t.Fatalf("refused: %v", refused)
				}
				e.want("the message", ev, storage.Accepted)
				if err := e.victim.rooms.ChangeMember(t.Context(), roomserver.Change{Room: e.room, Sender: e.bob, Target: e.mallory, Membership: "ban"}); err != nil {
					t.Fatal(err)
				}
				late := onNothing("I am not banned")
				e.sends(late)
				if got := e.status(late); got == storage.Accepted {
					t.Error("somebody who was banned speaks")
				}
			})
		})
	}
}

// An answer of 50 MB, validly made or not, costs neither rows nor memory for long.
//
// spec: s2s/getRoomState
func TestStateAnswersOfFiftyMegabytesAreBounded(t *testing.T) {
	size := 50 << 20
	if testing.Short() { // the race detector needs minutes to read so much
		size /= 5
	}
	attack(t, "12", func(t *testing.T, e *evil) {
		e.hasNot("get_missing_events", "event", "event_auth")
		var ids []string
		for i := range 300 {
			ids = append(ids, fmt.Sprintf("$%043d", i))
		}
		e.tells("state_ids", map[string]any{"pdu_ids": append(ids, e.victim.present(e.room)...), "auth_chain_ids": []string{}})
		junk := string(e.says(strings.Repeat("x", 2000), nil).JSON())
		written := 0
		e.answer("state", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"auth_chain":[],"pdus":[%s`, junk)
			for written = len(junk); written < size; {
				n, err := fmt.Fprintf(w, ",%s", junk)
				if err != nil {
					return
				}
				written += n
			}
			fmt.Fprint(w, `]}`)
		})
		before, events := heap(), e.victim.rows("events")
		ev := e.gap("after 50 MB")
		if refused := e.sends(ev); refused[ev.ID()] == "" {
			t.Error("nothing was said against it")
		}
		if written < size*4/5 {
			t.Fatalf("only %d bytes were asked for", written)
		}
		if more := e.victim.rows("events") - events; more > 0 {
			t.Errorf("%d events were stored", more)
		}
		if grown := heap() - before; grown > 40<<20 {
			t.Errorf("%d MB stay in memory", grown>>20)
		}
	})
}

func heap() int64 {
	var m runtime.MemStats
	for range 2 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A body that comes byte by byte holds up nobody but its sender.
func TestSlowBodiesHoldUpNobody(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		c := newNode(t, e.authority, sqliteOf(t))
		c.join(c.user("carol"), e.room, e.victim)
		end := make(chan struct{})
		drip := func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			for {
				if _, err := w.Write([]byte(" ")); err != nil {
					return
				}
				w.(http.Flusher).Flush()
				select {
				case <-end:
					return
				case <-r.Context().Done():
					return
				case <-time.After(5 * time.Millisecond):
				}
			}
		}
		for _, endpoint := range []string{"get_missing_events", "state_ids", "state", "event", "event_auth"} {
			e.answer(endpoint, drip)
		}
		ev := e.gap("slowly")
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			_, _ = e.peer.SendTransaction(t.Context(), e.victim.name, "slow", peer.Transaction{PDUs: rawList(ev.JSON())}, peer.Opts{IgnoreBackoff: true})
		}()
		eventually(t, "the slow server is asked", func() bool { return e.requests("get_missing_events") > 0 })
		stop := e.meanwhile()
		c.say(c.user("carol"), e.room, "from a third server")
		eventually(t, "the third server's message arrives", func() bool {
			return strings.Contains(fmt.Sprint(e.victim.said(e.room)), "from a third server")
		})
		longest, count := stop()
		t.Logf("%d messages meanwhile, the slowest took %v", count, longest)
		select {
		case <-sent:
			t.Error("the slow answer has ended: the messages may have waited for it")
		default:
		}
		close(end)
		<-sent
	})
}

// Whatever is given for missing events, it is asked a few times and no more.
//
// spec: s2s/getMissingPreviousEvents
func TestMissingEventsWithoutEndAreAskedForAFewTimes(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		e.hasNot("event", "event_auth", "state")
		last := e.gap("the first of many")
		n := 0
		// Each answer has events that hang together and stand on others that nobody has, 100,000 deeper each time.
		e.answer("get_missing_events", func(w http.ResponseWriter, r *http.Request) {
			var pdus []json.RawMessage
			for range 200 {
				n++
				pdus = append(pdus, e.says(fmt.Sprint("missing ", n), func(p *event.Proto) {
					p.PrevEvents, p.Depth = []id.EventID{last.ID(), "$" + id.EventID(fmt.Sprintf("%043d", n))}, int64(n)*100_000
				}).JSON())
			}
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(map[string]any{"events": pdus})
		})
		e.answer("state_ids", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(map[string]any{"pdu_ids": e.victim.present(e.room), "auth_chain_ids": []string{}})
		})
		top := e.says("on top", func(p *event.Proto) { p.PrevEvents = []id.EventID{last.ID()} })
		events, gaps := e.victim.rows("events"), e.victim.rows("missing_prev")
		e.sends(top)
		if asked := e.requests("get_missing_events"); asked > 4 {
			t.Errorf("missing events were asked for %d times", asked)
		}
		if asked := e.requests("state_ids"); asked > 10 {
			t.Errorf("states were asked for %d times", asked)
		}
		if more := e.victim.rows("events") - events; more > 60 {
			t.Errorf("%d events were stored", more)
		}
		if more := e.victim.rows("missing_prev") - gaps; more > 200 {
			t.Errorf("%d gaps were stored", more)
		}
	})
}

// Backfill that gives what was not asked for, without end, stores nothing, and whoever reads again does not wait
// for it again.
//
// spec: s2s/backfillRoom
func TestBackfillOfUnrelatedEventsStoresNothing(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		e.hasNot("get_missing_events", "event", "event_auth", "state", "state_ids")
		ev := e.gap("above a gap")
		e.sends(ev)
		e.want("the message", ev, storage.Accepted)
		unrelated := make([]*event.Event, 0, 3000)
		for i := range cap(unrelated) {
			unrelated = append(unrelated, e.says(fmt.Sprint("unrelated ", i), nil))
		}
		e.answer("backfill", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			var pdus []json.RawMessage
			for _, ev := range unrelated {
				pdus = append(pdus, ev.JSON())
			}
			json.NewEncoder(w).Encode(map[string]any{"origin": e.name, "origin_server_ts": 1, "pdus": pdus})
		})
		events := e.victim.rows("events")
		for range 20 {
			if came, err := e.victim.rooms.Backfill(t.Context(), e.room, 1<<60, 100); err != nil || came {
				t.Fatalf("came: %v, %v", came, err)
			}
		}
		if more := e.victim.rows("events") - events; more > 0 {
			t.Errorf("%d events were stored", more)
		}
		if asked := e.requests("backfill"); asked > 5 {
			t.Errorf("backfill was asked for %d times", asked)
		}
	})
}

// Up to version 5 depths reach as far as integers do: what comes next must not fall below zero.
//
// spec: rooms/v4#event-format
func TestTheGreatestDepthDoesNotStopARoom(t *testing.T) {
	attack(t, "5", func(t *testing.T, e *evil) {
		ev := e.says("at the bottom", func(p *event.Proto) { p.Depth = math.MaxInt64 })
		e.sends(ev)
		e.want("the event", ev, storage.Accepted)
	})
}

// History has events that name more prev events than is allowed by now: refused, they would end it.
//
// spec: s2s/backfillRoom
func TestHistoryIsNotRefusedForItsManyPrevEvents(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		var v map[string]any
		if err := json.Unmarshal(e.says("of the past", nil).JSON(), &v); err != nil {
			t.Fatal(err)
		}
		v["prev_events"], v["signatures"] = slices.Repeat([]id.EventID{e.join}, 21), map[string]any{}
		past, err := event.ParsePast(e.version, rehashed(string(content(v))))
		if err != nil {
			t.Fatal(err)
		}
		key := e.keys.Key()
		if past, err = past.Sign(e.name, key.ID, key.Private); err != nil {
			t.Fatal(err)
		}
		ev := e.says("above a gap", func(p *event.Proto) { p.PrevEvents = []id.EventID{past.ID()} })
		e.hasNot("get_missing_events", "state", "state_ids")
		e.tells("backfill", map[string]any{"origin": e.name, "origin_server_ts": 1, "pdus": rawList(ev.JSON(), past.JSON())})
		e.sends(ev)
		e.want("what builds on it", ev, storage.Accepted)
		// Whoever is at work on the gap at this moment may have been first.
		if _, err := e.victim.rooms.Backfill(t.Context(), e.room, 1<<60, 100); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the event of the past is there", func() bool { return e.status(past) == storage.Accepted })
	})
}

// Auth events that are missing, or that stand in a circle as the IDs of versions 1 and 2 allow it.
//
// spec: s2s/getEventAuth
func TestMissingAndCyclicAuthEvents(t *testing.T) {
	attack(t, "12", func(t *testing.T, e *evil) {
		ev := e.says("on nothing", func(p *event.Proto) { p.AuthEvents = append(p.AuthEvents, "$"+id.EventID(strings.Repeat("z", 43))) })
		for name, answer := range map[string]any{"nothing": []any{}, "junk": []any{1, "x", map[string]any{}}, "itself": rawList(ev.JSON())} {
			e.tells("event_auth", map[string]any{"auth_chain": answer})
			if refused := e.sends(ev); refused[ev.ID()] == "" {
				t.Errorf("%s: nothing was said against it", name)
			}
			e.want(name, ev, notThere)
		}
	})
	attack(t, "1", func(t *testing.T, e *evil) {
		// Two memberships that cite each other.
		circle := make([]*event.Event, 2)
		for i := range circle {
			circle[i] = e.chosen(fmt.Sprintf("$circle%d:%s", i, e.name), e.room, func(v map[string]any) {
				v["type"], v["state_key"], v["content"] = "m.room.member", string(e.mallory), map[string]any{"membership": "join"}
				v["auth_events"] = append(v["auth_events"].([]any), []any{fmt.Sprintf("$circle%d:%s", 1-i, e.name), map[string]any{"sha256": ""}})
			})
		}
		e.tells("event_auth", map[string]any{"auth_chain": rawList(circle[0].JSON(), circle[1].JSON())})
		ev := e.chosen("$cites:"+e.name, e.room, func(v map[string]any) {
			v["auth_events"] = append(v["auth_events"].([]any), []any{string(circle[0].ID()), map[string]any{"sha256": ""}})
		})
		for _, v := range []*event.Event{ev, circle[0], circle[1]} {
			if refused := e.sends(v); refused[v.ID()] == "" {
				t.Errorf("%s: nothing was said against it", v.ID())
			}
			e.want(string(v.ID()), v, notThere)
		}
	})
}
