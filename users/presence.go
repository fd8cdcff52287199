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

// PresenceSubject is where processes tell each other who is online, as Presence in JSON. Nothing of it is kept.
const PresenceSubject = "chancery.presence"

const (
	online      = "online"
	unavailable = "unavailable"
	offline     = "offline"

	idleAfterActive  = 5 * time.Minute  // spec: c2s#idle-timeout
	activeFor        = 30 * time.Second // after an activity the user counts as currently active
	offlineAfterSync = 2 * time.Minute  // without a /sync
	maxPresence      = 200_000          // users held at a time
	maxStatus        = 1000             // bytes
)

// Presence is what is known of a user's presence.
type Presence struct {
	User            id.UserID `json:"user"`
	Presence        string    `json:"presence"`
	StatusMsg       *string   `json:"status_msg,omitempty"`
	LastActive      int64     `json:"last_active"` // milliseconds; 0: not known
	CurrentlyActive bool      `json:"currently_active,omitempty"`
	Synced          int64     `json:"synced,omitempty"` // last /sync, of our own users
	// Device is the one of our user's that was last in the foreground; "": none by its /sync.
	Device id.DeviceID `json:"device,omitempty"`
}

// LastActiveAgo is how long ago the user did something, in milliseconds.
func (p Presence) LastActiveAgo() int64 {
	if p.LastActive == 0 {
		return 0
	}
	return max(0, now()-p.LastActive)
}

// Presences know who is online. Every process holds all of it.
type Presences struct {
	told *told[Presence]

	mu       sync.Mutex // guards all below; a leaf
	of       map[id.UserID]*Presence
	changed  map[id.UserID]int64 // serial of each user's last change
	serial   int64
	watchers []chan<- Presence
}

func newPresences(conn *nats.Conn) *Presences {
	p := &Presences{of: map[id.UserID]*Presence{}, changed: map[id.UserID]int64{}}
	p.told = newTold(conn, PresenceSubject, p.apply)
	return p
}

func (p *Presences) apply(v Presence) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.of[v.User]
	if was == nil && len(p.of) >= maxPresence {
		return
	}
	p.of[v.User] = &v
	if was != nil && !seesChange(was, &v) {
		return
	}
	if was == nil && v.Presence == offline && v.StatusMsg == nil {
		return
	}
	p.serial++
	p.changed[v.User] = p.serial
	for _, w := range p.watchers {
		select {
		case w <- v:
		default: // who does not keep up asks Of when it comes round
		}
	}
}

// seesChange says whether others are told. While a user is currently active, new activity is not news.
//
// spec: c2s#last-active-ago
func seesChange(was, is *Presence) bool {
	if was.Presence != is.Presence || was.CurrentlyActive != is.CurrentlyActive {
		return true
	}
	if (was.StatusMsg == nil) != (is.StatusMsg == nil) || was.StatusMsg != nil && *was.StatusMsg != *is.StatusMsg {
		return true
	}
	return !is.CurrentlyActive && is.LastActive > was.LastActive
}

// Of gives a user's presence; ok is false when nothing was heard of it.
func (p *Presences) Of(user id.UserID) (Presence, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := p.of[user]
	if v == nil {
		return Presence{User: user, Presence: offline}, false
	}
	return *v, true
}

// Changed gives the presence of those of some users that changed after a serial, and the present serial.
func (p *Presences) Changed(users []id.UserID, after int64) ([]Presence, int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []Presence
	if p.serial > after {
		for _, u := range users {
			if p.changed[u] > after {
				list = append(list, *p.of[u])
			}
		}
	}
	return list, p.serial
}

// ChangedSince names whose presence changed after a serial.
func (p *Presences) ChangedSince(after int64) []id.UserID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []id.UserID
	if p.serial > after {
		for u, at := range p.changed {
			if at > after {
				list = append(list, u)
			}
		}
	}
	return list
}

// Serial is the number of the latest change in this process.
func (p *Presences) Serial() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.serial
}

// Watch sends changes to a channel as they come; what it has no room for is dropped. The returned function ends it.
func (p *Presences) Watch(to chan<- Presence) (stop func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchers = append(p.watchers, to)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.watchers = slices.DeleteFunc(p.watchers, func(w chan<- Presence) bool { return w == to })
	}
}

// due lists what time itself has changed: of our users who idles, and who is gone.
func (p *Presences) due(server string, at time.Time) []Presence {
	p.mu.Lock()
	defer p.mu.Unlock()
	ms := at.UnixMilli()
	var list []Presence
	for user, v := range p.of {
		if user.Homeserver() != server || v.Presence == offline {
			continue
		}
		next := *v
		switch {
		case ms-max(v.Synced, v.LastActive) > offlineAfterSync.Milliseconds():
			next.Presence, next.CurrentlyActive = offline, false
		case v.Presence == online && ms-v.LastActive > idleAfterActive.Milliseconds():
			next.Presence, next.CurrentlyActive = unavailable, false
		case v.CurrentlyActive && ms-v.LastActive > activeFor.Milliseconds():
			next.CurrentlyActive = false
		default:
			continue
		}
		list = append(list, next)
	}
	return list
}

// Presences is who is online; with presence switched off nobody ever is.
func (s *Server) Presences() *Presences { return s.presences }

// SetPresence sets the presence of one of our users.
//
// spec: c2s/setPresence
func (s *Server) SetPresence(user id.UserID, presence string, status *string) error {
	if presence != online && presence != unavailable && presence != offline {
		return chancery.InvalidParam("presence is online, unavailable or offline")
	}
	if status != nil && len(*status) > maxStatus {
		return chancery.InvalidParam("the status message is too long")
	}
	if !s.Config.Presence.Enabled {
		return nil
	}
	at := now()
	s.presences.told.tell(Presence{User: user, Presence: presence, StatusMsg: status, LastActive: at, CurrentlyActive: presence == online, Synced: at})
	return nil
}

// Synced says that a client of one of our users asked /sync and wants the user to be seen so; an empty
// presence is online. It is cheap: what changes nothing is told at most every few seconds.
//
// spec: c2s/sync (set_presence)
func (s *Server) Synced(user id.UserID, device id.DeviceID, presence string) {
	if presence == "" {
		presence = online
	}
	if !s.Config.Presence.Enabled || presence == offline {
		return
	}
	v, _ := s.presences.Of(user)
	at := now()
	// A client in the background does not push aside what another one of the user says.
	others := presence == unavailable && v.Presence == online && v.Device != "" && v.Device != device
	if v.Presence == presence || others {
		if at-v.Synced < activeFor.Milliseconds()/3 {
			return
		}
	} else {
		v.Presence = presence
	}
	v.Synced = at
	switch {
	case others:
	case v.Presence == online:
		v.LastActive, v.CurrentlyActive, v.Device = at, true, device
	default:
		v.CurrentlyActive = false
	}
	s.presences.told.tell(v)
}

// PresenceOf tells one user the presence of another: of those with whom they share a room.
//
// spec: c2s/getPresence
func (s *Server) PresenceOf(ctx context.Context, asks, user id.UserID) (Presence, error) {
	if asks != user {
		err := s.DB.Read(ctx, func(tx storage.Tx) error {
			n, err := tx.SharedRooms(string(asks), string(user))
			if err == nil && len(n) == 0 {
				err = chancery.Forbidden("you may not see this user's presence")
			}
			return err
		})
		if err != nil {
			return Presence{}, err
		}
	}
	v, _ := s.presences.Of(user)
	return v, nil
}

// ReceivePresence takes an m.presence EDU, when presence is shared with other servers.
//
// spec: s2s#presence
func (s *Server) ReceivePresence(ctx context.Context, origin string, list []Presence) error {
	if !s.Config.Presence.Enabled || !s.Config.Presence.Federate {
		return nil
	}
	names := make([]string, 0, len(list))
	for _, v := range list {
		if len(v.User) <= 255 {
			names = append(names, string(v.User))
		}
	}
	met := map[string]bool{}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		found, err := tx.UsersMetBy(s.ServerName, names)
		for _, user := range found {
			met[user] = true
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, v := range list {
		// Of users whom nobody here meets nothing is kept: there are as many as their server likes.
		if v.User.Homeserver() != origin || !met[string(v.User)] || len(v.User) > 255 || v.Presence != online && v.Presence != unavailable && v.Presence != offline ||
			v.StatusMsg != nil && len(*v.StatusMsg) > maxStatus {
			continue
		}
		v.LastActive, v.Synced = min(v.LastActive, now()), 0
		s.presences.told.tell(v)
	}
	return nil
}

// watchPresence lets time change who is online.
func (s *Server) watchPresence(ctx context.Context) error {
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case at := <-tick.C:
			for _, v := range s.presences.due(s.ServerName, at) {
				s.presences.told.tell(v)
			}
		}
	}
}
