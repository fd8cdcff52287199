package federation

import (
	"context"

	"chancery/roomserver"

	"maunium.net/go/mautrix/id"
)

type hierarchyIn struct {
	Origin    string    `origin:""`
	Room      id.RoomID `path:"roomId"`
	Suggested bool      `query:"suggested_only"`
}

type hierarchyOut struct {
	Room         *roomserver.SpaceRoom `json:"room"`
	Children     []roomserver.Preview  `json:"children"`
	Inaccessible []id.RoomID           `json:"inaccessible_children"`
}

// hierarchy tells of a room that the server could join or read, and of those in it if it is a space.
//
// spec: s2s/getSpaceHierarchy
func (s *Server) hierarchy(ctx context.Context, in *hierarchyIn) (*hierarchyOut, error) {
	space, err := s.Rooms.SpaceFor(ctx, in.Origin, in.Room, in.Suggested)
	if err != nil {
		return nil, err
	}
	return &hierarchyOut{space.Room, space.Children, space.Inaccessible}, nil
}
