package roomserver

import (
	"slices"
	"strconv"
	"strings"

	"chancery"
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
		Topic:          plainTopic(state["m.room.topic"]),
		CanonicalAlias: asAlias(in("m.room.canonical_alias", "alias")),
		AvatarURL:      in("m.room.avatar", "url"),
		WorldReadable:  visibility.Of(state["m.room.history_visibility"]) == visibility.WorldReadable,
		GuestCanJoin:   in("m.room.guest_access", "guest_access") == "can_join",
		JoinRule:       auth.JoinRule(state["m.room.join_rules"]),
		RoomType:       in("m.room.create", "type"),
	}, nil
}

// plainTopic is the topic in plain text: the first of its texts that is, or else the topic of old.
//
// spec: c2s#mroomtopic
func plainTopic(ev *event.Event) string {
	if ev == nil {
		return ""
	}
	for _, v := range gjson.GetBytes(ev.Content(), `m\.topic.m\.text`).Array() {
		if mimetype := v.Get("mimetype"); !mimetype.Exists() || text(mimetype) == "text/plain" {
			return text(v.Get("body"))
		}
	}
	return text(gjson.GetBytes(ev.Content(), "topic"))
}

// asAlias leaves out what cannot be an alias.
func asAlias(alias string) string {
	if !strings.HasPrefix(alias, "#") {
		return ""
	}
	return alias
}

func rootOf(room storage.Room) state.Root { return state.Root(room.Root) }

// summaryAt is a summary, the state that it tells of, and when it was made.
type summaryAt struct {
	root, at int64
	summary  Summary
}

func (s *Summary) size() int {
	return 500 + len(s.RoomID) + len(s.Name) + len(s.Topic) + len(s.CanonicalAlias) + len(s.AvatarURL) + len(s.RoomType)
}

// summary is Summarise, remembered until the room's state moves or something in it is redacted.
func (rd *Reader) summary(tx storage.Tx, room storage.Room) (Summary, error) {
	if at, ok := rd.summaries.Get(room.NID); ok && at.root == room.Root && !rd.redacted.since(room.NID, at.at) {
		return at.summary, nil
	}
	at, keep := rd.redacted.keeps(room.NID)
	s, err := rd.Summarise(tx, room)
	if err != nil {
		return Summary{}, err
	}
	if keep {
		rd.summaries.Put(room.NID, summaryAt{room.Root, at, s}, s.size())
	}
	return s, nil
}

// DirectoryQuery chooses from the room directory.
type DirectoryQuery struct {
	Limit      *int            `json:"limit"`
	Since      string          `json:"since"`
	Filter     DirectoryFilter `json:"filter"`
	ThirdParty string          `json:"third_party_instance_id"`
}

// DirectoryFilter is what a room must be like to be listed. Types are the room types wanted, null for rooms without one;
// without Types every type is.
type DirectoryFilter struct {
	Search string    `json:"generic_search_term,omitempty"`
	Types  []*string `json:"room_types,omitzero"`
}

// Directory is a page of a room directory.
type Directory struct {
	Chunk     []Summary `json:"chunk"`
	NextBatch string    `json:"next_batch,omitempty"`
	PrevBatch string    `json:"prev_batch,omitempty"`
	Total     *int64    `json:"total_room_count_estimate,omitempty"`
}

// MaxDirectoryPage is how many rooms a page of the directory has at most.
const MaxDirectoryPage = 500

// Directory lists the published rooms of this server, the largest first. usual is the size of a page for those who name none.
//
// spec: c2s/queryPublicRooms, s2s/queryPublicRooms
func (rd *Reader) Directory(tx storage.Tx, q DirectoryQuery, usual int) (*Directory, error) {
	d := &Directory{Chunk: []Summary{}}
	if q.ThirdParty != "" {
		return d, nil // no network is bridged into this directory
	}
	limit, skip := usual, 0
	if q.Limit != nil && *q.Limit > 0 {
		limit = min(*q.Limit, MaxDirectoryPage)
	}
	if q.Since != "" {
		var err error
		if skip, err = strconv.Atoi(q.Since); err != nil || skip < 0 {
			return nil, chancery.InvalidParam("since is no token of ours")
		}
	}
	rooms, err := tx.PublishedRooms()
	if err != nil {
		return nil, err
	}
	everything := q.Filter.Search == "" && q.Filter.Types == nil
	total := 0
	for _, room := range rooms {
		if everything && (total < skip || len(d.Chunk) == limit) {
			total++
			continue
		}
		summary, err := rd.summary(tx, room)
		if err != nil {
			return nil, err
		}
		if !q.Filter.lets(summary) {
			continue
		}
		total++
		if total > skip && len(d.Chunk) < limit {
			summary.Joined = room.Joined
			d.Chunk = append(d.Chunk, summary)
		}
	}
	all := int64(total)
	d.Total = &all
	if next := skip + len(d.Chunk); next < total && len(d.Chunk) > 0 {
		d.NextBatch = strconv.Itoa(next)
	}
	if skip > 0 {
		d.PrevBatch = strconv.Itoa(max(skip-limit, 0))
	}
	return d, nil
}

func (f DirectoryFilter) lets(s Summary) bool {
	if f.Types != nil && !slices.ContainsFunc(f.Types, func(t *string) bool {
		return t == nil && s.RoomType == "" || t != nil && *t == s.RoomType
	}) {
		return false
	}
	if f.Search == "" || f.Search == string(s.RoomID) {
		return true
	}
	term := strings.ToLower(f.Search)
	return slices.ContainsFunc([]string{s.Name, s.Topic, s.CanonicalAlias}, func(in string) bool {
		return strings.Contains(strings.ToLower(in), term)
	})
}
