package room

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

type CreateRoomIn struct {
	Caller endpoint.Caller
	Body   newRoom `body:"json"`
}

type newRoom struct {
	Visibility    string                     `json:"visibility"`
	AliasName     string                     `json:"room_alias_name"`
	Name          *string                    `json:"name"`
	Topic         *string                    `json:"topic"`
	Invite        []id.UserID                `json:"invite"`
	Invite3PID    []byAddress                `json:"invite_3pid"`
	Version       string                     `json:"room_version"`
	Creation      map[string]json.RawMessage `json:"creation_content"`
	InitialState  []initialState             `json:"initial_state"`
	Preset        string                     `json:"preset"`
	IsDirect      bool                       `json:"is_direct"`
	PowerOverride map[string]json.RawMessage `json:"power_level_content_override"`
}

type initialState struct {
	Type     string          `json:"type"`
	StateKey string          `json:"state_key"`
	Content  json.RawMessage `json:"content"`
}

// preset is what a preset sets.
type preset struct {
	joinRule, guestAccess string
	invitees              bool // are given the creator's power
	inviteLevel           int64
}

// spec: c2s/createRoom
var presets = map[string]preset{
	"private_chat":         {"invite", "can_join", false, 0},
	"trusted_private_chat": {"invite", "can_join", true, 0},
	"public_chat":          {"public", "forbidden", false, 50},
}

// A request that invites more users than this makes too much work at once.
const maxInvites = 1000

// CreateRoom makes a room with everything that the request asks for; only users of other servers are
// invited after it stands.
//
// spec: c2s/createRoom
func (a *API) CreateRoom(ctx context.Context, in *CreateRoomIn) (*RoomIDOut, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	n := in.Body
	p, version, err := a.understand(&n)
	if err != nil {
		return nil, err
	}
	if err := a.Rooms.MayBeInvited(ctx, n.Invite...); err != nil {
		return nil, err
	}
	creation, err := creationContent(n, version, in.Caller.User, p)
	if err != nil {
		return nil, err
	}
	create := roomserver.Create{Creator: in.Caller.User, Version: version.Name, Content: creation}
	alias := id.RoomAlias("")
	if n.AliasName != "" {
		if alias, err = a.freeAlias(ctx, n.AliasName); err != nil {
			return nil, err
		}
	}
	if create.Events, err = a.firstEvents(ctx, in.Caller.User, n, version, p, alias); err != nil {
		return nil, err
	}
	if alias != "" || n.Visibility == "public" {
		create.Also = func(tx storage.Tx, roomID id.RoomID) error {
			return a.Rooms.Announce(tx, roomID, alias, in.Caller.User, n.Visibility == "public")
		}
	}
	roomID, err := a.Rooms.CreateRoom(ctx, create)
	var malformed *auth.Rejection
	if chancery.IsCode(err, chancery.CodeForbidden) || errors.As(err, &malformed) {
		// The creator's own events are refused only where the request contradicts itself.
		return nil, chancery.Errorf(400, chancery.CodeInvalidRoomState, "the room cannot be made so: %s", messageOf(err)).Because(err)
	}
	if err != nil {
		return nil, err
	}
	return &RoomIDOut{roomID}, a.inviteElsewhere(ctx, roomID, in.Caller.User, n)
}

func messageOf(err error) string {
	var e *chancery.Error
	if errors.As(err, &e) {
		return e.Message
	}
	return ""
}

// understand checks the request and fills in what it leaves open.
func (a *API) understand(n *newRoom) (preset, *event.Version, error) {
	var none preset
	if n.Visibility != "" && n.Visibility != "public" && n.Visibility != "private" {
		return none, nil, chancery.BadJSON("visibility is public or private")
	}
	if n.Preset == "" {
		n.Preset = "private_chat"
		if n.Visibility == "public" {
			n.Preset = "public_chat"
		}
	}
	p, ok := presets[n.Preset]
	if !ok {
		return none, nil, chancery.BadJSON("there is no preset %q", n.Preset)
	}
	if n.Version == "" {
		n.Version = a.Config.Rooms.DefaultVersion
	}
	version, ok := event.Lookup(n.Version)
	if !ok {
		return none, nil, chancery.Errorf(400, chancery.CodeUnsupportedRoomVersion, "this server does not know room version %q", n.Version)
	}
	for _, by := range n.Invite3PID {
		if err := a.checkContact(by); err != nil {
			return none, nil, err
		}
	}
	if len(n.Invite)+len(n.Invite3PID) > maxInvites {
		return none, nil, chancery.InvalidParam("more than %d users are invited at once", maxInvites)
	}
	slices.Sort(n.Invite)
	n.Invite = slices.Compact(n.Invite)
	for _, user := range n.Invite {
		if !event.ValidUserID(string(user)) {
			return none, nil, chancery.InvalidParam("%s is not a user ID", user)
		}
	}
	for _, s := range n.InitialState {
		if s.Type == "" || len(s.Content) == 0 {
			return none, nil, chancery.BadJSON("every initial_state has a type and a content")
		}
		if s.Type == "m.room.create" {
			return none, nil, chancery.Errorf(400, chancery.CodeInvalidRoomState, "a room is created once")
		}
	}
	return p, version, nil
}

// creationContent is the content of m.room.create: what the client wants, but for what is ours to say.
//
// spec: c2s/createRoom, rooms/v12#event-format
func creationContent(n newRoom, version *event.Version, creator id.UserID, p preset) (json.RawMessage, error) {
	content := map[string]any{}
	for k, v := range n.Creation {
		content[k] = v
	}
	content["room_version"] = version.Name
	delete(content, "creator")
	if !version.CreatorFromSender {
		content["creator"] = creator
	}
	if version.PrivilegedCreators {
		var more []id.UserID
		if given, ok := n.Creation["additional_creators"]; ok {
			if json.Unmarshal(given, &more) != nil {
				return nil, chancery.InvalidParam("additional_creators is a list of user IDs")
			}
		}
		if p.invitees {
			more = append(more, n.Invite...)
		}
		seen := map[id.UserID]bool{creator: true}
		creators := make([]id.UserID, 0, len(more))
		for _, user := range more {
			if !event.ValidUserID(string(user)) {
				return nil, chancery.InvalidParam("additional_creators: %s is not a user ID", user)
			}
			if !seen[user] {
				seen[user] = true
				creators = append(creators, user)
			}
		}
		delete(content, "additional_creators")
		if len(creators) > 0 {
			content["additional_creators"] = creators
		}
	}
	return object(content)
}

// firstEvents are the events after m.room.create, in the order that the spec wants.
func (a *API) firstEvents(ctx context.Context, creator id.UserID, n newRoom, version *event.Version, p preset, alias id.RoomAlias) ([]roomserver.NewEvent, error) {
	var events []roomserver.NewEvent
	add := func(typ, key string, content any) error {
		text, err := json.Marshal(content)
		events = append(events, roomserver.NewEvent{Type: typ, StateKey: &key, Content: text})
		return err
	}
	members, err := a.memberContents(ctx, append([]id.UserID{creator}, n.Invite...))
	if err != nil {
		return nil, err
	}
	join := members[creator]
	join["membership"] = "join"
	if err := errors.Join(
		add("m.room.member", string(creator), join),
		add("m.room.power_levels", "", powerLevels(n, version, creator, p)),
	); err != nil {
		return nil, err
	}
	if alias != "" {
		if err := add("m.room.canonical_alias", "", map[string]any{"alias": alias}); err != nil {
			return nil, err
		}
	}
	for _, s := range []struct{ typ, key, value string }{
		{"m.room.join_rules", "join_rule", p.joinRule},
		{"m.room.history_visibility", "history_visibility", "shared"},
		{"m.room.guest_access", "guest_access", p.guestAccess},
	} {
		// What the client gives itself takes precedence.
		if slices.ContainsFunc(n.InitialState, func(i initialState) bool { return i.Type == s.typ && i.StateKey == "" }) {
			continue
		}
		if s.typ == "m.room.guest_access" && s.value == "forbidden" {
			continue // what holds without the event
		}
		if err := add(s.typ, "", map[string]string{s.key: s.value}); err != nil {
			return nil, err
		}
	}
	for _, s := range n.InitialState {
		if n.Name != nil && s.Type == "m.room.name" && s.StateKey == "" || n.Topic != nil && s.Type == "m.room.topic" && s.StateKey == "" {
			continue // overwritten by what comes next
		}
		if err := add(s.Type, s.StateKey, s.Content); err != nil {
			return nil, err
		}
	}
	if n.Name != nil {
		if err := add("m.room.name", "", map[string]string{"name": *n.Name}); err != nil {
			return nil, err
		}
	}
	if n.Topic != nil {
		if err := add("m.room.topic", "", topic(*n.Topic)); err != nil {
			return nil, err
		}
	}
	for _, user := range n.Invite {
		if !a.Rooms.IsLocal(user) {
			continue
		}
		content := maps.Clone(members[user])
		content["membership"] = "invite"
		if n.IsDirect {
			content["is_direct"] = true
		}
		if err := add("m.room.member", string(user), content); err != nil {
			return nil, err
		}
	}
	return events, nil
}

// topic says it twice: for old clients, and in the form that knows of formats.
//
// spec: c2s#mroomtopic
func topic(text string) map[string]any {
	return map[string]any{
		"topic":   text,
		"m.topic": map[string]any{"m.text": []map[string]string{{"body": text, "mimetype": "text/plain"}}},
	}
}

// powerLevels are the levels of a new room. Creators of version 12 rooms stand above all numbers and must
// not be listed; there a tombstone takes more than a moderator of every level below has.
//
// spec: c2s/createRoom, c2s#mroompower_levels
func powerLevels(n newRoom, version *event.Version, creator id.UserID, p preset) map[string]any {
	tombstone := 100
	powerful := map[id.UserID]int{}
	if version.PrivilegedCreators {
		tombstone = 150
	} else {
		powerful[creator] = 100
		if p.invitees {
			for _, user := range n.Invite {
				powerful[user] = 100
			}
		}
	}
	levels := map[string]any{
		"users": powerful, "users_default": 0, "events_default": 0, "state_default": 50,
		"ban": 50, "kick": 50, "redact": 50, "invite": p.inviteLevel,
		"events": map[string]int{
			"m.room.name": 50, "m.room.avatar": 50, "m.room.canonical_alias": 50, "m.room.power_levels": 100,
			"m.room.history_visibility": 100, "m.room.encryption": 100, "m.room.server_acl": 100, "m.room.tombstone": tombstone,
		},
	}
	for k, v := range n.PowerOverride {
		levels[k] = v
	}
	return levels
}

// freeAlias makes an alias of a name, if nobody has it.
func (a *API) freeAlias(ctx context.Context, name string) (id.RoomAlias, error) {
	alias := "#" + name + ":" + a.Rooms.ServerName
	if strings.ContainsAny(name, ":\x00") || !validAlias(alias) {
		return "", chancery.InvalidParam("%q cannot be the name of an alias", name)
	}
	taken := false
	err := a.DB.Read(ctx, func(tx storage.Tx) (err error) {
		_, taken, err = tx.Alias(alias)
		return err
	})
	if err == nil && taken {
		err = roomserver.ErrAliasTaken
	}
	return id.RoomAlias(alias), err
}

// spec: appendices#room-aliases
func validAlias(alias string) bool {
	local, server, ok := strings.Cut(alias, ":")
	return ok && len(alias) <= 255 && len(local) > 1 && local[0] == '#' && !strings.ContainsRune(local, 0) && event.ValidServerName(server)
}

// inviteElsewhere invites users of other servers. One whose server says no is an error; one whose server
// does not answer can be invited again.
func (a *API) inviteElsewhere(ctx context.Context, roomID id.RoomID, creator id.UserID, n newRoom) error {
	var refused error
	for _, by := range n.Invite3PID {
		if err := a.inviteAddress(ctx, roomID, creator, by, "", n.IsDirect); err != nil {
			a.Log.Info("could not invite by an address to a new room", zap.String("identity server", by.Server), zap.Error(err))
			if refused == nil {
				refused = err
			}
		}
	}
	for _, user := range n.Invite {
		if a.Rooms.IsLocal(user) {
			continue
		}
		err := a.invite(ctx, roomID, creator, user, "", n.IsDirect)
		if err == nil {
			continue
		}
		a.Log.Info("could not invite to a new room", zap.String("user", string(user)), zap.Error(err))
		var e *chancery.Error
		if errors.As(err, &e) && e.Status >= 400 && e.Status < 500 && refused == nil {
			refused = err
		}
	}
	return refused
}
