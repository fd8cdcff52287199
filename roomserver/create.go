package roomserver

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"chancery"
	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Create is a new room.
type Create struct {
	Creator id.UserID
	Version string
	Content []byte     // of m.room.create
	Events  []NewEvent // what follows it, beginning with the creator's join; Room and Sender are filled in
	// Also runs in the transaction that makes the room: its alias, its place in the directory.
	Also func(storage.Tx, id.RoomID) error
}

// CreateRoom makes a room with its first events: all of them or none.
//
// spec: c2s/createRoom
func (s *Server) CreateRoom(ctx context.Context, c Create) (id.RoomID, error) {
	r, list, err := s.beginRoom(ctx, c)
	if err != nil {
		return "", err
	}
	r.submit(list...)
	waits := r.waits
	r.waits = nil
	r.turn.leave()
	return r.id, await(ctx, waits)
}

// Replace is CreateRoom for a room that replaces another, and says so in that one, all in one transaction. seen is the
// tombstone that the caller found there, if any: where it is another by now, somebody else was faster.
//
// spec: c2s#room-upgrades
func (s *Server) Replace(ctx context.Context, old id.RoomID, seen id.EventID, c Create) (id.RoomID, error) {
	r, list, err := s.beginRoom(ctx, c)
	if err != nil {
		return "", err
	}
	// The old room commits what the new one has in memory; whoever comes next reads it from storage.
	defer func() {
		s.forgetHandle(r)
		r.turn.leave()
	}()
	tombstone, err := json.Marshal(map[string]any{"body": "This room has been replaced", "replacement_room": r.id})
	if err != nil {
		return "", err
	}
	err = s.inOwn(ctx, old, func(o *room) error {
		key := Key{"m.room.tombstone", ""}
		found, err := o.stateAt(state.Root(o.row.Root), []Key{key})
		if err != nil {
			return err
		}
		if now := found[key]; now != nil && now.ID() != seen {
			return errReplaced
		}
		a, err := o.make(NewEvent{Room: old, Sender: c.Creator, Type: key.Type, StateKey: &key.StateKey, Content: tombstone}, how{own: true})
		if err != nil {
			return err
		}
		o.commit(&additions{list: []*addition{a}}, func(tx storage.Tx) error {
			if err := r.checkFence(tx); err != nil {
				return err
			}
			return writeAll(tx, append([]*addition{a}, list...))
		}, r.key()...)
		return nil
	})
	return r.id, err
}

var errReplaced = chancery.Errorf(400, chancery.CodeBadState, "the room has been replaced meanwhile")

// beginRoom makes a room with its first events in memory; the caller holds its turn.
func (s *Server) beginRoom(ctx context.Context, c Create) (*room, []*addition, error) {
	version, ok := event.Lookup(c.Version)
	if !ok {
		return nil, nil, chancery.Errorf(400, chancery.CodeUnsupportedRoomVersion, "this server does not know room version %q", c.Version)
	}
	p := event.Proto{Sender: c.Creator, Type: "m.room.create", StateKey: new(string), Content: c.Content, Depth: 1}
	if !version.RoomIDIsCreateHash {
		p.RoomID = id.RoomID("!" + randomText(18) + ":" + s.ServerName)
	}
	nid, err := s.DB.NewRoomNumber()
	if err != nil {
		return nil, nil, fmt.Errorf("number the room: %w", err)
	}
	create, r, err := s.newHandle(version, p)
	if err != nil {
		return nil, nil, err
	}
	list, err := r.begin(ctx, nid, version, create, c)
	if err != nil {
		s.forgetHandle(r)
		r.turn.leave()
	}
	return r, list, err
}

// newHandle makes the create event of a room and the room's handle, in whose turn we are. From version 12 on the room ID is
// the hash of that event, so that what one user makes twice in a millisecond would be one room: the later one is dated on.
func (s *Server) newHandle(version *event.Version, p event.Proto) (*event.Event, *room, error) {
	for at := time.Now(); ; at = at.Add(time.Millisecond) {
		create, err := event.Build(version, p, s.ServerName, s.KeyID, s.Key, at)
		if err != nil {
			return nil, nil, err
		}
		r := newRoom(s, create.RoomID())
		r.turn.try() // nobody knows the room yet
		s.mu.Lock()
		_, taken := s.rooms[r.id]
		if !taken {
			s.rooms[r.id] = r
		}
		s.mu.Unlock()
		if !taken {
			return create, r, nil
		}
	}
}

func (r *room) begin(ctx context.Context, nid int64, version *event.Version, create *event.Event, c Create) ([]*addition, error) {
	r.ctx, r.used = context.WithoutCancel(ctx), time.Now()
	r.reset(storage.Room{NID: nid, ID: string(r.id), Version: version.Name}, version)
	if err := checkAlone(create); err != nil {
		return nil, err
	}
	first, err := r.add(create, how{before: state.Root(0), own: true})
	if err != nil {
		return nil, err
	}
	list := []*addition{first}
	for _, n := range c.Events {
		n.Room, n.Sender = r.id, c.Creator
		a, err := r.make(n, how{own: true})
		if err != nil {
			return list, err
		}
		list = append(list, a)
	}
	// One row for the room, as it is after all of them.
	first.room = r.row
	for _, a := range list[1:] {
		a.moved = false
	}
	if c.Also != nil {
		first.also = func(tx storage.Tx) error { return c.Also(tx, r.id) }
	}
	return list, nil
}

func randomText(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // never fails: crypto/rand ends the program instead
	return base64.RawURLEncoding.EncodeToString(b)
}
