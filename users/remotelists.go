package users

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"
	"maunium.net/go/mautrix/id"
)

// Device lists of other servers' users are kept while a room is shared, and only once somebody
// asked for keys: a room of many thousands is joined without asking for all its members. A list is
// right while every update links to the one before; else it is stale, keys are asked for live,
// and the list is fetched again, later and later while its server does not answer.

const (
	fetchTogether = 8
	fetchPiece    = 100
	firstRefetch  = 15 * time.Second
	lastRefetch   = 3 * time.Hour
	maxDevices    = 2_000 // of one remote user that are kept
)

// ReceiveDeviceList takes an m.device_list_update EDU. When it returns without an error the update
// is in the list, or the list is known to be stale.
//
// spec: s2s#device-management
func (s *Server) ReceiveDeviceList(ctx context.Context, origin string, content json.RawMessage) error {
	var in deviceListUpdate
	if err := json.Unmarshal(content, &in); err != nil {
		return chancery.BadJSON("m.device_list_update is malformed").Because(err)
	}
	if in.User.Homeserver() != origin || s.IsLocal(in.User) {
		return chancery.Forbidden("%s does not speak for the user", origin)
	}
	if in.Device == "" || len(in.Device) > maxDeviceID || len(in.Name) > 4*maxDeviceName {
		return chancery.BadJSON("m.device_list_update names no proper device")
	}
	var keys json.RawMessage
	if !in.Deleted && len(in.Keys) > 0 {
		var ok bool
		if keys, _, ok = remoteDeviceKeys(in.User, in.Device, in.Keys); !ok {
			return chancery.BadJSON("m.device_list_update has keys of another device")
		}
	}
	// A device without keys is nothing to those who never asked for its user's keys.
	return s.receiveList(ctx, in.User, in.Deleted || keys != nil, func(tx storage.Tx, list storage.RemoteDeviceList) error {
		known := len(in.Prev) > 0 && !slices.ContainsFunc(in.Prev, func(p int64) bool { return p > list.Stream })
		switch {
		case in.Stream <= list.Stream && !list.Stale:
			return nil // we have it
		case list.Stale || !known:
			tx.MarkDeviceListStale(list.User, list.Server, now())
			// What was seen of it: a list fetched now is right if it has this much.
			list.Stream, list.Stale = max(list.Stream, in.Stream), true
			tx.SetRemoteDeviceListStream(list.User, list.Stream)
			tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: list.User})
			return nil
		}
		if in.Deleted {
			tx.DeleteRemoteDevice(list.User, string(in.Device))
		} else {
			tx.SetRemoteDevice(storage.DeviceKeys{User: list.User, Device: string(in.Device), Keys: keys, Name: in.Name})
		}
		list.Stream = in.Stream
		tx.SetRemoteDeviceList(list)
		tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: list.User})
		return nil
	})
}

// ReceiveSigningKeys takes an m.signing_key_update EDU.
//
// spec: s2s#end-to-end-encryption
func (s *Server) ReceiveSigningKeys(ctx context.Context, origin string, content json.RawMessage) error {
	var in signingKeyUpdate
	if err := json.Unmarshal(content, &in); err != nil {
		return chancery.BadJSON("m.signing_key_update is malformed").Because(err)
	}
	if in.User.Homeserver() != origin || s.IsLocal(in.User) {
		return chancery.Forbidden("%s does not speak for the user", origin)
	}
	var keys []storage.CrossSigningKey
	for usage, raw := range map[string]json.RawMessage{master: in.Master, selfSigning: in.SelfSigning} {
		k, err := parseCrossSigning(in.User, usage, raw)
		if err != nil {
			return err
		}
		if k != nil {
			keys = append(keys, *k)
		}
	}
	return s.receiveList(ctx, in.User, true, func(tx storage.Tx, list storage.RemoteDeviceList) error {
		// A stale list is fetched with its keys.
		for _, k := range keys {
			tx.SetCrossSigningKey(k)
		}
		tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: list.User})
		return nil
	})
}

// receiveList changes what is kept of a user. Of a user whom nobody here meets nothing is kept; when
// nobody asked for the keys yet, those who meet the user are told that there are others, if there are.
func (s *Server) receiveList(ctx context.Context, user id.UserID, others bool, change func(storage.Tx, storage.RemoteDeviceList) error) error {
	err := s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		lists, err := tx.RemoteDeviceLists([]string{string(user)})
		if err != nil {
			return err
		}
		if len(lists) > 0 {
			return change(tx, lists[0])
		}
		met, err := tx.UsersMetBy(s.ServerName, []string{string(user)})
		if err == nil && len(met) > 0 && others {
			tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: string(user)})
		}
		return err
	})
	if err == nil {
		s.fetchLists()
	}
	return err
}

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

// keepUpWith has lists fetched. It is no part of the answer that found them missing.
func (s *Server) keepUpWith(ctx context.Context, lists []storage.RemoteDeviceList) {
	for piece := range slices.Chunk(lists, 500) {
		keys := make([]string, len(piece))
		for i, v := range piece {
			keys[i] = v.User
		}
		err := s.DB.Write(ctx, keys, func(tx storage.Tx) error {
			for _, v := range piece {
				tx.MarkDeviceListStale(v.User, v.Server, now())
			}
			return nil
		})
		if err != nil {
			if ctx.Err() == nil {
				s.Log.Warn("could not note which device lists to fetch", zap.Error(err))
			}
			return
		}
		s.fetchLists()
	}
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

// watchDeviceLists fetches stale lists until ctx ends.
func (s *Server) watchDeviceLists(ctx context.Context) error {
	if s.Peers == nil {
		return nil
	}
	for {
		wait, err := s.fetchDueLists(ctx)
		if err != nil && ctx.Err() == nil {
			s.Log.Warn("fetching device lists failed", zap.Error(err))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-s.stale:
			timer.Stop()
		}
	}
}

// fetchDueLists fetches what is due and says how long the next has time.
func (s *Server) fetchDueLists(ctx context.Context) (wait time.Duration, err error) {
	wait = time.Minute
	for ctx.Err() == nil {
		var due []storage.RemoteDeviceList
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			if due, err = tx.StaleDeviceLists(now(), fetchPiece); err != nil || len(due) > 0 {
				return err
			}
			at, ok, err := tx.NextStaleDeviceList()
			if ok {
				wait = min(wait, max(time.Until(time.UnixMilli(at)), 10*time.Millisecond))
			}
			return err
		})
		if err != nil || len(due) == 0 {
			return wait, err
		}
		var g errgroup.Group
		g.SetLimit(fetchTogether)
		for _, list := range due {
			g.Go(func() error { return s.fetchList(ctx, list) })
		}
		if err := g.Wait(); err != nil {
			return time.Second, err
		}
	}
	return wait, ctx.Err()
}

// fetchList asks for one list and stores it, or when to try again.
func (s *Server) fetchList(ctx context.Context, list storage.RemoteDeviceList) error {
	got, err := s.Peers.UserDevices(ctx, list.Server, id.UserID(list.User))
	if ctx.Err() != nil {
		return nil // not the peer's fault
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

// storeList puts a fetched list in place of what was there. before is how the list stood when it
// was asked for.
func (s *Server) storeList(ctx context.Context, before storage.RemoteDeviceList, got *peer.UserDevices) error {
	user := id.UserID(before.User)
	var devices []storage.DeviceKeys
	for _, d := range got.Devices[:min(len(got.Devices), maxDevices)] {
		if d.ID == "" || len(d.ID) > maxDeviceID || len(d.DisplayName) > 4*maxDeviceName {
			continue
		}
		keys, _, ok := remoteDeviceKeys(user, d.ID, d.Keys)
		if len(d.Keys) > 0 && !ok {
			continue
		}
		devices = append(devices, storage.DeviceKeys{User: before.User, Device: string(d.ID), Keys: keys, Name: d.DisplayName})
	}
	var signing []storage.CrossSigningKey
	for usage, raw := range map[string]json.RawMessage{master: got.MasterKey, selfSigning: got.SelfSigningKey} {
		if k, err := parseCrossSigning(user, usage, raw); err == nil && k != nil {
			signing = append(signing, *k)
		}
	}
	return s.DB.Write(ctx, []string{before.User}, func(tx storage.Tx) error {
		list, ok, err := remoteList(tx, before.User)
		if err != nil || !ok {
			return err // no room is shared any more
		}
		changed, err := listDiffers(tx, before.User, devices, signing)
		if err != nil {
			return err
		}
		tx.DeleteRemoteDevices(before.User)
		for _, d := range devices {
			tx.SetRemoteDevice(d)
		}
		for _, usage := range []string{master, selfSigning} {
			if i := slices.IndexFunc(signing, func(k storage.CrossSigningKey) bool { return k.Usage == usage }); i >= 0 {
				tx.SetCrossSigningKey(signing[i])
			} else {
				tx.DeleteCrossSigningKey(before.User, usage)
			}
		}
		// An update came while we asked, and the answer is from before it: ask again. One that stood
		// before we asked may be of a stream that its server has since begun anew.
		late := list.Stream > got.StreamID && list.Stream != before.Stream
		list.Stale, list.Failures, list.RetryAt = late, 0, now()
		if !late {
			list.Stream = got.StreamID
		}
		tx.SetRemoteDeviceList(list)
		if changed {
			tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: before.User})
		}
		return nil
	})
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

// UserDevices gives all devices of one of our users, as of a place in the stream of updates.
//
// spec: s2s/getUserDevices
func (s *Server) UserDevices(ctx context.Context, user id.UserID) (*peer.UserDevices, error) {
	if !s.IsLocal(user) {
		return nil, chancery.NotFound("this is no user of ours")
	}
	out := &peer.UserDevices{User: user, Devices: []peer.UserDevice{}}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		account, ok, err := tx.Account(string(user))
		if err != nil {
			return err
		}
		if !ok || account.Deactivated {
			return chancery.NotFound("there is no such user")
		}
		if out.StreamID, err = tx.DeviceListUpdate(string(user)); err != nil {
			return err
		}
		devices, err := ownDevices(tx, user)
		if err != nil {
			return err
		}
		for device, d := range devices {
			if d.Keys != nil { // the spec wants keys of every device here
				out.Devices = append(out.Devices, peer.UserDevice{ID: device, Keys: d.Keys, DisplayName: d.Name})
			}
		}
		signing, err := publicSigningKeys(tx, user)
		out.MasterKey, out.SelfSigningKey = signing.Master, signing.SelfSigning
		return err
	})
	return out, err
}

// DeviceListChanges lists the users that share a room with user and whose keys changed after one
// position and up to another, or who came to share one, and those who share none any more. It
// names rather too many than too few: a client asks again for the keys of all of them.
//
// spec: c2s/getKeysChanges
func (s *Server) DeviceListChanges(tx storage.Tx, user id.UserID, after, upTo int64) (changed, left []id.UserID, err error) {
	sharing, err := tx.UsersSharing(string(user))
	if err != nil {
		return nil, nil, err
	}
	shares := map[string]bool{string(user): true}
	for _, u := range sharing {
		shares[u] = true
	}
	now, gone := map[string]bool{}, map[string]bool{}
	lists, err := tx.FactsOfKind(sql.FactDeviceList, after, upTo)
	if err != nil {
		return nil, nil, err
	}
	for _, f := range lists {
		if shares[f.User] && (f.Extra == "" || f.Extra == string(user)) {
			now[f.User] = true
		}
	}
	rooms, err := tx.RoomsOf(string(user), []string{"join", "leave", "ban"})
	if err != nil {
		return nil, nil, err
	}
	nids := make([]int64, len(rooms))
	for i, r := range rooms {
		nids[i] = r.Room
	}
	facts, err := tx.FactsOfRooms(nids, after, upTo)
	if err != nil {
		return nil, nil, err
	}
	met := func(u string) {
		if shares[u] {
			now[u] = true
		} else {
			gone[u] = true
		}
	}
	own := map[int64]bool{}
	for _, f := range facts {
		if f.Kind != sql.FactEvent || f.User == "" {
			continue
		}
		if f.User == string(user) {
			own[f.Room] = true
		} else {
			met(f.User)
		}
	}
	for room := range own { // the user came or went: everybody there
		members, err := tx.Members(room, []string{"join"})
		if err != nil {
			return nil, nil, err
		}
		for _, m := range members {
			met(m.User)
		}
	}
	return sortedUsers(now), sortedUsers(gone), nil
}

func sortedUsers(set map[string]bool) []id.UserID {
	list := make([]id.UserID, 0, len(set))
	for u := range set {
		list = append(list, id.UserID(u))
	}
	slices.Sort(list)
	return list
}
