package roomserver

import (
	"cmp"
	"encoding/json"
	"slices"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Preview is what is told of a room to those who may come in, or may read it from outside.
//
// spec: c2s/getRoomSummary
type Preview struct {
	Summary
	Allowed    []id.RoomID `json:"allowed_room_ids,omitempty"`
	Encryption string      `json:"encryption,omitempty"`
	Version    string      `json:"room_version,omitempty"`
}

// SpaceRoom is a preview with the rooms that it names as its children, in their order.
//
// spec: c2s/getSpaceHierarchy
type SpaceRoom struct {
	Preview
	Children []SpaceChild `json:"children_state"`
}

// SpaceChild is an m.space.child event of a space.
//
// spec: c2s#mspacechild
type SpaceChild struct {
	Type    string          `json:"type"`
	Room    id.RoomID       `json:"state_key"`
	Sender  id.UserID       `json:"sender"`
	TS      int64           `json:"origin_server_ts"`
	Content json.RawMessage `json:"content"`
}

const (
	typeSpace      = "m.space"
	typeSpaceChild = "m.space.child"

	// More children of one space than this are not shown.
	maxChildren = 500
	// So many of the rooms by which a restricted room lets people in are looked at.
	maxAllowed = 100
	// So many servers that a space names for a child are asked.
	maxVia = 3
)

// valid: a child without servers to find it by is none.
//
// spec: c2s#mspacechild
func (c SpaceChild) valid() bool {
	return len(c.Room) > 1 && len(c.Room) <= 255 && c.Room[0] == '!' && len(c.via()) > 0
}

func (c SpaceChild) via() (servers []string) {
	list := gjson.GetBytes(c.Content, "via")
	if !list.IsArray() {
		return nil
	}
	for _, v := range list.Array() {
		if v.Type != gjson.String {
			return nil
		}
		servers = append(servers, v.Str)
	}
	return servers
}

func (c SpaceChild) suggested() bool {
	return gjson.GetBytes(c.Content, "suggested").Type == gjson.True
}

// order is the sort key that the space gives the child; ok is false for one that does not count.
func (c SpaceChild) order() (key string, ok bool) {
	v := gjson.GetBytes(c.Content, "order")
	if v.Type != gjson.String || len(v.Str) > 50 {
		return "", false
	}
	for i := range len(v.Str) {
		if v.Str[i] < ' ' || v.Str[i] > '~' {
			return "", false
		}
	}
	return v.Str, true
}

// childrenInOrder sorts children as they are shown, and leaves out what cannot be shown.
//
// spec: c2s#ordering-of-children-within-a-space
func childrenInOrder(children []SpaceChild) []SpaceChild {
	children = slices.DeleteFunc(children, func(c SpaceChild) bool { return !c.valid() })
	slices.SortFunc(children, func(x, y SpaceChild) int {
		xKey, xHas := x.order()
		yKey, yHas := y.order()
		switch {
		case xHas && !yHas:
			return -1
		case yHas && !xHas:
			return 1
		}
		return cmp.Or(cmp.Compare(xKey, yKey), cmp.Compare(x.TS, y.TS), cmp.Compare(x.Room, y.Room))
	})
	return children[:min(len(children), maxChildren)]
}

func suggestedOnly(children []SpaceChild) []SpaceChild {
	return slices.DeleteFunc(slices.Clone(children), func(c SpaceChild) bool { return !c.suggested() })
}

// previewAt is a preview and the state that it tells of.
type previewAt struct {
	root, at int64
	room     *SpaceRoom
}

// SpaceRoom reads what is told of a room of ours, and what it has for children.
func (rd *Reader) SpaceRoom(tx storage.Tx, room storage.Room) (*SpaceRoom, error) {
	if at, ok := rd.previews.Get(room.NID); ok && at.root == room.Root && !rd.redacted.since(room.NID, at.at) {
		return at.room, nil
	}
	at, keep := rd.redacted.keeps(room.NID)
	s, err := rd.readSpaceRoom(tx, room)
	if err != nil {
		return nil, err
	}
	if keep {
		rd.previews.Put(room.NID, previewAt{room.Root, at, s}, s.size())
	}
	return s, nil
}

func (s *SpaceRoom) size() int {
	size := 500 + s.Summary.size() + len(s.Encryption)
	for _, room := range s.Allowed {
		size += 20 + len(room)
	}
	for _, c := range s.Children {
		size += 300 + len(c.Room) + len(c.Sender) + len(c.Content)
	}
	return size
}

func (rd *Reader) readSpaceRoom(tx storage.Tx, room storage.Room) (*SpaceRoom, error) {
	summary, err := rd.summary(tx, room)
	if err != nil {
		return nil, err
	}
	summary.Joined = room.Joined
	s := &SpaceRoom{Preview: Preview{Summary: summary, Version: room.Version}, Children: []SpaceChild{}}
	more, err := rd.Lookup(tx, room, []Lookup{{rootOf(room), Key{"m.room.join_rules", ""}}, {rootOf(room), Key{"m.room.encryption", ""}}})
	if err != nil {
		return nil, err
	}
	if rules := more[0]; rules != nil && s.restricted() {
		allowed := auth.AllowRooms(rules.Event)
		s.Allowed = allowed[:min(len(allowed), maxAllowed)]
	}
	if encryption := more[1]; encryption != nil {
		s.Encryption = text(gjson.GetBytes(encryption.Content(), "algorithm"))
	}
	if s.RoomType != typeSpace {
		return s, nil
	}
	children, err := rd.StateOfType(tx, room, rootOf(room), typeSpaceChild)
	if err != nil {
		return nil, err
	}
	for _, ev := range children {
		key, _ := ev.StateKey()
		s.Children = append(s.Children, SpaceChild{typeSpaceChild, id.RoomID(key), ev.Sender(), ev.OriginServerTS(), ev.Content()})
	}
	s.Children = childrenInOrder(s.Children)
	return s, nil
}

// restricted and knockable read the join rule as the room's version knows it; a version that another server
// does not tell of is taken to know it.
func (p *Preview) restricted() bool {
	v, ok := event.Lookup(p.Version)
	if p.JoinRule == "restricted" {
		return !ok || v.Restricted
	}
	return p.JoinRule == "knock_restricted" && (!ok || v.KnockRestricted)
}

func (p *Preview) knockable() bool {
	v, ok := event.Lookup(p.Version)
	if p.JoinRule == "knock" {
		return !ok || v.Knock
	}
	return p.JoinRule == "knock_restricted" && (!ok || v.KnockRestricted)
}

// openTo says whether somebody may come in, or read from outside; membership is what they are in the room, and
// inside says whether they are in one of some rooms.
//
// spec: c2s/getSpaceHierarchy
func (p *Preview) openTo(membership string, inside func([]id.RoomID) bool) bool {
	switch membership {
	case "join", "invite":
		return true
	case "ban":
		return p.WorldReadable
	}
	return p.OpenToAll() || p.restricted() && inside(p.Allowed)
}

// OpenToAll says whether anybody may know of the room.
//
// spec: c2s/getRoomSummary
func (p *Preview) OpenToAll() bool {
	return p.WorldReadable || p.JoinRule == "public" || p.knockable()
}
