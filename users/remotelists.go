package users

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"slices"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// Device lists of other servers' users are kept while a room is shared, and only once somebody
// asked for keys: a room of many thousands is joined without asking for all its members. A list is
// right while every update links to the one before; else it is stale, keys are asked for live,
// and the list is fetched again, later and later while its server does not answer.

const maxDevices = 2_000 // of one remote user that are kept

// ReceiveDeviceList takes an m.device_list_update EDU. When it returns without an error the update
// is in the list, or the list is known to be stale.
//
// spec: s2s#device-management
func (s *Server) ReceiveDeviceList(ctx context.Context, origin string, content json.RawMessage) error {
	var in deviceListUpdate
	if err := peer.Decode(content, &in); err != nil {
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
			// We have it, unless its server begins the stream anew, after a restore of its own: then no later
			// update would ever reach us.
			if has, err := hasUpdate(tx, in, keys); err != nil || has {
				return err
			}
			doubt(tx, list)
			return nil
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
	if err := peer.Decode(content, &in); err != nil {
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
	return s.receiveList(ctx, in.User, len(keys) > 0, func(tx storage.Tx, list storage.RemoteDeviceList) error {
		old, err := tx.CrossSigningKeys([]string{list.User})
		if err != nil {
			return err
		}
		changed, newMaster, newSelf := false, false, false
		for _, k := range keys {
			if slices.ContainsFunc(old, func(o storage.CrossSigningKey) bool { return o.Usage == k.Usage && bytes.Equal(o.Key, k.Key) }) {
				continue // Synapse says it twice
			}
			tx.SetCrossSigningKey(k) // a stale list is fetched with its keys
			changed, newMaster, newSelf = true, newMaster || k.Usage == master, newSelf || k.Usage == selfSigning
		}
		if !changed {
			return nil
		}
		if newMaster && !newSelf && slices.ContainsFunc(old, func(o storage.CrossSigningKey) bool { return o.Usage == selfSigning }) {
			tx.MarkDeviceListStale(list.User, list.Server, now()) // what the old master key has signed is no good any more
		}
		tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: list.User})
		return nil
	})
}

// hasUpdate says whether the list is as an update wants it.
func hasUpdate(tx storage.Tx, in deviceListUpdate, keys json.RawMessage) (bool, error) {
	devices, err := tx.RemoteDevicesOf([]string{string(in.User)})
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(devices, func(d storage.DeviceKeys) bool { return d.Device == string(in.Device) })
	if in.Deleted || i < 0 {
		return in.Deleted == (i < 0), nil
	}
	return bytes.Equal(devices[i].Keys, keys) && devices[i].Name == in.Name, nil
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
		if out.StreamID, _, err = tx.DeviceListUpdate(string(user)); err != nil {
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
	lists, err := tx.FactsOfDeviceLists(after, upTo)
	if err != nil {
		return nil, nil, err
	}
	listed, met := map[string]bool{}, map[string]bool{}
	for _, f := range lists {
		if f.Extra == "" || f.Extra == string(user) {
			listed[f.User] = true
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
	own := map[int64]bool{}
	for _, f := range facts {
		if f.Kind == sql.FactRoomComplete {
			own[f.Room] = true // nearly everybody there was unknown before
			continue
		}
		if !movesMember(f) {
			continue
		}
		if f.User == string(user) {
			own[f.Room] = true
		} else {
			met[f.User] = true
		}
	}
	for room := range own { // the user came or went: everybody there
		members, err := tx.Members(room, []string{"join"})
		if err != nil {
			return nil, nil, err
		}
		for _, m := range members {
			met[m.User] = true
		}
	}
	candidates := maps.Clone(listed)
	maps.Copy(candidates, met)
	sharing, err := tx.SharingAmong(string(user), slices.Collect(maps.Keys(candidates)))
	if err != nil {
		return nil, nil, err
	}
	now, gone := map[string]bool{}, map[string]bool{}
	for _, u := range sharing {
		now[u] = true
	}
	if candidates[string(user)] {
		now[string(user)] = true // alone in no room, but with themself
	}
	for u := range met {
		if !now[u] {
			gone[u] = true
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
