package roomserver

import (
	"context"

	"chancery"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// RoomSummary is a preview for one of our users, with what they are in the room; for somebody who is not signed
// in that is left out.
//
// spec: c2s/getRoomSummary
type RoomSummary struct {
	Preview
	Membership string `json:"membership,omitempty"`
}

// Summary tells one of our users of a room, or with an empty user somebody who is not signed in. For a user other
// servers are asked about a room that we are not in.
//
// spec: c2s/getRoomSummary
func (s *Server) Summary(ctx context.Context, user id.UserID, roomID id.RoomID, via []string) (*RoomSummary, error) {
	var found *SpaceRoom
	membership := ""
	ours := false
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		rows, _, err := roomsWith(tx, s.ServerName, []id.RoomID{roomID})
		if err != nil {
			return err
		}
		if ours = len(rows) > 0; !ours {
			invite, ok, err := tx.Invite(string(user), string(roomID))
			if ok {
				membership = invite.Membership
			}
			return err
		}
		if user == "" {
			room, err := s.Reader.SpaceRoom(tx, rows[0])
			if err == nil && room.OpenToAll() {
				found = room
			}
			return err
		}
		open, _, err := s.Reader.accessible(tx, s.ServerName, looker{user: user}, []id.RoomID{roomID})
		if err != nil {
			return err
		}
		found = open[roomID]
		m, _, err := tx.Member(rows[0].NID, string(user))
		membership = m.Membership
		return err
	})
	if err != nil {
		return nil, err
	}
	if !ours && user != "" {
		if found, err = s.summaryElsewhere(ctx, user, roomID, via); err != nil {
			return nil, err
		}
	}
	if found == nil {
		return nil, chancery.NotFound("unknown room")
	}
	if membership == "" && user != "" {
		membership = "leave"
	}
	return &RoomSummary{found.Preview, membership}, nil
}

func (s *Server) summaryElsewhere(ctx context.Context, user id.UserID, roomID id.RoomID, via []string) (*SpaceRoom, error) {
	servers, err := s.whoKnows(ctx, user, roomID, via)
	if err != nil {
		return nil, err
	}
	space := s.farSpaceVia(ctx, roomID, servers, mayAsk(maxVia))
	if space == nil {
		return nil, ctx.Err()
	}
	open, err := s.openElsewhere(ctx, user, []*SpaceRoom{space.room})
	if err != nil || len(open) == 0 {
		return nil, err
	}
	return open[0], nil
}
