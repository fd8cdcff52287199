package roomserver

import (
	"slices"
	"strings"
	"sync"

	"chancery/roomserver/auth"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/roomserver/visibility"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// Summary is what is told of a room to those who look for one.
//
// spec: c2s/getPublicRooms
type Summary struct {
	RoomID         id.RoomID `json:"room_id"`
	Name           string    `json:"name,omitempty"`
	Topic          string    `json:"topic,omitempty"`
	CanonicalAlias string    `json:"canonical_alias,omitempty"`
	AvatarURL      string    `json:"avatar_url,omitempty"`
	Joined         int64     `json:"num_joined_members"`
	WorldReadable  bool      `json:"world_readable"`
	GuestCanJoin   bool      `json:"guest_can_join"`
	JoinRule       string    `json:"join_rule,omitempty"`
	RoomType       string    `json:"room_type,omitempty"`
}

var summaryTypes = []string{"m.room.create", "m.room.name", "m.room.topic", "m.room.canonical_alias", "m.room.avatar",
	"m.room.history_visibility", "m.room.guest_access", "m.room.join_rules"}

// Summarise reads what is told of a room; the number of members is for the caller to fill in.
func (rd *Reader) Summarise(tx storage.Tx, room storage.Room) (Summary, error) {
	asked := make([]Lookup, len(summaryTypes))
	for i, t := range summaryTypes {
		asked[i] = Lookup{Root: rootOf(room), Key: Key{t, ""}}
	}
	found, err := rd.Lookup(tx, room, asked)
	if err != nil {
		return Summary{}, err
	}
	state := make(map[string]*event.Event, len(found))
	for i, ev := range found {
		if ev != nil {
			state[summaryTypes[i]] = ev.Event
		}
	}
	in := func(typ, path string) string {
		if ev := state[typ]; ev != nil {
			return text(gjson.GetBytes(ev.Content(), path))
		}
		return ""
	}
	return Summary{
		RoomID:         id.RoomID(room.ID),
		Name:           in("m.room.name", "name"),
		Topic:          in("m.room.topic", "topic"),
		CanonicalAlias: in("m.room.canonical_alias", "alias"),
		AvatarURL:      in("m.room.avatar", "url"),
		WorldReadable:  visibility.Of(state["m.room.history_visibility"]) == visibility.WorldReadable,
		GuestCanJoin:   in("m.room.guest_access", "guest_access") == "can_join",
		JoinRule:       auth.JoinRule(state["m.room.join_rules"]),
		RoomType:       in("m.room.create", "type"),
	}, nil
}

func rootOf(room storage.Room) state.Root { return state.Root(room.Root) }

// summaries are remembered by the state that they tell of.
type summaries struct {
	mu    sync.Mutex // guards known; a leaf
	known map[int64]summaryAt
}

type summaryAt struct {
	root    int64
	summary Summary
}

const maxSummaries = 10_000

func (s *summaries) of(rd *Reader, tx storage.Tx, room storage.Room) (Summary, error) {
	s.mu.Lock()
	at, ok := s.known[room.NID]
	s.mu.Unlock()
	if ok && at.root == room.Root {
		return at.summary, nil
	}
	summary, err := rd.Summarise(tx, room)
	if err != nil {
		return Summary{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil || len(s.known) >= maxSummaries {
		s.known = map[int64]summaryAt{}
	}
	s.known[room.NID] = summaryAt{room.Root, summary}
	return summary, nil
}

// DirectoryQuery chooses from the room directory.
type DirectoryQuery struct {
	Search string
	// Types are the room types wanted, "" for rooms without one; nil is every type.
	Types []string
	Limit int
	Skip  int // so many are passed over
}

// Directory is a page of the room directory.
type Directory struct {
	Rooms []Summary
	Total int // of all pages
}

// Directory lists the published rooms of this server, the largest first.
//
// spec: c2s/queryPublicRooms, s2s/queryPublicRooms
func (rd *Reader) Directory(tx storage.Tx, q DirectoryQuery) (*Directory, error) {
	rooms, err := tx.PublishedRooms()
	if err != nil {
		return nil, err
	}
	d := &Directory{Rooms: []Summary{}}
	everything := q.Search == "" && q.Types == nil
	for _, room := range rooms {
		if everything && (d.Total < q.Skip || len(d.Rooms) == q.Limit) {
			d.Total++
			continue
		}
		summary, err := rd.summaries.of(rd, tx, room.Room)
		if err != nil {
			return nil, err
		}
		if !q.matches(summary) {
			continue
		}
		d.Total++
		if d.Total > q.Skip && len(d.Rooms) < q.Limit {
			summary.Joined = room.Joined
			d.Rooms = append(d.Rooms, summary)
		}
	}
	return d, nil
}

func (q DirectoryQuery) matches(s Summary) bool {
	if q.Types != nil && !slices.Contains(q.Types, s.RoomType) {
		return false
	}
	if q.Search == "" {
		return true
	}
	term := strings.ToLower(q.Search)
	return slices.ContainsFunc([]string{s.Name, s.Topic, s.CanonicalAlias, string(s.RoomID)}, func(in string) bool {
		return strings.Contains(strings.ToLower(in), term)
	})
}
