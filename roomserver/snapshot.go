package roomserver

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"chancery/roomserver/event"
	"chancery/roomserver/state"
	"chancery/storage"

	"maunium.net/go/mautrix/id"
)

// Snapshot is a state of a room and the auth chain of that state, for another server. Neither ever changes, so
// only the numbers of the events are held, and the events are read piece by piece while they are told: the room
// goes on meanwhile, no transaction is open while the network is slow, and memory does not grow with the room.
type Snapshot struct {
	State, Chain []int64
	Omitted      bool // members are left out
	s            *Server
	done         func() // gives back the place among those that are answered
}

// Events read at a time while a state is told, and whose auth events are looked up at a time.
const (
	snapshotPiece = 500
	chainPiece    = 2000
)

// Close lets the next large question of the same server be answered.
func (v *Snapshot) Close() { v.done() }

// Each gives the text of events, in no order.
func (v *Snapshot) Each(ctx context.Context, nids []int64, fn func(json.RawMessage) error) error {
	return eachPiece(ctx, v.s.DB, nids, storage.Tx.EventTexts, fn)
}

// EachID gives the IDs of events, in no order.
func (v *Snapshot) EachID(ctx context.Context, nids []int64, fn func(id.EventID) error) error {
	return eachPiece(ctx, v.s.DB, nids, storage.Tx.EventIDs, func(text string) error { return fn(id.EventID(text)) })
}

func eachPiece[T any](ctx context.Context, db *storage.DB, nids []int64, read func(storage.Tx, []int64) ([]T, error), fn func(T) error) error {
	for piece := range slices.Chunk(nids, snapshotPiece) {
		var found []T
		if err := db.Read(ctx, func(tx storage.Tx) (err error) {
			found, err = read(tx, piece)
			return err
		}); err != nil {
			return fmt.Errorf("read events of a state: %w", err)
		}
		for _, v := range found {
			if err := fn(v); err != nil {
				return err
			}
		}
	}
	return nil
}

// snapshot takes up a state. also are events whose auth chain, with themselves, belongs to the answer too.
func (s *Server) snapshot(ctx context.Context, room storage.Room, root state.Root, also []int64, done func()) (*Snapshot, error) {
	v := &Snapshot{s: s, done: done}
	if err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		v.State, err = s.Reader.stateNumbers(tx, room, root)
		return err
	}); err != nil {
		return nil, fmt.Errorf("read the state to tell: %w", err)
	}
	return v.withChain(ctx, room, also, false)
}

// snapshotFor is snapshot for the server of a user who joins, when it can wait for the members of the room: they are
// left out, with their auth chains, but for those by whom a room without a name is called. Of a small room all are
// told: to leave them out would save nothing, and cost another question.
//
// spec: s2s/sendJoinV2
func (s *Server) snapshotFor(ctx context.Context, user id.UserID, room storage.Room, root state.Root, also []int64, done func()) (*Snapshot, error) {
	v := &Snapshot{s: s, done: done}
	if err := s.DB.Read(ctx, func(tx storage.Tx) error {
		slots, err := tx.SlotsExcept(room.NID, "m.room.member")
		if err != nil {
			return err
		}
		if v.Omitted = room.NextSlot-int64(len(slots)) > fewMembers; v.Omitted {
			v.State, err = s.Reader.withoutMembers(tx, room, root, user, slots)
		} else {
			v.State, err = s.Reader.stateNumbers(tx, room, root)
		}
		return err
	}); err != nil {
		return nil, fmt.Errorf("read the state to tell: %w", err)
	}
	return v.withChain(ctx, room, also, true)
}

// withChain finds the auth chain, without what stands in the state when each event is to be told once.
func (v *Snapshot) withChain(ctx context.Context, room storage.Room, also []int64, once bool) (*Snapshot, error) {
	s := v.s
	chain, err := s.chainNumbers(ctx, append(slices.Clone(v.State), also...))
	if err != nil {
		return nil, err
	}
	for _, n := range also {
		chain[n] = true
	}
	if version, ok := event.Lookup(room.Version); ok && version.RoomIDIsCreateHash && len(chain) > 0 {
		// From version 12 on no event names the create event among its auth events, but all are judged by it: other
		// servers have it in their auth chains, and Dendrite joins none of our rooms without.
		create, err := s.numbersOf(ctx, room, []id.EventID{id.EventID("$" + strings.TrimPrefix(room.ID, "!"))})
		if err != nil {
			return nil, err
		}
		for _, n := range create {
			chain[n] = true
		}
	}
	if once {
		// spec: s2s/sendJoinV2, "Any events returned within state can be omitted from auth_chain"
		for _, n := range v.State {
			delete(chain, n)
		}
	}
	for n := range chain {
		v.Chain = append(v.Chain, n)
	}
	slices.Sort(v.Chain) // mostly the order of their making: neighbours in storage, and auth events first
	return v, nil
}

// stateNumbers are the numbers of the events of a state.
func (rd *Reader) stateNumbers(tx storage.Tx, room storage.Room, root state.Root) ([]int64, error) {
	entries, err := rd.Array(tx, room.NID).All(root)
	nids := make([]int64, len(entries))
	for i, e := range entries {
		nids[i] = e.NID
	}
	return nids, asGone(err)
}

// chainNumbers walks the auth events of events, level by level: the numbers of all events in the auth chains.
func (s *Server) chainNumbers(ctx context.Context, from []int64) (map[int64]bool, error) {
	chain := map[int64]bool{}
	for walk := from; len(walk) > 0; {
		var next []int64
		for piece := range slices.Chunk(walk, chainPiece) {
			if err := s.DB.Read(ctx, func(tx storage.Tx) error {
				edges, err := tx.AuthEdges(piece)
				for _, e := range edges {
					if !chain[e.Auth] {
						chain[e.Auth] = true
						next = append(next, e.Auth)
					}
				}
				return err
			}); err != nil {
				return nil, fmt.Errorf("walk an auth chain: %w", err)
			}
		}
		walk = next
	}
	return chain, nil
}
