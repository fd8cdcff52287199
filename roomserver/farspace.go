package roomserver

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// farSpace is what another server says of a room, and of the rooms that it names as its children.
type farSpace struct {
	room     *SpaceRoom
	children map[id.RoomID]*SpaceRoom // without their own children
	shut     map[id.RoomID]bool       // our server may not see them
	until    time.Time
}

// What servers say of rooms is remembered this long; that one could not be asked, not so long.
//
// spec: s2s/getSpaceHierarchy
const (
	farSpaceTime   = 5 * time.Minute
	noFarSpaceTime = time.Minute
	farSpaceBytes  = 16 << 20
	farSpaceWait   = 10 * time.Second
	farSpaceLimit  = 4 << 20 // bytes of one answer
)

// questions counts down how often other servers may be asked, side by side.
type questions struct{ left atomic.Int64 }

func mayAsk(times int64) *questions {
	q := &questions{}
	q.left.Store(times)
	return q
}

func (q *questions) take() bool { return q.left.Add(-1) >= 0 }

func (q *questions) none() bool { return q.left.Load() <= 0 }

// farSpaceVia asks some servers for a room, nil when none of them tells of it. What each said lately is not asked
// again: nobody's word stands for another's.
func (s *Server) farSpaceVia(ctx context.Context, roomID id.RoomID, via []string, q *questions) *farSpace {
	asked := 0
	for _, server := range via {
		if server == s.ServerName || !peer.ValidServerName(server) {
			continue
		}
		if asked++; asked > maxVia {
			break
		}
		if space := s.farSpace(ctx, server, roomID, q); space.room != nil {
			return space
		}
	}
	return nil
}

func (s *Server) farSpace(ctx context.Context, server string, roomID id.RoomID, q *questions) *farSpace {
	key := server + " " + string(roomID)
	if space, ok := s.farSpaces.Get(key); ok && time.Now().Before(space.until) {
		return space
	}
	if !q.take() {
		return &farSpace{}
	}
	var space *farSpace
	err := s.fills.once(ctx, "space "+key, func() error {
		space = s.askSpace(ctx, server, roomID)
		return nil
	})
	if err == nil && space == nil { // somebody else has asked meanwhile
		if known, ok := s.farSpaces.Get(key); ok {
			space = known
		}
	}
	if space == nil {
		space = &farSpace{}
	}
	return space
}

func (s *Server) askSpace(ctx context.Context, server string, roomID id.RoomID) *farSpace {
	space := &farSpace{until: time.Now().Add(noFarSpaceTime)}
	asking, cancel := context.WithTimeout(ctx, farSpaceWait)
	defer cancel()
	answer, err := s.Peer.Hierarchy(asking, server, roomID, peer.Opts{MaxBytes: farSpaceLimit})
	size := 200
	if err == nil {
		if space.room, err = readFarRoom(answer.Room); err == nil && space.room.RoomID != roomID {
			space.room, err = nil, errors.New("the answer tells of another room")
		}
	}
	if err != nil {
		s.Log.Debug("a server does not tell of a room", zap.String("server", server), zap.String("room", string(roomID)), zap.Error(err))
	} else {
		space.until = time.Now().Add(farSpaceTime)
		space.readChildren(answer)
		size += len(answer.Room)
		for _, c := range answer.Children {
			size += len(c)
		}
	}
	// A no is not remembered: the next moment somebody here may enter what opens the room to us.
	if ctx.Err() == nil && !knowsNot(err) {
		s.farSpaces.Put(server+" "+string(roomID), space, size)
	}
	return space
}

// readChildren takes what is said of the children that the space names, and of no other rooms.
func (f *farSpace) readChildren(answer *peer.Hierarchy) {
	named := make(map[id.RoomID]bool, len(f.room.Children))
	for _, c := range f.room.Children {
		named[c.Room] = true
	}
	f.children, f.shut = map[id.RoomID]*SpaceRoom{}, map[id.RoomID]bool{}
	for _, raw := range answer.Children {
		if child, err := readFarRoom(raw); err == nil && named[child.RoomID] {
			child.Children = []SpaceChild{}
			f.children[child.RoomID] = child
		}
	}
	for _, v := range answer.Inaccessible {
		if named[v] {
			f.shut[v] = true
		}
	}
}

var errNoRoomThere = errors.New("the answer has no room")

// readFarRoom reads what another server says of a room: only what is known here is passed on, and only in
// its right form.
func readFarRoom(raw json.RawMessage) (*SpaceRoom, error) {
	v := gjson.ParseBytes(raw)
	summary, err := readFarSummary(v)
	if err != nil {
		return nil, err
	}
	room := &SpaceRoom{Preview: Preview{Summary: summary, Encryption: text(v.Get("encryption")), Version: text(v.Get("room_version"))},
		Children: []SpaceChild{}}
	for _, allowed := range v.Get("allowed_room_ids").Array() {
		if allowed.Type == gjson.String && len(room.Allowed) < maxAllowed {
			room.Allowed = append(room.Allowed, id.RoomID(allowed.Str))
		}
	}
	if room.RoomType != typeSpace {
		return room, nil
	}
	for _, c := range v.Get("children_state").Array() {
		child := SpaceChild{typeSpaceChild, id.RoomID(text(c.Get("state_key"))), id.UserID(text(c.Get("sender"))), c.Get("origin_server_ts").Int(), json.RawMessage(c.Get("content").Raw)}
		if text(c.Get("type")) == typeSpaceChild && c.Get("content").IsObject() {
			room.Children = append(room.Children, child)
		}
	}
	room.Children = childrenInOrder(room.Children)
	return room, nil
}

func readFarSummary(v gjson.Result) (Summary, error) {
	str := func(name string) string { return text(v.Get(name)) }
	if !v.IsObject() || !utf8.ValidString(v.Raw) || !strings.HasPrefix(str("room_id"), "!") || len(str("room_id")) > 255 {
		return Summary{}, errNoRoomThere
	}
	return Summary{RoomID: id.RoomID(str("room_id")), Name: str("name"), Topic: str("topic"), CanonicalAlias: asAlias(str("canonical_alias")),
		AvatarURL: str("avatar_url"), Joined: max(v.Get("num_joined_members").Int(), 0), WorldReadable: v.Get("world_readable").Type == gjson.True,
		GuestCanJoin: v.Get("guest_can_join").Type == gjson.True, RoomType: str("room_type"),
		JoinRule: cmp.Or(str("join_rule"), "public"), // spec: c2s/getPublicRooms, what is assumed when it is not there
	}, nil
}

// FarDirectory asks another server for a page of its room directory. What is no room in the answer is left out.
//
// spec: s2s/getPublicRooms, s2s/queryPublicRooms
func (s *Server) FarDirectory(ctx context.Context, server string, in peer.PublicRoomsQuery) (*Directory, error) {
	if !peer.ValidServerName(server) {
		return nil, chancery.InvalidParam("%.100q is no server name", server)
	}
	page, err := s.Peer.PublicRooms(ctx, server, in)
	if err != nil {
		return nil, asAnswer(err)
	}
	d := &Directory{Chunk: []Summary{}, NextBatch: page.NextBatch, PrevBatch: page.PrevBatch, Total: page.Total}
	for _, raw := range page.Chunk {
		if room, err := readFarSummary(gjson.ParseBytes(raw)); err == nil {
			d.Chunk = append(d.Chunk, room)
		}
	}
	return d, nil
}

// openElsewhere gives those rooms of other servers that one of our users may know of. What their servers say
// goes for our server; what the user is there only we know.
func (s *Server) openElsewhere(ctx context.Context, user id.UserID, rooms []*SpaceRoom) (open []*SpaceRoom, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		seen := &seenRooms{inside: map[id.RoomID]bool{}}
		for _, room := range rooms {
			if room == nil {
				continue
			}
			if room.restricted() {
				if err := seen.noteInside(tx, s.ServerName, looker{user: user}, room.Allowed); err != nil {
					return err
				}
			}
			v, _, err := tx.Invite(string(user), string(room.RoomID))
			if err != nil {
				return err
			}
			if room.openTo(v.Membership, seen.isInside) {
				open = append(open, room)
			}
		}
		return nil
	})
	return open, err
}
