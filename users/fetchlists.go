package users

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

const (
	fetchTogether = 8 // servers
	fetchPiece    = 100
	firstRefetch  = 15 * time.Second
	lastRefetch   = 3 * time.Hour
)

// metAndUnknown picks those we ask for live, but meet: their lists are worth keeping.
func (s *Server) metAndUnknown(tx storage.Tx, missing map[string]KeyQuery) ([]storage.RemoteDeviceList, error) {
	var users []string
	for _, of := range missing {
		for user := range of {
			users = append(users, string(user))
		}
	}
	if len(users) == 0 {
		return nil, nil
	}
	met, err := tx.UsersMetBy(s.ServerName, users)
	lists := make([]storage.RemoteDeviceList, 0, len(met))
	for _, user := range met {
		lists = append(lists, storage.RemoteDeviceList{User: user, Server: id.UserID(user).Homeserver()})
	}
	return lists, err
}

// expectLists notes that lists are wanted, and gives those that the answer to a question for all devices can fill: they are
// fetched only when it has not come in time. A list that has a place in the stream of updates is fetched at once, as is that of
// whom single devices are asked for.
func (s *Server) expectLists(ctx context.Context, lists []storage.RemoteDeviceList, asked KeyQuery, timeout time.Duration) map[id.UserID]storage.RemoteDeviceList {
	expected := make(map[id.UserID]storage.RemoteDeviceList, len(lists))
	for piece := range slices.Chunk(lists, 500) {
		keys := make([]string, len(piece))
		for i, v := range piece {
			keys[i] = v.User
		}
		var first []storage.RemoteDeviceList
		err := s.DB.Write(ctx, keys, func(tx storage.Tx) error {
			first = nil
			lists, err := tx.RemoteDeviceLists(keys)
			if err != nil {
				return err
			}
			for _, v := range piece {
				at := now()
				placed := slices.ContainsFunc(lists, func(l storage.RemoteDeviceList) bool { return l.User == v.User && l.Stream > 0 })
				if !placed && len(asked[id.UserID(v.User)]) == 0 {
					at += timeout.Milliseconds()
					first = append(first, v)
				}
				tx.MarkDeviceListStale(v.User, v.Server, at)
			}
			return nil
		})
		if err != nil {
			if ctx.Err() == nil {
				s.Log.Warn("could not note which device lists to fetch", zap.Error(err))
			}
			break
		}
		for _, v := range first {
			expected[id.UserID(v.User)] = v
		}
	}
	return expected
}

// storeAnswer keeps the lists that an answer to a question for all devices of some users gives. It has no place in the
// stream of updates: the next update has the list fetched.
//
// spec: s2s#device-management
func (s *Server) storeAnswer(ctx context.Context, asked KeyQuery, expected map[id.UserID]storage.RemoteDeviceList, got *peer.UserKeys) error {
	var lists []fetchedList
	var keys []string
	for user := range asked {
		before, ok := expected[user]
		devices, given := got.DeviceKeys[user]
		if !ok || !given {
			continue
		}
		all := &peer.UserDevices{User: user, MasterKey: got.MasterKeys[user], SelfSigningKey: got.SelfSigningKeys[user]}
		for device, object := range devices {
			if _, name, ok := remoteDeviceKeys(user, device, object); ok {
				all.Devices = append(all.Devices, peer.UserDevice{ID: device, Keys: object, DisplayName: name})
			}
		}
		lists, keys = append(lists, checkedList(before, all)), append(keys, string(user))
	}
	if len(lists) == 0 {
		return nil
	}
	return s.DB.Write(ctx, keys, func(tx storage.Tx) error {
		for _, l := range lists {
			if err := l.store(tx); err != nil {
				return err
			}
		}
		return nil
	})
}

// fetchLists wakes the one who fetches stale lists.
func (s *Server) fetchLists() {
	select {
	case s.stale <- struct{}{}:
	default:
	}
}

// ServerIsBack has the stale lists of a server fetched at once: it has just spoken to us.
func (s *Server) ServerIsBack(ctx context.Context, server string) error {
	err := s.DB.Write(ctx, []string{server}, func(tx storage.Tx) error {
		tx.RetryDeviceListsOf(server, now())
		return nil
	})
	s.fetchLists()
	return err
}

// watchDeviceLists fetches stale lists until ctx ends: from some servers at once, and from each one list after the
// other, so that a server that does not answer, or has very many, delays no other.
func (s *Server) watchDeviceLists(ctx context.Context) error {
	if s.Peers == nil {
		return nil
	}
	busy := map[string]bool{}
	done := make(chan string, fetchTogether)
	var fetching sync.WaitGroup
	defer fetching.Wait()
	for {
		due, wait, err := s.dueLists(ctx, busy)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("looking for stale device lists failed", zap.Error(err))
		}
		for server, lists := range due {
			if len(busy) == fetchTogether {
				break
			}
			busy[server] = true
			fetching.Go(func() {
				defer func() {
					if p := recover(); p != nil { // no server's list may end the process
						s.Log.Error("panic while fetching device lists", zap.String("server", server), zap.Any("panic", p), zap.Stack("stack"))
						waitFor(ctx, time.Minute)
					}
					done <- server
				}()
				if err := s.fetchListsOf(ctx, server, lists); err != nil && ctx.Err() == nil {
					s.Log.Warn("fetching device lists failed", zap.String("server", server), zap.Error(err))
				}
			})
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case server := <-done:
			delete(busy, server)
		case <-timer.C:
		case <-s.stale:
		}
		timer.Stop()
	}
}

// dueLists gives what is due to be fetched, by server and without those that are being asked, and how long the
// next has time.
func (s *Server) dueLists(ctx context.Context, busy map[string]bool) (due map[string][]storage.RemoteDeviceList, wait time.Duration, err error) {
	wait = time.Minute
	if len(busy) == fetchTogether {
		return nil, wait, nil
	}
	but := slices.Collect(maps.Keys(busy))
	due = map[string][]storage.RemoteDeviceList{}
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		lists, err := tx.StaleDeviceLists(now(), but, fetchPiece)
		if err != nil {
			return err
		}
		for _, v := range lists {
			due[v.Server] = append(due[v.Server], v)
		}
		if len(lists) == fetchPiece && len(due)+len(busy) < fetchTogether {
			wait = 0 // there may be others behind those of a few servers
		}
		at, ok, err := tx.NextStaleDeviceList(now(), but)
		if ok {
			wait = min(wait, max(time.Until(time.UnixMilli(at)), 10*time.Millisecond))
		}
		return err
	})
	if err != nil {
		return nil, time.Second, err
	}
	return due, wait, nil
}

// fetchListsOf fetches lists of one server. When the server is backed off, all of it waits until that is over.
func (s *Server) fetchListsOf(ctx context.Context, server string, lists []storage.RemoteDeviceList) error {
	for _, list := range lists {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := s.fetchList(ctx, list)
		var waiting *peer.Error
		if errors.Is(err, peer.ErrBackedOff) && errors.As(err, &waiting) {
			until := waiting.RetryAt.UnixMilli()
			return s.DB.Write(ctx, []string{server}, func(tx storage.Tx) error {
				tx.PostponeDeviceListsOf(server, until+1)
				return nil
			})
		}
		if err != nil {
			waitFor(ctx, time.Second) // the database is ill: not at once again
			return err
		}
	}
	return nil
}

func waitFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// fetchList asks for one list and stores it, or when to try again. It fails when the server was not asked, since it
// is backed off, or the outcome could not be stored.
func (s *Server) fetchList(ctx context.Context, list storage.RemoteDeviceList) error {
	got, err := s.Peers.UserDevices(ctx, list.Server, id.UserID(list.User))
	if ctx.Err() != nil {
		return nil // not the peer's fault
	}
	if errors.Is(err, peer.ErrBackedOff) {
		return err
	}
	var refused *peer.Error
	if errors.As(err, &refused) && (refused.Status == http.StatusNotFound || refused.Status == http.StatusForbidden) {
		return s.DB.Write(ctx, []string{list.User}, func(tx storage.Tx) error {
			tx.ForgetRemoteDeviceList(list.User) // there is no such user; whoever asks is answered live
			return nil
		})
	}
	if err != nil {
		return s.DB.Write(ctx, []string{list.User}, func(tx storage.Tx) error {
			now, ok, err := remoteList(tx, list.User)
			if err != nil || !ok {
				return err
			}
			now.Failures++
			now.RetryAt = time.Now().Add(refetchAfter(now.Failures)).UnixMilli()
			tx.SetRemoteDeviceList(now)
			return nil
		})
	}
	return s.storeList(ctx, list, got)
}

func refetchAfter(failures int64) time.Duration {
	wait := min(firstRefetch<<min(failures-1, 16), lastRefetch)
	return wait - wait/10 + rand.N(wait/5+1)
}

func remoteList(tx storage.Tx, user string) (storage.RemoteDeviceList, bool, error) {
	lists, err := tx.RemoteDeviceLists([]string{user})
	if err != nil || len(lists) == 0 {
		return storage.RemoteDeviceList{}, false, err
	}
	return lists[0], true, nil
}

// fetchedList is what another server gave of a list.
type fetchedList struct {
	before  storage.RemoteDeviceList // how it stood when it was asked for
	stream  int64
	devices []storage.DeviceKeys
	signing []storage.CrossSigningKey
}

// storeList puts a fetched list in place of what was there. before is how the list stood when it
// was asked for.
func (s *Server) storeList(ctx context.Context, before storage.RemoteDeviceList, got *peer.UserDevices) error {
	return s.DB.Write(ctx, []string{before.User}, checkedList(before, got).store)
}

func checkedList(before storage.RemoteDeviceList, got *peer.UserDevices) fetchedList {
	user := id.UserID(before.User)
	l := fetchedList{before: before, stream: got.StreamID}
	for _, d := range got.Devices[:min(len(got.Devices), maxDevices)] {
		if d.ID == "" || len(d.ID) > maxDeviceID || len(d.DisplayName) > 4*maxDeviceName {
			continue
		}
		keys, _, ok := remoteDeviceKeys(user, d.ID, d.Keys)
		if len(d.Keys) > 0 && !ok {
			continue
		}
		l.devices = append(l.devices, storage.DeviceKeys{User: before.User, Device: string(d.ID), Keys: keys, Name: d.DisplayName})
	}
	for usage, raw := range map[string]json.RawMessage{master: got.MasterKey, selfSigning: got.SelfSigningKey} {
		if k, err := parseCrossSigning(user, usage, raw); err == nil && k != nil {
			l.signing = append(l.signing, *k)
		}
	}
	return l
}

func (l fetchedList) store(tx storage.Tx) error {
	list, ok, err := remoteList(tx, l.before.User)
	if err != nil || !ok {
		return err // no room is shared any more
	}
	changed, err := listDiffers(tx, l.before.User, l.devices, l.signing)
	if err != nil {
		return err
	}
	tx.DeleteRemoteDevices(l.before.User)
	for _, d := range l.devices {
		tx.SetRemoteDevice(d)
	}
	for _, usage := range []string{master, selfSigning} {
		if i := slices.IndexFunc(l.signing, func(k storage.CrossSigningKey) bool { return k.Usage == usage }); i >= 0 {
			tx.SetCrossSigningKey(l.signing[i])
		} else {
			tx.DeleteCrossSigningKey(l.before.User, usage)
		}
	}
	// An update came while we asked, and the answer is from before it: ask again. One that stood
	// before we asked may be of a stream that its server has since begun anew.
	late := list.Stream > l.stream && list.Stream != l.before.Stream
	list.Stale, list.Failures, list.RetryAt = late, 0, now()
	if !late {
		list.Stream = l.stream
	}
	tx.SetRemoteDeviceList(list)
	if changed {
		tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: l.before.User})
	}
	return nil
}

// listDiffers says whether a fetched list has anything that clients see and did not know.
func listDiffers(tx storage.Tx, user string, devices []storage.DeviceKeys, signing []storage.CrossSigningKey) (bool, error) {
	old, err := tx.RemoteDevicesOf([]string{user})
	if err != nil {
		return false, err
	}
	oldSigning, err := tx.CrossSigningKeys([]string{user})
	if err != nil {
		return false, err
	}
	if len(old) != len(devices) || len(oldSigning) != len(signing) {
		return true, nil
	}
	for _, d := range devices {
		if !slices.ContainsFunc(old, func(o storage.DeviceKeys) bool {
			return o.Device == d.Device && o.Name == d.Name && bytes.Equal(o.Keys, d.Keys)
		}) {
			return true, nil
		}
	}
	for _, k := range signing {
		if !slices.ContainsFunc(oldSigning, func(o storage.CrossSigningKey) bool {
			return o.Usage == k.Usage && bytes.Equal(o.Key, k.Key)
		}) {
			return true, nil
		}
	}
	return false, nil
}
