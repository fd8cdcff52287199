package users

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

const (
	ReceiptRead        = "m.read"
	ReceiptReadPrivate = "m.read.private"
	ReceiptFullyRead   = typeFullyRead

	threadMain = "main"
)

// Receipt is a wish of a user to move how far they have read.
type Receipt struct {
	User   id.UserID
	Room   id.RoomID
	Type   string
	Event  id.EventID
	Thread string // "": unthreaded; main; or the root's event ID
	TS     int64  // milliseconds, when another server's user read it; 0: it does not say
}

// at is when a receipt was made, by the word of its server as far as that can be.
func (r Receipt) at() int64 {
	if now := now(); r.TS <= 0 || r.TS > now {
		return now
	}
	return r.TS
}

// SetReceipts moves receipts and read markers of one of our users in one room.
//
// spec: c2s/postReceipt, c2s/setReadMarker
func (s *Server) SetReceipts(ctx context.Context, receipts ...Receipt) error {
	for _, r := range receipts {
		switch r.Type {
		case ReceiptRead, ReceiptReadPrivate:
		case ReceiptFullyRead:
			if r.Thread != "" {
				return chancery.InvalidParam("m.fully_read has no threads")
			}
		default:
			return chancery.InvalidParam("there is no such type of receipt")
		}
	}
	if len(receipts) == 0 {
		return nil
	}
	return s.DB.Write(ctx, []string{string(receipts[0].User)}, func(tx storage.Tx) error {
		for _, r := range receipts {
			if err := s.setReceipt(tx, r); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Server) setReceipt(tx storage.Tx, r Receipt) error {
	room, err := mustBeIn(tx, r.Room, r.User)
	if err != nil {
		return err
	}
	ev, ok, err := tx.Event(string(r.Event))
	if err != nil {
		return err
	}
	if !ok || ev.Room != room.NID || ev.Ord == nil {
		return chancery.NotFound("the room has no such event")
	}
	if r.Type == ReceiptFullyRead {
		return s.setFullyRead(tx, r, room.NID, *ev.Ord)
	}
	if r.Thread != "" {
		thread, err := threadOf(tx, &ev)
		if err != nil {
			return err
		}
		// The root of a thread is in the main timeline, and clients mark it read in its thread too.
		if r.Thread != thread && r.Thread != ev.ID {
			return chancery.InvalidParam("the event is not in this thread")
		}
	}
	return moveReceipt(tx, storage.Receipt{Room: room.NID, User: string(r.User), Type: r.Type, Thread: r.Thread,
		EventID: ev.ID, Ord: *ev.Ord, TS: now()})
}

// moveReceipt stores a receipt that goes forward and tells of it. One for an event that is not known here
// cannot be compared and is believed.
func moveReceipt(tx storage.Tx, v storage.Receipt) error {
	was, ok, err := tx.Receipt(v.Room, v.User, v.Type, v.Thread)
	if err != nil {
		return err
	}
	if ok && (was.EventID == v.EventID || v.Ord != 0 && was.Ord > v.Ord) {
		return nil
	}
	tx.SetReceipt(v)
	extra, err := json.Marshal(receiptFact{v.Type, v.EventID, v.Thread})
	if err != nil {
		return err
	}
	tx.Announce(storage.Fact{Kind: sql.FactReceipt, Room: v.Room, User: v.User, Extra: string(extra)})
	return nil
}

type receiptFact struct {
	Type   string `json:"type"`
	Event  string `json:"event"`
	Thread string `json:"thread,omitempty"`
}

// setFullyRead moves the marker up to which a user has read everything. It never goes back.
//
// spec: c2s#fully-read-markers
func (s *Server) setFullyRead(tx storage.Tx, r Receipt, room, ord int64) error {
	was, ok, err := tx.AccountData(string(r.User), room, typeFullyRead)
	if err != nil {
		return err
	}
	if ok {
		old, found, err := tx.Event(gjson.GetBytes(was, "event_id").Str)
		if err != nil {
			return err
		}
		if found && old.Ord != nil && *old.Ord >= ord {
			return nil
		}
	}
	content, err := json.Marshal(map[string]id.EventID{"event_id": r.Event})
	if err != nil {
		return err
	}
	putAccountData(tx, storage.AccountData{User: string(r.User), Room: room, Type: typeFullyRead, Content: content})
	return nil
}

// An event is in a thread that it reaches over at most this many relations.
//
// spec: c2s#threaded-read-receipts
const threadHops = 3

// threadOf finds the thread that an event is in: main, or the root's ID.
func threadOf(tx storage.Tx, ev *storage.Event) (string, error) {
	for range threadHops {
		relation := gjson.GetBytes(ev.JSON, `content.m\.relates_to`)
		target, kind := relation.Get("event_id").Str, relation.Get("rel_type").Str
		if target == "" || kind == "" {
			break
		}
		if kind == "m.thread" {
			return target, nil
		}
		next, ok, err := tx.Event(target)
		if err != nil {
			return "", err
		}
		if !ok || next.Room != ev.Room {
			break
		}
		ev = &next
	}
	return threadMain, nil
}

// mustBeIn finds a room that the user is in.
func mustBeIn(tx storage.Tx, roomID id.RoomID, user id.UserID) (storage.Room, error) {
	room, ok, err := tx.Room(string(roomID))
	if err != nil {
		return room, err
	}
	if ok {
		var m storage.Member
		m, ok, err = tx.Member(room.NID, string(user))
		if err != nil {
			return room, err
		}
		ok = ok && m.Membership == "join"
	}
	if !ok {
		return room, chancery.Forbidden("you are not in this room")
	}
	return room, nil
}

// maySpeak says which of some users of another server are in a room. Of a partial room we know few of the members, but
// the servers: whom we do not know is in it by the word of their server, if that is.
//
// spec: msc3902
func maySpeak(tx storage.Tx, room storage.Room, origin string, users []string) (map[string]bool, error) {
	members, err := tx.MembersOf(room.NID, users)
	if err != nil {
		return nil, err
	}
	may := make(map[string]bool, len(users))
	if room.Partial {
		there, err := tx.ServerIsIn(room.NID, origin)
		if err != nil {
			return nil, err
		}
		for _, u := range users {
			may[u] = there
		}
	}
	for _, m := range members {
		may[m.User] = m.Membership == "join"
	}
	return may, nil
}

// ReceiveReceipts takes the receipts of one m.receipt EDU. What its sender may not say is passed over; whose
// users may speak in a room was checked against its server ACL before.
//
// spec: s2s#receipts
func (s *Server) ReceiveReceipts(ctx context.Context, origin string, list []Receipt) error {
	// One write for each room: a function takes little time, and one bad room does not fail the others.
	byRoom := map[id.RoomID][]Receipt{}
	for _, r := range list {
		if r.Type == ReceiptRead && r.User.Homeserver() == origin && isEventID(string(r.Event)) && len(r.User) <= 255 &&
			(r.Thread == "" || r.Thread == threadMain || isEventID(r.Thread)) {
			byRoom[r.Room] = append(byRoom[r.Room], r)
		}
	}
	for roomID, receipts := range byRoom {
		err := s.DB.Write(ctx, []string{"receipts " + string(roomID)}, func(tx storage.Tx) error {
			return receiveReceipts(tx, roomID, origin, receipts)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func receiveReceipts(tx storage.Tx, roomID id.RoomID, origin string, receipts []Receipt) error {
	room, ok, err := tx.Room(string(roomID))
	if err != nil || !ok {
		return err
	}
	users, events := make([]string, len(receipts)), make([]string, 0, 2*len(receipts))
	for i, r := range receipts {
		users[i] = string(r.User)
		events = append(events, string(r.Event), r.Thread)
	}
	may, err := maySpeak(tx, room, origin, users)
	if err != nil {
		return err
	}
	rows, err := tx.EventsByID(events)
	if err != nil {
		return err
	}
	known := make(map[string]*storage.Event, len(rows))
	for i := range rows {
		known[rows[i].ID] = &rows[i]
	}
	for _, r := range receipts {
		if !may[string(r.User)] {
			continue
		}
		ord, ok, err := readable(tx, room.NID, r, known)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if err := moveReceipt(tx, storage.Receipt{Room: room.NID, User: string(r.User), Type: r.Type, Thread: r.Thread,
			EventID: string(r.Event), Ord: ord, TS: r.at()}); err != nil {
			return err
		}
	}
	return nil
}

// readable says whether a user of another server may have read an event of a room, and where it stands (0: nowhere
// yet). An event that is not here may be on its way, and is believed in; one that is of another room or was rejected
// is not. A thread must be one: each has a row of its own, and whoever invents them could fill the disk.
func readable(tx storage.Tx, room int64, r Receipt, known map[string]*storage.Event) (ord int64, ok bool, err error) {
	ev, root := known[string(r.Event)], known[r.Thread]
	if ev != nil && (ev.Room != room || ev.Status == storage.Rejected) {
		return 0, false, nil
	}
	if ev != nil && ev.Ord != nil {
		ord = *ev.Ord
	}
	if r.Thread == "" || r.Thread == threadMain || root != nil && root.Room == room {
		return ord, true, nil
	}
	if ev == nil {
		return 0, false, nil
	}
	thread, err := threadOf(tx, ev)
	return ord, thread == r.Thread, err
}

func isEventID(text string) bool { return len(text) > 1 && len(text) <= 255 && text[0] == '$' }
