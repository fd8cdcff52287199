package auth

import (
	"strconv"

	"maunium.net/go/mautrix/id"

	"chancery/roomserver/event"
)

// State gives the events that authorise: the state before an event, the current state, or the
// event's own auth events. Get answers nil when there is none. It must hold the room's create
// event also in versions whose auth_events leave it out: there the caller gets it from the room ID.
type State interface {
	Get(typ, stateKey string) *event.Event
}

// Events is a State of a few events, such as the auth events of one event with the create event.
type Events []*event.Event

// Get finds an event by its type and state key.
func (s Events) Get(typ, stateKey string) *event.Event {
	for _, ev := range s {
		if ev != nil && ev.IsState(typ, stateKey) {
			return ev
		}
	}
	return nil
}

// Rejection says which rule refuses an event.
type Rejection struct {
	Event   id.EventID
	Version string // of the room
	Rule    string // the number as in the rendered list of that version, such as "4.3.3"
	Why     string
	// Malformed says that the content alone is at fault: nobody may send it.
	Malformed bool
}

func (r *Rejection) Error() string {
	return "rule " + r.Rule + " of room version " + r.Version + ": " + r.Why
}

// Check asks whether the event is allowed by the rules of its room's version, given a state.
// The error is a *Rejection. Rule 2 (3 from version 12 on), which is about the list of auth
// events itself, is CheckAuthEvents.
//
// spec: rooms/v12#authorisation-rules
func Check(ev *event.Event, state State) error {
	return ask(&question{ev: ev, v: ev.Version(), state: state, create: state.Get("m.room.create", "")})
}

// CheckAuthEvents asks whether the event's list of auth events is in order: nothing twice,
// nothing but what the selection asks for, nothing rejected, all of one room. authEvents are the
// events that ev names; create is the room's create event in versions that do not name it in
// auth_events (nil otherwise, or when it is not known); rejected says which of all these were
// rejected, and may be nil.
//
// spec: rooms/v11#authorisation-rules 2
// spec: rooms/v12#authorisation-rules 3
func CheckAuthEvents(ev *event.Event, authEvents []*event.Event, create *event.Event, rejected func(*event.Event) bool) error {
	if rejected == nil {
		rejected = func(*event.Event) bool { return false }
	}
	return ask(&question{ev: ev, v: ev.Version(), create: create, cited: authEvents, rejected: rejected, citing: true})
}

func ask(q *question) error {
	rules, known := tables[q.v.Name]
	if !known {
		return &Rejection{Event: q.ev.ID(), Version: q.v.Name, Rule: "0", Why: "no rules are known for this room version"}
	}
	if a := rules.ask(q); a.verdict == rejects {
		return &Rejection{Event: q.ev.ID(), Version: q.v.Name, Rule: a.rule, Why: a.why, Malformed: a.malformed}
	}
	return nil
}

// question is one event with what the rules look at, each thing found once.
type question struct {
	ev     *event.Event
	v      *event.Version
	state  State
	create *event.Event

	citing   bool // only the list of auth events is asked about
	cited    []*event.Event
	rejected func(*event.Event) bool

	member *memberContent
	levels *PowerLevels
	told   *telling // nil: nobody wants to know what each rule says
}

type verdict uint8

const (
	goesOn verdict = iota // the rule does not apply: ask the next
	allows
	rejects
)

// answer is what a rule says. The number grows from the inside out, so that it is only made
// for rejections.
type answer struct {
	verdict verdict
	rule    string
	why     string

	malformed bool
}

var (
	next  = answer{}
	allow = answer{verdict: allows}
)

func reject(why string) answer { return answer{verdict: rejects, why: why} }

// malformed rejects because of the content alone.
func malformed(why string) answer { return answer{verdict: rejects, why: why, malformed: true} }

// rejectAt rejects by a sub-rule that is part of one function.
func rejectAt(sub, why string) answer { return answer{verdict: rejects, rule: sub, why: why} }

// A rule is one numbered line of the specification.
type rule func(*question) answer

// A list is asked in order; the first rule that decides, decides. The place is the number.
type list []rule

func (l list) ask(q *question) answer {
	for i, r := range l {
		at := q.told.begin(i + 1)
		a := r(q)
		q.told.end(at, a)
		if a.verdict == goesOn {
			continue
		}
		if a.verdict == rejects {
			number := strconv.Itoa(i + 1)
			if a.rule != "" {
				number += "." + a.rule
			}
			a.rule = number
		}
		return a
	}
	return next
}

// when is a rule with a list below it: "If ...:".
func when(condition func(*question) bool, rules ...rule) rule {
	return func(q *question) answer {
		if !condition(q) {
			return next
		}
		return list(rules).ask(q)
	}
}

func otherwiseAllow(*question) answer { return allow }

func otherwiseReject(why string) rule {
	return func(*question) answer { return reject(why) }
}

func typeIs(typ string) func(*question) bool {
	return func(q *question) bool { return q.ev.Type() == typ }
}

// membershipOf is the user's current membership; without an event it is as good as leave.
func (q *question) membershipOf(user string) string {
	ev := q.state.Get("m.room.member", user)
	if ev == nil {
		return "leave"
	}
	return ev.Membership()
}

func (q *question) target() string {
	key, _ := q.ev.StateKey()
	return key
}

// power gives the current power levels.
func (q *question) power() PowerLevels {
	if q.levels == nil {
		p := PowerLevelsOf(q.create, q.state.Get("m.room.power_levels", ""))
		q.levels = &p
	}
	return *q.levels
}

func (q *question) senderLevel() Level { return q.power().Of(q.ev.Sender()) }
