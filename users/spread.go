package users

import (
	"context"
	"encoding/json"
	"time"

	"chancery"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const spreadEvery = time.Minute // for what failed

// spreadSoon says that a profile changed.
func (s *Server) spreadSoon() {
	select {
	case s.spread <- struct{}{}:
	default: // it is to look anyway
	}
}

// spreadProfiles tells rooms of changed profiles, one after the other: a user in a thousand rooms must not
// keep the others from sending. What is to be told stands in SQL until it is done, so a restart goes on.
//
// spec: c2s#events-on-change-of-profile-information
func (s *Server) spreadProfiles(ctx context.Context) error {
	again := time.NewTicker(spreadEvery)
	defer again.Stop()
	for {
		s.spreadAll(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-again.C:
		case <-s.spread:
		}
	}
}

func (s *Server) spreadAll(ctx context.Context) {
	if s.OnProfile == nil {
		return
	}
	var waiting []storage.Profile
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		waiting, err = tx.SpreadingProfiles()
		return err
	})
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("looking for changed profiles failed", zap.Error(err))
	}
	for _, p := range waiting {
		if err := s.spreadOne(ctx, p); err != nil && ctx.Err() == nil {
			s.Log.Warn("not all rooms know a changed profile yet", zap.String("user", p.User), zap.Error(err))
		}
	}
}

// spreadOne tells the rooms that do not know the profile yet. A room that refuses for good, by its rules, is
// passed over: it will learn when the user enters again.
func (s *Server) spreadOne(ctx context.Context, p storage.Profile) error {
	content, err := json.Marshal(memberContent{p.DisplayName, p.AvatarURL})
	if err != nil {
		return err
	}
	var rooms []id.RoomID
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		members, err := tx.RoomsOf(p.User, []string{"join"})
		if err != nil {
			return err
		}
		var nids []int64
		for _, m := range members {
			if m.DisplayName != p.DisplayName || m.AvatarURL != p.AvatarURL {
				nids = append(nids, m.Room)
			}
		}
		rows, err := tx.Rooms(nids)
		for _, r := range rows {
			rooms = append(rooms, id.RoomID(r.ID))
		}
		return err
	})
	if err != nil {
		return err
	}
	var failed error
	for _, room := range rooms {
		if err := s.OnProfile(ctx, id.UserID(p.User), room, content); err != nil {
			if chancery.IsCode(err, chancery.CodeForbidden) {
				s.Log.Info("a room refused a changed profile", zap.String("user", p.User), zap.Stringer("room", room), zap.Error(err))
				continue
			}
			failed = err
		}
	}
	if failed != nil {
		return failed
	}
	return s.DB.Write(ctx, []string{p.User}, func(tx storage.Tx) error {
		tx.ProfileSpread(p.User, p.Spreading)
		return nil
	})
}

type memberContent struct {
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}
