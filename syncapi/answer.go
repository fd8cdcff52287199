package syncapi

import (
	"context"
	"encoding/json"
	"fmt"

	"chancery/roomserver/clientevent"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// answer is one answer in the making: everything in it is as one snapshot of the database saw it, and
// its token is the position of that snapshot.
type answer struct {
	s  *Server
	tx storage.Tx
	q  *query
	l  *listener

	pos     int64
	news    *news
	members map[int64]storage.Member // the user's memberships, by room
	rooms   map[int64]storage.Room
	invites []storage.Invite
	ignored map[id.UserID]bool
	viewer  clientevent.Viewer
	next    pending // what becomes true when the answer is given
	joined  []*joined
	left    []*left
	invited writer // members of rooms.invite
	knocked writer
	tracked []moved
	met     map[string]bool // who came, and who went, among them; nil: not looked at
	lost    map[string]bool
	typed   map[int64]bool
}

// pending is what an answer leaves behind once its text is made.
type pending struct {
	read     bool    // where the user is was read
	gone     []int64 // rooms that the user is not in
	ignored  map[id.UserID]bool
	toDevice int64
	more     bool // to-device messages found no room
	typing   int64
	presence int64
	keys     *storage.KeyCounts
	sent     []sent
}

// answer makes the answer to a query. empty says that there was nothing to tell but the new token, which
// q.since then is.
func (s *Server) answer(ctx context.Context, l *listener, q *query) (out *json.RawMessage, empty bool, err error) {
	var a *answer
	var body *writer
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		a = &answer{s: s, tx: tx, q: q, l: l, rooms: map[int64]storage.Room{}}
		body, err = a.write()
		return err
	})
	if err != nil {
		return nil, false, fmt.Errorf("answer a sync: %w", err)
	}
	return a.finish(body)
}

// write collects everything and writes it.
func (a *answer) write() (*writer, error) {
	var err error
	if a.pos, err = a.tx.MaxPos(); err != nil {
		return nil, err
	}
	// What has no position is counted before it is looked at: what comes meanwhile is told again.
	a.next.typing, a.next.presence = a.s.watch.typingSerial(), a.s.Users.Presences().Serial()
	a.next.toDevice = a.q.since.ToDevice
	if a.q.incremental && a.pos < a.q.since.Pos {
		// Nothing that we see is news; another database, or a made-up token.
		a.pos = a.q.since.Pos
		return &writer{}, nil
	}
	if err := a.begin(); err != nil {
		return nil, err
	}
	body := &writer{}
	if err := a.writeAccountData(body); err != nil {
		return nil, err
	}
	if err := a.writeRooms(body); err != nil {
		return nil, err
	}
	if err := a.writePresence(body); err != nil {
		return nil, err
	}
	if err := a.writeToDevice(body); err != nil {
		return nil, err
	}
	if err := a.writeDeviceLists(body); err != nil {
		return nil, err
	}
	return body, a.countKeys()
}

// begin finds what every part needs: whom the user ignores, where they are, and what is new.
func (a *answer) begin() error {
	if err := a.findIgnored(); err != nil {
		return err
	}
	a.viewer = clientevent.Viewer{User: a.q.user, Device: a.q.device}
	for u := range a.ignored {
		a.viewer.Ignored = append(a.viewer.Ignored, string(u))
	}
	if !a.q.incremental {
		a.news = everything()
		return a.readMemberships()
	}
	var err error
	if rooms, ok := a.s.watch.roomsOf(a.l, a.q.since.Pos); ok {
		a.members = make(map[int64]storage.Member, len(rooms))
		for _, room := range rooms {
			a.members[room] = storage.Member{Room: room, Membership: "join"}
		}
		if a.news, err = a.since(); err != nil {
			return fmt.Errorf("read what is new: %w", err)
		}
		if !a.news.moved() {
			return nil
		}
	}
	if err := a.readMemberships(); err != nil {
		return err
	}
	if a.news, err = a.since(); err != nil {
		return fmt.Errorf("read what is new: %w", err)
	}
	return nil
}

// readMemberships reads where the user is, was, and is invited to.
func (a *answer) readMemberships() error {
	user := string(a.q.user)
	rows, err := a.tx.RoomsOf(user, []string{"join", "invite", "knock", "leave", "ban"})
	if err != nil {
		return fmt.Errorf("read where the user is: %w", err)
	}
	a.members = make(map[int64]storage.Member, len(rows))
	for _, m := range rows {
		a.members[m.Room] = m
	}
	if a.invites, err = a.tx.InvitesOf(user); err != nil {
		return fmt.Errorf("read the user's invites: %w", err)
	}
	a.next.read = true
	a.sawGone()
	return nil
}

// sawGone notes the rooms that the user was heard to be in and is not.
func (a *answer) sawGone() {
	a.next.gone = nil
	a.s.watch.mu.Lock()
	defer a.s.watch.mu.Unlock()
	for room := range a.l.rooms {
		if a.members[room].Membership != "join" {
			a.next.gone = append(a.next.gone, room)
		}
	}
}

func (a *answer) isIgnored(sender id.UserID) bool { return a.ignored[sender] && sender != a.q.user }

// finish closes the answer with its token, and remembers what the client now knows.
func (a *answer) finish(body *writer) (*json.RawMessage, bool, error) {
	s, n := a.s, &a.next
	next := a.q.since
	next.Pos, next.ToDevice = max(a.pos, a.q.since.Pos), n.toDevice
	next.Process, next.Typing, next.Presence = s.process, n.typing, n.presence
	empty := body.empty() && a.q.incremental && !a.q.full
	since := a.q.since.Pos
	a.q.since = next
	if s.watch.told(a.l, a.q.device, since, a.pos, n) {
		empty = false // the counts of keys are news
	}
	for _, v := range n.sent {
		s.sent.add(v, next.Pos)
	}
	text := s.close(body, n.keys, a.q)
	return &text, empty, nil
}

// close writes what every answer has.
//
// spec: c2s#e2e-extensions-to-sync
func (s *Server) close(body *writer, keys *storage.KeyCounts, q *query) json.RawMessage {
	if keys != nil {
		body.value("device_one_time_keys_count", keys.OneTime)
		body.value("device_unused_fallback_key_types", keys.UnusedFallback)
		body.value("org.matrix.msc2732.device_unused_fallback_key_types", keys.UnusedFallback)
	}
	body.string("next_batch", q.since.String())
	return body.object()
}

// nothing is the answer when nothing happened: it is made from memory.
func (s *Server) nothing(ctx context.Context, l *listener, q *query) (*json.RawMessage, error) {
	keys, ok := s.watch.keysOf(l, q.device)
	if !ok {
		out, _, err := s.answer(ctx, l, q)
		return out, err
	}
	text := s.close(&writer{}, keys, q)
	return &text, nil
}
