package room

import (
	"context"
	"encoding/json"
	"slices"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/page"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

type GetMembersIn struct {
	Caller        endpoint.Caller
	RoomID        id.RoomID `path:"roomId"`
	At            string    `query:"at"`
	Membership    string    `query:"membership"`
	NotMembership string    `query:"not_membership"`
}

type GetMembersOut struct {
	Chunk []json.RawMessage `json:"chunk"`
}

var memberships = []string{"", "join", "invite", "knock", "leave", "ban"}

// GetMembers lists the member events of a room, now or at a point of its history.
//
// spec: c2s/getMembersByRoom
func (a *API) GetMembers(ctx context.Context, in *GetMembersIn) (*GetMembersOut, error) {
	if !slices.Contains(memberships, in.Membership) || !slices.Contains(memberships, in.NotMembership) {
		return nil, chancery.InvalidParam("there is no such membership")
	}
	if err := a.awaitWhole(ctx, in.RoomID, in.Caller.User); err != nil {
		return nil, err
	}
	out := &GetMembersOut{}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		root, err := a.rootAt(tx, v, in.At)
		if err != nil {
			return err
		}
		members, err := a.Reader.StateOfType(tx, v.room, root, "m.room.member")
		if err != nil {
			return err
		}
		members = slices.DeleteFunc(members, func(m *roomserver.Stored) bool { return !in.wants(m.Membership()) })
		out.Chunk, err = a.format(tx, v, in.Caller, members, clientevent.Form{RoomID: true, Brief: true})
		return err
	})
}

// awaitWhole waits until we know all members of a room: who is in it, and came lately, may be ahead of that.
//
// spec: msc3902
func (a *API) awaitWhole(ctx context.Context, roomID id.RoomID, user id.UserID) error {
	waits := false
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(roomID))
		if err != nil || !ok || !room.Partial {
			return err
		}
		m, ok, err := tx.Member(room.NID, string(user))
		waits = ok && m.Membership == "join"
		return err
	})
	if err != nil || !waits {
		return err
	}
	return a.Rooms.AwaitWhole(ctx, roomID)
}

// wants: both conditions together are an "or".
func (in *GetMembersIn) wants(membership string) bool {
	switch {
	case in.Membership == "" && in.NotMembership == "":
		return true
	case in.Membership == "":
		return membership != in.NotMembership
	case in.NotMembership == "":
		return membership == in.Membership
	}
	return membership == in.Membership || membership != in.NotMembership
}

// rootAt is the room's state at a token, but never later than the user may see.
func (a *API) rootAt(tx storage.Tx, v *view, token string) (state.Root, error) {
	if token == "" {
		return v.root, nil
	}
	t, err := page.Parse(token)
	if err != nil {
		return 0, err
	}
	ord, err := place(tx, v.room, token, end)
	if err != nil {
		return 0, err
	}
	if !v.joined && v.root != rootOf(v.room) && ord > v.until {
		return v.root, nil
	}
	rows, err := tx.EventsBelow(v.room.NID, ord, begin, 1)
	after := len(rows) > 0
	if err == nil && !after {
		rows, err = tx.EventsAbove(v.room.NID, ord-1, end, 2)
		// At the beginning of a room are those with whom it begins: before there is nobody, nor a room.
		if after = len(rows) == 2 && rows[0].Type == "m.room.create"; after {
			rows = rows[1:]
		} else if len(rows) > 1 {
			rows = rows[:1]
		}
	}
	if err != nil || len(rows) == 0 {
		return v.root, err
	}
	// Who may not see what happened then does not see who was there then either.
	events, err := a.Reader.StoredRows(v.room, rows)
	if err != nil {
		return 0, err
	}
	if events, err = a.visible(tx, v, events); err != nil || len(events) == 0 {
		return v.root, err
	}
	if v.joined && !t.Room {
		root, ok, err := tx.RootAt(v.room.NID, t.Pos)
		if err != nil || !ok {
			return v.root, err
		}
		// What was told of a partial room was a part of its state; its events have the whole by now.
		if part, err := tx.BecameWholeAfter(v.room.NID, t.Pos); err != nil || !part {
			return state.Root(root), err
		}
	}
	if after {
		return events[0].After, nil
	}
	return events[0].Before, nil
}

type GetJoinedMembersIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
}

type GetJoinedMembersOut struct {
	Joined map[id.UserID]joinedMember `json:"joined"`
}

type joinedMember struct {
	DisplayName string `json:"display_name,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

// GetJoinedMembers lists who is in a room, with their profiles there.
//
// spec: c2s/getJoinedMembersByRoom
func (a *API) GetJoinedMembers(ctx context.Context, in *GetJoinedMembersIn) (*GetJoinedMembersOut, error) {
	if err := a.awaitWhole(ctx, in.RoomID, in.Caller.User); err != nil {
		return nil, err
	}
	out := &GetJoinedMembersOut{Joined: map[id.UserID]joinedMember{}}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		if !v.joined {
			return chancery.Forbidden("you are not in this room")
		}
		members, err := tx.Members(v.room.NID, []string{"join"})
		for _, m := range members {
			out.Joined[id.UserID(m.User)] = joinedMember{m.DisplayName, m.AvatarURL}
		}
		return err
	})
}
