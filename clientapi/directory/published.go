package directory

import (
	"context"
	"encoding/json"
	"strconv"

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

// PublicRooms is a page of a directory, ours or another server's.
type PublicRooms struct {
	Chunk     []json.RawMessage `json:"chunk"`
	NextBatch string            `json:"next_batch,omitempty"`
	PrevBatch string            `json:"prev_batch,omitempty"`
	Total     *int64            `json:"total_room_count_estimate,omitempty"`
}

// GetPublicRooms lists the published rooms. Who is not signed in sees them only where the configuration says so.
//
// spec: c2s/getPublicRooms
func (a *API) GetPublicRooms(ctx context.Context, in *GetPublicRoomsIn) (*PublicRooms, error) {
	if in.Caller.User == "" && !a.Config.Directory.Public {
		return nil, chancery.MissingToken()
	}
	return a.publicRooms(ctx, in.Caller, in.Server, query{Limit: in.Limit, Since: in.Since})
}

type QueryPublicRoomsIn struct {
	Caller endpoint.Caller
	Server string `query:"server"`
	Body   query  `body:"json"`
}

type query struct {
	Limit              *int            `json:"limit"`
	Since              string          `json:"since"`
	Filter             json.RawMessage `json:"filter"`
	IncludeAllNetworks bool            `json:"include_all_networks"`
	ThirdPartyInstance string          `json:"third_party_instance_id"`
}

// QueryPublicRooms searches the published rooms.
//
// spec: c2s/queryPublicRooms
func (a *API) QueryPublicRooms(ctx context.Context, in *QueryPublicRoomsIn) (*PublicRooms, error) {
	return a.publicRooms(ctx, in.Caller, in.Server, in.Body)
}

const (
	defaultPage = 100
	maxPage     = 500
)

func (a *API) publicRooms(ctx context.Context, caller endpoint.Caller, server string, q query) (*PublicRooms, error) {
	limit := defaultPage
	if q.Limit != nil && *q.Limit > 0 {
		limit = min(*q.Limit, maxPage)
	}
	if server != "" && server != a.Rooms.ServerName {
		if caller.User == "" {
			return nil, chancery.MissingToken() // nobody makes us ask others without a name
		}
		return a.elsewhere(ctx, server, limit, q)
	}
	if q.ThirdPartyInstance != "" {
		return &PublicRooms{Chunk: []json.RawMessage{}}, nil // no network is bridged into this directory
	}
	wanted, err := readFilter(q.Filter)
	if err != nil {
		return nil, err
	}
	wanted.Limit = limit
	if q.Since != "" {
		if wanted.Skip, err = strconv.Atoi(q.Since); err != nil || wanted.Skip < 0 {
			return nil, chancery.InvalidParam("since is no token of ours")
		}
	}
	out := &PublicRooms{Chunk: []json.RawMessage{}}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		d, err := a.Reader.Directory(tx, wanted)
		if err != nil {
			return err
		}
		for _, room := range d.Rooms {
			text, err := json.Marshal(room)
			if err != nil {
				return err
			}
			out.Chunk = append(out.Chunk, text)
		}
		total := int64(d.Total)
		out.Total = &total
		if next := wanted.Skip + len(d.Rooms); next < d.Total && len(d.Rooms) > 0 {
			out.NextBatch = strconv.Itoa(next)
		}
		if wanted.Skip > 0 {
			out.PrevBatch = strconv.Itoa(max(wanted.Skip-limit, 0))
		}
		return nil
	})
}

func readFilter(text json.RawMessage) (q roomserver.DirectoryQuery, err error) {
	if len(text) == 0 {
		return q, nil
	}
	var f struct {
		Search string    `json:"generic_search_term"`
		Types  []*string `json:"room_types"`
	}
	if json.Unmarshal(text, &f) != nil {
		return q, chancery.BadJSON("the filter has the wrong form")
	}
	q.Search = f.Search
	if f.Types != nil {
		q.Types = []string{}
		for _, t := range f.Types {
			if t == nil {
				q.Types = append(q.Types, "")
			} else {
				q.Types = append(q.Types, *t)
			}
		}
	}
	return q, nil
}

// elsewhere asks another server for its directory.
func (a *API) elsewhere(ctx context.Context, server string, limit int, q query) (*PublicRooms, error) {
	page, err := a.Peer.PublicRooms(ctx, server, peer.PublicRoomsQuery{Limit: limit, Since: q.Since, Filter: q.Filter,
		IncludeAllNetworks: q.IncludeAllNetworks, ThirdPartyInstance: q.ThirdPartyInstance})
	if err != nil {
		return nil, chancery.As(err)
	}
	out := &PublicRooms{Chunk: page.Chunk, NextBatch: page.NextBatch, PrevBatch: page.PrevBatch, Total: page.Total}
	if out.Chunk == nil {
		out.Chunk = []json.RawMessage{}
	}
	return out, nil
}
