package roomserver

import (
	"context"
	"slices"

	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Of a room that we are not in there is no state by which an invite, or its end, could be judged. What there is to go by is
// who signed it, and what it cites: the ID of an event is a hash that nobody can name who has not been told of it. So
//   - the newest invite is shown, and an older one that it does not cite stays beneath it: whoever invites out of nothing,
//     and takes it back, must not undo the invite of somebody who may;
//   - an invite that cites another has taken its place, and those who made the other may end it, too;
//   - an invite is ended from where it was made, or by who had a hand in the room by the state that came with it: others in
//     the room may be without power there, and could keep everybody out;
//   - a knock is ended by any server that can cite it, and so is in the room: whoever did that without power there hides an
//     answer that an invite still brings, and a knock that nobody can refuse would wait for ever.

const (
	maxBeneath  = 4
	maxInviters = 10
)

func invitedFrom(v storage.Invite) string { return id.UserID(v.Sender).Homeserver() }

// countFrom counts the invites of a server that wait for an answer.
func countFrom(invites []storage.Invite, server string) int {
	n := 0
	for _, v := range invites {
		if v.Membership == "invite" && invitedFrom(v) == server {
			n++
		}
	}
	return n
}

// isAmong says that an event is one of those that are pending.
func isAmong(v storage.Invite, eventID string) bool {
	return v.EventID == eventID || slices.ContainsFunc(v.Beneath, func(b storage.Invite) bool { return b.EventID == eventID })
}

func cites(ev *event.Event, v storage.Invite) bool {
	return slices.Contains(ev.AuthEvents(), id.EventID(v.EventID))
}

// onTop puts a new invite on what is pending.
func onTop(v storage.Invite, ev *event.Event, was storage.Invite) storage.Invite {
	for _, w := range append([]storage.Invite{was}, was.Beneath...) {
		w.Beneath = nil
		switch {
		case cites(ev, w):
			for _, server := range append(w.Inviters, invitedFrom(w)) {
				if w.Membership == "invite" && !slices.Contains(v.Inviters, server) && len(v.Inviters) < maxInviters {
					v.Inviters = append(v.Inviters, server)
				}
			}
		case w.Membership == "invite" && invitedFrom(w) == invitedFrom(v):
		case len(v.Beneath) < maxBeneath:
			v.Beneath = append(v.Beneath, w)
		}
	}
	return v
}

// afterEnd takes away what a leave or a ban ends, and says whether it ends anything; what is beneath comes to light.
func afterEnd(v storage.Invite, ev *event.Event) (rest storage.Invite, ended bool) {
	ends := func(w storage.Invite) bool { return cites(ev, w) && mayEnd(w, ev.Sender().Homeserver()) }
	switch i := slices.IndexFunc(v.Beneath, ends); {
	case i >= 0:
		v.Beneath = slices.Delete(slices.Clone(v.Beneath), i, i+1)
	case !ends(v):
		return v, false
	case len(v.Beneath) > 0:
		beneath := v.Beneath
		v, v.Beneath = beneath[0], beneath[1:]
	default:
		v = endedBy(v, ev)
	}
	return v, true
}

// endedBy is an invite or a knock that is over.
func endedBy(v storage.Invite, ev *event.Event) storage.Invite {
	v.Membership, v.EventID, v.Event, v.Inviters, v.Beneath = "leave", string(ev.ID()), ev.JSON(), nil, nil
	return v
}

// mayEnd says whether a server that can cite an invite or a knock may end it.
func mayEnd(v storage.Invite, server string) bool {
	if v.Membership != "invite" || invitedFrom(v) == server || slices.Contains(v.Inviters, server) {
		return true
	}
	return slices.ContainsFunc(gjson.GetBytes(v.Stripped, "#.sender").Array(), func(sender gjson.Result) bool {
		return id.UserID(sender.Str).Homeserver() == server
	})
}

// endInvite takes an event by which an invite is taken back, or a knock refused, in a room that we are not in. What it
// ends it cites, as the membership that it builds on; else it is older, and came late.
//
// spec: s2s#inviting-to-a-room, s2s#knocking-rooms
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
		rest := storage.Invite{}
		if rest, ended = afterEnd(v, ev); !ended {
			return nil
		}
		tx.SetInvite(rest)
		if rest.EventID != v.EventID {
			tx.Announce(inviteFact(rest))
		}
		return nil
	})
	return ended, err
}
