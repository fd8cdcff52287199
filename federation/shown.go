package federation

import (
	"context"
	"encoding/json"

	"chancery/roomserver"
	"chancery/roomserver/state"
	"chancery/roomserver/visibility"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// everyMembership lists the memberships that members may have.
var everyMembership = []string{"join", "invite", "knock", "leave", "ban"}

// shown gives events as another server may see them: one that none of its users may see goes without its
// content, since the server needs its place in the room all the same.
//
// spec: s2s#backfilling-and-retrieving-missing-events
func (s *Server) shown(ctx context.Context, origin, roomID string, events []*roomserver.Stored) ([]json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(events))
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(roomID)
		if err != nil || !ok {
			return err
		}
		look := newLook(s, tx, room, origin)
		for _, ev := range events {
			sees, err := look.sees(ev)
			if err != nil {
				return err
			}
			if sees {
				out = append(out, ev.JSON())
				continue
			}
			hidden, err := ev.Redact()
			if err != nil {
				return err
			}
			out = append(out, hidden.JSON())
		}
		return nil
	})
	return out, err
}

// look looks at a room with the eyes of another server. The states before neighbouring events are mostly the
// same.
type look struct {
	s         *Server
	tx        storage.Tx
	room      storage.Room
	origin    string
	histories map[state.Root]string
	viewers   map[state.Root][]visibility.Viewer
	users     []string
	joined    map[string]bool // are in the room now
}

func newLook(s *Server, tx storage.Tx, room storage.Room, origin string) *look {
	return &look{s: s, tx: tx, room: room, origin: origin, histories: map[state.Root]string{}, viewers: map[state.Root][]visibility.Viewer{}}
}

func (l *look) sees(ev *roomserver.Stored) (bool, error) {
	history, err := l.history(ev.Before)
	if err != nil {
		return false, err
	}
	// The server is in the room: one of its users has joined before the event, or later.
	if history == visibility.WorldReadable || history == visibility.Shared {
		return true, nil
	}
	viewers, err := l.viewersAt(ev.Before)
	if err != nil {
		return false, err
	}
	return visibility.Server(ev.Event, history, l.origin, viewers), nil
}

func (l *look) history(root state.Root) (string, error) {
	if h, ok := l.histories[root]; ok {
		return h, nil
	}
	ev, err := l.s.Reader.StateEvent(l.tx, l.room, root, "m.room.history_visibility", "")
	if err != nil {
		return "", err
	}
	h := visibility.Shared
	if ev != nil {
		h = visibility.Of(ev.Event)
	}
	l.histories[root] = h
	return h, nil
}

// viewersAt gives the server's users with their memberships in a state. Whoever was a member once is one of the
// room's members today, if only as one who left.
func (l *look) viewersAt(root state.Root) ([]visibility.Viewer, error) {
	if v, ok := l.viewers[root]; ok {
		return v, nil
	}
	if l.joined == nil {
		l.joined = map[string]bool{}
		members, err := l.tx.LocalMembers(l.room.NID, l.origin, everyMembership)
		if err != nil {
			return nil, err
		}
		for _, m := range members {
			l.users = append(l.users, m.User)
			l.joined[m.User] = m.Membership == "join"
		}
	}
	found, err := l.s.Reader.StateKeys(l.tx, l.room, root, "m.room.member", l.users)
	if err != nil {
		return nil, err
	}
	memberships := make(map[string]string, len(found))
	for _, ev := range found {
		user, _ := ev.StateKey()
		memberships[user] = ev.Membership()
	}
	viewers := make([]visibility.Viewer, 0, len(l.users))
	for _, user := range l.users {
		viewers = append(viewers, visibility.Viewer{User: id.UserID(user), Membership: memberships[user], JoinedLater: l.joined[user]})
	}
	l.viewers[root] = viewers
	return viewers, nil
}
