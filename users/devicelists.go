package users

import (
	"context"
	"encoding/json"
	"maps"
	"slices"

	"chancery/storage"
	"chancery/storage/sql"

	"maunium.net/go/mautrix/id"
)

// deviceListUpdate is the content of an m.device_list_update EDU.
//
// spec: s2s#device-management
type deviceListUpdate struct {
	User    id.UserID       `json:"user_id"`
	Device  id.DeviceID     `json:"device_id"`
	Name    string          `json:"device_display_name,omitempty"`
	Stream  int64           `json:"stream_id"`
	Prev    []int64         `json:"prev_id,omitempty"`
	Deleted bool            `json:"deleted,omitempty"`
	Keys    json.RawMessage `json:"keys,omitempty"`
}

// signingKeyUpdate is the content of an m.signing_key_update EDU.
//
// spec: s2s#end-to-end-encryption
type signingKeyUpdate struct {
	User        id.UserID       `json:"user_id"`
	Master      json.RawMessage `json:"master_key,omitempty"`
	SelfSigning json.RawMessage `json:"self_signing_key,omitempty"`
}

// deviceListChanged announces in tx that some of the user's devices are others, have other keys or
// are called otherwise: to the users that share a room, and to their servers.
func deviceListChanged(tx storage.Tx, user id.UserID, devices ...id.DeviceID) error {
	tx.Announce(storage.Fact{Kind: sql.FactDeviceList, User: string(user)})
	servers, err := serversSharing(tx, user)
	if err != nil {
		return err
	}
	return tellDevices(tx, user, devices, servers)
}

// serversSharing lists the other servers that must hear of a user's devices. What others have heard is forgotten: they
// miss what is told now, and are told again when a room is shared again, or turns out to have been all the time.
func serversSharing(tx storage.Tx, user id.UserID) ([]string, error) {
	servers, err := tx.ServersSharing(string(user))
	if err != nil {
		return nil, err
	}
	servers = slices.DeleteFunc(servers, func(s string) bool { return s == user.Homeserver() })
	slices.Sort(servers)
	tx.ForgetServersTold(string(user), servers)
	return servers, nil
}

// tellDevices queues an update of each device for each server. Where many wait only the user's latest is kept:
// it names one before it that the server has not, so the server fetches the list. The sequence goes on also when
// nobody is told: whoever fetches the list later learns where it stands.
func tellDevices(tx storage.Tx, user id.UserID, devices []id.DeviceID, servers []string) error {
	if len(devices) == 0 {
		return nil
	}
	floor, err := tx.MaxPos()
	if err != nil {
		return err
	}
	there, err := ownDevices(tx, user)
	if err != nil {
		return err
	}
	var edus []storage.EDU
	for _, device := range devices {
		stream, prev, err := tx.NextDeviceListUpdate(string(user), floor)
		if err != nil {
			return err
		}
		edu, err := deviceUpdate(user, device, there, stream, prev)
		if err != nil {
			return err
		}
		edus = append(edus, edu)
	}
	for _, server := range servers {
		tx.QueueEDU(server, edus...)
	}
	if len(servers) == 0 {
		return nil
	}
	return tx.SetServersTold(string(user), servers)
}

// deviceUpdate makes the EDU that tells of one device as it is now.
func deviceUpdate(user id.UserID, device id.DeviceID, there map[id.DeviceID]storage.DeviceKeys, stream, prev int64) (storage.EDU, error) {
	u := deviceListUpdate{User: user, Device: device, Stream: stream}
	if prev != 0 {
		u.Prev = []int64{prev}
	}
	if d, ok := there[device]; ok {
		u.Keys, u.Name = d.Keys, d.Name
	} else {
		u.Deleted = true
	}
	content, err := json.Marshal(u)
	return storage.EDU{Type: "m.device_list_update", Content: content, Subject: "m.device_list_update " + string(user)}, err
}

// AnnounceTo tells a server of the device lists of all our users that it meets, since it has missed updates that are
// no more. Each is told of by the newest update again: a server that has all before it passes it over, and one
// that has not fetches the list.
//
// spec: s2s#device-management
func (s *Server) AnnounceTo(ctx context.Context, server string) error {
	for above := ""; ; {
		var users []string
		err := s.DB.Read(ctx, func(tx storage.Tx) (err error) {
			users, err = tx.UsersTold(server, above, epochPiece)
			return err
		})
		if err != nil || len(users) == 0 {
			return err
		}
		for _, user := range users {
			if err := s.DB.Write(ctx, []string{user}, func(tx storage.Tx) error { return announceTo(tx, id.UserID(user), server) }); err != nil {
				return err
			}
		}
		above = users[len(users)-1]
	}
}

func announceTo(tx storage.Tx, user id.UserID, server string) error {
	stream, prev, err := tx.DeviceListUpdate(string(user))
	if err != nil {
		return err
	}
	there, err := ownDevices(tx, user)
	if err != nil || len(there) == 0 || stream == 0 {
		return err
	}
	edu, err := deviceUpdate(user, slices.Min(slices.Collect(maps.Keys(there))), there, stream, prev)
	if err != nil {
		return err
	}
	tx.QueueEDU(server, edu)
	return tellSigningKeys(tx, user, []string{server})
}

// ownDevices gives the devices of one of our users with all signatures that others may see.
func ownDevices(tx storage.Tx, user id.UserID) (map[id.DeviceID]storage.DeviceKeys, error) {
	rows, err := tx.DeviceKeysOf([]string{string(user)})
	if err != nil {
		return nil, err
	}
	signed, err := readSignatures(tx, []string{string(user)}, "")
	if err != nil {
		return nil, err
	}
	there := make(map[id.DeviceID]storage.DeviceKeys, len(rows))
	for _, d := range rows {
		if d.Keys != nil {
			if d.Keys, err = withSignatures(d.Keys, signed.on(d.User, d.Device), ""); err != nil {
				return nil, err
			}
		}
		there[id.DeviceID(d.Device)] = d
	}
	return there, nil
}

// signatures are found by whose key they are on, and which.
type signatures map[[2]string][]storage.KeySignature

func (all signatures) on(user, target string) []storage.KeySignature {
	return all[[2]string{user, target}]
}

// readSignatures reads those on keys of users that everybody may see, and those that viewer made.
func readSignatures(tx storage.Tx, users []string, viewer id.UserID) (signatures, error) {
	rows, err := tx.KeySignatures(users, string(viewer))
	all := signatures{}
	for _, v := range rows {
		at := [2]string{v.User, v.Target}
		all[at] = append(all[at], v)
	}
	return all, err
}

// withSignatures adds signatures and the name that the device has to a key object.
func withSignatures(object json.RawMessage, signatures []storage.KeySignature, name string) (json.RawMessage, error) {
	if len(signatures) == 0 && name == "" {
		return object, nil
	}
	key, err := parseSigned(object)
	if err != nil {
		return nil, err
	}
	for _, v := range signatures {
		key.sign(id.UserID(v.Signer), v.SignerKey, v.Signature)
	}
	if name != "" {
		unsigned, err := json.Marshal(map[string]string{"device_display_name": name})
		if err != nil {
			return nil, err
		}
		key.members["unsigned"] = unsigned
	}
	return key.encode()
}
