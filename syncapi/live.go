package syncapi

import (
	"context"
	"encoding/json"
	"fmt"

	"chancery/storage"
	"chancery/users"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// followTyping wakes those who see who types in a room.
func (w *watch) followTyping(ctx context.Context, c users.TypingChange) {
	room, ok, err := w.s.roomNumber(ctx, c.Room)
	if err != nil {
		w.s.Log.Warn("nobody is told who types", zap.Error(err))
		return
	}
	if !ok {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.typed++
	for l := range w.rooms[room] {
		l.typed[room] = w.typed
		l.stir()
	}
}

// typingSerial is the number of the latest change of who types that listeners know of: what typing itself
// has counted beyond it is told, and counted, later.
func (w *watch) typingSerial() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.typed
}

// followPresence wakes those who share a room with a user whose presence changed.
func (w *watch) followPresence(ctx context.Context, c users.Presence) {
	if !w.s.Presence {
		return
	}
	var rooms []int64
	err := w.s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		rooms, err = tx.JoinedBy([]string{string(c.User)})
		return err
	})
	if err != nil {
		w.s.Log.Warn("nobody is told who is online", zap.Error(err))
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	serial := w.s.Users.Presences().Serial()
	told := map[*listener]bool{}
	tell := func(l *listener) {
		if !told[l] {
			told[l] = true
			l.present = serial
			l.stir()
		}
	}
	own := w.users[string(c.User)] // is told of others only
	for _, room := range rooms {
		for l := range w.rooms[room] {
			if l != own {
				tell(l)
			}
		}
	}
}

// roomNumber finds the number of a room. It is the same for as long as we have the room.
func (s *Server) roomNumber(ctx context.Context, room id.RoomID) (nid int64, ok bool, err error) {
	if nid, ok := s.shared.numbers.Get(room); ok {
		return nid, true, nil
	}
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		row, found, err := tx.Room(string(room))
		nid, ok = row.NID, found
		return err
	})
	if err == nil && ok {
		s.shared.numbers.Put(room, nid, 100)
	}
	return nid, ok, err
}

// typingRooms lists the rooms in which others began or stopped typing since the token.
func (a *answer) typingRooms() map[int64]bool {
	if a.typed != nil {
		return a.typed
	}
	a.typed = map[int64]bool{}
	a.s.watch.mu.Lock()
	defer a.s.watch.mu.Unlock()
	for room, at := range a.l.typed {
		if a.news.all || a.q.since.Process != a.s.process || at > a.q.since.Typing {
			a.typed[room] = true
		}
	}
	return a.typed
}

// typing lists who types in a room; ok is false when the client knows already. A token of another process
// says nothing of what this one counts: all is told then.
//
// spec: c2s#typing-notifications
func (a *answer) typing(j *joined) (list []id.UserID, ok bool) {
	typing := a.s.Users.Typing()
	room := id.RoomID(j.row.ID)
	known := !j.fresh && a.q.incremental && a.q.since.Process == a.s.process
	if known && !a.typingRooms()[j.row.NID] {
		return nil, false
	}
	list = []id.UserID{}
	for _, u := range typing.In(room) {
		if !a.ignored[u] {
			list = append(list, u)
		}
	}
	return list, known || len(list) > 0 || a.typingRooms()[j.row.NID]
}

type presenceEvent struct {
	Content presenceContent `json:"content"`
	Sender  id.UserID       `json:"sender"`
	Type    string          `json:"type"`
}

type presenceContent struct {
	Presence        string  `json:"presence"`
	StatusMsg       *string `json:"status_msg,omitempty"`
	LastActiveAgo   *int64  `json:"last_active_ago,omitempty"`
	CurrentlyActive bool    `json:"currently_active"`
}

// writePresence tells the presence of those who share a room with the user, as far as it changed, and of
// those who came to share one, whatever it is.
//
// spec: c2s#presence
func (a *answer) writePresence(body *writer) error {
	f := &a.q.filter.Presence
	if !a.s.Presence || !f.typed("m.presence") {
		return nil
	}
	after := int64(0)
	if a.q.incremental && a.q.since.Process == a.s.process {
		after = a.q.since.Presence
	}
	presences := a.s.Users.Presences()
	met, _, err := a.meetings()
	if err != nil {
		return err
	}
	// Asked is about those with news only, however many share a room with the user.
	var asked []string
	for _, u := range presences.ChangedSince(after) {
		if u != a.q.user && !met[string(u)] {
			asked = append(asked, string(u))
		}
	}
	for u := range met {
		asked = append(asked, u)
	}
	if len(asked) == 0 {
		return nil
	}
	sharing, err := a.tx.SharingAmong(string(a.q.user), asked)
	if err != nil {
		return fmt.Errorf("read with whom the user shares rooms: %w", err)
	}
	others := make([]id.UserID, 0, len(sharing))
	var fresh []id.UserID
	for _, u := range sharing {
		switch {
		case u == string(a.q.user) || !listed(f.Senders, f.NotSenders, u):
		case met[u]:
			fresh = append(fresh, id.UserID(u))
		default:
			others = append(others, id.UserID(u))
		}
	}
	changed, _ := presences.Changed(others, after)
	had, _ := presences.Changed(fresh, 0)
	changed = append(changed, had...)
	var events []json.RawMessage
	for _, p := range changed {
		if a.ignored[p.User] {
			continue
		}
		content := presenceContent{Presence: p.Presence, StatusMsg: p.StatusMsg, CurrentlyActive: p.CurrentlyActive}
		if p.LastActive != 0 {
			ago := p.LastActiveAgo()
			content.LastActiveAgo = &ago
		}
		text, err := json.Marshal(presenceEvent{content, p.User, "m.presence"})
		if err != nil {
			return fmt.Errorf("encode presence: %w", err)
		}
		events = append(events, text)
	}
	if events = limited(events, f); len(events) > 0 {
		body.events("presence", events)
	}
	return nil
}
