package users

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"chancery/storage"
	"chancery/storage/eventlog"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const (
	keysReader   = "device-lists"      // our cursor in the log
	epochCursor  = storage.EpochCursor // the epoch whose beginning was dealt with; no position
	epochPiece   = 200
	movedPiece   = 20          // memberships looked at in one transaction
	cursorPeriod = time.Second // a cursor moves at most so often when there is nothing to do
)

// FollowRooms reads the log for those who come and go, until ctx ends: a user who comes into a
// room is made known to its servers, and has there what they set for the room that it replaced; the device
// list of one who shares no room any more is forgotten, and that of one who writes from an unknown device is fetched. Its cursor is in storage: what happened while nobody read is read later.
//
// spec: s2s#device-management, c2s#room-upgrades
func (s *Server) FollowRooms(ctx context.Context, log *eventlog.Log) error {
	var from int64
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		from, err = tx.Cursor(keysReader)
		return err
	})
	if err != nil {
		return fmt.Errorf("follow rooms for device lists: %w", err)
	}
	at := from
	var moved time.Time
	err = log.Read(ctx, keysReader, from, func(ctx context.Context, facts []storage.Fact) error {
		var members []storage.Fact
		var replaced, said []int64
		for _, f := range facts {
			if f.Kind == sql.FactEvent && f.Extra == "" && f.User == "" { // no membership, and not ours
				said = append(said, f.Event)
			}
			if f.Kind == sql.FactReplaced && s.Rooms != nil && !slices.Contains(replaced, f.Room) {
				replaced = append(replaced, f.Room)
			}
			if f.Kind == sql.FactRoomComplete {
				ours, err := s.ourMembers(ctx, f.Room)
				if err != nil {
					return err
				}
				members = append(members, ours...)
			}
			// Where branches of a room meet, a membership may move without an event of its own.
			if (f.Kind == sql.FactEvent || f.Kind == sql.FactState) && f.User != "" {
				members = append(members, f)
			}
			if f.Kind == sql.FactEpoch {
				if err := s.OnEpoch(ctx); err != nil {
					return err
				}
			}
		}
		if err := s.roomsReplaced(ctx, replaced); err != nil {
			return err
		}
		if err := s.doubtSenders(ctx, said); err != nil {
			return err
		}
		if len(members) == 0 && len(replaced) == 0 && time.Since(moved) < cursorPeriod {
			return nil
		}
		last := facts[len(facts)-1].Pos
		if err := s.membersMoved(ctx, members, at, last); err != nil {
			return err
		}
		at, moved = last, time.Now()
		return nil
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// movesMember says whether a fact is about somebody's membership, by an event or by a state that moved without one.
func movesMember(f storage.Fact) bool {
	return (f.Kind == sql.FactEvent || f.Kind == sql.FactState) && f.User != ""
}

// ourMembers gives, as if each had come just now, those of ours in a room of which all servers are known only by
// now: not all of them were told of our users' devices.
//
// spec: msc3902
func (s *Server) ourMembers(ctx context.Context, room int64) (facts []storage.Fact, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		members, err := tx.LocalMembers(room, s.ServerName, []string{"join"})
		for _, m := range members {
			facts = append(facts, storage.Fact{Kind: sql.FactRoomComplete, Room: room, User: m.User, Event: m.Event})
		}
		return err
	})
	return facts, err
}

// membersMoved does what follows from changed memberships. It looks at the members as they are now,
// so doing it twice, in pieces, or late, comes to the same.
func (s *Server) membersMoved(ctx context.Context, facts []storage.Fact, was, is int64) error {
	type place struct {
		room  int64
		user  id.UserID
		whole bool
	}
	var locals []place
	var remote []string
	for _, f := range facts {
		if user := id.UserID(f.User); !s.IsLocal(user) {
			remote = append(remote, f.User)
		} else if p := (place{f.Room, user, f.Kind == sql.FactRoomComplete}); !slices.Contains(locals, p) {
			locals = append(locals, p)
		}
	}
	for piece := range slices.Chunk(locals, movedPiece) {
		var keys []string
		for _, p := range piece {
			keys = append(keys, string(p.user))
		}
		slices.Sort(keys)
		err := s.DB.Write(ctx, slices.Compact(keys), func(tx storage.Tx) error {
			for _, p := range piece {
				if err := s.localMoved(tx, p.room, p.user, p.whole); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	slices.Sort(remote)
	remote = slices.Compact(remote)
	return s.DB.Write(ctx, append(remote, keysReader), func(tx storage.Tx) error {
		if err := s.forgetUnmet(tx, remote); err != nil {
			return err
		}
		if err := s.doubtReturned(tx, remote, facts); err != nil {
			return err
		}
		ok, err := tx.MoveCursor(keysReader, was, is)
		if err != nil || ok {
			return err
		}
		if now, err := tx.Cursor(keysReader); err != nil || now == is {
			return err // a commit whose outcome was not known has happened
		}
		return fmt.Errorf("another instance reads the log for device lists: %w", eventlog.ErrStop)
	})
}

// roomsReplaced carries over what those have set who are in a new room already.
func (s *Server) roomsReplaced(ctx context.Context, rooms []int64) error {
	for _, room := range rooms {
		var next storage.Room
		var users []string
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			next, users, err = s.replaced(tx, room)
			return err
		})
		if err != nil {
			return err
		}
		for piece := range slices.Chunk(users, movedPiece) {
			err := s.DB.Write(ctx, piece, func(tx storage.Tx) error {
				for _, user := range piece {
					if err := s.arrived(tx, next.NID, id.UserID(user)); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// localMoved tells servers that meet a user for the first time of the user's devices. whole says that it is not the user
// who came into the room, but we who know all of it now.
func (s *Server) localMoved(tx storage.Tx, room int64, user id.UserID, whole bool) error {
	sharing, err := serversSharing(tx, user)
	if err != nil {
		return err
	}
	told, err := tx.ServersTold(string(user))
	if err != nil {
		return err
	}
	member, ok, err := tx.Member(room, string(user))
	if err != nil {
		return err
	}
	if !ok || member.Membership != "join" {
		return s.forgetRoom(tx, room)
	}
	if err := s.arrived(tx, room, user); err != nil {
		return err
	}
	fresh := sharing // also a server that was in the room before it was whole, and is in another of the user's now
	if !whole {
		counts, err := tx.ServersIn(room)
		if err != nil {
			return err
		}
		here := map[string]bool{}
		for _, c := range counts {
			here[c.Server] = true
		}
		fresh = slices.DeleteFunc(fresh, func(v string) bool { return !here[v] })
	}
	fresh = slices.DeleteFunc(fresh, func(v string) bool { return slices.Contains(told, v) })
	if len(fresh) == 0 {
		return nil
	}
	devices, err := tx.DeviceKeysOf([]string{string(user)})
	if err != nil {
		return err
	}
	ids := make([]id.DeviceID, len(devices))
	for i, d := range devices {
		ids[i] = id.DeviceID(d.Device)
	}
	slices.Sort(ids)
	if len(ids) == 0 {
		return nil
	}
	if err := tellDevices(tx, user, ids, fresh); err != nil {
		return err
	}
	return tellSigningKeys(tx, user, fresh)
}

// forgetUnmet drops the lists of those of some users who share no room with us any more: nobody
// tells us of their devices from now on.
func (s *Server) forgetUnmet(tx storage.Tx, users []string) error {
	if len(users) == 0 {
		return nil
	}
	lists, err := tx.RemoteDeviceLists(users)
	if err != nil || len(lists) == 0 {
		return err
	}
	met, err := tx.UsersMetBy(s.ServerName, users)
	if err != nil {
		return err
	}
	for _, v := range lists {
		if !slices.Contains(met, v.User) {
			tx.ForgetRemoteDeviceList(v.User)
		}
	}
	return nil
}

// doubtReturned has the lists of those fetched who are in a room though another event about their membership came
// since: they may have been out in between, when nobody told us of their devices.
func (s *Server) doubtReturned(tx storage.Tx, users []string, facts []storage.Fact) error {
	if len(users) == 0 {
		return nil
	}
	lists, err := tx.RemoteDeviceLists(users)
	if err != nil || len(lists) == 0 {
		return err
	}
	kept := map[string]storage.RemoteDeviceList{}
	for _, v := range lists {
		kept[v.User] = v
	}
	type place struct {
		room int64
		user string
	}
	rooms, told := map[int64][]string{}, map[place][]int64{}
	for _, f := range facts {
		at := place{f.Room, f.User}
		if _, ok := kept[f.User]; !ok || f.Event == 0 {
			continue
		}
		if told[at] == nil {
			rooms[f.Room] = append(rooms[f.Room], f.User)
		}
		told[at] = append(told[at], f.Event)
	}
	for _, room := range slices.Sorted(maps.Keys(rooms)) {
		members, err := tx.MembersOf(room, rooms[room])
		if err != nil {
			return err
		}
		for _, m := range members {
			other := slices.ContainsFunc(told[place{room, m.User}], func(event int64) bool { return event != m.Event })
			if v := kept[m.User]; m.Membership == "join" && other && !v.Stale {
				tx.MarkDeviceListStale(v.User, v.Server, now())
			}
		}
	}
	return nil
}

// forgetRoom does the same for everybody in a room that the last of ours has left.
func (s *Server) forgetRoom(tx storage.Tx, room int64) error {
	if still, err := tx.ServerIsIn(room, s.ServerName); err != nil || still {
		return err
	}
	users, err := tx.ListsUnmetIn(room, s.ServerName)
	for _, user := range users {
		tx.ForgetRemoteDeviceList(user)
	}
	return err
}

// OnEpoch does what the beginning of an epoch asks for, once for each: a restored database has
// one-time keys that were given out already, so all are dropped and devices upload new ones, and
// other servers are told of all device lists. Fallback keys may be used again by their nature.
// Without a new epoch it costs nothing; keys are never given out before it is done.
func (s *Server) OnEpoch(ctx context.Context) error {
	if s.keysEpoch.Load() == s.DB.Epoch() {
		return nil
	}
	s.epochTurn.Lock()
	defer s.epochTurn.Unlock()
	epoch := s.DB.Epoch()
	if s.keysEpoch.Load() == epoch {
		return nil
	}
	var done int64
	var first bool
	err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		if done, err = tx.Cursor(epochCursor); err != nil {
			return err
		}
		epochs, err := tx.Epochs()
		first = len(epochs) == 1
		return err
	})
	if err == nil && done != epoch && !first {
		s.Log.Info("dropping one-time keys of before the new epoch", zap.Int64("epoch", epoch))
		err = errors.Join(s.dropOneTimeKeys(ctx), s.announceAll(ctx))
	}
	if err == nil && done != epoch {
		err = s.DB.Write(ctx, []string{epochCursor}, func(tx storage.Tx) error {
			tx.SetCursor(epochCursor, epoch)
			return nil
		})
	}
	if err != nil {
		return fmt.Errorf("begin an epoch for keys: %w", err)
	}
	s.keysEpoch.Store(epoch)
	return nil
}

func (s *Server) dropOneTimeKeys(ctx context.Context) error {
	for {
		var devices []storage.DeviceKeys
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			devices, err = tx.DevicesWithOneTimeKeys(epochPiece)
			return err
		})
		if err != nil || len(devices) == 0 {
			return err
		}
		var keys []string
		for _, d := range devices {
			keys = append(keys, d.User)
		}
		err = s.DB.Write(ctx, slices.Compact(keys), func(tx storage.Tx) error {
			for _, d := range devices {
				tx.DropOneTimeKeys(d.User, d.Device)
				tx.Announce(storage.Fact{Kind: sql.FactOneTimeKeys, User: d.User, Device: d.Device})
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

func (s *Server) announceAll(ctx context.Context) error {
	above := ""
	for {
		var users []string
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			users, err = tx.UsersWithDeviceKeys(above, epochPiece)
			return err
		})
		if err != nil || len(users) == 0 {
			return err
		}
		for _, user := range users {
			err := s.DB.Write(ctx, []string{user}, func(tx storage.Tx) error {
				devices, err := tx.DevicesOf(user)
				if err != nil {
					return err
				}
				ids := make([]id.DeviceID, len(devices))
				for i, d := range devices {
					ids[i] = id.DeviceID(d.ID)
				}
				slices.Sort(ids)
				// A number that nobody was told of: what comes after it shows a gap, so others fetch
				// the list, with what they have of it and we lost.
				floor, err := tx.MaxPos()
				if err != nil {
					return err
				}
				if _, _, err := tx.NextDeviceListUpdate(user, floor); err != nil {
					return err
				}
				return deviceListChanged(tx, id.UserID(user), ids...)
			})
			if err != nil {
				return err
			}
		}
		above = users[len(users)-1]
	}
}
