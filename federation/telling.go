package federation

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"chancery/storage"
	"chancery/users"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const (
	receiptsEvery = 300 * time.Millisecond // receipts are gathered so long
	typingAgain   = 20 * time.Second       // others forget who types when they do not hear it again
	maxReceipts   = 10_000                 // gathered at once; more are not told
	maxWatched    = 1000
)

// readReceipt is a public receipt of one of our users, as its fact tells.
type readReceipt struct {
	room          int64
	user          id.UserID
	event, thread string
}

// noteReceipt gathers a receipt; o.mu is held.
func (o *Outbox) noteReceipt(f storage.Fact) {
	var of struct {
		Type   string `json:"type"`
		Event  string `json:"event"`
		Thread string `json:"thread"`
	}
	user := id.UserID(f.User)
	if user.Homeserver() != o.ServerName || json.Unmarshal([]byte(f.Extra), &of) != nil || of.Type != users.ReceiptRead {
		return
	}
	if len(o.receipts) < maxReceipts {
		o.receipts = append(o.receipts, readReceipt{f.Room, user, of.Event, of.Thread})
	}
}

// keepTelling tells other servers what is worth nothing later: receipts, who types and who is there.
func (o *Outbox) keepTelling(ctx context.Context) {
	tick := time.NewTicker(receiptsEvery)
	defer tick.Stop()
	again := time.NewTicker(typingAgain)
	defer again.Stop()
	var typists chan users.TypingChange
	var present chan users.Presence
	if o.Users != nil {
		typists = make(chan users.TypingChange, maxWatched)
		defer o.Users.Typing().Watch(typists)()
		if o.Presence {
			present = make(chan users.Presence, maxWatched)
			defer o.Users.Presences().Watch(present)()
		}
	}
	typing := map[typist]bool{}
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			err = o.tellReceipts(ctx)
		case c := <-typists:
			if c.User.Homeserver() != o.ServerName {
				continue
			}
			t := typist{c.Room, c.User}
			if typing[t] = c.Until > time.Now().UnixMilli(); !typing[t] {
				delete(typing, t)
			}
			err = o.tellTyping(ctx, t, typing[t])
		case <-again.C:
			for t := range typing {
				if slices.Contains(o.Users.Typing().In(t.room), t.user) {
					err = o.tellTyping(ctx, t, true)
				} else {
					delete(typing, t)
				}
			}
		case p := <-present:
			if p.User.Homeserver() == o.ServerName {
				err = o.tellPresence(ctx, p)
			}
		}
		if err != nil && ctx.Err() == nil {
			o.Log.Debug("other servers were not told", zap.Error(err))
		}
	}
}

type typist struct {
	room id.RoomID
	user id.UserID
}

// tell gives servers news that take the place of earlier ones with their key. Those that do not answer are not told.
func (o *Outbox) tell(servers []string, key string, v news) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range servers {
		if name == o.ServerName || o.backoff[name].Failures > 0 {
			continue
		}
		d := o.destination(name)
		d.loose.put(key, v)
		o.kick(d)
	}
}

func serversIn(tx storage.Tx, room int64) ([]string, error) {
	counts, err := tx.ServersIn(room)
	servers := make([]string, len(counts))
	for i, c := range counts {
		servers[i] = c.Server
	}
	return servers, err
}

// spec: s2s#receipts
func (o *Outbox) tellReceipts(ctx context.Context) error {
	o.mu.Lock()
	list := o.receipts
	o.receipts = nil
	o.mu.Unlock()
	if len(list) == 0 {
		return nil
	}
	nids := []int64{}
	for _, r := range list {
		if !slices.Contains(nids, r.room) {
			nids = append(nids, r.room)
		}
	}
	servers := make(map[int64][]string, len(nids))
	names := make(map[int64]id.RoomID, len(nids))
	err := o.DB.Read(ctx, func(tx storage.Tx) error {
		rooms, err := tx.Rooms(nids)
		if err != nil {
			return err
		}
		for _, room := range rooms {
			names[room.NID] = id.RoomID(room.ID)
			if servers[room.NID], err = serversIn(tx, room.NID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	now := time.Now().UnixMilli()
	for _, r := range list {
		key := "r " + string(names[r.room]) + " " + string(r.user) + " " + r.thread
		o.tell(servers[r.room], key, news{receipt: &r, room: names[r.room], at: now})
	}
	return nil
}

// spec: s2s#typing-notifications
func (o *Outbox) tellTyping(ctx context.Context, t typist, is bool) error {
	var servers []string
	err := o.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(t.room))
		if err == nil && ok {
			servers, err = serversIn(tx, room.NID)
		}
		return err
	})
	if err != nil {
		return err
	}
	o.tell(servers, "t "+string(t.room)+" "+string(t.user), news{typing: &typing{t.room, t.user, is}})
	return nil
}

// spec: s2s#presence
func (o *Outbox) tellPresence(ctx context.Context, p users.Presence) error {
	var servers []string
	err := o.DB.Read(ctx, func(tx storage.Tx) (err error) {
		servers, err = tx.ServersSharing(string(p.User))
		return err
	})
	if err != nil {
		return err
	}
	o.tell(servers, "p "+string(p.User), news{presence: &userPresence{User: p.User, Presence: p.Presence,
		StatusMsg: p.StatusMsg, LastActiveAgo: p.LastActiveAgo(), CurrentlyActive: p.CurrentlyActive}})
	return nil
}
