package room

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"chancery"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

const codeServerNotTrusted chancery.Code = "M_SERVER_NOT_TRUSTED"

type RoomIDOut struct {
	RoomID id.RoomID `json:"room_id"`
}

// entering is what joins and knocks may say.
type entering struct {
	Reason           string          `json:"reason"`
	ThirdPartySigned json.RawMessage `json:"third_party_signed"`
}

type JoinRoomByIDIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Via    []string  `query:"via"`
	Server []string  `query:"server_name"`
	Body   entering  `body:"json"`
}

// JoinRoomByID brings the caller into a room.
//
// spec: c2s/joinRoomById
func (a *API) JoinRoomByID(ctx context.Context, in *JoinRoomByIDIn) (*RoomIDOut, error) {
	return a.join(ctx, in.Caller, in.RoomID, append(in.Via, in.Server...), in.Body)
}

type JoinRoomIn struct {
	Caller endpoint.Caller
	Room   string   `path:"roomIdOrAlias"`
	Via    []string `query:"via"`
	Server []string `query:"server_name"` // the name of via before v1.12
	Body   entering `body:"json"`
}

// JoinRoom brings the caller into a room that is named by its ID or by an alias.
//
// spec: c2s/joinRoom
func (a *API) JoinRoom(ctx context.Context, in *JoinRoomIn) (*RoomIDOut, error) {
	roomID, via, err := a.find(ctx, in.Room, append(in.Via, in.Server...))
	if err != nil {
		return nil, err
	}
	return a.join(ctx, in.Caller, roomID, via, in.Body)
}

// find makes a room ID of what may be an alias; via grows by the servers that the alias names.
func (a *API) find(ctx context.Context, idOrAlias string, via []string) (id.RoomID, []string, error) {
	switch {
	case strings.HasPrefix(idOrAlias, "!"):
		return id.RoomID(idOrAlias), via, nil
	case !strings.HasPrefix(idOrAlias, "#"):
		return "", nil, chancery.InvalidParam("%s is neither a room ID nor an alias", idOrAlias)
	}
	roomID, servers, err := a.Rooms.ResolveAlias(ctx, id.RoomAlias(idOrAlias))
	return roomID, append(via, servers...), err
}

func (a *API) join(ctx context.Context, caller endpoint.Caller, roomID id.RoomID, via []string, how entering) (*RoomIDOut, error) {
	if err := mayWrite(caller); err != nil {
		return nil, err
	}
	if caller.Guest {
		if err := a.guestMayJoin(ctx, roomID); err != nil {
			return nil, err
		}
	}
	if len(how.ThirdPartySigned) > 0 {
		proof := roomserver.Proof{Room: roomID, Sender: id.UserID(member(how.ThirdPartySigned, "sender")), User: caller.User, Signed: how.ThirdPartySigned}
		if err := a.Rooms.AcceptAddressInvite(ctx, proof); err != nil {
			return nil, err
		}
	}
	content, err := a.memberContent(ctx, caller.User, how.Reason)
	if err != nil {
		return nil, err
	}
	text, err := object(content)
	if err != nil {
		return nil, err
	}
	if err := a.Rooms.Join(ctx, roomserver.Join{User: caller.User, Room: roomID, Via: via, Content: text}); err != nil {
		return nil, err
	}
	return &RoomIDOut{roomID}, nil
}

// guestMayJoin: guests may enter only rooms of ours that let them.
//
// spec: c2s#guest-access
func (a *API) guestMayJoin(ctx context.Context, roomID id.RoomID) error {
	return a.DB.Read(ctx, func(tx storage.Tx) error {
		if room, ok, err := tx.Room(string(roomID)); err != nil {
			return err
		} else if ok {
			access, err := a.Reader.StateEvent(tx, room, rootOf(room), "m.room.guest_access", "")
			if err != nil {
				return err
			}
			if access != nil && member(access.Content(), "guest_access") == "can_join" {
				return nil
			}
		}
		return chancery.Errorf(403, chancery.CodeGuestAccessForbidden, "guests may not join this room")
	})
}

type LeaveRoomIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Body   struct {
		Reason string `json:"reason"`
	} `body:"json"`
}

type empty struct{}

// LeaveRoom takes the caller out of a room, or refuses an invite.
//
// spec: c2s/leaveRoom
func (a *API) LeaveRoom(ctx context.Context, in *LeaveRoomIn) (*empty, error) {
	members := map[string]any{}
	if in.Body.Reason != "" {
		members["reason"] = in.Body.Reason
	}
	content, err := object(members)
	if err != nil {
		return nil, err
	}
	return nil, a.Rooms.Leave(ctx, in.Caller.User, in.RoomID, content)
}

type ForgetRoomIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
}

// ForgetRoom hides a room that the caller has left.
//
// spec: c2s/forgetRoom
func (a *API) ForgetRoom(ctx context.Context, in *ForgetRoomIn) (*empty, error) {
	return nil, a.Rooms.Forget(ctx, in.Caller.User, in.RoomID)
}

type InviteUserIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Body   struct {
		UserID id.UserID `json:"user_id"`
		Reason string    `json:"reason"`
		byAddress
	} `body:"json"`
}

// byAddress names somebody by what an identity server knows of them.
type byAddress struct {
	Server  string `json:"id_server"`
	Token   string `json:"id_access_token"`
	Medium  string `json:"medium"`
	Address string `json:"address"`
}

// InviteUser invites a user, who may be named by an address.
//
// spec: c2s/inviteUser, c2s/inviteBy3PID
func (a *API) InviteUser(ctx context.Context, in *InviteUserIn) (*empty, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	switch {
	case in.Body.UserID == "" && (in.Body.Medium != "" || in.Body.Address != ""):
		return nil, a.inviteAddress(ctx, in.RoomID, in.Caller.User, in.Body.byAddress, in.Body.Reason, false)
	case in.Body.UserID == "":
		return nil, chancery.MissingParam("user_id is missing")
	}
	return nil, a.invite(ctx, in.RoomID, in.Caller.User, in.Body.UserID, in.Body.Reason, false)
}

// checkContact refuses what an identity server cannot be asked of, and identity servers that the configuration does not name.
func (a *API) checkContact(by byAddress) error {
	switch {
	case by.Server == "" || by.Medium == "" || by.Address == "":
		return chancery.MissingParam("id_server, medium and address must be there")
	case len(by.Address) > 500 || len(by.Medium) > 50:
		return chancery.InvalidParam("the address is too long")
	case !slices.Contains(a.Config.Identity.Servers, by.Server) && !slices.Contains(a.Config.Identity.Servers, "*"):
		return chancery.Errorf(400, codeServerNotTrusted, "this server does not trust the identity server %.100q", by.Server)
	case by.Token == "":
		return chancery.MissingParam("id_access_token is missing")
	}
	return nil
}

// inviteAddress invites the owner of an address: by user ID when the identity server knows them, else so that whoever proves
// to own it is invited.
//
// spec: c2s/inviteBy3PID, c2s#third-party-invites
func (a *API) inviteAddress(ctx context.Context, roomID id.RoomID, sender id.UserID, by byAddress, reason string, direct bool) error {
	if err := a.checkContact(by); err != nil {
		return err
	}
	contact := peer.Contact{Server: by.Server, Token: by.Token, Medium: by.Medium, Address: by.Address}
	user, err := a.Rooms.FindInvited(ctx, contact)
	if err != nil {
		return err
	}
	if user != "" {
		return a.invite(ctx, roomID, sender, user, reason, direct)
	}
	own, err := a.memberContent(ctx, sender, "")
	if err != nil {
		return err
	}
	name, _ := own["displayname"].(string)
	avatar, _ := own["avatar_url"].(string)
	return notHere(a.Rooms.InviteAddress(ctx, roomserver.AddressInvite{Room: roomID, Sender: sender, Contact: contact,
		Names: map[string]string{"sender_display_name": name, "sender_avatar_url": avatar}}))
}

func (a *API) invite(ctx context.Context, roomID id.RoomID, sender, target id.UserID, reason string, direct bool) error {
	if !event.ValidUserID(string(target)) {
		return chancery.InvalidParam("%s is not a user ID", target)
	}
	members, err := a.memberContent(ctx, target, reason)
	if err != nil {
		return err
	}
	if direct {
		members["is_direct"] = true
	}
	content, err := object(members)
	if err != nil {
		return err
	}
	return notHere(a.Rooms.Invite(ctx, roomserver.Invite{Room: roomID, Sender: sender, Target: target, Content: content}))
}

// ChangeMemberIn is a kick, a ban or an unban.
type ChangeMemberIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Body   struct {
		UserID id.UserID `json:"user_id" required:"true"`
		Reason string    `json:"reason"`
	} `body:"json"`
}

// Kick puts a member, or somebody invited or knocking, out of the room.
//
// spec: c2s/kick
func (a *API) Kick(ctx context.Context, in *ChangeMemberIn) (*empty, error) {
	return a.changeMember(ctx, in, "leave", "join", "invite", "knock")
}

// Ban puts a user out of the room for good.
//
// spec: c2s/ban
func (a *API) Ban(ctx context.Context, in *ChangeMemberIn) (*empty, error) {
	return a.changeMember(ctx, in, "ban")
}

// Unban ends a ban.
//
// spec: c2s/unban
func (a *API) Unban(ctx context.Context, in *ChangeMemberIn) (*empty, error) {
	return a.changeMember(ctx, in, "leave", "ban")
}

func (a *API) changeMember(ctx context.Context, in *ChangeMemberIn, membership string, only ...string) (*empty, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	if !event.ValidUserID(string(in.Body.UserID)) {
		return nil, chancery.InvalidParam("%s is not a user ID", in.Body.UserID)
	}
	members := map[string]any{}
	if in.Body.Reason != "" {
		members["reason"] = in.Body.Reason
	}
	content, err := object(members)
	if err != nil {
		return nil, err
	}
	return nil, notHere(a.Rooms.ChangeMember(ctx, roomserver.Change{Room: in.RoomID, Sender: in.Caller.User, Target: in.Body.UserID,
		Membership: membership, Only: only, Content: content}))
}

type GetJoinedRoomsIn struct{ Caller endpoint.Caller }

type GetJoinedRoomsOut struct {
	Rooms []id.RoomID `json:"joined_rooms"`
}

// GetJoinedRooms lists the rooms the caller is in.
//
// spec: c2s/getJoinedRooms
func (a *API) GetJoinedRooms(ctx context.Context, in *GetJoinedRoomsIn) (*GetJoinedRoomsOut, error) {
	out := &GetJoinedRoomsOut{Rooms: []id.RoomID{}}
	return out, a.DB.Read(ctx, func(tx storage.Tx) error {
		members, err := tx.RoomsOf(string(in.Caller.User), []string{"join"})
		if err != nil {
			return err
		}
		nids := make([]int64, len(members))
		for i, m := range members {
			nids[i] = m.Room
		}
		rooms, err := tx.Rooms(nids)
		for _, r := range rooms {
			out.Rooms = append(out.Rooms, id.RoomID(r.ID))
		}
		return err
	})
}

// KnockRoom asks to be let into a room.
//
// spec: c2s/knockRoom
func (a *API) KnockRoom(ctx context.Context, in *JoinRoomIn) (*RoomIDOut, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	roomID, via, err := a.find(ctx, in.Room, append(in.Via, in.Server...))
	if err != nil {
		return nil, err
	}
	members, err := a.memberContent(ctx, in.Caller.User, in.Body.Reason)
	if err != nil {
		return nil, err
	}
	content, err := object(members)
	if err != nil {
		return nil, err
	}
	if err := a.Rooms.Knock(ctx, roomserver.Join{User: in.Caller.User, Room: roomID, Via: via, Content: content}); err != nil {
		return nil, err
	}
	return &RoomIDOut{roomID}, nil
}
