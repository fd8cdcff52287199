package syncapi

import (
	"sync"

	"chancery/recent"
	"chancery/roomserver"
	"chancery/roomserver/state"

	"maunium.net/go/mautrix/id"
)

func (a *answer) lazy() bool { return a.q.filter.Room.State.LazyMembers }

// lazyMembers adds the members whom the client needs to show what it gets: the senders of the timeline,
// in a fresh room the user, and those who give the room its name. Who was sent already is left out.
//
// spec: c2s#lazy-loading-room-members
func (a *answer) lazyMembers(j *joined, at state.Root, list *stateList) error {
	device := deviceRoom{a.q.user, a.q.device, j.row.NID}
	redundant := a.q.filter.Room.State.RedundantMembers
	since := a.q.since.Pos
	if j.fresh {
		since = -1
	}
	told := sent{device: device, fresh: j.fresh}
	var wanted []string
	seen := map[string]bool{}
	want := func(user string) {
		if seen[user] {
			return
		}
		seen[user] = true
		if _, ok := list.at[roomserver.Key{Type: "m.room.member", StateKey: user}]; ok {
			return
		}
		if !redundant && a.s.sent.has(device, user, since) {
			return
		}
		wanted = append(wanted, user)
	}
	for _, ev := range j.timeline.events {
		want(string(ev.Sender()))
	}
	if j.fresh {
		want(string(a.q.user))
	}
	if j.summary != nil {
		for _, user := range j.summary.heroes {
			want(user)
		}
	}
	if len(wanted) > 0 && at != 0 {
		members, err := a.s.Reader.StateKeys(a.tx, j.row, at, "m.room.member", wanted)
		if err != nil {
			return err
		}
		list.add(members...)
	}
	for _, ev := range list.events {
		if isMember(ev) {
			told.users = append(told.users, keyOf(ev).StateKey)
		}
	}
	for _, ev := range j.timeline.events {
		if isMember(ev) {
			told.users = append(told.users, keyOf(ev).StateKey)
		}
	}
	if len(told.users) > 0 || told.fresh {
		a.next.sent = append(a.next.sent, told)
	}
	return nil
}

// sentMembers remembers which members a device was sent, so that they are not sent with every message.
// It is memory only, and bounded: a device that is not in it gets them again.
type sentMembers struct {
	devices *recent.Cache[deviceRoom, *sentTo]
}

type deviceRoom struct {
	user   id.UserID
	device id.DeviceID
	room   int64
}

type sentTo struct {
	mu    sync.Mutex       // guards users
	users map[string]int64 // the token of the answer that had them: one that was lost counts for nothing
}

type sent struct {
	device deviceRoom
	users  []string
	fresh  bool
}

const maxSentTo = 5000

func newSentMembers() *sentMembers {
	return &sentMembers{devices: recent.New[deviceRoom, *sentTo](16 << 20)}
}

// has says whether a client at a token has a member.
func (s *sentMembers) has(d deviceRoom, user string, since int64) bool {
	to, ok := s.devices.Get(d)
	if !ok {
		return false
	}
	to.mu.Lock()
	defer to.mu.Unlock()
	at, ok := to.users[user]
	return ok && at <= since
}

func (s *sentMembers) add(v sent, token int64) {
	to, ok := s.devices.Get(v.device)
	if !ok || v.fresh {
		to = &sentTo{users: map[string]int64{}}
	}
	to.mu.Lock()
	if len(to.users)+len(v.users) > maxSentTo {
		clear(to.users)
	}
	for _, u := range v.users {
		if _, ok := to.users[u]; !ok {
			to.users[u] = token
		}
	}
	size := 200 + 64*len(to.users)
	to.mu.Unlock()
	s.devices.Put(v.device, to, size)
}
