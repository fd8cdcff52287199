// Package clientevent gives events the form in which clients get them: the event with an unsigned
// part that says what the server knows beside it, which differs from one receiver to another. It
// reads and decides nothing else; who may see an event is for roomserver.Reader.Visible to say.
package clientevent

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/roomserver/visibility"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Viewer is whom the events are for.
type Viewer struct {
	User    id.UserID
	Device  id.DeviceID
	Ignored []string // users whose messages do not count for them
	Until   int64    // the place of the event by which they left the room; 0: they are in it
}

// Form says how much is told.
type Form struct {
	// RoomID writes the room ID into each event; /sync has it outside.
	RoomID bool
	// Brief leaves out what takes a look at other events: for lists of current state.
	Brief bool
	// Unrelated says that no other event relates to these: it is known, and not looked for.
	Unrelated bool
}

// Format gives events of one room the client format, in their order. It takes a handful of queries,
// however many events there are.
//
// spec: c2s#room-event-format
func Format(tx storage.Tx, rd *roomserver.Reader, room storage.Room, viewer Viewer, events []*roomserver.Stored, form Form) ([]json.RawMessage, error) {
	f := &formatter{tx: tx, rd: rd, room: room, viewer: viewer, form: form, now: time.Now().UnixMilli()}
	if form.Brief || form.Unrelated {
		return f.format(events, nothing)
	}
	return f.format(events, everything)
}

// How much of what others say of an event is bundled with it.
type bundling int

const (
	nothing       bundling = iota
	withoutThread          // for the latest event of a thread: a peer could make threads of threads without end
	everything
)

type formatter struct {
	tx     storage.Tx
	rd     *roomserver.Reader
	room   storage.Room
	viewer Viewer
	form   Form
	now    int64
}

// beside is what stands beside one event.
type beside struct {
	transaction string
	membership  string
	replaced    *roomserver.Stored // the state that the event replaces
	content     bool               // of replaced may be shown
	redaction   *roomserver.Stored
	relations   json.RawMessage
}

func (f *formatter) format(events []*roomserver.Stored, how bundling) ([]json.RawMessage, error) {
	extra := make([]beside, len(events))
	if err := f.transactions(events, extra); err != nil {
		return nil, err
	}
	if err := f.redactions(events, extra); err != nil {
		return nil, err
	}
	if !f.form.Brief {
		if err := f.states(events, extra); err != nil {
			return nil, err
		}
	}
	if how != nothing {
		if err := f.bundle(events, extra, how); err != nil {
			return nil, err
		}
	}
	out := make([]json.RawMessage, len(events))
	for i, ev := range events {
		out[i] = event.Client(ev.Event, f.unsigned(ev.Event, &extra[i]), f.form.RoomID)
	}
	return out, nil
}

// unsigned writes the object, its keys in order.
func (f *formatter) unsigned(ev *event.Event, b *beside) []byte {
	out := strconv.AppendInt([]byte(`{"age":`), f.now-ev.OriginServerTS(), 10)
	if len(b.relations) > 0 {
		out = append(append(out, `,"m.relations":`...), b.relations...)
	}
	if b.membership != "" {
		out = append(append(out, `,"membership":`...), quoted(b.membership)...)
	}
	if b.replaced != nil && b.content {
		out = append(append(out, `,"prev_content":`...), b.replaced.Content()...)
	}
	if b.redaction != nil {
		because := event.Client(b.redaction.Event, f.unsigned(b.redaction.Event, &beside{}), f.form.RoomID)
		out = append(append(out, `,"redacted_because":`...), because...)
	}
	if b.replaced != nil {
		out = append(append(out, `,"replaces_state":`...), quoted(string(b.replaced.ID()))...)
	}
	if b.transaction != "" {
		out = append(append(out, `,"transaction_id":`...), quoted(b.transaction)...)
	}
	return append(out, '}')
}

func quoted(s string) []byte {
	text, _ := json.Marshal(s) // strings always marshal
	return text
}

// transactions tells the device that sent an event by which transaction ID it did.
//
// spec: c2s#transaction-identifiers
func (f *formatter) transactions(events []*roomserver.Stored, extra []beside) error {
	if f.viewer.Device == "" {
		return nil
	}
	at := map[int64]int{}
	var own []int64
	for i, ev := range events {
		if ev.Sender() == f.viewer.User {
			at[ev.NID] = i
			own = append(own, ev.NID)
		}
	}
	if len(own) == 0 {
		return nil
	}
	found, err := f.tx.TransactionsFor(string(f.viewer.User), string(f.viewer.Device), own)
	if err != nil {
		return fmt.Errorf("read transaction IDs: %w", err)
	}
	for _, t := range found {
		extra[at[t.Event]].transaction = t.Txn
	}
	return nil
}

// redactions finds the events by which others lost their content.
//
// spec: c2s#redactions
func (f *formatter) redactions(events []*roomserver.Stored, extra []beside) error {
	var by []id.EventID
	for _, ev := range events {
		if ev.RedactedBy != "" {
			by = append(by, ev.RedactedBy)
		}
	}
	found, err := f.rd.ByID(f.tx, f.room, by)
	if err != nil {
		return err
	}
	for i, ev := range events {
		if ev.RedactedBy != "" {
			extra[i].redaction = found[ev.RedactedBy]
		}
	}
	return nil
}

// states finds what the receiver's membership was at each event, and what each state event replaced.
func (f *formatter) states(events []*roomserver.Stored, extra []beside) error {
	const perEvent = 3
	own := roomserver.Key{Type: "m.room.member", StateKey: string(f.viewer.User)}
	asked := make([]roomserver.Lookup, 0, perEvent*len(events))
	for _, ev := range events {
		before := func(typ, key string) {
			asked = append(asked, roomserver.Lookup{Root: ev.Before, Key: roomserver.Key{Type: typ, StateKey: key}})
		}
		before(own.Type, own.StateKey)
		before("m.room.history_visibility", "")
		if key, isState := ev.StateKey(); isState {
			before(ev.Type(), key)
		} else {
			before(own.Type, own.StateKey) // nothing is looked at
		}
	}
	found, err := f.rd.Lookup(f.tx, f.room, asked)
	if err != nil {
		return err
	}
	for i, ev := range events {
		member, history, replaced := found[perEvent*i], found[perEvent*i+1], found[perEvent*i+2]
		membership := "leave"
		if member != nil {
			membership = member.Membership()
		}
		extra[i].membership = membership
		isOwn := ev.IsState(own.Type, own.StateKey)
		if isOwn {
			extra[i].membership = ev.Membership()
		}
		if _, isState := ev.StateKey(); !isState || replaced == nil {
			continue
		}
		var shown *event.Event
		if history != nil {
			shown = history.Event
		}
		kind := visibility.Of(shown)
		extra[i].replaced = replaced
		extra[i].content = isOwn || membership == "join" || kind == visibility.Shared || kind == visibility.WorldReadable
	}
	return nil
}
