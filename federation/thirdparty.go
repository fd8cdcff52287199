package federation

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/roomserver"
	"chancery/roomserver/event"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

type exchangeIn struct {
	Origin string    `origin:""`
	Room   id.RoomID `path:"roomId"`
	Body   struct {
		Type     string    `json:"type" required:"true"`
		Room     id.RoomID `json:"room_id" required:"true"`
		Sender   id.UserID `json:"sender" required:"true"`
		StateKey id.UserID `json:"state_key" required:"true"`
		Content  struct {
			Membership string `json:"membership"`
			Invite     struct {
				Signed json.RawMessage `json:"signed"`
			} `json:"third_party_invite"`
		} `json:"content" required:"true"`
	} `body:"json"`
}

// exchangeThirdPartyInvite makes a proper invite of one by an address.
//
// spec: s2s/exchangeThirdPartyInvite
func (s *Server) exchangeThirdPartyInvite(ctx context.Context, in *exchangeIn) (*nothingOut, error) {
	b := in.Body
	switch {
	case b.Type != "m.room.member" || b.Content.Membership != "invite":
		return nil, chancery.InvalidParam("the event is not an invite")
	case b.Room != in.Room:
		return nil, chancery.InvalidParam("the event is of another room than the path names")
	case len(b.Content.Invite.Signed) == 0:
		return nil, chancery.MissingParam("third_party_invite has no signed part")
	}
	return &nothingOut{}, s.Rooms.ExchangeInvite(ctx, in.Origin, roomserver.Proof{Room: b.Room, Sender: b.Sender, User: b.StateKey, Signed: b.Content.Invite.Signed})
}

type onBindIn struct {
	Body struct {
		Medium  string    `json:"medium" required:"true"`
		Address string    `json:"address" required:"true"`
		User    id.UserID `json:"mxid" required:"true"`
		Invites []struct {
			User   id.UserID       `json:"mxid"`
			Room   id.RoomID       `json:"room_id"`
			Sender id.UserID       `json:"sender"`
			Signed json.RawMessage `json:"signed"`
		} `json:"invites" required:"true"`
	} `body:"json"`
}

// Anybody may call this, so it makes us ask few others.
const (
	maxBoundInvites = 20
	boundAtOnce     = 4
)

// onBind takes the invites that wait for the owner of an address, when an identity server has found out who that is. What
// it says is believed as far as it is signed with the keys that the invites name.
//
// spec: s2s/onBindThirdPartyIdentifier
func (s *Server) onBind(ctx context.Context, in *onBindIn) (*nothingOut, error) {
	b := in.Body
	if !event.ValidUserID(string(b.User)) || !s.Rooms.IsLocal(b.User) {
		return nil, chancery.InvalidParam("mxid is no user of ours")
	}
	if len(b.Invites) > maxBoundInvites {
		return nil, chancery.InvalidParam("more than %d invites are told of at once", maxBoundInvites)
	}
	if s.Rooms.Exists != nil {
		if ok, err := s.Rooms.Exists(ctx, b.User); err != nil {
			return nil, err
		} else if !ok {
			return nil, chancery.NotFound("there is no such user here")
		}
	}
	var g errgroup.Group
	g.SetLimit(boundAtOnce)
	for _, v := range b.Invites {
		if v.User != "" && v.User != b.User || len(v.Signed) == 0 {
			continue
		}
		g.Go(func() error {
			err := guarded(s.Log, "take an invite by an address", func() error {
				return s.Rooms.AcceptAddressInvite(ctx, roomserver.Proof{Room: v.Room, Sender: v.Sender, User: b.User, Signed: v.Signed})
			})
			if err != nil {
				s.Log.Debug("could not take an invite by an address", zap.String("room", string(v.Room)), zap.String("user", string(b.User)), zap.Error(err))
			}
			return nil
		})
	}
	g.Wait() // no function fails: each invite is taken by itself
	return &nothingOut{}, nil
}
