package roomserver

import (
	"context"
	"encoding/json"
	"slices"

	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// versionOfInvite gives the version of a room that we know only by the invite, or the knock, of the user
// whom an event is about.
func (s *Server) versionOfInvite(ctx context.Context, roomID id.RoomID, raw json.RawMessage) (version *event.Version, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		v, ok, err := tx.Invite(gjson.GetBytes(raw, "state_key").Str, string(roomID))
		if err != nil {
			return err
		}
		if ok {
			version, ok = event.Lookup(v.Version)
		}
		if !ok {
			return errUnknownRoom
		}
		return nil
	})
	return version, err
}

// endInvite takes an event by which an invite is taken back, or a knock refused, in a room that we are not
// in. There is no state to judge it by: it only ends what was pending, and must be from a server that may.
func (s *Server) endInvite(ctx context.Context, ev *event.Event) (ended bool, err error) {
	user, isState := ev.StateKey()
	if ev.Type() != "m.room.member" || !isState || !s.IsLocal(id.UserID(user)) || ev.Membership() != "leave" && ev.Membership() != "ban" {
		return false, nil
	}
	err = s.DB.Write(ctx, []string{"user:" + user}, func(tx storage.Tx) error {
		ended = false
		v, ok, err := tx.Invite(user, string(ev.RoomID()))
		if err != nil || !ok || v.Membership == "leave" {
			return err
		}
		if room, known, err := tx.Room(string(ev.RoomID())); err != nil {
			return err
		} else if known {
			if here, err := tx.ServerIsIn(room.NID, s.ServerName); err != nil || here {
				return err
			}
		}
		// What it ends it names as the membership that it builds on; else it is older, and came late.
		if !slices.Contains(ev.AuthEvents(), id.EventID(v.EventID)) || !mayEnd(v, ev.Sender().Homeserver()) {
			return nil
		}
		ended = true
		v.Membership, v.EventID, v.Event = "leave", string(ev.ID()), ev.JSON()
		tx.SetInvite(v)
		tx.Announce(inviteFact(v))
		return nil
	})
	return ended, err
}

// mayEnd says whether a server may end an invite or a knock: that of the one who invited; for a knock one that
// had a hand in the room, as far as the state tells that came with it.
func mayEnd(v storage.Invite, server string) bool {
	if v.Membership == "invite" {
		return id.UserID(v.Sender).Homeserver() == server
	}
	for _, sender := range gjson.GetBytes(v.Stripped, "#.sender").Array() {
		if id.UserID(sender.Str).Homeserver() == server {
			return true
		}
	}
	return false
}
