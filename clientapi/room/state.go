package room

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/clientevent"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

type SetStateIn struct {
	Caller   endpoint.Caller
	RoomID   id.RoomID       `path:"roomId"`
	Type     string          `path:"eventType"`
	StateKey string          `path:"stateKey"`
	TS       *int64          `query:"ts"`
	Content  json.RawMessage `body:"json"`
}

// SetState puts a piece of state into a room. What is there already is not sent again.
//
// spec: c2s/setRoomStateWithKey
func (a *API) SetState(ctx context.Context, in *SetStateIn) (*EventIDOut, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	now, err := a.currentState(ctx, in)
	if err != nil {
		return nil, err
	}
	if now != nil && now.Sender() == in.Caller.User && sameContent(now.Event, in.Content) {
		return &EventIDOut{now.ID()}, nil
	}
	switch in.Type {
	case "m.room.create":
		return nil, errCreatedOnce
	case "m.room.canonical_alias":
		if err := a.checkAliases(ctx, in, now); err != nil {
			return nil, err
		}
	case "m.room.member":
		if out, done, err := a.setMember(ctx, in, now); done || err != nil {
			return out, err
		}
	}
	sent, err := a.Rooms.Send(ctx, roomserver.NewEvent{Room: in.RoomID, Sender: in.Caller.User, Type: in.Type, StateKey: &in.StateKey,
		Content: in.Content, Time: sentAt(in.Caller, in.TS)})
	if err != nil {
		return nil, notHere(err)
	}
	return &EventIDOut{sent.ID}, nil
}

func (a *API) currentState(ctx context.Context, in *SetStateIn) (now *roomserver.Stored, err error) {
	err = a.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(in.RoomID))
		if err != nil || !ok {
			return err
		}
		now, err = a.Reader.StateEvent(tx, room, rootOf(room), in.Type, in.StateKey)
		return err
	})
	return now, err
}

func sameContent(ev *event.Event, content json.RawMessage) bool {
	is, err := event.CanonicalLenient(content)
	return err == nil && bytes.Equal(ev.Content(), is)
}

// setMember does by other means what more than an event is needed for: a join may have to name who lets
// the user in, an invite to be signed by another server.
func (a *API) setMember(ctx context.Context, in *SetStateIn, now *roomserver.Stored) (*EventIDOut, bool, error) {
	own := in.StateKey == string(in.Caller.User)
	inRoom := now != nil && now.Membership() == "join"
	switch membership := member(in.Content, "membership"); {
	case membership == "join" && own && !inRoom:
		if err := a.Rooms.Join(ctx, roomserver.Join{User: in.Caller.User, Room: in.RoomID, Content: in.Content}); err != nil {
			return nil, true, err
		}
	case membership == "invite":
		if !event.ValidUserID(in.StateKey) {
			return nil, true, chancery.InvalidParam("%s is not a user ID", in.StateKey)
		}
		if err := a.Rooms.Invite(ctx, roomserver.Invite{Room: in.RoomID, Sender: in.Caller.User, Target: id.UserID(in.StateKey), Content: in.Content}); err != nil {
			return nil, true, notHere(err)
		}
	default:
		return nil, false, nil
	}
	made, err := a.currentState(ctx, in)
	if err != nil || made == nil {
		return nil, true, err
	}
	return &EventIDOut{made.ID()}, true, nil
}

// checkAliases refuses aliases that are malformed or mean another room; those that were there before are
// not looked at.
//
// spec: c2s/setRoomStateWithKey
func (a *API) checkAliases(ctx context.Context, in *SetStateIn, now *roomserver.Stored) error {
	var was []string
	if now != nil {
		was = aliasesIn(now.Content())
	}
	for _, alias := range aliasesIn(in.Content) {
		if slices.Contains(was, alias) {
			continue
		}
		if !validAlias(alias) {
			return chancery.InvalidParam("%s is not an alias", alias)
		}
		roomID, _, err := a.Rooms.ResolveAlias(ctx, id.RoomAlias(alias))
		if err != nil || roomID != in.RoomID {
			return chancery.Errorf(400, chancery.CodeBadAlias, "the alias %s does not point to this room", alias).Because(err)
		}
	}
	return nil
}

func aliasesIn(content []byte) []string {
	var all []string
	if alias := member(content, "alias"); alias != "" {
		all = append(all, alias)
	}
	for _, alt := range gjson.GetBytes(content, "alt_aliases").Array() {
		all = append(all, alt.String())
	}
	return all
}

type GetStateEventIn struct {
	Caller   endpoint.Caller
	RoomID   id.RoomID `path:"roomId"`
	Type     string    `path:"eventType"`
	StateKey string    `path:"stateKey"`
	Format   string    `query:"format" default:"content"`
}

// GetStateEvent gives one piece of a room's state: its content, or the whole event.
//
// spec: c2s/getRoomStateWithKey
func (a *API) GetStateEvent(ctx context.Context, in *GetStateEventIn) (*json.RawMessage, error) {
	if in.Format != "content" && in.Format != "event" {
		return nil, chancery.InvalidParam("format is content or event")
	}
	if in.Type == "m.room.member" {
		if err := a.Rooms.KnowMember(ctx, in.RoomID, id.UserID(in.StateKey), in.Caller.User); err != nil {
			return nil, err
		}
	}
	var out json.RawMessage
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		ev, err := a.Reader.StateEvent(tx, v.room, v.root, in.Type, in.StateKey)
		if err != nil {
			return err
		}
		if ev == nil {
			return chancery.NotFound("the room has no such state")
		}
		out = ev.Content()
		if in.Format == "event" {
			events, err := a.client(tx, v, in.Caller, []*roomserver.Stored{ev})
			if err != nil {
				return err
			}
			out = events[0]
		}
		return nil
	})
	return &out, err
}

type GetStateIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
}

// GetState gives a room's whole state: the current one, or that in which the caller left.
//
// spec: c2s/getRoomState
func (a *API) GetState(ctx context.Context, in *GetStateIn) (*[]json.RawMessage, error) {
	if err := a.awaitWhole(ctx, in.RoomID, in.Caller.User); err != nil {
		return nil, err
	}
	var out []json.RawMessage
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		events, err := a.Reader.State(tx, v.room, v.root)
		if err != nil {
			return err
		}
		out, err = a.format(tx, v, in.Caller, events, clientevent.Form{RoomID: true, Brief: true})
		return err
	})
	return &out, err
}
