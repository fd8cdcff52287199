package roomserver

import (
	"encoding/json"
	"slices"

	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// moves is what follows from a change of a room's current state: what the table of members says afterwards, and
// what is told when an event brought about more than itself.
type moves struct {
	members   []storage.Member
	notMember []string // whose member event is gone altogether
	own       []string // our users among both, if we are in the room: what we held of an invite from elsewhere is over
	facts     []storage.Fact
	silent    int         // pieces of state that are others without an event of their own
	users     []id.UserID // whose membership is one of them
	lost      []id.UserID // of these, who was joined and is not, though nobody left or was put out
	open      *bool       // whether everybody may find who is in the room, when that may have changed
	shut      bool        // guests have to go
}

// begin says that the room begins here, or begins anew: it has another state for a reason, and nobody is lost.
func (m *moves) begin() { m.silent, m.users, m.lost = 0, nil, nil }

// movedBy is what a fact of state that moved without an event says of where it came from, so that the resolution
// can be replayed. The first fact of each move has it.
type movedBy struct {
	Event int64        `json:"event,omitempty"` // that brought it about
	Roots []state.Root `json:"roots,omitempty"` // the states that were resolved
}

// moveMembers compares two states of the room, the second of which becomes the current one: brought about by an
// event (0: by none). It follows in memory and says what must be written.
func (r *room) moveMembers(event int64, was, is state.Root) (*moves, error) {
	changes, err := r.array.Diff(was, is)
	if err != nil {
		return nil, err
	}
	slots := make([]int64, 0, len(changes))
	nids := make([]int64, 0, 2*len(changes))
	for _, c := range changes {
		slots = append(slots, c.Slot)
		nids = append(nids, c.Was, c.Is)
	}
	keys, err := r.keysOf(slots)
	if err != nil {
		return nil, err
	}
	events, err := r.events(nids)
	if err != nil {
		return nil, err
	}
	m := &moves{}
	for _, c := range changes {
		k := keys[c.Slot]
		byItself := event != 0 && c.Is == event
		if !byItself {
			m.silent++
		}
		if k.Type == "m.room.member" {
			r.moveMember(m, id.UserID(k.StateKey), events[c.Was], events[c.Is], byItself)
		}
		if err := r.moveDoors(m, k, events[c.Is], is); err != nil {
			return nil, err
		}
	}
	if r.servers[r.s.ServerName] == 0 {
		m.own = nil
	}
	if m.silent == 0 {
		return m, nil
	}
	if len(m.facts) == 0 {
		m.facts = append(m.facts, storage.Fact{Kind: sql.FactState, Room: r.row.NID, Root: r.row.Root})
	}
	by, err := json.Marshal(movedBy{event, r.endRoots()})
	m.facts[0].Extra = string(by)
	return m, err
}

// moveMember follows one membership; nil is no event.
func (r *room) moveMember(m *moves, user id.UserID, was, is *Stored, byItself bool) {
	before, after := "", ""
	if was != nil {
		before = was.Membership()
	}
	if is != nil {
		after = is.Membership()
		row := memberRow(r.row.NID, string(user), is)
		row.Stays = before == after && r.partial == nil // else the table knows members whom the state has not yet
		m.members = append(m.members, row)
	} else {
		m.notMember = append(m.notMember, string(user))
	}
	if r.s.IsLocal(user) {
		m.own = append(m.own, string(user))
		r.owners = nil
	}
	r.countMember(user.Homeserver(), before == "join", after == "join")
	if byItself {
		return
	}
	m.users = append(m.users, user)
	if before == "join" && after != "join" && !ends(is, was) {
		m.lost = append(m.lost, user)
	}
	m.facts = append(m.facts, storage.Fact{Kind: sql.FactState, Room: r.row.NID, Root: r.row.Root, User: string(user)})
}

// ends says that an event takes a join back: it makes the user leave, and is not one from before the join that
// the room has fallen back to.
func ends(is, join *Stored) bool {
	if is == nil || is.Membership() != "leave" && is.Membership() != "ban" {
		return false
	}
	return !is.Placed || !join.Placed || is.Ord > join.Ord
}

// write is the moves' part of a transaction.
func (m *moves) write(tx storage.Tx, room int64, roomID string) {
	for _, v := range m.members {
		tx.SetMember(v)
	}
	for _, u := range m.notMember {
		tx.DeleteMember(room, u)
	}
	for _, u := range m.own {
		tx.DeleteInvite(u, roomID)
	}
	if m.open != nil {
		tx.SetOpen(room, *m.open)
	}
}

// metrics are what an operator watches of the rooms' state.
type metrics struct {
	moves prometheus.Counter
	lost  prometheus.Counter
	over  prometheus.Counter

	collected prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		moves: prometheus.NewCounter(prometheus.CounterOpts{Name: "chancery_state_moves_total",
			Help: "Times that a room's current state changed beyond what an event says, because branches of the room met."}),
		lost: prometheus.NewCounter(prometheus.CounterOpts{Name: "chancery_memberships_lost_total",
			Help: "Users who were joined and are not since such a change, though nobody left or was put out."}),
		over: prometheus.NewCounter(prometheus.CounterOpts{Name: "chancery_state_resolutions_refused_total",
			Help: "Times that states of a room were not resolved since they differ in too much: the event that asked for it is refused."}),
		collected: prometheus.NewCounter(prometheus.CounterOpts{Name: "chancery_state_nodes_collected_total",
			Help: "Nodes of rooms' states that were removed because nothing led to them any more."}),
	}
	if reg != nil {
		reg.MustRegister(m.moves, m.lost, m.over, m.collected)
	}
	return m
}

// Names in a log line are bounded: a room may lose very many members at once.
const maxNamed = 20

// tellMoves says, once it is stored, that state moved without an event of its own.
func (r *room) tellMoves(m *moves, by zap.Field) {
	if m == nil || m.silent == 0 {
		return
	}
	r.s.metrics.moves.Inc()
	r.s.metrics.lost.Add(float64(len(m.lost)))
	say := r.s.Log.Info
	if len(m.lost) > 0 {
		say = r.s.Log.Warn
	}
	say("state moved without an event", zap.String("room", string(r.id)), by, zap.Int("pieces", m.silent),
		zap.Strings("members", named(m.users)), zap.Int("lost", len(m.lost)), zap.Strings("lost members", named(m.lost)))
}

func named(users []id.UserID) (names []string) {
	users = slices.Clone(users)
	slices.Sort(users)
	for _, u := range users[:min(len(users), maxNamed)] {
		names = append(names, string(u))
	}
	return names
}
