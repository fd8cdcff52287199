package room

import (
	"encoding/json"
	"math"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/state"
	"chancery/roomserver/visibility"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

func rootOf(r storage.Room) state.Root { return state.Root(r.Root) }

// member reads a string member of a JSON object.
func member(object []byte, name string) string {
	if v := gjson.GetBytes(object, gjson.Escape(name)); v.Type == gjson.String {
		return v.Str
	}
	return ""
}

// view is what a user may see of a room.
type view struct {
	user       id.UserID
	room       storage.Room
	membership string // now; empty when they never had one
	joined     bool
	root       state.Root // the state that they may see: the current one, or that in which they left
	ignored    []string   // whom they do not want to hear
	until      int64      // the place behind the last event at which they were in the room
}

// view looks up what a user may see. Who has been in a room sees it as it was when they left; who never
// was sees only what is open to the world. Both hear the same refusal about rooms that are not here.
//
// spec: c2s/getRoomState, c2s#room-previews
func (a *API) view(tx storage.Tx, roomID id.RoomID, user id.UserID) (*view, error) {
	room, ok, err := tx.Room(string(roomID))
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, chancery.Forbidden("you are not in this room")
	}
	v := &view{user: user, room: room, root: rootOf(room)}
	if v.ignored, err = ignoredBy(tx, user); err != nil {
		return nil, err
	}
	m, ok, err := tx.Member(room.NID, string(user))
	if err != nil {
		return nil, err
	}
	if ok {
		v.membership = m.Membership
		if m.Membership == "join" {
			v.joined, v.until = true, math.MaxInt64
			return v, nil
		}
	}
	open, err := a.Reader.StateEvent(tx, room, v.root, "m.room.history_visibility", "")
	if err != nil {
		return nil, err
	}
	var left *roomserver.Stored
	if ok && !m.Forgotten {
		if left, err = a.lastLeft(tx, room, m); err != nil {
			return nil, err
		}
	}
	if left != nil {
		v.until = left.Ord
	}
	if open != nil && visibility.Of(open.Event) == visibility.WorldReadable {
		return v, nil
	}
	if left == nil {
		return nil, chancery.Forbidden("you are not in this room")
	}
	v.root = left.After
	return v, nil
}

// ignoredBy lists whom a user does not want to hear.
//
// spec: c2s#mignored_user_list
func ignoredBy(tx storage.Tx, user id.UserID) ([]string, error) {
	content, ok, err := tx.AccountData(string(user), 0, "m.ignored_user_list")
	if err != nil || !ok {
		return nil, err
	}
	var users []string
	gjson.GetBytes(content, "ignored_users").ForEach(func(k, _ gjson.Result) bool {
		users = append(users, k.Str)
		return true
	})
	return users, nil
}

// After so many changes of membership since the last join we stop looking for it.
const maxMemberships = 20

// lastLeft finds the event by which a user left the room, or was put out, when they were last in it; nil
// when they never were.
func (a *API) lastLeft(tx storage.Tx, room storage.Room, m storage.Member) (*roomserver.Stored, error) {
	at := m.Event
	for range maxMemberships {
		events, err := a.Reader.ByNumber(tx, room, []int64{at})
		if err != nil {
			return nil, err
		}
		now := events[at]
		if now == nil || !now.Placed {
			return nil, nil
		}
		before, err := a.Reader.StateEvent(tx, room, now.Before, "m.room.member", m.User)
		if err != nil || before == nil {
			return nil, err
		}
		if before.Membership() == "join" {
			return now, nil
		}
		at = before.NID
	}
	return nil, nil
}

// client gives events the form in which this caller gets them.
func (a *API) client(tx storage.Tx, v *view, caller endpoint.Caller, events []*roomserver.Stored) ([]json.RawMessage, error) {
	return a.format(tx, v, caller, events, clientevent.Form{RoomID: true})
}

func (a *API) format(tx storage.Tx, v *view, caller endpoint.Caller, events []*roomserver.Stored, form clientevent.Form) ([]json.RawMessage, error) {
	viewer := clientevent.Viewer{User: caller.User, Device: caller.Device, Ignored: v.ignored}
	if !v.joined {
		viewer.Until = max(v.until, 1) // who never was in it has left it before everything
	}
	return clientevent.Format(tx, a.Reader, v.room, viewer, events, form)
}
