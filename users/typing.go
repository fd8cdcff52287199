package users

import (
	"context"
	"slices"
	"sync"
	"time"

	"chancery"
	"chancery/storage"

	"github.com/nats-io/nats.go"
	"maunium.net/go/mautrix/id"
)

// TypingSubject is where processes tell each other who types, as TypingChange in JSON. Nothing of it is kept.
const TypingSubject = "chancery.typing"

const (
	maxTyping      = 2 * time.Minute // longest that is believed without being said again
	typingDefault  = 30 * time.Second
	maxTypingUsers = 50_000 // held at a time; more are not told
)

// TypingChange says that a user types in a room until a time, or stopped.
type TypingChange struct {
	Room   id.RoomID `json:"room"`
	User   id.UserID `json:"user"`
	Until  int64     `json:"until"`  // milliseconds; 0: stopped
	Server string    `json:"server"` // whose user it is
}

// Typing knows who types where. Every process holds all of it; entries end by themselves.
type Typing struct {
	told *told[TypingChange]
	self string // this process, in tokens

	mu       sync.Mutex // guards all below; a leaf
	rooms    map[id.RoomID]map[id.UserID]*typist
	users    int
	serial   int64
	changed  map[id.RoomID]int64 // serial of each room's last change
	watchers []chan<- TypingChange
}

type typist struct {
	until int64
	timer *time.Timer
}

// newTyping listens on conn; without one it hears only this process.
func newTyping(conn *nats.Conn, self string) *Typing {
	t := &Typing{self: self, rooms: map[id.RoomID]map[id.UserID]*typist{}, changed: map[id.RoomID]int64{}}
	t.told = newTold(conn, TypingSubject, t.apply)
	return t
}

func (t *Typing) apply(c TypingChange) {
	until := min(c.Until, time.Now().Add(maxTyping).UnixMilli())
	left := time.Until(time.UnixMilli(until))
	t.mu.Lock()
	defer t.mu.Unlock()
	typists := t.rooms[c.Room]
	was := typists[c.User]
	switch {
	case left > 0 && was != nil:
		was.until = until
		was.timer.Reset(left)
		return // nothing that anybody sees
	case left > 0:
		if t.users >= maxTypingUsers {
			return
		}
		if typists == nil {
			typists = map[id.UserID]*typist{}
			t.rooms[c.Room] = typists
		}
		typists[c.User] = &typist{until: until, timer: time.AfterFunc(left, func() { t.expire(c.Room, c.User) })}
		t.users++
	case was != nil:
		was.timer.Stop()
		t.remove(c.Room, c.User)
	default:
		return
	}
	t.note(c)
}

// note is called with mu held.
func (t *Typing) note(c TypingChange) {
	t.serial++
	t.changed[c.Room] = t.serial
	for _, w := range t.watchers {
		select {
		case w <- c:
		default: // who does not keep up asks In when it comes round
		}
	}
}

func (t *Typing) remove(room id.RoomID, user id.UserID) {
	delete(t.rooms[room], user)
	if len(t.rooms[room]) == 0 {
		delete(t.rooms, room)
	}
	t.users--
}

func (t *Typing) expire(room id.RoomID, user id.UserID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.rooms[room][user]
	if v == nil {
		return
	}
	if left := time.Until(time.UnixMilli(v.until)); left > 0 {
		v.timer.Reset(left)
		return
	}
	t.remove(room, user)
	t.note(TypingChange{Room: room, User: user, Server: user.Homeserver()})
}

// In lists who types in a room, sorted.
func (t *Typing) In(room id.RoomID) []id.UserID {
	t.mu.Lock()
	defer t.mu.Unlock()
	users := make([]id.UserID, 0, len(t.rooms[room]))
	for u := range t.rooms[room] {
		users = append(users, u)
	}
	slices.Sort(users)
	return users
}

// Serial is the number of the latest change in this process, for tokens together with Process.
func (t *Typing) Serial() int64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.serial
}

// Process tells this process's serials from those of any other.
func (t *Typing) Process() string { return t.self }

// ChangedIn says whether anybody began or stopped typing in a room after a serial of this process.
func (t *Typing) ChangedIn(room id.RoomID, after int64) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.changed[room] > after
}

// Watch sends changes to a channel as they come; what it has no room for is dropped. The returned function ends it.
func (t *Typing) Watch(to chan<- TypingChange) (stop func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.watchers = append(t.watchers, to)
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.watchers = slices.DeleteFunc(t.watchers, func(w chan<- TypingChange) bool { return w == to })
	}
}

// Typing is who types where.
func (s *Server) Typing() *Typing { return s.typing }

// SetTyping says that one of our users types in a room for some time, or stopped.
//
// spec: c2s/setTyping
func (s *Server) SetTyping(ctx context.Context, user id.UserID, room id.RoomID, typing bool, timeout time.Duration) error {
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		_, err := mustBeIn(tx, room, user)
		return err
	})
	if err != nil {
		return err
	}
	if timeout < 0 {
		return chancery.InvalidParam("the timeout is negative")
	}
	if timeout == 0 {
		timeout = typingDefault
	}
	s.tellTyping(user, room, typing, timeout)
	return nil
}

func (s *Server) tellTyping(user id.UserID, room id.RoomID, typing bool, timeout time.Duration) {
	c := TypingChange{Room: room, User: user, Server: user.Homeserver()}
	if typing {
		c.Until = time.Now().Add(min(timeout, maxTyping)).UnixMilli()
	}
	s.typing.told.tell(c)
}

// ReceiveTyping takes an m.typing EDU; whether the origin may speak in the room by its server ACL was
// checked before.
//
// spec: s2s#typing-notifications
func (s *Server) ReceiveTyping(ctx context.Context, origin string, user id.UserID, room id.RoomID, typing bool) error {
	if user.Homeserver() != origin || len(user) > 255 {
		return nil
	}
	may := map[string]bool{}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		row, ok, err := tx.Room(string(room))
		if err == nil && ok {
			may, err = maySpeak(tx, row, origin, []string{string(user)})
		}
		return err
	})
	if err == nil && may[string(user)] {
		s.tellTyping(user, room, typing, typingDefault)
	}
	return err
}
