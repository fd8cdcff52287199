package roomserver

import (
	"context"
	"errors"

	"chancery"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// IsUnknownRoom says that err means a room that we do not have.
func IsUnknownRoom(err error) bool { return errors.Is(err, errUnknownRoom) }

// ErrAliasTaken says that an alias means a room already.
var ErrAliasTaken = chancery.Errorf(400, chancery.CodeRoomInUse, "the alias is taken")

// ResolveAlias finds the room that an alias means and servers that are in it. An alias of another server
// is asked for there.
//
// spec: c2s/getRoomIdByAlias
func (s *Server) ResolveAlias(ctx context.Context, alias id.RoomAlias) (id.RoomID, []string, error) {
	_, server, ok := splitAlias(alias)
	if !ok {
		return "", nil, chancery.InvalidParam("%s is not an alias", alias)
	}
	if server != s.ServerName {
		roomID, servers, err := s.Peer.QueryDirectory(ctx, server, alias)
		if err != nil {
			return "", nil, asAnswer(err)
		}
		return roomID, append(servers, server), nil
	}
	return s.LocalAlias(ctx, alias)
}

// LocalAlias is ResolveAlias for an alias of ours.
//
// spec: s2s/queryRoomDirectory
func (s *Server) LocalAlias(ctx context.Context, alias id.RoomAlias) (roomID id.RoomID, servers []string, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		v, ok, err := tx.Alias(string(alias))
		if err != nil {
			return err
		}
		if !ok {
			return chancery.NotFound("there is no alias %s", alias)
		}
		roomID = id.RoomID(v.RoomID)
		room, ok, err := tx.Room(v.RoomID)
		if err != nil || !ok {
			return err
		}
		counts, err := tx.ServersIn(room.NID)
		for _, c := range counts {
			servers = append(servers, c.Server)
		}
		return err
	})
	if len(servers) == 0 {
		servers = []string{s.ServerName}
	}
	return roomID, servers, err
}

func splitAlias(alias id.RoomAlias) (local, server string, ok bool) {
	if len(alias) < 2 || alias[0] != '#' {
		return "", "", false
	}
	for i := 1; i < len(alias); i++ {
		if alias[i] == ':' {
			return string(alias[1:i]), string(alias[i+1:]), i > 1 && i+1 < len(alias)
		}
	}
	return "", "", false
}

// Announce gives a room that is being made its alias and its place in the directory, in the transaction
// that makes it.
func (s *Server) Announce(tx storage.Tx, roomID id.RoomID, alias id.RoomAlias, creator id.UserID, public bool) error {
	if alias != "" {
		if made, err := tx.InsertAlias(storage.Alias{Alias: string(alias), RoomID: string(roomID), Creator: string(creator)}); err != nil {
			return err
		} else if !made {
			return ErrAliasTaken
		}
	}
	if public {
		tx.Publish(string(roomID), true)
	}
	return tellDirectory(tx, roomID)
}

// PutAlias makes an alias.
//
// spec: c2s/setRoomAlias
func (s *Server) PutAlias(ctx context.Context, alias id.RoomAlias, roomID id.RoomID, creator id.UserID) error {
	return s.DB.Write(ctx, []string{"alias:" + string(alias)}, func(tx storage.Tx) error {
		if made, err := tx.InsertAlias(storage.Alias{Alias: string(alias), RoomID: string(roomID), Creator: string(creator)}); err != nil {
			return err
		} else if !made {
			return ErrAliasTaken
		}
		return tellDirectory(tx, roomID)
	})
}

// DeleteAlias removes an alias of ours.
//
// spec: c2s/deleteRoomAlias
func (s *Server) DeleteAlias(ctx context.Context, alias id.RoomAlias) error {
	return s.DB.Write(ctx, []string{"alias:" + string(alias)}, func(tx storage.Tx) error {
		v, ok, err := tx.Alias(string(alias))
		if err != nil {
			return err
		}
		if !ok {
			return chancery.NotFound("there is no alias %s", alias)
		}
		if _, err := tx.DeleteAlias(string(alias)); err != nil {
			return err
		}
		return tellDirectory(tx, id.RoomID(v.RoomID))
	})
}

// Publish puts a room into the directory or takes it out.
//
// spec: c2s/setRoomVisibilityOnDirectory
func (s *Server) Publish(ctx context.Context, roomID id.RoomID, public bool) error {
	return s.DB.Write(ctx, []string{"published:" + string(roomID)}, func(tx storage.Tx) error {
		tx.Publish(string(roomID), public)
		return tellDirectory(tx, roomID)
	})
}

func tellDirectory(tx storage.Tx, roomID id.RoomID) error {
	room, ok, err := tx.Room(string(roomID))
	if err == nil && ok {
		tx.Announce(storage.Fact{Kind: sql.FactRoomDirectory, Room: room.NID})
	}
	return err
}
