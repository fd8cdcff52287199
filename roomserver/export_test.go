package roomserver

import (
	"context"

	"chancery/roomserver/event"

	"maunium.net/go/mautrix/id"
)

// ReceiveFor takes an event as if a server in the room had sent it.
func (s *Server) ReceiveFor(ctx context.Context, room id.RoomID, ev *event.Event) error {
	return s.take(ctx, "test", room, ev, nil)
}
