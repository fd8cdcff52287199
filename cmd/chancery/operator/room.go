package operator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	err = stored(ctx, cfg, release, func(db *storage.DB) error {
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

type rebuildIn struct {
	Body rebuildBody `body:"json"`
}

type rebuildBody struct {
	Room  id.RoomID `json:"room_id" required:"true"`
	Apply bool      `json:"apply"`
}

// Rebuild resolves a room's state again from its events, and with apply has the room move to what was found.
func Rebuild(ctx context.Context, cfg *config.Config, release string, room id.RoomID, apply bool) (found *roomserver.Rebuilt, err error) {
	err = ask(ctx, cfg, "/rooms/rebuild", rebuildBody{room, apply}, &found)
	if !errors.Is(err, errNoServer) {
		return found, plain(err)
	}
	err = stored(ctx, cfg, release, func(db *storage.DB) error {
		rooms := offline(cfg, db)
		if apply {
			owner, err := OwnerName(cfg)
			if err != nil {
				return err
			}
			if err := rooms.Own(ctx, owner); err != nil {
				return err
			}
			defer db.ReleaseShards(context.WithoutCancel(ctx), owner) // else they fall free when the lease ends
		}
		found, err = rooms.Rebuild(ctx, room, apply)
		return err
	})
	return found, plain(err)
}

// OwnerName is the name under which the process on a data directory owns rooms. It outlives the process, so that one
// that was killed need not wait for its own lease.
func OwnerName(cfg *config.Config) (string, error) {
	path := filepath.Join(cfg.DataDir, "owner")
	if text, err := os.ReadFile(path); err == nil && len(text) > 0 {
		return string(text), nil
	}
	name := rand.Text()
	if err := os.WriteFile(path, []byte(name), 0o600); err != nil {
		return "", fmt.Errorf("name this process: %w", err)
	}
	return name, nil
}

func roomRoutes(rooms *roomserver.Server) []endpoint.Route {
	return []endpoint.Route{
		endpoint.Row("operator", "explainEvent", "POST", "/rooms/explain", endpoint.None, endpoint.Unlimited,
			endpoint.Handle(func(ctx context.Context, in *explainIn) (*roomserver.Explanation, error) {
				return rooms.Explain(ctx, in.Body.Room, in.Body.Event)
			})),
		endpoint.Row("operator", "rebuildState", "POST", "/rooms/rebuild", endpoint.None, endpoint.Unlimited,
			endpoint.Handle(func(ctx context.Context, in *rebuildIn) (*roomserver.Rebuilt, error) {
				return rooms.Rebuild(ctx, in.Body.Room, in.Body.Apply)
			})),
	}
}
