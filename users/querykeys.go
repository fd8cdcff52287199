package users

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"sync"
	"time"

	"chancery"
	"chancery/federation/peer"
	"chancery/storage"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Peers are the questions about keys that we ask other servers.
type Peers interface {
	UserKeysQuery(ctx context.Context, server string, users map[id.UserID][]id.DeviceID, o peer.Opts) (*peer.UserKeys, error)
	UserKeysClaim(ctx context.Context, server string, devices map[id.UserID]map[id.DeviceID]string, o peer.Opts) (peer.OneTimeKeys, error)
	UserDevices(ctx context.Context, server string, user id.UserID) (*peer.UserDevices, error)
}

// KeyQuery names users, and devices of each; no devices are all.
type KeyQuery map[id.UserID][]id.DeviceID

// Keys answer a KeyQuery.
type Keys struct {
	Failures    map[string]Failure                            `json:"failures"`
	Devices     map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
	Master      map[id.UserID]json.RawMessage                 `json:"master_keys"`
	SelfSigning map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
	UserSigning map[id.UserID]json.RawMessage                 `json:"user_signing_keys,omitempty"`
}

// Failure is why a server did not answer.
type Failure struct {
	Code    chancery.Code `json:"errcode"`
	Message string        `json:"error"`
}

func failureOf(err error) Failure {
	e := chancery.As(err)
	return Failure{e.Code, e.Message}
}

const (
	defaultAsk   = 10 * time.Second
	longestAsk   = 30 * time.Second
	askTogether  = 32  // servers asked at once for one request
	maxUsersAsk  = 250 // users in one question to a server
	maxKeyAnswer = 32 << 20
)

func askTimeout(t time.Duration) time.Duration {
	if t <= 0 {
		return defaultAsk
	}
	return min(t, longestAsk)
}

func newKeys() *Keys {
	return &Keys{
		Failures: map[string]Failure{}, Devices: map[id.UserID]map[id.DeviceID]json.RawMessage{},
		Master: map[id.UserID]json.RawMessage{}, SelfSigning: map[id.UserID]json.RawMessage{}, UserSigning: map[id.UserID]json.RawMessage{},
	}
}

// LocalKeys gives keys of our users as another server may see them.
//
// spec: s2s/queryUserEncryptionKeys
func (s *Server) LocalKeys(ctx context.Context, asked KeyQuery) (*Keys, error) {
	keys := newKeys()
	users := slices.DeleteFunc(slices.Collect(maps.Keys(asked)), func(u id.UserID) bool { return !s.IsLocal(u) })
	if len(users) == 0 {
		return keys, nil
	}
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		_, err := s.readKeys(tx, keys, "", users, asked)
		return err
	})
	return keys, err
}

// QueryKeys gives keys of anybody's devices, with the signatures that viewer may see. Other servers
// are asked for what is not known; those that do not answer in time are named. What they say of all devices of somebody
// whom we meet is kept.
//
// spec: c2s/queryKeys, s2s#device-management
func (s *Server) QueryKeys(ctx context.Context, viewer id.UserID, asked KeyQuery, timeout time.Duration) (*Keys, error) {
	keys := newKeys()
	users := slices.Sorted(maps.Keys(asked))
	if len(users) == 0 {
		return keys, nil
	}
	var signed signatures
	var missing map[string]KeyQuery
	var stale []storage.RemoteDeviceList
	err := s.DB.Read(ctx, func(tx storage.Tx) error {
		known, want, err := s.knownLists(tx, users, asked)
		if err != nil {
			return err
		}
		if signed, err = s.readKeys(tx, keys, viewer, known, asked); err != nil {
			return err
		}
		missing = want
		stale, err = s.metAndUnknown(tx, want)
		return err
	})
	if err != nil {
		return nil, err
	}
	timeout = askTimeout(timeout)
	expected := s.expectLists(ctx, stale, asked, timeout)
	s.askForKeys(ctx, viewer, missing, expected, signed, timeout, keys)
	if len(stale) > 0 {
		s.fetchLists() // those that were not given
	}
	return keys, nil
}

// knownLists parts the users whose devices we know from those we have to ask for, by server.
func (s *Server) knownLists(tx storage.Tx, users []id.UserID, asked KeyQuery) (known []id.UserID, missing map[string]KeyQuery, err error) {
	missing = map[string]KeyQuery{}
	var remote []string
	for _, user := range users {
		if s.IsLocal(user) {
			known = append(known, user)
		} else {
			remote = append(remote, string(user))
		}
	}
	if len(remote) == 0 {
		return known, missing, nil
	}
	lists, err := tx.RemoteDeviceLists(remote)
	if err != nil {
		return nil, nil, err
	}
	devices, err := tx.RemoteDevicesOf(remote)
	if err != nil {
		return nil, nil, err
	}
	// A list of somebody who has just left our last room is still there, and nobody keeps it true.
	met, err := tx.UsersMetBy(s.ServerName, remote)
	if err != nil {
		return nil, nil, err
	}
	has := map[id.UserID]map[id.DeviceID]bool{}
	for _, v := range lists {
		if !v.Stale && slices.Contains(met, v.User) {
			has[id.UserID(v.User)] = map[id.DeviceID]bool{}
		}
	}
	for _, d := range devices {
		if of := has[id.UserID(d.User)]; of != nil {
			of[id.DeviceID(d.Device)] = true
		}
	}
	for _, r := range remote {
		user := id.UserID(r)
		of := has[user]
		// A device that somebody heard of and we did not: the list is asked for again.
		if of != nil && !slices.ContainsFunc(asked[user], func(d id.DeviceID) bool { return !of[d] }) {
			known = append(known, user)
			continue
		}
		server := user.Homeserver()
		if missing[server] == nil {
			missing[server] = KeyQuery{}
		}
		missing[server][user] = asked[user]
	}
	return known, missing, nil
}

// readKeys fills in what is stored of users, and gives all signatures on keys of those asked for.
func (s *Server) readKeys(tx storage.Tx, keys *Keys, viewer id.UserID, users []id.UserID, asked KeyQuery) (signatures, error) {
	all := make([]string, 0, len(asked))
	for user := range asked {
		all = append(all, string(user))
	}
	signed, err := readSignatures(tx, all, viewer)
	if err != nil || len(users) == 0 {
		return signed, err
	}
	var local, remote []string
	for _, user := range users {
		if s.IsLocal(user) {
			local = append(local, string(user))
		} else {
			remote = append(remote, string(user))
		}
	}
	var devices []storage.DeviceKeys
	if len(local) > 0 {
		if devices, err = tx.DeviceKeysOf(local); err != nil {
			return nil, err
		}
	}
	if len(remote) > 0 {
		more, err := tx.RemoteDevicesOf(remote)
		if err != nil {
			return nil, err
		}
		devices = append(devices, more...)
		for _, user := range remote { // known, even if without devices
			keys.Devices[id.UserID(user)] = map[id.DeviceID]json.RawMessage{}
		}
	}
	for _, d := range devices {
		user, device := id.UserID(d.User), id.DeviceID(d.Device)
		if keys.Devices[user] == nil {
			keys.Devices[user] = map[id.DeviceID]json.RawMessage{}
		}
		if d.Keys == nil || (len(asked[user]) > 0 && !slices.Contains(asked[user], device)) {
			continue
		}
		if keys.Devices[user][device], err = withSignatures(d.Keys, signed.on(d.User, d.Device), d.Name); err != nil {
			return nil, err
		}
	}
	crossSigning, err := tx.CrossSigningKeys(append(local, remote...))
	if err != nil {
		return nil, err
	}
	for _, k := range crossSigning {
		user := id.UserID(k.User)
		object, err := withSignatures(k.Key, signed.on(k.User, k.Public), "")
		if err != nil {
			return nil, err
		}
		switch {
		case k.Usage == master:
			keys.Master[user] = object
		case k.Usage == selfSigning:
			keys.SelfSigning[user] = object
		case k.Usage == userSigning && user == viewer:
			keys.UserSigning[user] = object
		}
	}
	return signed, nil
}

// askForKeys asks other servers, all at once, and adds what they say to keys.
func (s *Server) askForKeys(ctx context.Context, viewer id.UserID, missing map[string]KeyQuery, expected map[id.UserID]storage.RemoteDeviceList, signed signatures, timeout time.Duration, keys *Keys) {
	var mu sync.Mutex // guards keys
	s.eachServer(ctx, slices.Sorted(maps.Keys(missing)), timeout, func(ctx context.Context, server string) {
		for _, users := range chunks(missing[server], maxUsersAsk) {
			got, err := s.Peers.UserKeysQuery(ctx, server, users, peer.Opts{Timeout: timeout, MaxBytes: maxKeyAnswer})
			mu.Lock()
			if err != nil {
				keys.Failures[server] = failureOf(err)
			} else {
				addRemoteKeys(keys, viewer, users, got, signed)
			}
			mu.Unlock()
			if err == nil {
				err = s.storeAnswer(ctx, users, expected, got)
			}
			if err != nil {
				return
			}
		}
	}, func(server string, f Failure) {
		mu.Lock()
		defer mu.Unlock()
		keys.Failures[server] = f
	})
}

// eachServer asks servers, some at once, and names those there was nobody to ask or no time for.
func (s *Server) eachServer(ctx context.Context, servers []string, timeout time.Duration, ask func(context.Context, string), failed func(string, Failure)) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	places := make(chan struct{}, askTogether)
	var asking sync.WaitGroup
	defer asking.Wait()
	for _, server := range servers {
		if s.Peers == nil {
			failed(server, Failure{chancery.CodeUnknown, "this server asks no others"})
			continue
		}
		select {
		case places <- struct{}{}:
			asking.Go(func() {
				defer func() {
					if p := recover(); p != nil { // no answer may end the process
						s.Log.Error("panic over an answer about keys", zap.String("server", server), zap.Any("panic", p), zap.Stack("stack"))
						failed(server, Failure{chancery.CodeUnknown, server + " could not be understood"})
					}
					<-places
				}()
				ask(ctx, server)
			})
		case <-ctx.Done():
			failed(server, Failure{chancery.CodeUnknown, "there was no time to ask " + server})
		}
	}
}

func chunks[K ~string, V any](m map[K]V, size int) (parts []map[K]V) {
	for piece := range slices.Chunk(slices.Sorted(maps.Keys(m)), size) {
		part := make(map[K]V, len(piece))
		for _, k := range piece {
			part[k] = m[k]
		}
		parts = append(parts, part)
	}
	return parts
}

// addRemoteKeys takes from a server's answer what it was asked for and what is what it says to be.
func addRemoteKeys(keys *Keys, viewer id.UserID, asked KeyQuery, got *peer.UserKeys, signed signatures) {
	for user, wanted := range asked {
		if devices, ok := got.DeviceKeys[user]; ok {
			keys.Devices[user] = map[id.DeviceID]json.RawMessage{}
			for device, object := range devices {
				if len(wanted) > 0 && !slices.Contains(wanted, device) {
					continue
				}
				checked, name, ok := remoteDeviceKeys(user, device, object)
				if !ok {
					continue
				}
				if shown, err := withSignatures(checked, signed.on(string(user), string(device)), name); err == nil {
					keys.Devices[user][device] = shown
				}
			}
		}
		for usage, of := range map[string]struct{ from, to map[id.UserID]json.RawMessage }{
			master: {got.MasterKeys, keys.Master}, selfSigning: {got.SelfSigningKeys, keys.SelfSigning},
		} {
			if k, err := parseCrossSigning(user, usage, of.from[user]); err == nil && k != nil {
				if shown, err := withSignatures(k.Key, signed.on(string(user), k.Public), ""); err == nil {
					of.to[user] = shown
				}
			}
		}
	}
}

// remoteDeviceKeys checks the keys that a server gives for a device of its user.
func remoteDeviceKeys(user id.UserID, device id.DeviceID, object json.RawMessage) (checked json.RawMessage, name string, ok bool) {
	var says struct {
		Unsigned struct {
			Name string `json:"device_display_name"`
		} `json:"unsigned"`
	}
	_ = peer.Decode(object, &says) // a malformed name is none
	checked, err := checkDeviceKeys(user, device, object)
	return checked, says.Unsigned.Name, err == nil && checked != nil
}

// ClaimKeys takes one-time keys of anybody's devices. Servers that do not answer in time are named.
//
// spec: c2s/claimKeys
func (s *Server) ClaimKeys(ctx context.Context, claims KeyClaims, timeout time.Duration) (peer.OneTimeKeys, map[string]Failure, error) {
	out, err := s.ClaimLocalKeys(ctx, claims)
	if err != nil {
		return nil, nil, err
	}
	failures := map[string]Failure{}
	remote := map[string]KeyClaims{}
	for user, devices := range claims {
		if s.IsLocal(user) {
			continue
		}
		server := user.Homeserver()
		if remote[server] == nil {
			remote[server] = KeyClaims{}
		}
		remote[server][user] = devices
	}
	timeout = askTimeout(timeout)
	var mu sync.Mutex // guards out and failures
	s.eachServer(ctx, slices.Sorted(maps.Keys(remote)), timeout, func(ctx context.Context, server string) {
		got, err := s.Peers.UserKeysClaim(ctx, server, remote[server], peer.Opts{Timeout: timeout, MaxBytes: maxKeyAnswer})
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			failures[server] = failureOf(err)
			return
		}
		for user, devices := range remote[server] {
			for device := range devices {
				if keys := got[user][device]; len(keys) > 0 {
					if out[user] == nil {
						out[user] = map[id.DeviceID]map[string]json.RawMessage{}
					}
					out[user][device] = keys
				}
			}
		}
	}, func(server string, f Failure) {
		mu.Lock()
		defer mu.Unlock()
		failures[server] = f
	})
	return out, failures, nil
}
