package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"slices"

	"chancery"
	"chancery/roomserver/auth"
	"chancery/roomserver/state"
	"chancery/storage"
	"chancery/storage/sql"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"maunium.net/go/mautrix/id"
)

// Join is a wish of one of our users to join a room.
type Join struct {
	User    id.UserID
	Room    id.RoomID
	Via     []string        // servers that may know the room
	Content json.RawMessage // display name, avatar, reason, third_party_signed; membership is filled in
}

// Join brings one of our users into a room: by an event of our own where we are in the room, else by
// asking a server that is.
//
// spec: c2s/joinRoomById, s2s#joining-rooms
func (s *Server) Join(ctx context.Context, j Join) error {
	content, err := withMembership(j.Content, "join")
	if err != nil {
		return err
	}
	key := string(j.User)
	remote := false
	err = s.inOwn(ctx, j.Room, func(r *room) error {
		remote = false
		if r.servers[s.ServerName] == 0 {
			remote = true
			return nil
		}
		member, err := r.member(j.User)
		if err != nil {
			return err
		}
		if member != nil && member.Membership() == "join" && sameProfile(member.Content(), content) {
			return nil
		}
		if r.partial != nil && member == nil {
			remote = true // whether the user is banned or invited is among what we do not know yet
			return nil
		}
		via, ok, err := r.authorisedVia(j.User, member)
		if err != nil {
			return err
		}
		if !ok {
			remote = true // only another server can say yes
			return nil
		}
		if via != "" {
			if content, err = sjson.SetBytes(content, "join_authorised_via_users_server", via); err != nil {
				return err
			}
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
	return s.joinRemote(ctx, j, content)
}

// sameProfile says that a join would change nothing.
func sameProfile(was, is json.RawMessage) bool {
	for _, k := range []string{"displayname", "avatar_url"} {
		if gjson.GetBytes(was, k).Str != gjson.GetBytes(is, k).Str {
			return false
		}
	}
	return gjson.GetBytes(is, "reason").Str == ""
}

func withMembership(content json.RawMessage, membership string) (json.RawMessage, error) {
	if len(content) == 0 {
		content = json.RawMessage(`{}`)
	}
	return sjson.SetBytes(slices.Clone(content), "membership", membership)
}

func (r *room) member(user id.UserID) (*Stored, error) {
	found, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.member", string(user)}})
	return found[Key{"m.room.member", string(user)}], err
}

// authorisedVia finds who lets a user into a restricted room: one of our members that may invite, when
// the user is in a room that the join rules allow. ok is false when only another server can tell.
// Where the room is not restricted, or the user was invited, nobody need.
//
// spec: c2s#restricted-rooms, s2s#restricted-rooms
func (r *room) authorisedVia(user id.UserID, member *Stored) (via id.UserID, ok bool, err error) {
	rules, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.join_rules", ""}})
	if err != nil {
		return "", false, err
	}
	rule := rules[Key{"m.room.join_rules", ""}]
	if rule == nil || !r.isRestricted(gjson.GetBytes(rule.Content(), "join_rule").Str) {
		return "", true, nil
	}
	if member != nil && (member.Membership() == "join" || member.Membership() == "invite") {
		return "", true, nil
	}
	allowed, known, err := r.inAllowedRoom(user, rule)
	if err != nil {
		return "", false, err
	}
	if !allowed {
		if known {
			return "", true, nil // the rules will refuse
		}
		return "", false, nil
	}
	via, err = r.localInviter()
	return via, via != "", err
}

func (r *room) isRestricted(rule string) bool {
	return r.version.Restricted && rule == "restricted" || r.version.KnockRestricted && rule == "knock_restricted"
}

// inAllowedRoom says whether the user is in one of the rooms that a restricted join rule names; known is
// false when we are not in all of those rooms, or in part only, and so cannot tell.
func (r *room) inAllowedRoom(user id.UserID, rule *Stored) (allowed, known bool, err error) {
	known = true
	err = r.read(func(tx storage.Tx) error {
		for _, v := range auth.AllowRooms(rule.Event) {
			other, ok, err := tx.Room(string(v))
			if err != nil {
				return err
			}
			if ok { // of a room that we have left we know only who was in it then
				if ok, err = tx.ServerIsIn(other.NID, r.s.ServerName); err != nil {
					return err
				}
			}
			if !ok {
				known = false
				continue
			}
			m, ok, err := tx.Member(other.NID, string(user))
			if err != nil {
				return err
			}
			if ok && m.Membership == "join" {
				allowed = true
				return nil
			}
			if !ok && other.Partial {
				known = false
			}
		}
		return nil
	})
	return allowed, known, err
}

// localInviter finds a member of ours who may invite.
func (r *room) localInviter() (id.UserID, error) {
	return r.localWith(func(pl auth.PowerLevels) auth.Level { return pl.Invite() })
}

// localSender finds a member of ours who may send events of a type.
func (r *room) localSender(typ string) (id.UserID, error) {
	return r.localWith(func(pl auth.PowerLevels) auth.Level { return pl.ForEvent(typ, false) })
}

// localWith finds a member of ours who has a level; "" when nobody has.
func (r *room) localWith(needed func(auth.PowerLevels) auth.Level) (id.UserID, error) {
	pl, err := r.powerLevels(state.Root(r.row.Root))
	if err != nil {
		return "", err
	}
	var found id.UserID
	err = r.read(func(tx storage.Tx) error {
		members, err := tx.LocalMembers(r.row.NID, r.s.ServerName, []string{"join"})
		for _, m := range members {
			if pl.Of(id.UserID(m.User)).AtLeast(needed(pl)) {
				found = id.UserID(m.User)
				break
			}
		}
		return err
	})
	return found, err
}

// Leave takes one of our users out of a room, or refuses an invite or takes back a knock.
//
// spec: c2s/leaveRoom, s2s#leaving-rooms-rejecting-invites
func (s *Server) Leave(ctx context.Context, user id.UserID, roomID id.RoomID, content json.RawMessage) error {
	content, err := withMembership(content, "leave")
	if err != nil {
		return err
	}
	key := string(user)
	elsewhere, out := false, false
	err = s.inOwn(ctx, roomID, func(r *room) error {
		member, err := r.member(user)
		if err != nil {
			return err
		}
		here := r.servers[s.ServerName] > 0
		out = member != nil && member.Membership() == "leave"
		switch {
		case member == nil, !here && member.Membership() != "invite" && member.Membership() != "knock":
			elsewhere = true // an invite may still be known from another server
			return nil
		case out:
			return nil
		}
		// An invite that we know from having been in the room is refused by an event of ours, even when
		// none of us is left in it.
		a, err := r.make(NewEvent{Room: roomID, Sender: user, Type: "m.room.member", StateKey: &key, Content: content}, how{own: true})
		if err != nil {
			return err
		}
		r.submit(a)
		return nil
	})
	if chancery.IsCode(err, chancery.CodeNotFound) {
		elsewhere, err = true, nil
	}
	if err != nil || !elsewhere {
		return err
	}
	err = s.leaveRemote(ctx, user, roomID, content)
	if out && errors.Is(err, errNotIn) {
		return nil // who has left may say so again: an answer can get lost
	}
	return err
}

// Change is a membership that one user gives another: kick, ban, unban.
type Change struct {
	Room           id.RoomID
	Sender, Target id.UserID
	Membership     string
	Only           []string        // the memberships that it may be changed from; empty: any
	Content        json.RawMessage // reason
}

// ChangeMember kicks, bans or unbans.
//
// spec: c2s/kick, c2s/ban, c2s/unban, c2s#other-error-codes
func (s *Server) ChangeMember(ctx context.Context, c Change) error {
	content, err := withMembership(c.Content, c.Membership)
	if err != nil {
		return err
	}
	if err := s.KnowMember(ctx, c.Room, c.Target, c.Sender); err != nil {
		return err
	}
	key := string(c.Target)
	return s.inOwn(ctx, c.Room, func(r *room) error {
		if err := r.mustBeIn(c.Sender); err != nil {
			return err
		}
		member, err := r.member(c.Target)
		if err != nil {
			return err
		}
		now := "leave"
		if member != nil {
			now = member.Membership()
		}
		if slices.Equal(c.Only, []string{"ban"}) && now != "ban" {
			return chancery.Errorf(403, chancery.CodeBadState, "the user is not banned")
		}
		if len(c.Only) > 0 && !slices.Contains(c.Only, now) {
			return chancery.Forbidden("the user is not in a state from which that can be done")
		}
		a, err := r.make(NewEvent{Room: c.Room, Sender: c.Sender, Type: "m.room.member", StateKey: &key, Content: content}, how{own: true})
		if err != nil {
			return err
		}
		r.submit(a)
		return nil
	})
}

func (r *room) mustBeIn(user id.UserID) error {
	member, err := r.member(user)
	if err != nil {
		return err
	}
	if member == nil || member.Membership() != "join" {
		return chancery.Forbidden("you are not in this room")
	}
	return nil
}

// Forget hides a room that the user has left.
//
// spec: c2s/forgetRoom
func (s *Server) Forget(ctx context.Context, user id.UserID, roomID id.RoomID) error {
	return s.DB.Write(ctx, []string{"user:" + string(user)}, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(roomID))
		if err != nil {
			return err
		}
		if ok {
			m, here, err := tx.Member(room.NID, string(user))
			if err != nil {
				return err
			}
			if here && m.Membership != "leave" && m.Membership != "ban" {
				return chancery.Errorf(400, chancery.CodeUnknown, "leave the room before you forget it")
			}
			if here {
				if _, err := tx.Forget(room.NID, string(user)); err != nil {
					return err
				}
			}
		}
		if v, here, err := tx.Invite(string(user), string(roomID)); err != nil {
			return err
		} else if here && v.Membership != "leave" {
			return chancery.Errorf(400, chancery.CodeUnknown, "refuse the invite before you forget the room")
		}
		tx.DeleteInvite(string(user), string(roomID))
		return nil
	})
}

// inviteFact tells that a user's invite or knock in a room that we are not in changed.
func inviteFact(v storage.Invite) storage.Fact {
	extra, _ := json.Marshal(map[string]string{"room": v.RoomID, "membership": v.Membership}) // strings always marshal
	return storage.Fact{Kind: sql.FactInvite, User: v.User, Extra: string(extra)}
}
