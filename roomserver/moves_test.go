package roomserver_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"
	"maunium.net/go/mautrix/id"
)

// reset makes a room in which bob joins, and a fork from before that which closes the room: once it is here,
// bob's join is not allowed any more, and he is in no state of the room.
type reset struct {
	s     *roomserver.Server
	other other
	room  id.RoomID
	bob   id.EventID   // his join
	fork  *event.Event // carol's join rules
	log   *observer.ObservedLogs
	reg   *prometheus.Registry
}

func makeReset(t *testing.T, version string, o sql.Options) *reset {
	t.Helper()
	s, b := beside(t, o)
	r := &reset{other: b, reg: prometheus.NewRegistry()}
	core, logs := observer.New(zapcore.InfoLevel)
	options := s.Options
	options.Log, options.Metrics = zap.New(core), r.reg
	r.s, r.log = roomserver.New(options), logs
	ownShards(t, r.s)
	empty := ""
	r.room = newRoom(t, r.s, version)
	join := b.join(t, r.s, r.room)
	users := map[string]any{string(carol): 100}
	if version != "12" {
		users[string(alice)] = 100
	}
	send(t, r.s, r.room, "m.room.power_levels", &empty, map[string]any{"users": users})
	before := send(t, r.s, r.room, "m.room.message", nil, map[string]any{"body": "before", "msgtype": "m.text"})
	auth := authIDs(t, r.s, version, r.room, join.ID())
	if err := r.s.Join(t.Context(), roomserver.Join{User: bob, Room: r.room, Content: content(map[string]any{"displayname": "Bob"})}); err != nil {
		t.Fatal(err)
	}
	r.bob = stateOf(t, r.s, r.room, "m.room.member", string(bob)).ID()
	r.fork = b.sign(t, version, nil, func(p *event.Proto) {
		p.RoomID, p.Sender, p.Type, p.StateKey = r.room, carol, "m.room.join_rules", &empty
		p.Content, p.PrevEvents, p.AuthEvents, p.Depth = content(map[string]any{"join_rule": "invite"}), []id.EventID{before}, auth, 50
	})
	return r
}

// spec: rooms/v11#state-resolution, rooms/v12#state-resolution
func TestMembershipLostWithoutAnEventIsSeen(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		r := makeReset(t, version, o)
		from, err := r.s.DB.MaxPos(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := r.s.ReceiveFor(t.Context(), r.room, r.fork); err != nil {
			t.Fatal(err)
		}
		if got := statusOf(t, r.s, r.fork.ID()); got != storage.Accepted {
			t.Fatalf("the fork has status %d", got)
		}
		table, current := members(t, r.s, r.room)
		if _, is := current[string(bob)]; is || fmt.Sprint(table) != fmt.Sprint(current) || len(table) != 2 {
			t.Errorf("the table says %v, the state says %v", table, current)
		}
		facts, err := r.s.DB.FactsAfter(t.Context(), from, 10)
		if err != nil {
			t.Fatal(err)
		}
		if len(facts) != 2 || facts[0].Kind != sql.FactEvent || facts[1].Kind != sql.FactState || facts[1].User != string(bob) || facts[1].Root != facts[0].Root {
			t.Errorf("told as %+v", facts)
		}
		for name, want := range map[string]float64{"chancery_state_moves_total": 1, "chancery_memberships_lost_total": 1} {
			if got := counter(t, r.reg, name); got != want {
				t.Errorf("%s is %v, want %v", name, got, want)
			}
		}
		lines := r.log.FilterMessage("state moved without an event").All()
		if len(lines) != 1 || lines[0].Level != zapcore.WarnLevel {
			t.Fatalf("logged as %+v", lines)
		}
		said := lines[0].ContextMap()
		if said["room"] != string(r.room) || said["event"] != string(r.fork.ID()) || !slices.Equal(said["lost members"].([]any), []any{string(bob)}) {
			t.Errorf("the line says %v", said)
		}
		// An ordinary ban, and a profile, move no state but their own.
		if err := r.s.ChangeMember(t.Context(), roomserver.Change{Room: r.room, Sender: alice, Target: "@dave:b.example", Membership: "ban"}); err != nil {
			t.Fatal(err)
		}
		if got := counter(t, r.reg, "chancery_state_moves_total"); got != 1 {
			t.Errorf("after a ban there are %v moves", got)
		}
	})
}

// A fork that takes more than its budget to resolve is refused and counted, and the room goes on as it was.
func TestAForkOverTheBudgetIsRefused(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		r := makeReset(t, version, o)
		r.s.ReadAtMost(1)
		if err := r.s.ReceiveFor(t.Context(), r.room, r.fork); !errors.Is(err, state.ErrBudget) {
			t.Fatalf("the fork: %v", err)
		}
		if got := counter(t, r.reg, "chancery_state_resolutions_refused_total"); got != 1 {
			t.Errorf("%v forks are counted", got)
		}
		send(t, r.s, r.room, "m.room.message", nil, map[string]any{"body": "on and on", "msgtype": "m.text"})
		if _, current := members(t, r.s, r.room); current[string(bob)] != "join" {
			t.Errorf("the members are %v", current)
		}
	})
}

func counter(t *testing.T, reg *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("there is no metric %s", name)
	return 0
}
