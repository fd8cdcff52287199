package room

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

type UpgradeRoomIn struct {
	Caller endpoint.Caller
	RoomID id.RoomID `path:"roomId"`
	Body   struct {
		Version  string      `json:"new_version" required:"true"`
		Creators []id.UserID `json:"additional_creators"`
	} `body:"json"`
}

type UpgradeRoomOut struct {
	Replacement id.RoomID `json:"replacement_room"`
}

// transferred is the state that a room hands on to the one that replaces it, beside its power levels.
//
// spec: c2s#room-upgrades 3
var transferred = []string{"m.room.server_acl", "m.room.encryption", "m.room.name", "m.room.avatar", "m.room.topic",
	"m.room.guest_access", "m.room.history_visibility", "m.room.join_rules"}

// UpgradeRoom replaces a room by one of another version and says so in it.
//
// spec: c2s/upgradeRoom, c2s#room-upgrades
func (a *API) UpgradeRoom(ctx context.Context, in *UpgradeRoomIn) (*UpgradeRoomOut, error) {
	if err := mayWrite(in.Caller); err != nil {
		return nil, err
	}
	version, ok := event.Lookup(in.Body.Version)
	if !ok {
		return nil, chancery.Errorf(400, chancery.CodeUnsupportedRoomVersion, "this server does not know room version %q", in.Body.Version)
	}
	// Who is banned must be known, else they would be let into the new room.
	if err := a.awaitWhole(ctx, in.RoomID, in.Caller.User); err != nil {
		return nil, err
	}
	old, err := a.predecessor(ctx, in.RoomID, in.Caller.User)
	if err != nil {
		return nil, err
	}
	create, err := old.successor(in, version)
	if err != nil {
		return nil, err
	}
	if create.Events, err = a.handedOn(ctx, old, version, in.Caller.User, in.Body.Creators); err != nil {
		return nil, err
	}
	create.Also = func(tx storage.Tx, roomID id.RoomID) error {
		tx.MoveAliases(string(in.RoomID), string(roomID))
		if old.published {
			tx.Publish(string(in.RoomID), false)
		}
		return a.Rooms.Announce(tx, roomID, "", in.Caller.User, old.published)
	}
	replacement, err := a.Rooms.Replace(ctx, in.RoomID, old.tombstone, create)
	if err != nil {
		return nil, err
	}
	a.quieten(ctx, in.RoomID, in.Caller.User, old)
	return &UpgradeRoomOut{replacement}, nil
}

// predecessor is a room that is to be replaced.
type predecessor struct {
	version   *event.Version
	state     map[string]*event.Event
	power     auth.PowerLevels
	last      id.EventID
	tombstone id.EventID // that it has already, of a replacement that is none
	published bool
	children  []*roomserver.Stored // of a space
	bans      []*roomserver.Stored
}

// Of what there may be very much, a new room begins with no more than this; the log says what is left out.
const maxHandedOn = 5000

// predecessor reads a room that the caller wants to replace, if they may.
func (a *API) predecessor(ctx context.Context, roomID id.RoomID, user id.UserID) (*predecessor, error) {
	old := &predecessor{state: map[string]*event.Event{}}
	return old, a.DB.Read(ctx, func(tx storage.Tx) error {
		v, err := a.view(tx, roomID, user)
		if err != nil {
			return err
		}
		if !v.joined {
			return chancery.Forbidden("you are not in this room")
		}
		types := append([]string{"m.room.create", "m.room.power_levels", "m.room.canonical_alias", "m.room.tombstone"}, transferred...)
		asked := make([]roomserver.Lookup, len(types))
		for i, t := range types {
			asked[i] = roomserver.Lookup{Root: v.root, Key: roomserver.Key{Type: t}}
		}
		found, err := a.Reader.Lookup(tx, v.room, asked)
		if err != nil {
			return err
		}
		for i, ev := range found {
			if ev != nil {
				old.state[types[i]] = ev.Event
			}
		}
		old.version = old.state["m.room.create"].Version()
		old.power = auth.PowerLevelsOf(old.state["m.room.create"], old.state["m.room.power_levels"])
		if !old.power.Of(user).AtLeast(old.power.ForEvent("m.room.tombstone", true)) {
			return chancery.Forbidden("you may not replace this room")
		}
		if next, ok, err := a.Reader.Replacement(tx, v.room.NID); err != nil {
			return err
		} else if ok {
			return chancery.Errorf(400, chancery.CodeBadState, "this room has been replaced by %s", next.ID)
		}
		if ev := old.state["m.room.tombstone"]; ev != nil {
			old.tombstone = ev.ID()
		}
		if err := a.readAlong(tx, v.room, old); err != nil {
			return err
		}
		rows, err := tx.EventsBelow(v.room.NID, end, begin, 1)
		if err != nil {
			return err
		}
		if len(rows) > 0 {
			old.last = id.EventID(rows[0].ID)
		}
		old.published, err = tx.IsPublished(string(roomID))
		return err
	})
}

// readAlong reads who is banned, and the rooms in a space.
func (a *API) readAlong(tx storage.Tx, room storage.Room, old *predecessor) error {
	banned, err := tx.Members(room.NID, []string{"ban"})
	if err != nil {
		return err
	}
	leaveOut := func(what string, all int) {
		if all > maxHandedOn {
			a.Log.Warn("a new room begins without all that the one had that it replaces", zap.String("replaced", room.ID), zap.String("of", what),
				zap.Int("left out", all-maxHandedOn))
		}
	}
	leaveOut("bans", len(banned))
	var nids []int64
	for _, m := range banned[:min(len(banned), maxHandedOn)] {
		nids = append(nids, m.Event)
	}
	bans, err := a.Reader.ByNumber(tx, room, nids)
	if err != nil {
		return err
	}
	for _, n := range nids {
		if ev := bans[n]; ev != nil {
			old.bans = append(old.bans, ev)
		}
	}
	if member(old.state["m.room.create"].Content(), "type") != "m.space" {
		return nil
	}
	children, err := a.Reader.StateOfType(tx, room, rootOf(room), "m.space.child")
	leaveOut("rooms of a space", len(children))
	for _, ev := range children[:min(len(children), maxHandedOn)] {
		if gjson.GetBytes(ev.Content(), "via").IsArray() {
			old.children = append(old.children, ev)
		}
	}
	return err
}

// successor begins the room that replaces this one.
func (old *predecessor) successor(in *UpgradeRoomIn, version *event.Version) (roomserver.Create, error) {
	n := newRoom{Creation: map[string]json.RawMessage{}}
	was := gjson.ParseBytes(old.state["m.room.create"].Content())
	for _, name := range []string{"type", "m.federate"} {
		if v := was.Get(gjson.Escape(name)); v.Exists() {
			n.Creation[name] = json.RawMessage(v.Raw)
		}
	}
	before := map[string]any{"room_id": in.RoomID}
	if !version.RoomIDIsCreateHash {
		before["event_id"] = old.last
	}
	var err error
	if n.Creation["predecessor"], err = object(before); err != nil {
		return roomserver.Create{}, err
	}
	if version.PrivilegedCreators && len(in.Body.Creators) > 0 {
		if n.Creation["additional_creators"], err = json.Marshal(in.Body.Creators); err != nil {
			return roomserver.Create{}, err
		}
	}
	content, err := creationContent(n, version, in.Caller.User, preset{})
	return roomserver.Create{Creator: in.Caller.User, Version: version.Name, Content: content}, err
}

// handedOn are the first events of the room that replaces another. The power levels come last: until then the creator
// stands above whatever the old room's levels asked of those who set its state.
func (a *API) handedOn(ctx context.Context, old *predecessor, version *event.Version, user id.UserID, creators []id.UserID) ([]roomserver.NewEvent, error) {
	join, err := a.memberContent(ctx, user, "")
	if err != nil {
		return nil, err
	}
	join["membership"] = "join"
	content, err := object(join)
	if err != nil {
		return nil, err
	}
	levels, err := old.levels(version, user, creators)
	if err != nil {
		return nil, err
	}
	me := string(user)
	events := []roomserver.NewEvent{{Type: "m.room.member", StateKey: &me, Content: content}}
	for _, t := range transferred {
		if ev := old.state[t]; ev != nil {
			events = append(events, roomserver.NewEvent{Type: t, StateKey: new(string), Content: ev.Content()})
		}
	}
	if moved, _, err := a.splitAliases(old); err != nil {
		return nil, err
	} else if moved != nil {
		events = append(events, roomserver.NewEvent{Type: "m.room.canonical_alias", StateKey: new(string), Content: moved})
	}
	for _, ev := range old.children {
		room, _ := ev.StateKey()
		events = append(events, roomserver.NewEvent{Type: "m.space.child", StateKey: &room, Content: ev.Content()})
	}
	for _, ev := range old.bans {
		target, _ := ev.StateKey()
		if version.PrivilegedCreators && slices.Contains(creators, id.UserID(target)) {
			continue // nobody can ban a creator
		}
		members := map[string]any{"membership": "ban"}
		if reason := member(ev.Content(), "reason"); reason != "" {
			members["reason"] = reason
		}
		content, err := object(members)
		if err != nil {
			return nil, err
		}
		events = append(events, roomserver.NewEvent{Type: "m.room.member", StateKey: &target, Content: content})
	}
	return append(events, roomserver.NewEvent{Type: "m.room.power_levels", StateKey: new(string), Content: levels}), nil
}

// splitAliases parts the aliases that the old room shows: those of this server move to the new room, those of others mean the
// old one on. Either is nil when there are none.
func (a *API) splitAliases(old *predecessor) (moved, stay json.RawMessage, err error) {
	ev := old.state["m.room.canonical_alias"]
	if ev == nil {
		return nil, nil, nil
	}
	ours, others := map[string]any{}, map[string]any{}
	side := func(alias string) map[string]any {
		if _, server, _ := strings.Cut(alias, ":"); server == a.Rooms.ServerName {
			return ours
		}
		return others
	}
	if alias := member(ev.Content(), "alias"); alias != "" {
		side(alias)["alias"] = alias
	}
	for _, alt := range gjson.GetBytes(ev.Content(), "alt_aliases").Array() {
		in := side(alt.String())
		list, _ := in["alt_aliases"].([]string)
		in["alt_aliases"] = append(list, alt.String())
	}
	if len(ours) == 0 {
		return nil, ev.Content(), nil
	}
	if moved, err = object(ours); err != nil {
		return nil, nil, err
	}
	stay, err = object(others)
	return moved, stay, err
}

// levels are the old room's power levels in the words of the new version: creators of version 12 are not
// listed, and whoever was one keeps 100 in a version that knows only numbers.
func (old *predecessor) levels(version *event.Version, user id.UserID, creators []id.UserID) (json.RawMessage, error) {
	content := json.RawMessage(`{}`)
	if ev := old.state["m.room.power_levels"]; ev != nil {
		content = append(json.RawMessage(nil), ev.Content()...)
	}
	content, err := wholeLevels(content)
	if err != nil {
		return nil, err
	}
	set := func(path string, value any) {
		if err == nil {
			content, err = sjson.SetBytes(content, path, value)
		}
	}
	key := "users." + gjson.Escape(string(user))
	level, isNumber := old.power.Of(user).Number()
	switch {
	case version.PrivilegedCreators:
		for _, creator := range append([]id.UserID{user}, creators...) {
			if content, err = sjson.DeleteBytes(content, "users."+gjson.Escape(string(creator))); err != nil {
				return nil, err
			}
		}
		stateDefault, _ := old.power.StateDefault().Number()
		if tombstone, _ := old.power.ForEvent("m.room.tombstone", true).Number(); tombstone <= stateDefault || tombstone == 100 {
			set(`events.m\.room\.tombstone`, max(150, stateDefault+1))
		}
	case old.version.PrivilegedCreators:
		// Nobody stands above all numbers there: what took more than all is for whoever has the most.
		if gjson.GetBytes(content, `events.m\.room\.tombstone`).Int() > 100 {
			set(`events.m\.room\.tombstone`, 100)
		}
		for _, creator := range auth.Creators(old.state["m.room.create"]) {
			set("users."+gjson.Escape(string(creator)), 100)
		}
		if isNumber && !gjson.GetBytes(content, key).Exists() {
			set(key, level)
		}
	case !gjson.GetBytes(content, key).Exists():
		set(key, level)
	}
	return content, err
}

// wholeLevels writes levels as numbers that older versions let stand as texts.
//
// spec: rooms/v10#values-in-mroompower_levels-events-must-be-integers
func wholeLevels(content json.RawMessage) (json.RawMessage, error) {
	var levels map[string]any
	decoder := json.NewDecoder(bytes.NewReader(content))
	decoder.UseNumber()
	if err := decoder.Decode(&levels); err != nil {
		return nil, fmt.Errorf("read the power levels of a room: %w", err)
	}
	whole := func(in map[string]any) {
		for k, v := range in {
			text, isText := v.(string)
			if number, ok := v.(json.Number); ok {
				text, isText = number.String(), true
			}
			if f, err := strconv.ParseFloat(strings.TrimSpace(text), 64); isText && err == nil && math.Abs(f) < 1<<53 {
				in[k] = int64(f)
			}
		}
	}
	whole(levels)
	for _, k := range []string{"events", "users", "notifications"} {
		if in, ok := levels[k].(map[string]any); ok {
			whole(in)
		}
	}
	return object(levels)
}

// quieten ends the talk in a replaced room as far as the caller may. The room is replaced, whatever becomes of this.
//
// spec: c2s#room-upgrades
func (a *API) quieten(ctx context.Context, roomID id.RoomID, user id.UserID, old *predecessor) {
	send := func(typ string, content json.RawMessage, err error) {
		if err == nil {
			_, err = a.Rooms.Send(ctx, roomserver.NewEvent{Room: roomID, Sender: user, Type: typ, StateKey: new(string), Content: content})
		}
		if err != nil {
			a.Log.Debug("a replaced room is not quiet", zap.String("room", string(roomID)), zap.String("for want of", typ), zap.Error(err))
		}
	}
	// Aliases that mean the new room are not shown here any more.
	if moved, stay, err := a.splitAliases(old); moved != nil || err != nil {
		send("m.room.canonical_alias", stay, err)
	}
	quiet := json.RawMessage(`{}`)
	if ev := old.state["m.room.power_levels"]; ev != nil {
		quiet = append(json.RawMessage(nil), ev.Content()...)
	}
	least, _ := old.power.UsersDefault().Number()
	least = max(50, least+1)
	invite, _ := old.power.Invite().Number()
	events, _ := old.power.EventsDefault().Number()
	quiet, err := sjson.SetBytes(quiet, "invite", max(invite, least))
	if err == nil {
		quiet, err = sjson.SetBytes(quiet, "events_default", max(events, least))
	}
	send("m.room.power_levels", quiet, err)
}
