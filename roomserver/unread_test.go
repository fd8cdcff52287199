package roomserver

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
)

// unreadBySQL counts what is unread as the definition says it, in one statement and from nothing but what is stored.
func unreadBySQL(tx storage.Tx, user string, rooms []int64, ignored []string, depth int) ([]Unread, error) {
	list, err := sql.Collect(tx.Tx, func(r *sql.Rows) (v Unread, err error) {
		err = r.Scan(&v.Room, &v.Thread, &v.Notification, &v.Highlight)
		return v, err
	}, `WITH base AS (
			SELECT room, max(ord) AS ord FROM (
				SELECT m.room, e.ord FROM members m JOIN events e ON e.nid = m.event
					WHERE m.user_id = $1 AND m.room = ANY($2) AND m.membership = 'join' AND e.ord IS NOT NULL
				UNION ALL
				SELECT r.room, r.ord FROM receipts r
					WHERE r.user_id = $1 AND r.room = ANY($2) AND r.thread = '' AND r.type IN ('m.read', 'm.read.private')
			) x GROUP BY room
		), floors AS (
			SELECT b.room,
				COALESCE((SELECT e.ord FROM events e WHERE e.room = b.room AND e.ord > b.ord
					ORDER BY e.ord DESC LIMIT 1 OFFSET $4), b.ord) AS ord,
				COALESCE((SELECT n.ord FROM notifications n WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.ord AND n.highlight
					ORDER BY n.ord DESC LIMIT 1 OFFSET $4), b.ord) AS highlight
			FROM base b
		), seen AS (
			SELECT e.room, e.ord, e.sender, e.notify, e.redacted_by, COALESCE(t.target, 'main') AS thread
			FROM floors b CROSS JOIN events e
			LEFT JOIN relations t ON t.event = e.nid AND t.rel_type = 'm.thread'
			WHERE e.room = b.room AND e.ord > b.ord AND e.status = 0
		), marks AS (
			SELECT room, thread, max(ord) AS ord FROM (
				SELECT room, thread, ord FROM seen WHERE sender = $1
				UNION ALL
				SELECT r.room, r.thread, r.ord FROM receipts r
					WHERE r.user_id = $1 AND r.room = ANY($2) AND r.thread <> '' AND r.type IN ('m.read', 'm.read.private')
			) y GROUP BY room, thread
		), unread AS (
			SELECT s.room, s.thread, CASE WHEN n.highlight THEN 1 ELSE 0 END AS highlight
			FROM seen s
			LEFT JOIN marks k ON k.room = s.room AND k.thread = s.thread
			LEFT JOIN notifications n ON n.user_id = $1 AND n.room = s.room AND n.ord = s.ord
			WHERE s.sender <> $1 AND COALESCE(n.notify, s.notify) AND s.redacted_by = ''
				AND s.ord > COALESCE(k.ord, 0) AND s.sender <> ALL($3)
			UNION ALL
			SELECT n.room, n.thread, 1
			FROM floors b CROSS JOIN notifications n
			JOIN events e ON e.nid = n.event
			LEFT JOIN marks k ON k.room = n.room AND k.thread = n.thread
			WHERE n.user_id = $1 AND n.room = b.room AND n.ord > b.highlight AND n.ord <= b.ord AND n.highlight AND e.status = 0 AND e.redacted_by = '' AND n.notify AND n.ord > COALESCE(k.ord, 0) AND e.sender <> ALL($3)
		)
		SELECT room, thread, count(*), sum(highlight) FROM unread GROUP BY room, thread`, user, rooms, ignored, depth)
	sortUnread(list)
	return list, err
}

func sortUnread(list []Unread) {
	slices.SortFunc(list, func(a, b Unread) int { return cmp.Or(cmp.Compare(a.Room, b.Room), cmp.Compare(a.Thread, b.Thread)) })
}

// reading is a made-up server of which the rooms' events and what people have read of them change as they do with us:
// each change is told with a fact.
type reading struct {
	t     *testing.T
	db    *storage.DB
	rd    *Reader
	rnd   *rand.Rand
	depth int
	rooms map[int64]*readRoom
	users []string
	next  int64 // number of an event
	now   time.Time
	some  int // counts that were not empty
}

type readRoom struct {
	nid, low, high int64
	placed         []*storage.Event
	loose          []*storage.Event // known, without a place
	threads        []string
}

const readersRoom, othersRoom = 7, 8

func makeReading(t *testing.T, o sql.Options, seed uint64, depth int) *reading {
	db, err := storage.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	r := &reading{t: t, db: db, rd: NewReader(1 << 20), rnd: rand.New(rand.NewPCG(seed, 1)), depth: depth, now: time.Now(),
		rooms: map[int64]*readRoom{}, users: []string{"@a:x", "@b:x", "@c:x", "@d:y"}}
	for _, nid := range []int64{readersRoom, othersRoom} {
		r.rooms[nid] = &readRoom{nid: nid, low: 1 << 40, high: 1 << 40}
	}
	return r
}

func (r *reading) chance(percent int) bool { return r.rnd.IntN(100) < percent }

func one[T any](r *reading, list []T) T { return list[r.rnd.IntN(len(list))] }

// event makes an event at a place.
func (r *reading) event(tx storage.Tx, room *readRoom, ord int64, news bool) *storage.Event {
	r.next++
	ev := &storage.Event{NID: r.next, Room: room.nid, ID: fmt.Sprint("$", r.next), Type: "m.room.message", Sender: one(r, r.users),
		TS: r.next, Ord: &ord, Notify: news && r.chance(80), JSON: []byte("{}")}
	tx.InsertEvent(ev)
	room.placed = append(room.placed, ev)
	r.bearing(tx, room, ev, news)
	return ev
}

// bearing says what an event means to others.
func (r *reading) bearing(tx storage.Tx, room *readRoom, ev *storage.Event, news bool) {
	thread := "main"
	if len(room.threads) > 0 && r.chance(40) {
		thread = one(r, room.threads)
		tx.InsertRelation(storage.Relation{Room: room.nid, Event: ev.NID, Target: thread, RelType: "m.thread", Type: ev.Type, Sender: ev.Sender})
	} else if len(room.threads) < 3 {
		room.threads = append(room.threads, ev.ID)
	}
	var own []storage.Notification
	for _, user := range r.users {
		if news && r.chance(30) {
			own = append(own, storage.Notification{User: user, Room: room.nid, Ord: *ev.Ord, Event: ev.NID, Notify: r.chance(70), Highlight: r.chance(50), Thread: thread})
		}
	}
	if err := tx.InsertNotifications(own); err != nil {
		r.t.Error(err)
	}
}

func (r *reading) say(tx storage.Tx, room *readRoom) *storage.Event {
	room.high += 1 + r.rnd.Int64N(3)
	ev := r.event(tx, room, room.high, true)
	tx.Announce(storage.Fact{Kind: sql.FactEvent, Room: room.nid, Event: ev.NID, Ord: room.high})
	return ev
}

// free gives a place between or below those that are taken.
func (r *reading) free(room *readRoom) int64 {
	for range 20 {
		ord := room.low + r.rnd.Int64N(room.high-room.low+1)
		if !slices.ContainsFunc(room.placed, func(ev *storage.Event) bool { return *ev.Ord == ord }) {
			return ord
		}
	}
	room.low--
	return room.low
}

// change does what happens on a server, once.
func (r *reading) change(ctx context.Context) {
	room := r.rooms[readersRoom]
	if r.chance(20) {
		room = r.rooms[othersRoom]
	}
	user, kind := one(r, r.users), r.rnd.IntN(100)
	if kind >= 96 {
		before := r.all()
		for range 2 { // of the facts only the last is left
			r.now = r.now.Add(31 * 24 * time.Hour)
			if err := r.db.Trim(ctx, r.now); err != nil {
				r.t.Fatal(err)
			}
		}
		if after := r.all(); !slices.Equal(after, before) {
			r.t.Fatalf("there were %v, and are %v without what counts for nothing", before, after)
		}
		if r.chance(50) {
			r.rd = NewReader(1 << 20)
		}
		return
	}
	err := r.db.Write(ctx, nil, func(tx storage.Tx) error {
		switch {
		case kind < 50 || len(room.placed) == 0:
			for range 1 + r.rnd.IntN(3) {
				r.say(tx, room)
			}
		case kind < 55: // a redaction
			target := one(r, room.placed)
			if target.RedactedBy != "" {
				return nil
			}
			by := r.say(tx, room)
			target.RedactedBy = by.ID
			tx.RedactEvent(target.NID, by.ID, []byte("{}"))
			tx.DeleteRelation(target.NID)
			tx.Announce(storage.Fact{Kind: sql.FactRedaction, Room: room.nid, Event: target.NID})
		case kind < 60: // of the past
			ord := r.free(room)
			ev := r.event(tx, room, ord, false)
			tx.Announce(storage.Fact{Kind: sql.FactHistory, Room: room.nid, Event: ev.NID, Ord: ord})
		case kind < 63: // the room becomes whole: an event was not allowed
			i := r.rnd.IntN(len(room.placed))
			ev := room.placed[i]
			ev.Ord, ev.Status = nil, storage.SoftFailed
			tx.RestateEvent(ev)
			room.placed, room.loose = slices.Delete(room.placed, i, i+1), append(room.loose, ev)
			tx.Announce(storage.Fact{Kind: sql.FactRoomComplete, Room: room.nid})
		case kind < 66 && len(room.loose) > 0: // and another one is, or comes again
			i := r.rnd.IntN(len(room.loose))
			ev := room.loose[i]
			room.high++
			ord := room.high
			ev.Ord, ev.Status, ev.Notify = &ord, storage.Accepted, true
			room.placed, room.loose = append(room.placed, ev), slices.Delete(room.loose, i, i+1)
			tx.Announce(storage.Fact{Kind: sql.FactEvent, Room: room.nid, Event: ev.NID, Ord: ord})
			if r.chance(50) {
				tx.PlaceEvent(ev)
			} else {
				tx.RestateEvent(ev)
				tx.Announce(storage.Fact{Kind: sql.FactRoomComplete, Room: room.nid})
			}
			tx.DeleteRelation(ev.NID)
			r.bearing(tx, room, ev, true)
		case kind < 72: // comes, or goes
			ev := r.say(tx, room)
			tx.SetMember(storage.Member{Room: room.nid, User: user, Server: user[3:], Membership: one(r, []string{"join", "join", "join", "leave"}), Event: ev.NID})
		case kind < 74: // by the state of a room that is not known yet
			tx.SetMember(storage.Member{Room: room.nid, User: user, Server: user[3:], Membership: "join", Event: 1 << 50})
			tx.Announce(storage.Fact{Kind: sql.FactState, Room: room.nid, User: user})
		case kind < 92:
			ev := one(r, room.placed[max(0, len(room.placed)-10):])
			v := storage.Receipt{Room: room.nid, User: user, Type: one(r, []string{"m.read", "m.read.private"}), EventID: ev.ID, Ord: *ev.Ord}
			if r.chance(70) {
				v.Thread = one(r, append(room.threads, "main"))
			}
			if r.chance(5) {
				v.Ord = 0
			}
			tx.SetReceipt(v)
			tx.Announce(storage.Fact{Kind: sql.FactReceipt, Room: room.nid, User: user})
		default:
			tx.Announce(storage.Fact{Kind: one(r, []sql.FactKind{sql.FactState, sql.FactAccountData, sql.FactRoomDirectory}), Room: room.nid, User: user})
		}
		return nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// all counts for everybody, in the rooms that they are in.
func (r *reading) all() (list []Unread) {
	r.t.Helper()
	r.read(func(tx storage.Tx) {
		for _, user := range r.users {
			rows, err := tx.RoomsOf(user, []string{"join"})
			for _, row := range rows {
				counts, err2 := unreadBySQL(tx, user, []int64{row.Room}, []string{}, r.depth)
				list, err = append(list, counts...), cmp.Or(err, err2)
			}
			if err != nil {
				r.t.Fatal(err)
			}
		}
	})
	return list
}

// compare counts for somebody, in memory and by SQL.
func (r *reading) compare(tx storage.Tx, when string) {
	r.t.Helper()
	user, rooms := one(r, r.users), []int64{readersRoom, othersRoom}[:1+r.rnd.IntN(2)]
	ignored := []string{}
	if r.chance(20) {
		ignored = append(ignored, one(r, r.users))
	}
	want, err := unreadBySQL(tx, user, rooms, ignored, r.depth)
	if err != nil {
		r.t.Fatal(err)
	}
	got, err := r.rd.unreadCounts(tx, user, rooms, ignored, r.depth)
	sortUnread(got)
	if err != nil || !slices.Equal(got, want) {
		r.t.Fatalf("%s: of %s in %v, without %v, there are %v (%v), want %v", when, user, rooms, ignored, got, err, want)
	}
	if len(want) > 0 {
		r.some++
	}
}

func (r *reading) read(fn func(tx storage.Tx)) {
	r.t.Helper()
	if err := r.db.Read(r.t.Context(), func(tx storage.Tx) error { fn(tx); return nil }); err != nil {
		r.t.Fatal(err)
	}
}

// Whatever happens in rooms and whoever reads them: what is counted from memory is what is stored, in each snapshot.
//
// spec: c2s#receiving-notifications, c2s#marking-notifications-as-read
func TestUnreadIsCountedFromMemory(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		for seed, depth := range []int{4, storage.UnreadDepth} {
			r := makeReading(t, fresh(), uint64(seed), depth)
			for range 100 {
				if r.chance(50) {
					r.change(t.Context())
				}
				r.read(func(older storage.Tx) {
					if _, err := older.MaxPos(); err != nil {
						t.Fatal(err)
					}
					for range r.rnd.IntN(3) {
						r.change(t.Context())
						r.read(func(newer storage.Tx) {
							for range 2 {
								r.compare(newer, "now")
							}
						})
					}
					r.compare(older, "before")
				})
			}
			if r.some < 50 {
				t.Errorf("with a depth of %d something was unread %d times", depth, r.some)
			}
		}
	})
}

// Somebody who never reads a busy room does not make us read all of it.
func TestUnreadIsCountedToADepth(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		r := makeReading(t, fresh(), 0, 0)
		const own = "@lurker:x"
		err := r.db.Write(t.Context(), nil, func(tx storage.Tx) error {
			event := func(nid int64, sender string) {
				tx.InsertEvent(&storage.Event{NID: nid, Room: readersRoom, ID: fmt.Sprint("$", nid), Type: "m.room.message", Sender: sender, Ord: &nid, Notify: true, JSON: []byte("{}")})
				tx.Announce(storage.Fact{Kind: sql.FactEvent, Room: readersRoom, Event: nid, Ord: nid})
			}
			event(1, own)
			tx.SetMember(storage.Member{Room: readersRoom, User: own, Server: "x", Membership: "join", Event: 1})
			var marks []storage.Notification
			for nid := int64(2); nid <= 31; nid++ {
				event(nid, "@talker:x")
				if nid%5 == 0 { // 5, 10, 15, 20, 25, 30
					marks = append(marks, storage.Notification{User: own, Room: readersRoom, Ord: nid, Event: nid, Notify: true, Highlight: true, Thread: "main"})
				}
			}
			return tx.InsertNotifications(marks)
		})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			depth int
			want  Unread
		}{
			{3, Unread{readersRoom, "main", 3 + 2, 3}},   // 29 to 31, and the highlights of the last three: 20 and 25
			{10, Unread{readersRoom, "main", 10 + 4, 6}}, // 22 to 31, and the highlights 5 to 20
			{1000, Unread{readersRoom, "main", 30, 6}},
		} {
			r.read(func(tx storage.Tx) {
				got, err := r.rd.unreadCounts(tx, own, []int64{readersRoom}, nil, c.depth)
				if err != nil || !slices.Equal(got, []Unread{c.want}) {
					t.Errorf("to a depth of %d: %v, %v, want %v", c.depth, got, err, c.want)
				}
			})
		}
	})
}
