package roomserver

import (
	"context"
	"encoding/json"
	"time"

	"chancery"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Knock asks to be let into a room: by an event of our own where we are in the room, else through a server
// that is.
//
// spec: c2s/knockRoom, s2s#knocking-rooms
func (s *Server) Knock(ctx context.Context, j Join) error {
	content, err := withMembership(j.Content, "knock")
	if err != nil {
		return err
	}
	key := string(j.User)
	remote := false
	err = s.inOwn(ctx, j.Room, func(r *room) error {
		remote = r.servers[s.ServerName] == 0
		if remote {
			return nil
		}
		a, err := r.make(NewEvent{Room: j.Room, Sender: j.User, Type: "m.room.member", StateKey: &key, Content: content}, how{own: true})
		if err != nil {
			return err
		}
		r.submit(a)
		return nil
	})
	if chancery.IsCode(err, chancery.CodeNotFound) {
		remote, err = true, nil
	}
	if err != nil || !remote {
		return err
	}
	servers, err := s.whoKnows(ctx, j.User, j.Room, j.Via)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return chancery.NotFound("unknown room, and no server is named that knows it")
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer cancel()
	var last error
	for _, server := range servers[:min(len(servers), maxAsked)] {
		err := s.knockThrough(ctx, server, j, content)
		if err == nil {
			return nil
		}
		s.Log.Info("could not knock through a server", zap.String("server", server), zap.Error(err))
		if isRefusal(err) || !isRefusal(last) {
			last = err
		}
		// A server that is not in the room says nothing for those that are.
		if isRefusal(err) && !chancery.IsCode(err, chancery.CodeNotFound) {
			break
		}
	}
	return asAnswer(last)
}

func (s *Server) knockThrough(ctx context.Context, server string, j Join, content json.RawMessage) error {
	made, err := s.Peer.MakeKnock(ctx, server, j.Room, j.User, versionNames())
	if err != nil {
		return err
	}
	version, ev, err := s.finish(string(made.RoomVersion), made.Event, j.Room, j.User, "knock", content)
	if err != nil {
		return err
	}
	state, err := s.Peer.SendKnock(ctx, server, j.Room, ev.ID(), ev.JSON())
	if err != nil {
		return err
	}
	stripped, err := s.strippedOf(ctx, version, j.Room, state, true)
	if err != nil {
		return err
	}
	row := storage.Invite{User: string(j.User), RoomID: string(j.Room), Version: version.Name, Membership: "knock",
		Sender: string(j.User), EventID: string(ev.ID()), Event: ev.JSON(), Stripped: stripped}
	return s.DB.Write(ctx, []string{"user:" + row.User}, func(tx storage.Tx) error {
		tx.SetInvite(row)
		tx.Announce(inviteFact(row))
		return nil
	})
}

// Invitation gives the stripped state for a server whose user knocks.
//
// spec: s2s/sendKnock
func (s *Server) Invitation(ctx context.Context, roomID id.RoomID, ev id.EventID) (state []json.RawMessage, err error) {
	err = s.in(ctx, roomID, func(r *room) error {
		found, err := r.eventsByID([]id.EventID{ev})
		if err != nil {
			return err
		}
		if found[ev] == nil {
			return chancery.NotFound("we have no such event")
		}
		state, err = r.invitation(found[ev].Event)
		return err
	})
	return state, err
}
