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
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// joinRemote joins a room through a server that is in it, trying those it is told of in turn; one that is slow to say
// how does not keep us from asking the next.
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
		ask := func(ctx context.Context, server string) (*peer.Template, error) {
			return s.Peer.MakeJoin(ctx, server, j.Room, j.User, versionNames())
		}
		inTurn(ctx, servers[:min(len(servers), maxAsked)], ask, func(server string, made *peer.Template, err error) bool {
			if err == nil {
				err = s.joinThrough(ctx, server, made, j, content)
			}
			if err == nil {
				last = nil
				return true
			}
			s.Log.Info("could not join through a server", zap.String("server", server), zap.String("room", string(j.Room)), zap.Error(err))
			if last == nil || !isRefusal(last) {
				last = err
			}
			return false
		})
		if last == nil {
			return nil
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

// betweenServers keeps from the client what another server says of the form of our event: nothing can be done about it.
//
// spec: s2s/sendJoinV2, s2s/sendInviteV2
func betweenServers(err error) error {
	if chancery.IsCode(err, chancery.CodeMissingParam) || chancery.IsCode(err, chancery.CodeInvalidParam) {
		return chancery.Errorf(502, chancery.CodeUnknown, "the other server does not understand our event").Because(err)
	}
	return err
}

// whoKnows lists the servers to ask about a room: those named, the inviter's, and those we know in it.
func (s *Server) whoKnows(ctx context.Context, user id.UserID, roomID id.RoomID, via []string) ([]string, error) {
	servers := slices.Clone(via)
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		if v, ok, err := tx.Invite(string(user), string(roomID)); err != nil {
			return err
		} else if ok {
			servers = append(servers, invitedFrom(v))
			for _, w := range v.Beneath {
				servers = append(servers, invitedFrom(w))
			}
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

// joinThrough finishes a join that a server made for us.
func (s *Server) joinThrough(ctx context.Context, server string, made *peer.Template, j Join, content json.RawMessage) error {
	version, ev, err := s.finish(string(made.RoomVersion), made.Event, j.Room, j.User, "join", content)
	if err != nil {
		return err
	}
	omit, err := s.wantsPart(ctx, j.Room)
	if err != nil {
		return err
	}
	answer, err := s.Peer.SendJoin(ctx, server, j.Room, ev.ID(), ev.JSON(), omit)
	if err != nil {
		return betweenServers(err)
	}
	// A restricted join comes back with the signature of the server that let us in.
	if len(answer.Event) > 0 {
		if signed, err := event.Parse(version, answer.Event); err == nil && signed.ID() == ev.ID() {
			ev = signed
		}
	}
	g := s.readJoin(ctx, version, ev, answer, omit)
	g.server = server
	if errs := s.verify(ctx, []*event.Event{ev}); errs[0] != nil {
		return chancery.Forbidden("the join is not signed by whom it must be").Because(errs[0])
	}
	err = s.enter(ctx, version, ev, g, j.User)
	if n := (*needs)(nil); errors.As(err, &n) {
		// We were in already, and another event than ours came first.
		return s.receiveOne(ctx, server, j.Room, ev)
	}
	if err == nil && g.began {
		s.partials.begin(j.Room, g.later())
	}
	return err
}

// wantsPart says that a join wants only the part of the state without which we cannot begin: unless we have all of it.
func (s *Server) wantsPart(ctx context.Context, roomID id.RoomID) (bool, error) {
	part := true
	err := s.in(ctx, roomID, func(r *room) error {
		part = r.servers[s.ServerName] == 0 || r.partial != nil
		return nil
	})
	if chancery.IsCode(err, chancery.CodeNotFound) {
		err = nil
	}
	return part, err
}

// An answer with more members than this is looked at later, even if its server could not leave them out.
const manyMembers = 500

// maxServersIn bounds the servers that a room is said to have.
const maxServersIn = 20_000

// readJoin reads the answer to a join.
func (s *Server) readJoin(ctx context.Context, version *event.Version, join *event.Event, answer *peer.Joined, omit bool) *given {
	g := &given{hasState: true, partial: omit && answer.MembersOmitted}
	essential := answer.State
	if omit && !g.partial && len(answer.State) > manyMembers {
		g.partial = true
		essential = nil
		for _, raw := range answer.State {
			if gjson.GetBytes(raw, "type").Str == "m.room.member" {
				g.members = append(g.members, raw)
			} else {
				essential = append(essential, raw)
			}
		}
	}
	g.chain = s.parsed(ctx, version, join.RoomID(), append(slices.Clone(answer.AuthChain), essential...))
	byID := make(map[id.EventID]*event.Event, len(g.chain))
	for _, e := range g.chain {
		byID[e.ID()] = e
	}
	for _, raw := range essential {
		if e, err := event.Parse(version, raw); err == nil && byID[e.ID()] != nil {
			g.state = append(g.state, byID[e.ID()])
		}
	}
	seen := map[string]bool{s.ServerName: true}
	add := func(server string) {
		if !seen[server] && event.ValidServerName(server) && len(g.servers) < maxServersIn {
			seen[server] = true
			g.servers = append(g.servers, server)
		}
	}
	for _, server := range answer.Servers {
		add(server)
	}
	for _, raw := range g.members {
		if gjson.GetBytes(raw, "content.membership").Str == "join" {
			add(event.Domain(gjson.GetBytes(raw, "state_key").Str))
		}
	}
	return g
}

// later is what was given and is looked at behind the joiner's back; nil when it must be asked for.
func (g *given) later() *given {
	if len(g.members) == 0 {
		return nil
	}
	return g
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
	if err := s.storeChain(ctx, version, ev, g); err != nil {
		return err
	}
	return s.inOrNew(ctx, ev.RoomID(), version, func(r *room) (err error) {
		defer r.distrust(&err)
		if r.servers[s.ServerName] > 0 {
			// We are in already: another of our users joined meanwhile, or this one by another way.
			if g.partial && r.partial == nil {
				g = &given{chain: g.chain} // a part is of no use to who has the whole
			}
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
		root, err := r.rootOf(0, g.state)
		if err != nil {
			return err
		}
		auths, err := r.authOf(ev, &needs{})
		if err != nil {
			return err
		}
		if r.row.Partial, r.partial = g.partial, nil; g.partial {
			// Who invited us, or let us in, is among what was left out.
			if root, err = r.fillIn(root, ev, auths); err != nil {
				return err
			}
			if err := r.passesOwnAuth(ev, auths); err != nil {
				return asRefusal(err)
			}
			r.partial = &partial{before: root, held: map[id.EventID]bool{}}
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
		a.moved = true // also a room that is whole now and was not
		if g.partial {
			r.enterPartly(a, g)
		} else {
			if r.partial != nil {
				row := r.row
				a.also = func(tx storage.Tx) error {
					endPartial(tx, row)
					return nil
				}
			}
			r.s.unsure.noteSoon(r.id) // of when we were here before
		}
		r.submit(a)
		return nil
	})
}

// enterPartly notes with our join that the rest of the room is to come.
func (r *room) enterPartly(a *addition, g *given) {
	g.began = true
	r.partial.join = a.NID
	for _, server := range g.servers {
		r.servers[server]++
		r.joined++
	}
	r.set = 0
	a.also = func(tx storage.Tx) error {
		return tx.BeginPartial(storage.PartialJoin{Room: a.Room, Join: a.NID, Server: g.server}, g.servers)
	}
}

// storeChain stores what a join stands on in pieces, when it is too much for the join's own transaction. Nobody sees
// it before the join is there.
func (s *Server) storeChain(ctx context.Context, version *event.Version, join *event.Event, g *given) error {
	if len(g.chain) <= restPiece {
		return nil
	}
	ids := make([]id.EventID, 0, len(g.chain))
	byID := make(map[id.EventID]*event.Event, len(g.chain))
	for _, ev := range g.chain {
		if byID[ev.ID()] == nil {
			byID[ev.ID()] = ev
			ids = append(ids, ev.ID())
		}
	}
	for piece := range slices.Chunk(authOrder(ids, byID), restPiece) {
		if err := s.inOrNew(ctx, join.RoomID(), version, func(r *room) error { return r.addOutliers(piece) }); err != nil {
			return err
		}
	}
	g.chain = nil
	return nil
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
	r.turn.try() // nobody knows the room yet
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
	r.turn.leave()
	for _, w := range waits {
		if e := w.Wait(ctx); e != nil && err == nil {
			err = commitFailed(e)
		}
	}
	return err
}

// errNotIn is for who wants out of a room and is neither in it nor invited, as far as we know.
var errNotIn = chancery.NotFound("you are not in this room")

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
		return errNotIn
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
			if s.knowsOfLeave(ctx, server, left) {
				return nil
			}
			break
		}
		s.Log.Info("could not leave through a server", zap.String("server", server), zap.Error(err))
	}
	if left == nil {
		if left, err = s.leaveAlone(invite, content); err != nil {
			return err
		}
	}
	return s.DB.Write(ctx, []string{"user:" + string(user)}, func(tx storage.Tx) error {
		is, ok, err := tx.Invite(string(user), string(roomID))
		if err != nil || !ok || is.EventID != invite.EventID {
			return err // they came in meanwhile, or were invited anew
		}
		is = endedBy(is, left)
		tx.SetInvite(is)
		tx.Announce(inviteFact(is))
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

// knowsOfLeave puts the leave that a server took for us into the room, when another of our users is in it: we did not
// find the invite there because a part of the room was still to come, and that server tells us of nothing that it has
// from us.
func (s *Server) knowsOfLeave(ctx context.Context, server string, left *event.Event) (knows bool) {
	here := false
	err := s.in(ctx, left.RoomID(), func(r *room) error {
		here = r.servers[s.ServerName] > 0
		return nil
	})
	if here {
		err = s.receiveOne(ctx, server, left.RoomID(), left)
	}
	if here && err == nil {
		err = s.in(ctx, left.RoomID(), func(r *room) error {
			member, err := r.member(left.Sender())
			knows = member != nil && member.ID() == left.ID()
			return err
		})
	}
	if err != nil && !chancery.IsCode(err, chancery.CodeNotFound) {
		s.Log.Info("could not take a leave into its room", zap.String("room", string(left.RoomID())), zap.Error(err))
	}
	return knows
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
