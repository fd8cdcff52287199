package room

import (
	"context"
	"strings"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"

	"maunium.net/go/mautrix/id"
)

type GetHierarchyIn struct {
	Caller    endpoint.Caller
	RoomID    id.RoomID `path:"roomId"`
	Suggested bool      `query:"suggested_only"`
	Limit     *int      `query:"limit"`
	Depth     *int      `query:"max_depth"`
	From      string    `query:"from"`
}

type GetHierarchyOut struct {
	Rooms []*roomserver.SpaceRoom `json:"rooms"`
	Next  string                  `json:"next_batch,omitempty"`
}

// GetHierarchy lists the rooms in a space, and in the spaces in it.
//
// spec: c2s/getSpaceHierarchy
func (a *API) GetHierarchy(ctx context.Context, in *GetHierarchyIn) (*GetHierarchyOut, error) {
	page, err := a.Rooms.Hierarchy(ctx, in.Caller.User, roomserver.SpaceQuery{Room: in.RoomID, Suggested: in.Suggested,
		Depth: in.Depth, Limit: in.Limit, From: in.From})
	if err != nil {
		return nil, err
	}
	return &GetHierarchyOut{Rooms: page.Rooms, Next: page.Next}, nil
}

type GetSummaryIn struct {
	Caller endpoint.Caller
	Room   string   `path:"roomIdOrAlias"`
	Via    []string `query:"via"`
}

// GetSummary tells of a room that the caller may come into, or read. Who is not signed in hears of rooms that are
// open to all and that this server is in; no other server is asked for them.
//
// spec: c2s/getRoomSummary
func (a *API) GetSummary(ctx context.Context, in *GetSummaryIn) (*roomserver.RoomSummary, error) {
	if _, server, _ := strings.Cut(in.Room, ":"); in.Caller.User == "" && strings.HasPrefix(in.Room, "#") && server != a.Rooms.ServerName {
		return nil, chancery.NotFound("unknown room")
	}
	roomID, via, err := a.find(ctx, in.Room, in.Via)
	if err != nil {
		return nil, err
	}
	return a.Rooms.Summary(ctx, in.Caller.User, roomID, via)
}
