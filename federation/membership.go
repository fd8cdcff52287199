package federation

import (
	"context"
	"encoding/json"
	"io"

	"chancery"
	"chancery/roomserver"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

type makeIn struct {
	Origin   string    `origin:""`
	Room     id.RoomID `path:"roomId"`
	User     id.UserID `path:"userId"`
	Versions []string  `query:"ver"`
}

type templateOut struct {
	Version string          `json:"room_version"`
	Event   json.RawMessage `json:"event"`
}

// propose is the first half of the handshakes by which users of other servers come and go.
func (s *Server) propose(ctx context.Context, in *makeIn, membership string) (*templateOut, error) {
	versions := in.Versions
	if len(versions) == 0 {
		versions = []string{"1"} // spec: s2s/makeJoin, the default of ver
	}
	t, err := s.Rooms.MakeMembership(ctx, in.Origin, in.Room, in.User, membership, versions)
	if err != nil {
		return nil, err
	}
	return &templateOut{t.Version, t.Event}, nil
}

// spec: s2s/makeJoin
func (s *Server) makeJoin(ctx context.Context, in *makeIn) (*templateOut, error) {
	return s.propose(ctx, in, "join")
}

// spec: s2s/makeLeave
func (s *Server) makeLeave(ctx context.Context, in *makeIn) (*templateOut, error) {
	return s.propose(ctx, in, "leave")
}

// spec: s2s/makeKnock
func (s *Server) makeKnock(ctx context.Context, in *makeIn) (*templateOut, error) {
	if len(in.Versions) == 0 {
		return nil, chancery.MissingParam("ver is missing") // it has no default here
	}
	return s.propose(ctx, in, "knock")
}

type memberIn struct {
	Origin  string          `origin:""`
	Room    id.RoomID       `path:"roomId"`
	EventID id.EventID      `path:"eventId"`
	Event   json.RawMessage `body:"json"`
}

func (s *Server) take(ctx context.Context, in *memberIn, membership string) (*roomserver.Taken, error) {
	return s.Rooms.TakeMembership(ctx, in.Origin, in.Room, in.EventID, in.Event, membership)
}

type sendJoinIn struct {
	Origin  string          `origin:""`
	Room    id.RoomID       `path:"roomId"`
	EventID id.EventID      `path:"eventId"`
	Omit    bool            `query:"omit_members"`
	Event   json.RawMessage `body:"json"`
}

// sendJoinOut is the room as it was before a join. Its auth chain comes first, as in stateOut.
type sendJoinOut struct {
	ctx    context.Context // of the request, while the answer is written
	origin string
	taken  *roomserver.Taken
	what   *roomserver.Snapshot
}

func (o *sendJoinOut) WriteJSON(w io.Writer) error {
	defer o.what.Close()
	out := &jsonOut{w: w}
	out.member("origin", o.origin)
	out.member("event", o.taken.Event)
	out.member("members_omitted", o.what.Omitted)
	out.member("servers_in_room", o.taken.Servers)
	out.list("auth_chain", func() error { return o.what.Each(o.ctx, o.what.Chain, out.element) })
	out.list("state", func() error { return o.what.Each(o.ctx, o.what.State, out.element) })
	return out.close()
}

// sendJoin takes the join and gives the room as it was before it, without its members to who can wait for them.
//
// spec: s2s/sendJoinV2
func (s *Server) sendJoin(ctx context.Context, in *sendJoinIn) (*sendJoinOut, error) {
	taken, err := s.Rooms.TakeMembership(ctx, in.Origin, in.Room, in.EventID, in.Event, "join")
	if err != nil {
		return nil, err
	}
	what, err := s.Rooms.StateFor(ctx, in.Origin, taken, in.Omit)
	return &sendJoinOut{ctx, s.Config.ServerName, taken, what}, err
}

type nothingOut struct{}

// spec: s2s/sendLeaveV2
func (s *Server) sendLeave(ctx context.Context, in *memberIn) (*nothingOut, error) {
	_, err := s.take(ctx, in, "leave")
	return &nothingOut{}, err
}

type sendKnockOut struct {
	State []json.RawMessage `json:"knock_room_state"`
}

// spec: s2s/sendKnock
func (s *Server) sendKnock(ctx context.Context, in *memberIn) (*sendKnockOut, error) {
	if _, err := s.take(ctx, in, "knock"); err != nil {
		return nil, err
	}
	state, err := s.Rooms.Invitation(ctx, in.Room, in.EventID)
	return &sendKnockOut{State: state}, err
}

type inviteIn struct {
	Origin  string     `origin:""`
	Room    id.RoomID  `path:"roomId"`
	EventID id.EventID `path:"eventId"`
	Body    struct {
		Version string            `json:"room_version" required:"true"`
		Event   json.RawMessage   `json:"event" required:"true"`
		State   []json.RawMessage `json:"invite_room_state"`
	} `body:"json"`
}

type inviteOut struct {
	Event json.RawMessage `json:"event"`
}

// invite takes an invite of one of our users.
//
// spec: s2s/sendInviteV2
func (s *Server) invite(ctx context.Context, in *inviteIn) (*inviteOut, error) {
	signed, err := s.Rooms.ReceiveInvite(ctx, roomserver.Invited{Origin: in.Origin, Room: in.Room, EventID: in.EventID,
		Version: in.Body.Version, Event: in.Body.Event, Stripped: in.Body.State})
	if err != nil {
		return nil, err
	}
	return &inviteOut{signed}, nil
}

// inviteOld is the endpoint's first version, which knows rooms of versions 1 and 2 only: an event of a newer
// one has no event_id.
//
// spec: s2s/sendInviteV1
func (s *Server) inviteOld(ctx context.Context, in *memberIn) (*json.RawMessage, error) {
	version := "1"
	var stripped []json.RawMessage
	for _, v := range gjson.GetBytes(in.Event, "unsigned.invite_room_state").Array() {
		stripped = append(stripped, json.RawMessage(v.Raw))
		if v.Get("type").Str == "m.room.create" && v.Get("content.room_version").Exists() {
			version = v.Get("content.room_version").Str
		}
	}
	signed, err := s.Rooms.ReceiveInvite(ctx, roomserver.Invited{Origin: in.Origin, Room: in.Room, EventID: in.EventID,
		Version: version, Event: in.Event, Stripped: stripped})
	if err != nil {
		return nil, err
	}
	out, err := json.Marshal([]any{200, inviteOut{signed}})
	return (*json.RawMessage)(&out), err
}
