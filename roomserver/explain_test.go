package roomserver_test

import (
	"testing"

	"chancery"
	"chancery/roomserver"
	"chancery/roomserver/state"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"

	"maunium.net/go/mautrix/id"
)

// What moved a room's state without an event is replayed from what is stored, by an engine that has seen nothing
// of it: what was in conflict, in which order it was tried, and which rule refused whom.
//
// spec: rooms/v11#state-resolution, rooms/v12#state-resolution
func TestResolutionIsReplayed(t *testing.T) {
	eachVersionAndEngine(t, func(t *testing.T, version string, o sql.Options) {
		r := makeReset(t, version, o)
		if err := r.s.ReceiveFor(t.Context(), r.room, r.fork); err != nil {
			t.Fatal(err)
		}
		merging := send(t, r.s, r.room, "m.room.message", nil, map[string]any{"body": "both", "msgtype": "m.text"})
		s := again(t, r.s)

		x, err := s.Explain(t.Context(), r.room, r.fork.ID())
		if err != nil {
			t.Fatal(err)
		}
		if x.Event.Status != "accepted" || len(x.Prev) != 1 || x.Given || x.Merge != nil || x.After == nil {
			t.Fatalf("the fork is explained as %+v", x)
		}
		r.wantReset(t, x.After)
		if said := x.By.Before; len(said) == 0 || said[len(said)-1].Says != "allows" || x.By.List != "in order" {
			t.Errorf("by the state before it: %+v, its list is %s", said, x.By.List)
		}

		if x, err = s.Explain(t.Context(), r.room, merging); err != nil {
			t.Fatal(err)
		}
		if len(x.Prev) != 2 || x.Merge == nil || x.After != nil {
			t.Fatalf("the message that ties the ends is explained as %+v", x)
		}
		r.wantReset(t, x.Merge)
		for _, b := range x.Before {
			if b.ID == r.bob {
				t.Error("the state before the message has bob's join")
			}
		}

		if _, err := s.Explain(t.Context(), r.room, "$nothing"); !chancery.IsCode(err, chancery.CodeNotFound) {
			t.Errorf("an event that is not here: %v", err)
		}
		if _, err := s.Explain(t.Context(), "!nowhere:a.example", merging); !chancery.IsCode(err, chancery.CodeNotFound) {
			t.Errorf("a room that is not here: %v", err)
		}
	})
}

// So is a resolution of version 1, which takes the lowest of those in conflict unasked, and loses nobody's join.
//
// spec: rooms/v1#state-resolution
func TestOldResolutionIsReplayed(t *testing.T) {
	r := makeReset(t, "1", sqltest.SQLite(t))
	if err := r.s.ReceiveFor(t.Context(), r.room, r.fork); err != nil {
		t.Fatal(err)
	}
	merging := send(t, r.s, r.room, "m.room.message", nil, map[string]any{"body": "both", "msgtype": "m.text"})
	x, err := again(t, r.s).Explain(t.Context(), r.room, merging)
	if err != nil {
		t.Fatal(err)
	}
	m := x.Merge
	if m == nil || m.Algorithm != "1" || !m.AsStored || len(m.Sets) != 2 {
		t.Fatalf("the message that ties the ends is explained as %+v", x)
	}
	orders := map[id.EventID]string{}
	for _, tried := range m.Tried {
		if orders[tried.ID] = tried.Order; !tried.Allowed || (len(tried.Said) == 0) != (tried.Order == state.Unasked) {
			t.Errorf("tried: %+v", tried)
		}
	}
	if len(m.Tried) != 3 || orders[r.bob] != state.Unasked || orders[r.fork.ID()] != "by ascending depth" {
		t.Errorf("the orders are %v", orders)
	}
	for _, v := range m.Result {
		if v.Event == nil || v.Event.ID != r.bob && v.Event.ID != r.fork.ID() {
			t.Errorf("the result is %+v", v)
		}
	}
}

// wantReset expects the resolution by which bob's join falls away.
func (r *reset) wantReset(t *testing.T, m *roomserver.Merge) {
	t.Helper()
	if !m.AsStored {
		t.Error("the replay comes to another state than is stored")
	}
	if len(m.Sets) != 2 || len(m.Sets[0])+len(m.Sets[1]) != 3 {
		t.Errorf("the conflicted sets are %+v", m.Sets)
	}
	full := map[id.EventID]bool{}
	for _, b := range m.Full {
		full[b.ID] = true
	}
	if !full[r.bob] || !full[r.fork.ID()] {
		t.Errorf("the full conflicted set is %+v", m.Full)
	}
	last := m.Tried[len(m.Tried)-1]
	if last.ID != r.bob || last.Allowed || last.Order != "in mainline order" {
		t.Errorf("tried last: %+v", last)
	}
	rule, text := "4.3.7", "Otherwise, reject."
	if r.fork.Version().Name == "12" {
		rule = "5.3.7"
	}
	if said := last.Said[len(last.Said)-1]; said.Rule != rule || said.Text != text || said.Says != "rejects" || said.Why == "" {
		t.Errorf("bob's join is refused by %+v", said)
	}
	results := map[string]*roomserver.Brief{}
	for _, v := range m.Result {
		results[v.Type] = v.Event
	}
	if len(results) != 2 || results["m.room.member"] != nil || results["m.room.join_rules"].ID != r.fork.ID() {
		t.Errorf("the result is %+v", m.Result)
	}
}
