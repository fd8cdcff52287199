package roomserver

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"chancery"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"maunium.net/go/mautrix/id"
)

// Template is an event that we propose to a server whose user wants in or out.
type Template struct {
	Version string
	Event   json.RawMessage
}

// MakeMembership proposes a join, a leave or a knock to the server of the user.
//
// spec: s2s/makeJoin, s2s/makeLeave, s2s/makeKnock
func (s *Server) MakeMembership(ctx context.Context, origin string, roomID id.RoomID, user id.UserID, membership string, versions []string) (*Template, error) {
	if user.Homeserver() != origin {
		return nil, chancery.Forbidden("the user is not of your server")
	}
	var t *Template
	err := s.inAs(ctx, caller{theirs, origin}, roomID, func(r *room) error {
		if r.servers[s.ServerName] == 0 {
			return chancery.NotFound("we are not in this room")
		}
		if err := r.checkACL(origin); err != nil {
			return err
		}
		if err := r.isWholeFor(membership); err != nil {
			return err
		}
		if membership != "leave" && !slices.Contains(versions, r.version.Name) {
			return chancery.Errorf(400, chancery.CodeIncompatibleRoomVersion, "your server does not support the room's version").
				With("room_version", r.version.Name)
		}
		content, err := r.membershipFor(user, membership)
		if err != nil {
			return err
		}
		key := string(user)
		p, auths, err := r.proto(NewEvent{Sender: user, Type: "m.room.member", StateKey: &key, Content: content}, state.Root(r.row.Root))
		if err != nil {
			return err
		}
		// Built and signed only to be judged; the user's server makes its own.
		ev, err := event.Build(r.version, p, s.ServerName, s.KeyID, s.Key, time.Now())
		if err != nil {
			return err
		}
		if err := auth.Check(ev, auths); err != nil {
			return refused(err)
		}
		text := ev.JSON()
		for _, k := range []string{"hashes", "signatures", "event_id"} {
			if text, err = sjson.DeleteBytes(slices.Clone(text), k); err != nil {
				return err
			}
		}
		t = &Template{Version: r.version.Name, Event: text}
		return nil
	})
	return t, err
}

// isWholeFor refuses to let others in while we cannot give them the room.
//
// spec: msc3902
func (r *room) isWholeFor(membership string) error {
	if r.partial != nil && membership != "leave" {
		return chancery.NotFound("we have not yet come into this room entirely")
	}
	return nil
}

// membershipFor makes the content that we propose; in a restricted room it names who lets the user in.
func (r *room) membershipFor(user id.UserID, membership string) (json.RawMessage, error) {
	content, err := withMembership(nil, membership)
	if err != nil || membership != "join" {
		return content, err
	}
	member, err := r.member(user)
	if err != nil {
		return nil, err
	}
	rules, err := r.stateAt(state.Root(r.row.Root), []Key{{"m.room.join_rules", ""}})
	if err != nil {
		return nil, err
	}
	rule := rules[Key{"m.room.join_rules", ""}]
	if rule == nil || !r.isRestricted(auth.JoinRule(rule.Event)) {
		return content, nil
	}
	if member != nil && (member.Membership() == "join" || member.Membership() == "invite") {
		return content, nil
	}
	allowed, known, err := r.inAllowedRoom(user, rule)
	if err != nil {
		return nil, err
	}
	switch {
	case !allowed && !known:
		return nil, chancery.Errorf(400, chancery.CodeUnableToAuthoriseJoin, "we cannot tell whether the user may join")
	case !allowed:
		return nil, chancery.Forbidden("the user is in none of the rooms that would let them in")
	}
	via, err := r.localInviter()
	if err != nil {
		return nil, err
	}
	if via == "" {
		return nil, chancery.Errorf(400, chancery.CodeUnableToGrantJoin, "nobody here may let the user in")
	}
	return sjson.SetBytes(content, "join_authorised_via_users_server", via)
}

// Taken is the answer to a join that we took.
type Taken struct {
	Event   json.RawMessage // with our signature too, when we let the user in
	Servers []string        // in the room before the join
	event   *event.Event
	room    storage.Room
	before  state.Root
}

// StateFor gives the state before a join that we took, with the auth chains of it and of the join, to the server
// that joins. It is read outside of the room's turn: what was before an event never changes. The caller closes it.
//
// spec: s2s/sendJoinV2, msc3706
func (s *Server) StateFor(ctx context.Context, origin string, t *Taken, omitMembers bool) (*Snapshot, error) {
	return s.large(ctx, origin, func(leave func()) (*Snapshot, error) {
		auths, err := s.numbersOf(ctx, t.room, t.event.AuthEvents())
		if err != nil {
			return nil, err
		}
		if omitMembers {
			return s.snapshotFor(ctx, t.event.Sender(), t.room, t.before, auths, leave)
		}
		return s.snapshot(ctx, t.room, t.before, auths, leave)
	})
}

// TakeMembership takes a membership event that another server made of our proposal and sends it on.
//
// spec: s2s/sendJoinV2, s2s/sendLeaveV2, s2s/sendKnock
func (s *Server) TakeMembership(ctx context.Context, origin string, roomID id.RoomID, eventID id.EventID, raw json.RawMessage, membership string) (*Taken, error) {
	version, err := s.versionOf(ctx, roomID)
	if err != nil {
		return nil, err
	}
	ev, err := event.Parse(version, raw)
	if err != nil {
		return nil, err
	}
	key, isState := ev.StateKey()
	switch {
	case ev.ID() != eventID:
		return nil, chancery.InvalidParam("the event is not the one that the path names")
	case ev.RoomID() != roomID:
		return nil, chancery.InvalidParam("the event is of another room")
	case ev.Type() != "m.room.member" || !isState || key != string(ev.Sender()) || ev.Membership() != membership:
		return nil, chancery.InvalidParam("the event is not a %s of its sender", membership)
	case ev.Sender().Homeserver() != origin:
		return nil, chancery.InvalidParam("the sender is not of your server")
	}
	if ev, err = s.letIn(ctx, ev, membership); err != nil {
		return nil, err
	}
	if errs := s.verify(ctx, []*event.Event{ev}); errs[0] != nil {
		return nil, chancery.InvalidParam("the event's signature does not hold").Because(errs[0])
	}
	taken := &Taken{}
	err = s.withOpinion(ctx, func() error {
		return s.inAs(ctx, caller{theirs, origin}, roomID, func(r *room) error {
			if r.servers[s.ServerName] == 0 {
				return chancery.NotFound("we are not in this room")
			}
			if err := r.checkACL(origin); err != nil {
				return err
			}
			if err := r.isWholeFor(membership); err != nil {
				return err
			}
			taken.Servers = slices.Sorted(maps.Keys(r.servers))
			taken.event, taken.before, err = r.takeProposed(ev)
			taken.room = r.row
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	taken.Event = taken.event.JSON()
	return taken, nil
}

// letIn signs a restricted join that one of ours is named to let in, after checking that we would.
func (s *Server) letIn(ctx context.Context, ev *event.Event, membership string) (*event.Event, error) {
	via := gjson.GetBytes(ev.Content(), "join_authorised_via_users_server").Str
	if membership != "join" || via == "" || !ev.Version().Restricted || id.UserID(via).Homeserver() != s.ServerName {
		return ev, nil
	}
	err := s.inAs(ctx, caller{theirs, ev.Sender().Homeserver()}, ev.RoomID(), func(r *room) error {
		if err := r.checkACL(ev.Sender().Homeserver()); err != nil {
			return err
		}
		_, err := r.membershipFor(ev.Sender(), "join")
		return err
	})
	if err != nil {
		return nil, err
	}
	return ev.Sign(s.ServerName, s.KeyID, s.Key)
}

// takeProposed adds an event made of our proposal. It must be allowed now, not only where it stands.
// Its error may be *unasked, see withOpinion.
func (r *room) takeProposed(ev *event.Event) (taken *event.Event, before state.Root, err error) {
	was, err := r.seen(ev)
	if err != nil {
		return nil, 0, err
	}
	if was != nil && was.Placed {
		return was.Event, was.Before, nil
	}
	if was == nil {
		if err := r.mayName(ev.ID()); err != nil {
			return nil, 0, err
		}
	}
	n := &needs{}
	prev, err := r.prevOf(ev, n)
	if err != nil {
		return nil, 0, err
	}
	auths, err := r.authOf(ev, n)
	if err != nil {
		return nil, 0, err
	}
	if len(n.prev) > 0 || len(n.auth) > 0 {
		return nil, 0, chancery.BadJSON("the event does not build on our proposal")
	}
	if before, err = r.resolve(rootsAfter(prev)); err != nil {
		return nil, 0, err
	}
	if err := r.passesOwnAuth(ev, auths); err != nil {
		return nil, 0, refused(err)
	}
	for _, root := range []state.Root{before, state.Root(r.row.Root)} {
		if err := r.allowedBy(ev, root); err != nil {
			return nil, 0, asRefusal(err)
		}
	}
	if ev, err = r.recommended(ev); err != nil {
		return nil, 0, clientError(err)
	}
	a, err := r.add(ev, how{before: before, own: true, row: was})
	if err != nil {
		return nil, 0, err
	}
	r.submit(a)
	return ev, before, nil
}

// seen finds what is here of an event that somebody brings: nothing, an outlier, one that failed softly, or
// one in its place. One that was rejected stays so.
func (r *room) seen(ev *event.Event) (*Stored, error) {
	known, err := r.eventsByID([]id.EventID{ev.ID()})
	if err != nil {
		return nil, err
	}
	was := known[ev.ID()]
	if was != nil && was.Status == storage.Rejected {
		return nil, chancery.Forbidden("the event was rejected")
	}
	return was, nil
}
