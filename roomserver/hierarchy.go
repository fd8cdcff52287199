package roomserver

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"chancery"
	"chancery/storage"

	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// Space is a space as another server may see it.
//
// spec: s2s/getSpaceHierarchy
type Space struct {
	Room         *SpaceRoom
	Children     []Preview
	Inaccessible []id.RoomID
}

// SpaceFor tells another server of a room of ours and of the rooms that it names as its children.
//
// spec: s2s/getSpaceHierarchy
func (s *Server) SpaceFor(ctx context.Context, origin string, roomID id.RoomID, suggested bool) (*Space, error) {
	leave, err := s.answering.enter(ctx, origin)
	if err != nil {
		return nil, err
	}
	defer leave()
	space := &Space{Children: []Preview{}, Inaccessible: []id.RoomID{}}
	return space, s.DB.Read(ctx, func(tx storage.Tx) error {
		who := looker{server: origin}
		open, _, err := s.Reader.accessible(tx, s.ServerName, who, []id.RoomID{roomID})
		if err != nil {
			return err
		}
		root := open[roomID]
		if root == nil {
			return chancery.NotFound("unknown room")
		}
		space.Room = root.only(suggested)
		ids := roomsOf(space.Room.Children)
		open, shut, err := s.Reader.accessible(tx, s.ServerName, who, ids)
		if err != nil {
			return err
		}
		for _, v := range ids {
			switch {
			case open[v] != nil:
				space.Children = append(space.Children, open[v].Preview)
			case shut[v]:
				space.Inaccessible = append(space.Inaccessible, v)
			}
		}
		return nil
	})
}

func roomsOf(children []SpaceChild) []id.RoomID {
	ids := make([]id.RoomID, len(children))
	for i, c := range children {
		ids[i] = c.Room
	}
	return ids
}

// only leaves out children that are not suggested, when that is asked for.
func (r *SpaceRoom) only(suggested bool) *SpaceRoom {
	if !suggested {
		return r
	}
	c := *r
	c.Children = suggestedOnly(r.Children)
	return &c
}

// SpaceQuery asks for a part of the tree of a space.
type SpaceQuery struct {
	Room      id.RoomID
	Suggested bool
	Depth     *int
	Limit     *int
	From      string
}

// SpacePage is a part of the tree of a space, depth first.
type SpacePage struct {
	Rooms []*SpaceRoom
	Next  string
}

// Limits of a walk through a space. Later pages walk what came before once more: the rooms of ours that they
// pass are in memory, and those of others too for some minutes.
const (
	defaultSpaceRooms = 50
	maxSpaceRooms     = 100
	defaultSpaceDepth = 20
	maxSpaceDepth     = 100
	maxSpaceWalk      = 5000             // rooms of one space, over all pages
	spaceTime         = 30 * time.Second // then a page ends, if it has a room
	spaceFetches      = 8                // servers asked at a time

	// So many questions go to other servers for one page: a space can name any server for any number of rooms. A page that
	// has rooms ends there; else the rooms that would be asked for are left out.
	maxSpaceQuestions = 300
)

// spaceToken says where a page ended. It needs no memory here: whoever has one may go on after a restart.
type spaceToken struct {
	Space     string    `json:"s"` // of which room and whose walk
	Seen      int       `json:"n"` // so many rooms were told of
	Last      id.RoomID `json:"l"` // the last of them
	Suggested bool      `json:"o,omitempty"`
	Depth     int       `json:"d"`
}

func (t spaceToken) String() string {
	text, _ := json.Marshal(t) // strings and numbers always marshal
	return base64.RawURLEncoding.EncodeToString(text)
}

func readSpaceToken(from string) (t spaceToken, err error) {
	text, err := base64.RawURLEncoding.DecodeString(from)
	if err != nil || json.Unmarshal(text, &t) != nil || t.Seen < 1 || t.Seen > maxSpaceWalk {
		return t, chancery.InvalidParam("from is no token of ours")
	}
	return t, nil
}

// understand checks a query: what the first page asked for holds for all of them.
func (q SpaceQuery) understand(user id.UserID) (depth, limit int, token spaceToken, err error) {
	depth, limit = defaultSpaceDepth, defaultSpaceRooms
	if q.Depth != nil {
		if *q.Depth < 0 {
			return 0, 0, token, chancery.InvalidParam("max_depth is not negative")
		}
		depth = min(*q.Depth, maxSpaceDepth)
	}
	if q.Limit != nil {
		if *q.Limit < 1 {
			return 0, 0, token, chancery.InvalidParam("limit is greater than zero")
		}
		limit = min(*q.Limit, maxSpaceRooms)
	}
	sum := sha256.Sum256([]byte(string(user) + "\x00" + string(q.Room)))
	token = spaceToken{Space: base64.RawURLEncoding.EncodeToString(sum[:9]), Suggested: q.Suggested, Depth: depth}
	if q.From == "" {
		return depth, limit, token, nil
	}
	before, err := readSpaceToken(q.From)
	switch {
	case err != nil:
		return 0, 0, token, err
	case before.Space != token.Space:
		return 0, 0, token, chancery.InvalidParam("from is the token of another space")
	case before.Suggested != token.Suggested || before.Depth != token.Depth:
		return 0, 0, token, chancery.InvalidParam("suggested_only and max_depth cannot change on paginated requests")
	}
	return depth, limit, before, nil
}

// Hierarchy walks through a space for one of our users. Rooms that we are not in are asked for at the servers
// that the space names.
//
// spec: c2s/getSpaceHierarchy
func (s *Server) Hierarchy(ctx context.Context, user id.UserID, q SpaceQuery) (*SpacePage, error) {
	depth, limit, token, err := q.understand(user)
	if err != nil {
		return nil, err
	}
	w := newSpaceWalk(s, user, depth)
	w.suggested = q.Suggested
	if err := w.begin(ctx, q.Room); err != nil {
		return nil, err
	}
	page := &SpacePage{Rooms: []*SpaceRoom{}}
	until := time.Now().Add(spaceTime)
	walked, passed := 0, token.Seen == 0
	for walked < maxSpaceWalk && len(w.stack) > 0 {
		if time.Now().After(until) && walked > 0 || w.questions.none() && len(page.Rooms) > 0 {
			page.Next = token.String()
			break
		}
		room, err := w.next(ctx)
		if err != nil {
			return nil, err
		}
		if room == nil {
			continue
		}
		if len(page.Rooms) == limit {
			page.Next = token.String()
			break
		}
		walked++
		if !passed {
			// A tree that has changed since is taken up behind the last room that was told of, or as far down.
			passed = room.RoomID == token.Last || walked == token.Seen
			continue
		}
		page.Rooms = append(page.Rooms, room.only(q.Suggested))
		token.Seen, token.Last = walked, room.RoomID
	}
	return page, nil
}

// spaceWalk goes through a space depth first.
type spaceWalk struct {
	s         *Server
	who       looker
	suggested bool
	depth     int
	stack     []spaceStep // the next is the last
	told      map[id.RoomID]bool
	found     map[id.RoomID]*SpaceRoom // nil: looked for, and not to be told of
	hints     map[id.RoomID]*SpaceRoom // what other servers said of the rooms in their spaces
	questions *questions
}

type spaceStep struct {
	room  id.RoomID
	via   []string
	depth int
}

func newSpaceWalk(s *Server, user id.UserID, depth int) *spaceWalk {
	return &spaceWalk{s: s, who: looker{user: user}, depth: depth, told: map[id.RoomID]bool{}, found: map[id.RoomID]*SpaceRoom{},
		hints: map[id.RoomID]*SpaceRoom{}, questions: mayAsk(maxSpaceQuestions)}
}

// begin finds the room at the top.
func (w *spaceWalk) begin(ctx context.Context, roomID id.RoomID) error {
	via, err := w.s.whoKnows(ctx, w.who.user, roomID, nil)
	if err != nil {
		return err
	}
	w.stack = []spaceStep{{room: roomID, via: via}}
	if err := w.findOurs(ctx, []id.RoomID{roomID}); err != nil {
		return err
	}
	if err := w.findAhead(ctx); err != nil {
		return err
	}
	if w.found[roomID] == nil {
		return chancery.Forbidden("you may not see this room")
	}
	return nil
}

// next gives the next room, nil where there is none to be told of.
func (w *spaceWalk) next(ctx context.Context) (*SpaceRoom, error) {
	at := w.stack[len(w.stack)-1]
	if w.told[at.room] {
		w.stack = w.stack[:len(w.stack)-1]
		return nil, nil
	}
	if _, looked := w.found[at.room]; !looked {
		if err := w.findAhead(ctx); err != nil {
			return nil, err
		}
	}
	w.stack = w.stack[:len(w.stack)-1]
	room := w.found[at.room]
	if room == nil {
		return nil, nil
	}
	w.told[at.room] = true
	if at.depth >= w.depth {
		return room, nil
	}
	children := room.only(w.suggested).Children
	if err := w.findOurs(ctx, roomsOf(children)); err != nil {
		return nil, err
	}
	for _, c := range slices.Backward(children) {
		if !w.told[c.Room] {
			w.stack = append(w.stack, spaceStep{c.Room, c.via(), at.depth + 1})
		}
	}
	return room, nil
}

// findOurs looks for rooms among those that we are in.
func (w *spaceWalk) findOurs(ctx context.Context, ids []id.RoomID) error {
	ids = slices.DeleteFunc(slices.Clone(ids), func(v id.RoomID) bool { _, looked := w.found[v]; return looked })
	if len(ids) == 0 {
		return nil
	}
	return w.s.DB.Read(ctx, func(tx storage.Tx) error {
		open, shut, err := w.s.Reader.accessible(tx, w.s.ServerName, w.who, ids)
		for v, room := range open {
			w.found[v] = room
		}
		for v := range shut {
			w.found[v] = nil
		}
		return err
	})
}

// findAhead asks other servers for the next rooms that we are not in.
func (w *spaceWalk) findAhead(ctx context.Context) error {
	var ahead []spaceStep
	seen := map[id.RoomID]bool{}
	for _, step := range slices.Backward(w.stack) {
		if _, looked := w.found[step.room]; !looked && !seen[step.room] {
			seen[step.room] = true
			ahead = append(ahead, step)
		}
		if len(ahead) == spaceFetches {
			break
		}
	}
	came := make([]*farSpace, len(ahead))
	var g errgroup.Group
	for i, step := range ahead {
		if hint := w.hints[step.room]; hint != nil && hint.RoomType != typeSpace {
			came[i] = &farSpace{room: hint}
			continue
		}
		g.Go(func() error {
			return w.s.guarded("look at a far space", func() error {
				came[i] = w.s.farSpaceVia(ctx, step.room, step.via, w.questions)
				return nil
			})
		})
	}
	_ = g.Wait() // who does not answer, or nonsense, has nothing to tell
	if err := ctx.Err(); err != nil {
		return err
	}
	rooms := make([]*SpaceRoom, len(ahead))
	for i, step := range ahead {
		w.found[step.room] = nil
		if rooms[i] = w.hints[step.room]; came[i] != nil {
			rooms[i] = came[i].room
			for v, child := range came[i].children {
				if w.hints[v] == nil {
					w.hints[v] = child
				}
			}
			for v := range came[i].shut {
				if _, looked := w.found[v]; !looked {
					w.found[v] = nil
				}
			}
		}
	}
	open, err := w.s.openElsewhere(ctx, w.who.user, rooms)
	for _, room := range open {
		w.found[room.RoomID] = room
	}
	return err
}
