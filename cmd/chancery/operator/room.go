package operator

import (
	"context"
	"errors"

	"chancery/config"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

type explainIn struct {
	Body explainBody `body:"json"`
}

type explainBody struct {
	Room  id.RoomID  `json:"room_id" required:"true"`
	Event id.EventID `json:"event_id" required:"true"`
}

// Explain replays how an event of a room was judged and resolved.
func Explain(ctx context.Context, cfg *config.Config, release string, room id.RoomID, event id.EventID) (x *roomserver.Explanation, err error) {
	err = ask(ctx, cfg, "/rooms/explain", explainBody{room, event}, &x)
	if !errors.Is(err, errNoServer) {
		return x, plain(err)
	}
	err = alone(ctx, cfg, release, func(db *storage.DB) error {
		x, err = offline(cfg, db).Explain(ctx, room, event)
		return err
	})
	return x, plain(err)
}

// Memory for events and state nodes while a verb works on the database itself.
const offlineBytes = 32 << 20

// offline is a room engine without a network, for a database that no server uses.
func offline(cfg *config.Config, db *storage.DB) *roomserver.Server {
	return roomserver.New(roomserver.Options{DB: db, Reader: roomserver.NewReader(offlineBytes), ServerName: cfg.ServerName, Log: zap.NewNop()})
}

func roomRoutes(rooms *roomserver.Server) []endpoint.Route {
	return []endpoint.Route{
		endpoint.Row("operator", "explainEvent", "POST", "/rooms/explain", endpoint.None, endpoint.Unlimited,
			endpoint.Handle(func(ctx context.Context, in *explainIn) (*roomserver.Explanation, error) {
				return rooms.Explain(ctx, in.Body.Room, in.Body.Event)
			})),
	}
}
