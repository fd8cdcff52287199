package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Invite is an invite that one of our users sends.
type Invite struct {
	Room           id.RoomID
	Sender, Target id.UserID
	Content        json.RawMessage // reason, is_direct, the target's profile
}

// Invite invites a user. One of another server must be told first: its server signs the invite.
//
// spec: c2s/inviteUser, s2s#inviting-to-a-room
func (s *Server) Invite(ctx context.Context, inv Invite) error {
	content, err := withMembership(inv.Content, "invite")
	if err != nil {
		return err
	}
	if err := s.KnowMember(ctx, inv.Room, inv.Target, inv.Sender); err != nil {
		return err
	}
	key := string(inv.Target)
	n := NewEvent{Room: inv.Room, Sender: inv.Sender, Type: "m.room.member", StateKey: &key, Content: content}
	if s.IsLocal(inv.Target) {
		if err := s.MayBeInvited(ctx, inv.Target); err != nil {
			return err
		}
		return s.inOwn(ctx, inv.Room, func(r *room) error {
			if err := r.mustBeIn(inv.Sender); err != nil {
				return err
			}
			a, err := r.make(n, how{own: true})
			if err != nil {
				return err
			}
			r.submit(a)
			return nil
		})
	}
	return s.inviteRemote(ctx, n, inv.Target.Homeserver())
}

func (s *Server) inviteRemote(ctx context.Context, n NewEvent, server string) error {
	var ev *event.Event
	var before state.Root
	var stripped []json.RawMessage
	err := s.inOwn(ctx, n.Room, func(r *room) (err error) {
		if err := r.mustBeIn(n.Sender); err != nil {
			return err
		}
		if ev, before, err = r.prepare(n); err != nil {
			return err
		}
		stripped, err = r.invitation(ev)
		return err
	})
	if err != nil {
		return err
	}
	raw, err := s.Peer.Invite(ctx, server, n.Room, ev.ID(), peer.Invite{RoomVersion: id.RoomVersion(ev.Version().Name), Event: ev.JSON(), State: stripped})
	if err != nil {
		return asAnswer(betweenServers(err))
	}
	theirs, err := event.Parse(ev.Version(), raw)
	if err != nil || theirs.ID() != ev.ID() {
		return chancery.Errorf(502, chancery.CodeUnknown, "the other server answered with another event than the invite").Because(err)
	}
	signed := ev
	for keyID, signature := range theirs.Signatures()[server] {
		if signed, err = signed.AddSignature(server, keyID, signature); err != nil {
			return err
		}
	}
	if errs := s.verify(ctx, []*event.Event{signed}); errs[0] != nil {
		return chancery.Errorf(502, chancery.CodeUnknown, "the other server did not sign the invite").Because(errs[0])
	}
	return s.in(ctx, n.Room, func(r *room) error {
		was, err := r.seen(signed)
		if err != nil || was != nil && was.Placed { // the other server may have sent it back already
			return err
		}
		// The room may have moved meanwhile: the invite must still be allowed.
		if err := r.allowedBy(signed, state.Root(r.row.Root)); err != nil {
			return asRefusal(err)
		}
		a, err := r.add(signed, how{before: before, own: true, row: was})
		if err != nil {
			return err
		}
		r.submit(a)
		return nil
	})
}

// strippedTypes are the pieces of state that an invited or knocking user may see.
//
// spec: c2s#stripped-state
var strippedTypes = []string{"m.room.create", "m.room.name", "m.room.avatar", "m.room.topic", "m.room.join_rules",
	"m.room.canonical_alias", "m.room.encryption"}

// invitation gives the state that goes with an invite to another server: whole events, so that it can
// check the create event.
//
// spec: s2s/sendInviteV2, msc4311
func (r *room) invitation(ev *event.Event) ([]json.RawMessage, error) {
	keys := make([]Key, 0, len(strippedTypes)+1)
	for _, t := range strippedTypes {
		keys = append(keys, Key{t, ""})
	}
	keys = append(keys, Key{"m.room.member", string(ev.Sender())})
	found, err := r.stateAt(state.Root(r.row.Root), keys)
	if err != nil {
		return nil, err
	}
	var out []json.RawMessage
	for _, k := range keys {
		if e := found[k]; e != nil {
			out = append(out, e.JSON())
		}
	}
	return out, nil
}

// Invited is an invite of one of our users that another server sends.
type Invited struct {
	Origin   string
	Room     id.RoomID
	EventID  id.EventID
	Version  string
	Event    json.RawMessage
	Stripped []json.RawMessage
}

// ReceiveInvite takes an invite of one of our users and gives it back with our signature.
//
// spec: s2s/sendInviteV2
func (s *Server) ReceiveInvite(ctx context.Context, in Invited) (json.RawMessage, error) {
	version, ok := event.Lookup(in.Version)
	if !ok {
		return nil, chancery.Errorf(400, chancery.CodeIncompatibleRoomVersion, "the room's version is not known here").With("room_version", in.Version)
	}
	ev, err := event.Parse(version, in.Event)
	if err != nil {
		return nil, err
	}
	key, isState := ev.StateKey()
	user := id.UserID(key)
	switch {
	case ev.ID() != in.EventID || ev.RoomID() != in.Room:
		return nil, chancery.InvalidParam("the event is not the one that the path names")
	case ev.Type() != "m.room.member" || !isState || ev.Membership() != "invite":
		return nil, chancery.InvalidParam("the event is not an invite")
	case !s.IsLocal(user):
		return nil, chancery.InvalidParam("the invited user is not one of ours")
	case ev.Sender().Homeserver() != in.Origin:
		return nil, chancery.InvalidParam("the invite is not from a user of your server")
	}
	if errs := s.verify(ctx, []*event.Event{ev}); errs[0] != nil {
		return nil, chancery.InvalidParam("the invite's signature does not hold").Because(errs[0])
	}
	if s.Exists != nil {
		if ok, err := s.Exists(ctx, user); err != nil {
			return nil, err
		} else if !ok {
			return nil, chancery.NotFound("there is no such user here")
		}
	}
	if err := s.MayBeInvited(ctx, user); err != nil {
		return nil, err
	}
	signed, err := ev.Sign(s.ServerName, s.KeyID, s.Key)
	if err != nil {
		return nil, err
	}
	stripped, err := s.strippedOf(ctx, version, in.Room, in.Stripped, false)
	if err != nil {
		return nil, err
	}
	if len(stripped) > maxStripped {
		return nil, chancery.TooLarge("the state that goes with the invite is too large")
	}
	here := false
	err = s.in(ctx, in.Room, func(r *room) error {
		here = r.servers[s.ServerName] > 0
		if here {
			return r.checkACL(in.Origin)
		}
		return nil
	})
	if err != nil && !chancery.IsCode(err, chancery.CodeNotFound) {
		return nil, err
	}
	if here {
		// We are in the room: the invite comes to us in a transaction too. What it stands on may be on the way,
		// and nobody can be asked about an event that is not stored anywhere yet: it is judged when it comes.
		err := s.take(ctx, in.Origin, in.Room, signed, nil)
		if n := (*needs)(nil); errors.As(err, &n) {
			return signed.JSON(), nil
		} else if err != nil {
			return nil, chancery.Forbidden("the invite is not allowed").Because(err)
		}
		if have, err := s.haveEvents(ctx, in.Room, []id.EventID{signed.ID()}); err != nil {
			return nil, err
		} else if ev := have[signed.ID()]; ev == nil || ev.Status != storage.Accepted {
			return nil, chancery.Forbidden("the invite is not allowed")
		}
		return signed.JSON(), nil
	}
	row := storage.Invite{User: key, RoomID: string(in.Room), Version: in.Version, Membership: "invite",
		Sender: string(ev.Sender()), EventID: string(ev.ID()), Event: signed.JSON(), Stripped: stripped}
	err = s.DB.Write(ctx, []string{"user:" + key}, func(tx storage.Tx) error {
		row := row
		was, ok, err := tx.Invite(key, row.RoomID)
		if err != nil {
			return err
		}
		pending, err := tx.InvitesOf(key)
		if err != nil {
			return err
		}
		isPending := ok && was.Membership != "leave"
		switch {
		case isPending && isAmong(was, row.EventID):
			return nil
		case !(isPending && invitedFrom(was) == in.Origin) && countFrom(pending, in.Origin) >= maxInvites:
			return chancery.LimitExceeded(time.Hour)
		case isPending:
			row = onTop(row, signed, was)
		}
		tx.SetInvite(row)
		tx.Announce(inviteFact(row))
		return nil
	})
	return signed.JSON(), err
}

// What one server may put before one of our users.
const (
	maxStripped = 64 << 10 // bytes of state with an invite
	maxInvites  = 100      // invites that wait for an answer, one for each room
)

// versionOfInvite gives the version of a room that we know only by what is pending of the user whom an event is about: by
// that of it which the event cites.
func (s *Server) versionOfInvite(ctx context.Context, roomID id.RoomID, raw json.RawMessage) (version *event.Version, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		v, ok, err := tx.Invite(gjson.GetBytes(raw, "state_key").Str, string(roomID))
		if err != nil {
			return err
		}
		name := v.Version
		for _, cited := range gjson.GetBytes(raw, "auth_events").Array() {
			if cited.IsArray() { // in versions 1 and 2 with a hash
				cited = cited.Get("0")
			}
			for _, w := range v.Beneath {
				if w.EventID == cited.Str {
					name = w.Version
				}
			}
		}
		if ok {
			version, ok = event.Lookup(name)
		}
		if !ok {
			return errUnknownRoom
		}
		return nil
	})
	return version, err
}
