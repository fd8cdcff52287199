package directory

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

type VisibilityIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
}

type VisibilityOut struct {
	Visibility string `json:"visibility"`
}

// GetVisibility says whether a room is in the directory.
//
// spec: c2s/getRoomVisibilityOnDirectory
func (a *API) GetVisibility(ctx context.Context, in *VisibilityIn) (*VisibilityOut, error) {
	out := &VisibilityOut{"private"}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		_, ok, err := tx.Room(string(in.RoomID))
		if err != nil {
			return err
		}
		if !ok {
			return errNoRoom
		}
		public, err := tx.IsPublished(string(in.RoomID))
		if public {
			out.Visibility = "public"
		}
		return err
	})
}

var errNoRoom = chancery.NotFound("unknown room")

type SetVisibilityIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Body   struct {
		Visibility string `json:"visibility"`
	} `body:"json"`
}

// SetVisibility puts a room into the directory or takes it out: who may set the room's canonical alias may,
// and administrators.
//
// spec: c2s/setRoomVisibilityOnDirectory
func (a *API) SetVisibility(ctx context.Context, in *SetVisibilityIn) (*empty, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	switch in.Body.Visibility {
	case "public", "private":
	case "":
		in.Body.Visibility = "public"
	default:
		return nil, chancery.InvalidParam("visibility is public or private")
	}
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		_, ok, err := tx.Room(string(in.RoomID))
		if err != nil {
			return err
		}
		if !ok {
			return errNoRoom
		}
		if in.Caller.Admin {
			return nil
		}
		if may, err := a.maySetAlias(tx, string(in.RoomID), in.Caller.User); err != nil {
			return err
		} else if !may {
			return chancery.Forbidden("you may not say whether this room is in the directory")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return nil, a.Rooms.Publish(ctx, in.RoomID, in.Body.Visibility == "public")
}

type GetPublicRoomsIn struct {
	Caller endpoint.Caller
	Limit  *int   `query:"limit"`
	Since  string `query:"since"`
	Server string `query:"server"`
}

// GetPublicRooms lists the published rooms. Who is not signed in sees them only where the configuration says so.
//
// spec: c2s/getPublicRooms
func (a *API) GetPublicRooms(ctx context.Context, in *GetPublicRoomsIn) (*roomserver.Directory, error) {
	if in.Caller.User == "" && !a.Config.Directory.Public {
		return nil, chancery.MissingToken()
	}
	return a.publicRooms(ctx, in.Caller, in.Server, query{DirectoryQuery: roomserver.DirectoryQuery{Limit: in.Limit, Since: in.Since}})
}

type QueryPublicRoomsIn struct {
	Caller endpoint.Caller
	Server string `query:"server"`
	Body   query  `body:"json"`
}

type query struct {
	roomserver.DirectoryQuery
	IncludeAllNetworks bool `json:"include_all_networks"`
}

// QueryPublicRooms searches the published rooms.
//
// spec: c2s/queryPublicRooms
func (a *API) QueryPublicRooms(ctx context.Context, in *QueryPublicRoomsIn) (*roomserver.Directory, error) {
	return a.publicRooms(ctx, in.Caller, in.Server, in.Body)
}

const usualPage = 100

func (a *API) publicRooms(ctx context.Context, caller endpoint.Caller, server string, q query) (d *roomserver.Directory, err error) {
	if server != "" && server != a.Rooms.ServerName {
		return a.elsewhere(ctx, caller, server, q)
	}
	return d, a.DB.Read(ctx, func(tx storage.Tx) (err error) {
		d, err = a.Reader.Directory(tx, q.DirectoryQuery, usualPage)
		return err
	})
}

// elsewhere asks another server for its directory.
func (a *API) elsewhere(ctx context.Context, caller endpoint.Caller, server string, q query) (*roomserver.Directory, error) {
	if caller.User == "" {
		return nil, chancery.MissingToken() // nobody makes us ask others without a name
	}
	if err := a.Limits.Allow(endpoint.LimitRemote, caller); err != nil {
		return nil, err
	}
	ask := peer.PublicRoomsQuery{Limit: usualPage, Since: q.Since, IncludeAllNetworks: q.IncludeAllNetworks, ThirdPartyInstance: q.ThirdParty}
	if q.Limit != nil && *q.Limit > 0 {
		ask.Limit = min(*q.Limit, roomserver.MaxDirectoryPage)
	}
	if q.Filter.Search != "" || q.Filter.Types != nil {
		var err error
		if ask.Filter, err = json.Marshal(q.Filter); err != nil {
			return nil, err
		}
	}
	return a.Rooms.FarDirectory(ctx, server, ask)
}
