package syncapi

import (
	"encoding/json"
	"fmt"
	"slices"

	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// beside is what stands beside the events of rooms, read for all rooms of the answer at once.
type beside struct {
	unread   map[int64]*unread
	data     map[int64][]json.RawMessage
	receipts map[int64][]storage.Receipt
}

// unread counts of what the user was notified and has not read.
//
// spec: c2s#receiving-notifications, c2s#threading
type unread struct {
	main, all count
	threads   map[string]count
}

type count struct {
	Highlight    int64 `json:"highlight_count"`
	Notification int64 `json:"notification_count"`
}

func (c count) plus(v roomserver.Unread) count {
	return count{c.Highlight + v.Highlight, c.Notification + v.Notification}
}

func (u *unread) write(w *writer, byThread bool) {
	if u == nil {
		u = &unread{}
	}
	if !byThread {
		w.value("unread_notifications", u.all)
		return
	}
	w.value("unread_notifications", u.main)
	if len(u.threads) > 0 {
		w.value("unread_thread_notifications", u.threads)
	}
}

// besideRooms reads what stands beside the events of joined rooms.
func (a *answer) besideRooms(list []*joined) (*beside, error) {
	b := &beside{unread: map[int64]*unread{}, data: map[int64][]json.RawMessage{}, receipts: map[int64][]storage.Receipt{}}
	var counted, withData []int64
	for _, j := range list {
		if j.fresh || j.news != nil && (j.news.ord != 0 || j.news.allRead || j.news.read[string(a.q.user)] || len(j.news.data) > 0) {
			counted = append(counted, j.row.NID)
		}
		if j.fresh || j.news != nil && len(j.news.data) > 0 {
			withData = append(withData, j.row.NID)
		}
	}
	if err := a.countUnread(b, counted); err != nil {
		return nil, err
	}
	if err := a.readReceipts(b, list); err != nil {
		return nil, err
	}
	if len(withData) == 0 {
		return b, nil
	}
	rows, err := a.tx.AccountDataOf(string(a.q.user), withData)
	if err != nil {
		return nil, fmt.Errorf("read the account data of rooms: %w", err)
	}
	for _, j := range list {
		var types map[string]bool
		if !j.fresh {
			types = map[string]bool{}
			if j.news != nil && j.news.data != nil {
				types = j.news.data
			}
		}
		b.data[j.row.NID] = a.roomData(rows, j.row, types)
	}
	return b, nil
}

// roomData gives a room's account data of some types, nil for all, as events.
func (a *answer) roomData(rows []storage.AccountData, room storage.Room, types map[string]bool) []json.RawMessage {
	f := &a.q.filter.Room.AccountData
	var events []json.RawMessage
	if !f.inRoom(room.ID) {
		return nil
	}
	for _, v := range rows {
		if v.Room == room.NID && (types == nil || types[v.Type]) && f.from(v.Type, string(a.q.user)) {
			events = append(events, plainEvent(v.Type, v.Content))
		}
	}
	return limited(events, f)
}

// leftData is the account data of a room that the user left.
func (a *answer) leftData(l *left) ([]json.RawMessage, error) {
	rows, err := a.tx.AccountDataOf(string(a.q.user), []int64{l.row.NID})
	if err != nil {
		return nil, err
	}
	var types map[string]bool
	if !a.news.all {
		types = map[string]bool{}
		if l.news != nil && l.news.data != nil {
			types = l.news.data
		}
	}
	return a.roomData(rows, l.row, types), nil
}

func limited(events []json.RawMessage, f *eventFilter) []json.RawMessage {
	if f.Limit != nil && len(events) > *f.Limit {
		return events[:max(*f.Limit, 0)]
	}
	return events
}

// plainEvent is an event that has a type and a content and nothing else.
func plainEvent(typ string, content json.RawMessage) json.RawMessage {
	w := &writer{}
	w.raw("content", content)
	w.string("type", typ)
	return w.object()
}

func (a *answer) countUnread(b *beside, rooms []int64) error {
	if len(rooms) == 0 {
		return nil
	}
	counts, err := a.s.Reader.UnreadCounts(a.tx, string(a.q.user), rooms, a.viewer.Ignored)
	if err != nil {
		return fmt.Errorf("count what is unread: %w", err)
	}
	for _, v := range counts {
		u := b.unread[v.Room]
		if u == nil {
			u = &unread{threads: map[string]count{}}
			b.unread[v.Room] = u
		}
		u.all = u.all.plus(v)
		if v.Thread == "main" || v.Thread == "" {
			u.main = u.main.plus(v)
		} else {
			u.threads[v.Thread] = u.threads[v.Thread].plus(v)
		}
	}
	return nil
}

// readReceipts reads the receipts that are new: all of a fresh room, else those of the users whose
// receipts moved.
func (a *answer) readReceipts(b *beside, list []*joined) error {
	var whole, some []int64
	users := map[string]bool{}
	for _, j := range list {
		switch {
		case j.fresh || j.news != nil && j.news.allRead:
			whole = append(whole, j.row.NID)
		case j.news != nil && len(j.news.read) > 0:
			some = append(some, j.row.NID)
			for u := range j.news.read {
				users[u] = true
			}
		}
	}
	if len(whole) > 0 {
		rows, err := a.tx.ReceiptsIn(whole, string(a.q.user))
		if err != nil {
			return fmt.Errorf("read receipts: %w", err)
		}
		for _, v := range rows {
			b.receipts[v.Room] = append(b.receipts[v.Room], v)
		}
	}
	if len(some) == 0 {
		return nil
	}
	names := make([]string, 0, len(users))
	for u := range users {
		names = append(names, u)
	}
	rows, err := a.tx.ReceiptsBy(some, names)
	if err != nil {
		return fmt.Errorf("read receipts: %w", err)
	}
	for _, v := range rows {
		if v.Type == "m.read" || v.User == string(a.q.user) {
			if a.news.rooms[v.Room].read[v.User] {
				b.receipts[v.Room] = append(b.receipts[v.Room], v)
			}
		}
	}
	return nil
}

// ephemeral makes the events of a room that are not part of its history.
//
// spec: c2s#receipts, c2s#typing-notifications
func (a *answer) ephemeral(j *joined, b *beside) []json.RawMessage {
	f := &a.q.filter.Room.Ephemeral
	var events []json.RawMessage
	if !f.inRoom(j.row.ID) {
		return nil
	}
	if f.typed("m.receipt") {
		for _, content := range receiptContents(b.receipts[j.row.NID], f) {
			events = append(events, plainEvent("m.receipt", content))
		}
	}
	if f.typed("m.typing") {
		if users, ok := a.typing(j); ok {
			text, _ := json.Marshal(map[string][]id.UserID{"user_ids": users}) // strings always marshal
			events = append(events, plainEvent("m.typing", text))
		}
	}
	return limited(events, f)
}

type receipt struct {
	TS     int64  `json:"ts"`
	Thread string `json:"thread_id,omitempty"`
}

// receiptContents puts receipts into the form by event, type and user. A user's receipts in two threads
// may be at one event: they need two contents.
func receiptContents(rows []storage.Receipt, f *eventFilter) []json.RawMessage {
	var contents []map[string]map[string]map[string]receipt
	for _, v := range rows {
		if !listed(f.Senders, f.NotSenders, v.User) {
			continue
		}
		i := slices.IndexFunc(contents, func(c map[string]map[string]map[string]receipt) bool {
			_, taken := c[v.EventID][v.Type][v.User]
			return !taken
		})
		if i < 0 {
			i = len(contents)
			contents = append(contents, map[string]map[string]map[string]receipt{})
		}
		c := contents[i]
		if c[v.EventID] == nil {
			c[v.EventID] = map[string]map[string]receipt{}
		}
		if c[v.EventID][v.Type] == nil {
			c[v.EventID][v.Type] = map[string]receipt{}
		}
		c[v.EventID][v.Type][v.User] = receipt{v.TS, v.Thread}
	}
	out := make([]json.RawMessage, len(contents))
	for i, c := range contents {
		out[i], _ = json.Marshal(c) // strings and numbers always marshal
	}
	return out
}
