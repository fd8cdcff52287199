package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// joinRemote joins a room through a server that is in it, trying those it is told of in turn.
//
// spec: s2s#joining-rooms
func (s *Server) joinRemote(ctx context.Context, j Join, content json.RawMessage) error {
	// A client that gives up must not leave the handshake half-done.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Minute)
	defer cancel()
	servers, err := s.whoKnows(ctx, j.User, j.Room, j.Via)
	if err != nil {
		return err
	}
	if len(servers) == 0 {
		return chancery.NotFound("unknown room, and no server is named that knows it")
	}
	return s.fills.once(ctx, "join "+string(j.Room)+" "+string(j.User), func() error {
		var last error
		for _, server := range servers[:min(len(servers), maxAsked)] {
			err := s.joinThrough(ctx, server, j, content)
			if err == nil {
				return nil
			}
			s.Log.Info("could not join through a server", zap.String("server", server), zap.String("room", string(j.Room)), zap.Error(err))
			if last == nil || !isRefusal(last) {
				last = err
			}
		}
		return asAnswer(last)
	})
}

// isRefusal says that a peer answered, and said no.
func isRefusal(err error) bool {
	e := (*chancery.Error)(nil)
	return errors.As(err, &e) && e.Status >= 400 && e.Status < 500
}

// asAnswer makes what another server said, or the lack of an answer, into ours.
func asAnswer(err error) error {
	e := (*chancery.Error)(nil)
	if errors.As(err, &e) {
		return e
	}
	return chancery.Errorf(502, chancery.CodeUnknown, "no other server could help").Because(err)
}

// whoKnows lists the servers to ask about a room: those named, the inviter's, and those we know in it.
func (s *Server) whoKnows(ctx context.Context, user id.UserID, roomID id.RoomID, via []string) ([]string, error) {
	servers := slices.Clone(via)
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		if v, ok, err := tx.Invite(string(user), string(roomID)); err != nil {
			return err
		} else if ok {
			servers = append(servers, id.UserID(v.Sender).Homeserver())
		}
		row, ok, err := tx.Room(string(roomID))
		if err != nil || !ok {
			return err
		}
		counts, err := tx.ServersIn(row.NID)
		for _, c := range counts {
			servers = append(servers, c.Server)
		}
		return err
	})
	seen := map[string]bool{s.ServerName: true, "": true}
	return slices.DeleteFunc(servers, func(v string) bool {
		was := seen[v]
		seen[v] = true
		return was
	}), err
}

func versionNames() []id.RoomVersion {
	var names []id.RoomVersion
	for _, v := range event.Versions() {
		names = append(names, id.RoomVersion(v.Name))
	}
	return names
}

func (s *Server) joinThrough(ctx context.Context, server string, j Join, content json.RawMessage) error {
	made, err := s.Peer.MakeJoin(ctx, server, j.Room, j.User, versionNames())
	if err != nil {
		return err
	}
	version, ev, err := s.finish(string(made.RoomVersion), made.Event, j.Room, j.User, "join", content)
	if err != nil {
		return err
	}
	answer, err := s.Peer.SendJoin(ctx, server, j.Room, ev.ID(), ev.JSON(), false)
	if err != nil {
		return err
	}
	// A restricted join comes back with the signature of the server that let us in.
	if len(answer.Event) > 0 {
		if signed, err := event.Parse(version, answer.Event); err == nil && signed.ID() == ev.ID() {
			ev = signed
		}
	}
	events := s.parsed(ctx, version, j.Room, append(slices.Clone(answer.AuthChain), answer.State...))
	byID := make(map[id.EventID]*event.Event, len(events))
	for _, e := range events {
		byID[e.ID()] = e
	}
	g := &given{chain: events, hasState: true}
	for _, raw := range answer.State {
		if e, err := event.Parse(version, raw); err == nil && byID[e.ID()] != nil {
			g.state = append(g.state, byID[e.ID()])
		}
	}
	if errs := s.verify(ctx, []*event.Event{ev}); errs[0] != nil {
		return chancery.Forbidden("the join is not signed by whom it must be").Because(errs[0])
	}
	return s.enter(ctx, version, ev, g, j.User)
}

// finish makes the event that a server proposed in a make_ handshake into ours: only what we asked for is
// taken from the proposal.
func (s *Server) finish(versionName string, proposal json.RawMessage, roomID id.RoomID, user id.UserID, membership string, content json.RawMessage) (*event.Version, *event.Event, error) {
	version, ok := event.Lookup(versionName)
	if !ok {
		return nil, nil, chancery.Errorf(400, chancery.CodeIncompatibleRoomVersion, "the room's version is not known here").With("room_version", versionName)
	}
	p := gjson.ParseBytes(proposal)
	if p.Get("type").Str != "m.room.member" || p.Get("state_key").Str != string(user) || p.Get("sender").Str != string(user) ||
		p.Get("content.membership").Str != membership || p.Get("room_id").Str != string(roomID) {
		return nil, nil, chancery.Errorf(502, chancery.CodeUnknown, "the other server proposed another event than we asked for")
	}
	content, err := withMembership(content, membership)
	if err != nil {
		return nil, nil, err
	}
	if via := p.Get("content.join_authorised_via_users_server").Str; via != "" && version.Restricted {
		// Our signature as the joining server would count as our word that the rules are met.
		if event.Domain(via) == s.ServerName {
			return nil, nil, chancery.Errorf(502, chancery.CodeUnknown, "the other server lets one of our users vouch for the join")
		}
		if content, err = sjson.SetBytes(content, "join_authorised_via_users_server", via); err != nil {
			return nil, nil, err
		}
	}
	key := string(user)
	proto := event.Proto{RoomID: roomID, Sender: user, Type: "m.room.member", StateKey: &key, Content: content,
		Depth: min(p.Get("depth").Int(), maxDepth), ReferenceHashes: map[id.EventID]string{}}
	proto.PrevEvents = references(p.Get("prev_events"), proto.ReferenceHashes)
	proto.AuthEvents = references(p.Get("auth_events"), proto.ReferenceHashes)
	ev, err := event.Build(version, proto, s.ServerName, s.KeyID, s.Key, time.Now())
	return version, ev, err
}

// references reads a list of event IDs, or of pairs of an ID and hashes as in versions 1 and 2.
func references(list gjson.Result, hashes map[id.EventID]string) []id.EventID {
	var ids []id.EventID
	for _, v := range list.Array() {
		if v.IsArray() {
			eventID := id.EventID(v.Get("0").Str)
			hashes[eventID] = v.Get("1.sha256").Str
			ids = append(ids, eventID)
		} else if v.Type == gjson.String {
			ids = append(ids, id.EventID(v.Str))
		}
	}
	return ids
}

// enter puts us into a room by a join that another server took, with the state that it gave.
func (s *Server) enter(ctx context.Context, version *event.Version, ev *event.Event, g *given, user id.UserID) error {
	i := slices.IndexFunc(g.state, func(e *event.Event) bool { return e.IsState("m.room.create", "") })
	if i < 0 || g.state[i].RoomID() != ev.RoomID() || !versionIs(g.state[i], version) {
		return chancery.Errorf(502, chancery.CodeUnknown, "the state that came with the join has not this room's create event")
	}
	return s.inOrNew(ctx, ev.RoomID(), version, func(r *room) error {
		if r.servers[s.ServerName] > 0 {
			// We are in already: another of our users joined meanwhile, or this one by another way.
			return r.take(ev, g)
		}
		create := g.state[i]
		was, err := r.createEvent()
		if err != nil {
			return err
		}
		if was != nil && was.ID() != create.ID() || r.version != version {
			return chancery.Errorf(502, chancery.CodeUnknown, "the state that came with the join is of another room")
		}
		if err := checkAlone(create); err != nil {
			return err
		}
		r.create = create
		if err := r.addOutliers(append(slices.Clone(g.chain), g.state...)); err != nil {
			return err
		}
		root, err := r.rootOf(g.state)
		if err != nil {
			return err
		}
		if err := r.allowedBy(ev, root); err != nil {
			return asRefusal(err)
		}
		h := how{before: root, replace: true}
		if h.row, err = r.seen(ev); err != nil {
			return err
		}
		prev := &needs{}
		if _, err := r.prevOf(ev, prev); err != nil {
			return err
		}
		h.missing = prev.prev
		a, err := r.add(ev, h)
		if err != nil {
			return err
		}
		a.invites = append(a.invites, storage.Invite{User: string(user), RoomID: string(r.id)})
		r.submit(a)
		return nil
	})
}

func asRefusal(err error) error {
	if isRejection(err) {
		return refused(err)
	}
	return err
}

func versionIs(create *event.Event, version *event.Version) bool {
	name := "1"
	if v := gjson.GetBytes(create.Content(), "room_version"); v.Exists() {
		name = v.Str
	}
	return name == version.Name
}

// inOrNew is in, but for a room that we do not have it begins an empty one. Nothing of it is stored before
// fn submits it.
func (s *Server) inOrNew(ctx context.Context, roomID id.RoomID, version *event.Version, fn func(*room) error) error {
	err := s.in(ctx, roomID, fn)
	if !chancery.IsCode(err, chancery.CodeNotFound) {
		return err
	}
	nid, err := s.DB.NewRoomNumber()
	if err != nil {
		return err
	}
	r := newRoom(s, roomID)
	r.turn <- struct{}{}
	s.mu.Lock()
	if s.rooms[roomID] != nil {
		s.mu.Unlock()
		return s.in(ctx, roomID, fn) // somebody else was first
	}
	s.rooms[roomID] = r
	s.mu.Unlock()
	r.ctx, r.used = context.WithoutCancel(ctx), time.Now()
	r.reset(storage.Room{NID: nid, ID: string(roomID), Version: version.Name}, version)
	err = fn(r)
	if err != nil {
		s.forgetHandle(r)
	}
	waits := r.waits
	r.waits = nil
	<-r.turn
	for _, w := range waits {
		if e := w.Wait(ctx); e != nil && err == nil {
			err = commitFailed(e)
		}
	}
	return err
}

// leaveRemote refuses an invite, or takes back a knock, in a room that we are not in. When no server can
// be asked the invite is gone for our user all the same.
//
// spec: s2s#leaving-rooms-rejecting-invites
func (s *Server) leaveRemote(ctx context.Context, user id.UserID, roomID id.RoomID, content json.RawMessage) error {
	var invite storage.Invite
	var ok bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		invite, ok, err = tx.Invite(string(user), string(roomID))
		return err
	})
	if err != nil {
		return err
	}
	if !ok {
		return chancery.NotFound("you are not in this room")
	}
	if invite.Membership == "leave" {
		return nil
	}
	servers, err := s.whoKnows(ctx, user, roomID, nil)
	if err != nil {
		return err
	}
	var left *event.Event
	for _, server := range servers[:min(len(servers), 2)] {
		if left, err = s.leaveThrough(ctx, server, user, roomID, content); err == nil {
			break
		}
		s.Log.Info("could not leave through a server", zap.String("server", server), zap.Error(err))
	}
	if left == nil {
		if left, err = s.leaveAlone(invite, content); err != nil {
			return err
		}
	}
	invite.Membership, invite.EventID, invite.Event = "leave", string(left.ID()), left.JSON()
	return s.DB.Write(ctx, []string{"user:" + string(user)}, func(tx storage.Tx) error {
		tx.SetInvite(invite)
		tx.Announce(inviteFact(invite))
		return nil
	})
}

func (s *Server) leaveThrough(ctx context.Context, server string, user id.UserID, roomID id.RoomID, content json.RawMessage) (*event.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTime)
	defer cancel()
	made, err := s.Peer.MakeLeave(ctx, server, roomID, user)
	if err != nil {
		return nil, err
	}
	_, ev, err := s.finish(string(made.RoomVersion), made.Event, roomID, user, "leave", content)
	if err != nil {
		return nil, err
	}
	return ev, s.Peer.SendLeave(ctx, server, roomID, ev.ID(), ev.JSON())
}

// leaveAlone makes the event that tells our user of a refused invite when no other server could take it.
func (s *Server) leaveAlone(invite storage.Invite, content json.RawMessage) (*event.Event, error) {
	version, ok := event.Lookup(invite.Version)
	if !ok {
		return nil, fmt.Errorf("the invite to %s has the unknown room version %q", invite.RoomID, invite.Version)
	}
	before := id.EventID(invite.EventID)
	p := event.Proto{RoomID: id.RoomID(invite.RoomID), Sender: id.UserID(invite.User), Type: "m.room.member", StateKey: &invite.User,
		Content: content, PrevEvents: []id.EventID{before}, AuthEvents: []id.EventID{before}, Depth: 1}
	if version.EventFormat == event.FormatReferences {
		was, err := event.ParseStored(version, before, invite.Event)
		if err != nil {
			return nil, err
		}
		p.ReferenceHashes = map[id.EventID]string{before: was.ReferenceHash()}
	}
	return event.Build(version, p, s.ServerName, s.KeyID, s.Key, time.Now())
}

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
	key := string(inv.Target)
	n := NewEvent{Room: inv.Room, Sender: inv.Sender, Type: "m.room.member", StateKey: &key, Content: content}
	if s.IsLocal(inv.Target) {
		if err := s.MayBeInvited(ctx, inv.Target); err != nil {
			return err
		}
		return s.in(ctx, inv.Room, func(r *room) error {
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
	err := s.in(ctx, n.Room, func(r *room) (err error) {
		if err := r.mustBeIn(n.Sender); err != nil {
			return err
		}
		before = state.Root(r.row.Root)
		if ev, err = r.build(n, before); err != nil {
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
		return asAnswer(err)
	}
	signed, err := event.Parse(ev.Version(), raw)
	if err != nil || signed.ID() != ev.ID() {
		return chancery.Errorf(502, chancery.CodeUnknown, "the other server answered with another event than the invite").Because(err)
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
		return nil, chancery.BadJSON("the event is not an invite")
	case !s.IsLocal(user):
		return nil, chancery.InvalidParam("the invited user is not one of ours")
	case ev.Sender().Homeserver() != in.Origin:
		return nil, chancery.Forbidden("the invite is not from a user of your server")
	}
	if errs := s.verify(ctx, []*event.Event{ev}); errs[0] != nil {
		return nil, chancery.Forbidden("the invite's signature does not hold").Because(errs[0])
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
	stripped, hasCreate, err := strippedOf(version, in)
	if err != nil {
		return nil, err
	}
	if len(stripped) > maxStripped {
		return nil, chancery.TooLarge("the state that goes with the invite is too large")
	}
	if version.RoomIDIsCreateHash && !hasCreate {
		// spec: s2s/sendInviteV2
		return nil, chancery.InvalidParam("the invite's state has not the room's create event")
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
		// We are in the room: the invite also comes to us in a transaction, by which it is judged.
		if err := s.receiveOne(ctx, in.Origin, in.Room, signed); err != nil {
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
		was, ok, err := tx.Invite(key, row.RoomID)
		if err != nil {
			return err
		}
		// A server cannot put its own invite in the place of another's that is pending.
		if ok && was.Membership == "invite" && id.UserID(was.Sender).Homeserver() != in.Origin {
			return nil
		}
		pending, err := tx.InvitesOf(key)
		if err != nil {
			return err
		}
		if !ok && countFrom(pending, in.Origin) >= maxInvites {
			return chancery.LimitExceeded(time.Hour)
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
	maxInvites  = 100      // invites that wait for an answer
)

func countFrom(invites []storage.Invite, server string) int {
	n := 0
	for _, v := range invites {
		if v.Membership == "invite" && id.UserID(v.Sender).Homeserver() == server {
			n++
		}
	}
	return n
}

// strippedOf makes the stripped state that our user sees from what came with an invite: whole events as
// newer servers send them, or events stripped already. hasCreate says that the create event came whole.
func strippedOf(version *event.Version, in Invited) (stripped json.RawMessage, hasCreate bool, err error) {
	out := make([]json.RawMessage, 0, len(in.Stripped))
	for _, raw := range in.Stripped {
		if e, err := event.Parse(version, raw); err == nil && e.RoomID() == in.Room {
			out = append(out, e.Stripped())
			hasCreate = hasCreate || e.IsState("m.room.create", "")
			continue
		}
		p := gjson.ParseBytes(raw)
		if p.Get("type").Type != gjson.String || p.Get("state_key").Type != gjson.String || p.Get("sender").Type != gjson.String || !p.Get("content").IsObject() {
			continue
		}
		text, err := json.Marshal(map[string]json.RawMessage{"type": json.RawMessage(p.Get("type").Raw), "state_key": json.RawMessage(p.Get("state_key").Raw),
			"sender": json.RawMessage(p.Get("sender").Raw), "content": json.RawMessage(p.Get("content").Raw)})
		if err != nil {
			return nil, false, fmt.Errorf("strip state: %w", err)
		}
		out = append(out, text)
	}
	stripped, err = json.Marshal(out)
	return stripped, hasCreate, err
}
