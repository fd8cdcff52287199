// Package directory is the client-server API of how rooms are found: aliases and the directory of
// published rooms. It asks roomserver to change them.
package directory

import (
	"context"
	"errors"
	"net/http"
	"strings"

	"chancery"
	"chancery/config"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// API answers for aliases and the directory.
type API struct {
	Config *config.Config
	DB     *storage.DB
	Reader *roomserver.Reader
	Rooms  *roomserver.Server
	Peer   *peer.Client
	Limits *endpoint.Limits // nil limits nothing
	Log    *zap.Logger
}

type empty struct{}

type SetAliasIn struct {
	Caller endpoint.Caller
	Alias  id.RoomAlias `path:"roomAlias"`
	Body   struct {
		RoomID id.RoomID `json:"room_id" required:"true"`
	} `body:"json"`
}

// SetAlias makes an alias of a room that the caller is in.
//
// spec: c2s/setRoomAlias
func (a *API) SetAlias(ctx context.Context, in *SetAliasIn) (*empty, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	if !valid(in.Alias) || event.Domain(string(in.Alias)) != a.Rooms.ServerName {
		return nil, chancery.InvalidParam("%s is not an alias of this server", in.Alias)
	}
	if in.Caller.AppService == "" {
		if err := a.mustBeIn(ctx, in.Body.RoomID, in.Caller.User); err != nil {
			return nil, err
		}
	}
	err := a.Rooms.PutAlias(ctx, in.Alias, in.Body.RoomID, in.Caller.User)
	if errors.Is(err, roomserver.ErrAliasTaken) {
		return nil, chancery.Errorf(http.StatusConflict, chancery.CodeUnknown, "the alias %s exists already", in.Alias)
	}
	return nil, err
}

// mayWrite refuses what a suspended user must not do.
//
// spec: c2s#account-suspension
func mayWrite(c endpoint.Caller) error {
	if c.Suspended {
		return chancery.Errorf(403, chancery.CodeUserSuspended, "your account is suspended")
	}
	return nil
}

// spec: appendices#room-aliases
func valid(alias id.RoomAlias) bool {
	if len(alias) > 255 || len(alias) < 4 || alias[0] != '#' || alias[1] == ':' {
		return false
	}
	for i := range len(alias) {
		if alias[i] == 0 {
			return false
		}
	}
	return event.ValidServerName(event.Domain(string(alias)))
}

func (a *API) mustBeIn(ctx context.Context, roomID id.RoomID, user id.UserID) error {
	return a.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(roomID))
		if err != nil {
			return err
		}
		if ok {
			m, is, err := tx.Member(room.NID, string(user))
			if err != nil {
				return err
			}
			ok = is && m.Membership == "join"
		}
		if !ok {
			return chancery.Forbidden("you are not in this room")
		}
		return nil
	})
}

type AliasIn struct {
	Caller endpoint.Caller
	Alias  id.RoomAlias `path:"roomAlias"`
}

type GetAliasOut struct {
	RoomID  id.RoomID `json:"room_id"`
	Servers []string  `json:"servers"`
}

// GetAlias tells which room an alias means.
//
// spec: c2s/getRoomIdByAlias
func (a *API) GetAlias(ctx context.Context, in *AliasIn) (*GetAliasOut, error) {
	if !valid(in.Alias) {
		return nil, chancery.InvalidParam("%s is not an alias", in.Alias)
	}
	if _, server, _ := strings.Cut(string(in.Alias), ":"); server != a.Config.ServerName {
		if err := a.Limits.Allow(endpoint.LimitRemote, in.Caller); err != nil {
			return nil, err
		}
	}
	roomID, servers, err := a.Rooms.ResolveAlias(ctx, in.Alias)
	if err != nil {
		return nil, err
	}
	return &GetAliasOut{roomID, servers}, nil
}

// DeleteAlias removes an alias: its creator may, administrators, and who may set the room's canonical alias.
// Where the room names the alias as canonical the caller takes it back, if they may.
//
// spec: c2s/deleteRoomAlias
func (a *API) DeleteAlias(ctx context.Context, in *AliasIn) (*empty, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	var alias storage.Alias
	may := false
	err := a.DB.Read(ctx, func(tx storage.Tx) (err error) {
		var ok bool
		if alias, ok, err = tx.Alias(string(in.Alias)); err != nil {
			return err
		}
		if !ok {
			return chancery.NotFound("there is no alias %s here", in.Alias)
		}
		if may = alias.Creator == string(in.Caller.User) || in.Caller.Admin; !may {
			may, err = a.maySetAlias(tx, alias.RoomID, in.Caller.User)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if !may {
		return nil, chancery.Forbidden("you may not remove this alias")
	}
	if err := a.Rooms.DeleteAlias(ctx, in.Alias); err != nil {
		return nil, err
	}
	if err := a.dropCanonical(ctx, id.RoomID(alias.RoomID), in); err != nil {
		a.Log.Debug("the room still names a removed alias", zap.String("alias", string(in.Alias)), zap.Error(err))
	}
	return nil, nil
}

// maySetAlias says whether a user is in the room with the level for m.room.canonical_alias.
func (a *API) maySetAlias(tx storage.Tx, roomID string, user id.UserID) (bool, error) {
	room, ok, err := tx.Room(roomID)
	if err != nil || !ok {
		return false, err
	}
	found, err := a.Reader.Lookup(tx, room, []roomserver.Lookup{
		{Root: state.Root(room.Root), Key: roomserver.Key{Type: "m.room.create"}},
		{Root: state.Root(room.Root), Key: roomserver.Key{Type: "m.room.power_levels"}},
		{Root: state.Root(room.Root), Key: roomserver.Key{Type: "m.room.member", StateKey: string(user)}},
	})
	if err != nil || found[0] == nil || found[2] == nil || found[2].Membership() != "join" {
		return false, err
	}
	var levels *event.Event
	if found[1] != nil {
		levels = found[1].Event
	}
	power := auth.PowerLevelsOf(found[0].Event, levels)
	return power.Of(user).AtLeast(power.ForEvent("m.room.canonical_alias", true)), nil
}

func (a *API) dropCanonical(ctx context.Context, roomID id.RoomID, in *AliasIn) error {
	var content []byte
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(roomID))
		if err != nil || !ok {
			return err
		}
		ev, err := a.Reader.StateEvent(tx, room, state.Root(room.Root), "m.room.canonical_alias", "")
		if ev != nil {
			content = ev.Content()
		}
		return err
	})
	if err != nil || content == nil {
		return err
	}
	without, changed, err := withoutAlias(content, string(in.Alias))
	if err != nil || !changed {
		return err
	}
	_, err = a.Rooms.Send(ctx, roomserver.NewEvent{Room: roomID, Sender: in.Caller.User, Type: "m.room.canonical_alias",
		StateKey: new(string), Content: without})
	return err
}

func withoutAlias(content []byte, alias string) (_ []byte, changed bool, err error) {
	content = append([]byte(nil), content...)
	if gjson.GetBytes(content, "alias").Str == alias {
		changed = true
		if content, err = sjson.DeleteBytes(content, "alias"); err != nil {
			return nil, false, err
		}
	}
	var kept []string
	dropped := false
	for _, alt := range gjson.GetBytes(content, "alt_aliases").Array() {
		if alt.Str == alias {
			dropped = true
		} else {
			kept = append(kept, alt.Str)
		}
	}
	if !dropped {
		return content, changed, nil
	}
	if len(kept) == 0 {
		content, err = sjson.DeleteBytes(content, "alt_aliases")
	} else {
		content, err = sjson.SetBytes(content, "alt_aliases", kept)
	}
	return content, true, err
}
