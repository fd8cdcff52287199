package room

import (
	"context"

	"chancery"
	"chancery/endpoint"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

type ReportRoomIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Body   struct {
		Reason string `json:"reason" required:"true"`
	} `body:"json"`
}

// ReportRoom keeps a report of a room. Whether there is such a room is not told.
//
// spec: c2s/reportRoom
func (a *API) ReportRoom(ctx context.Context, in *ReportRoomIn) (*empty, error) {
	known := false
	err := a.DB.Read(ctx, func(tx storage.Tx) (err error) {
		_, known, err = tx.Room(string(in.RoomID))
		return err
	})
	if err != nil || !known {
		return nil, err
	}
	return nil, a.Rooms.Report(ctx, storage.Report{Reporter: string(in.Caller.User), RoomID: string(in.RoomID), Reason: in.Body.Reason})
}

type ReportEventIn struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID  `path:"roomId"`
	EventID id.EventID `path:"eventId"`
	Body    struct {
		Reason string `json:"reason"`
		Score  int64  `json:"score"`
	} `body:"json"`
}

// ReportEvent keeps a report of an event that the caller may see.
//
// spec: c2s/reportEvent
func (a *API) ReportEvent(ctx context.Context, in *ReportEventIn) (*empty, error) {
	err := a.DB.Read(ctx, func(tx storage.Tx) error {
		v, _, err := a.event(tx, in.RoomID, in.EventID, in.Caller)
		if err == nil && !v.joined {
			err = errNoEvent
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return nil, a.Rooms.Report(ctx, storage.Report{Reporter: string(in.Caller.User), RoomID: string(in.RoomID), EventID: string(in.EventID),
		Reason: in.Body.Reason, Score: in.Body.Score})
}

type ReportUserIn struct {
	Caller endpoint.Caller
	UserID id.UserID `path:"userId"`
	Body   struct {
		Reason string `json:"reason" required:"true"`
	} `body:"json"`
}

// ReportUser keeps a report of a user. Whether there is such a user is not told.
//
// spec: c2s/reportUser
func (a *API) ReportUser(ctx context.Context, in *ReportUserIn) (*empty, error) {
	if len(in.UserID) > 255 {
		return nil, chancery.InvalidParam("that is not a user ID")
	}
	return nil, a.Rooms.Report(ctx, storage.Report{Reporter: string(in.Caller.User), User: string(in.UserID), Reason: in.Body.Reason})
}

type GetAliasesIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
}

type GetAliasesOut struct {
	Aliases []string `json:"aliases"`
}

// GetAliases lists this server's aliases of a room to those who are in it, or to all where it is open.
//
// spec: c2s/getLocalAliases
func (a *API) GetAliases(ctx context.Context, in *GetAliasesIn) (*GetAliasesOut, error) {
	out := &GetAliasesOut{Aliases: []string{}}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, in.RoomID, in.Caller.User)
		if err != nil {
			return err
		}
		if !v.joined && v.root != rootOf(v.room) {
			return chancery.Forbidden("you are not in this room")
		}
		aliases, err := tx.AliasesOf(string(in.RoomID))
		for _, alias := range aliases {
			out.Aliases = append(out.Aliases, alias.Alias)
		}
		return err
	})
}
