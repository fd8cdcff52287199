package keys

import (
	"context"
	"encoding/json"
	"strconv"

	"chancery"
	"chancery/endpoint"
	"chancery/storage"
	"chancery/users"
)

type NewBackupIn struct {
	Caller endpoint.Caller
	Body   struct {
		Algorithm string          `json:"algorithm" required:"true"`
		AuthData  json.RawMessage `json:"auth_data" required:"true"`
	} `body:"json"`
}

type NewBackupOut struct {
	Version string `json:"version"`
}

// NewBackup begins a new version of the caller's key backup.
//
// spec: c2s/postRoomKeysVersion
func (a *API) NewBackup(ctx context.Context, in *NewBackupIn) (*NewBackupOut, error) {
	version, err := a.Users.NewBackup(ctx, in.Caller.User, in.Body.Algorithm, in.Body.AuthData)
	if err != nil {
		return nil, err
	}
	return &NewBackupOut{version}, nil
}

type CurrentIn struct {
	Caller endpoint.Caller
}

type BackupOut struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Count     int64           `json:"count"`
	ETag      string          `json:"etag"`
	Version   string          `json:"version"`
}

// CurrentBackup tells of the current version.
//
// spec: c2s/getRoomKeysVersionCurrent
func (a *API) CurrentBackup(ctx context.Context, in *CurrentIn) (*BackupOut, error) {
	return a.backup(ctx, in.Caller, "")
}

type BackupIn struct {
	Caller  endpoint.Caller
	Version string `path:"version"`
}

// Backup tells of one version.
//
// spec: c2s/getRoomKeysVersion
func (a *API) Backup(ctx context.Context, in *BackupIn) (*BackupOut, error) {
	if in.Version == "" {
		return nil, chancery.NotFound("there is no such backup version")
	}
	return a.backup(ctx, in.Caller, in.Version)
}

func (a *API) backup(ctx context.Context, c endpoint.Caller, version string) (*BackupOut, error) {
	b, err := a.Users.Backup(ctx, c.User, version)
	if err != nil {
		return nil, err
	}
	return &BackupOut{
		Algorithm: b.Algorithm, AuthData: b.AuthData, Count: b.Count,
		ETag: strconv.FormatInt(b.ETag, 10), Version: strconv.FormatInt(b.Version, 10),
	}, nil
}

type UpdateBackupIn struct {
	Caller  endpoint.Caller
	Version string `path:"version"`
	Body    struct {
		Algorithm string          `json:"algorithm" required:"true"`
		AuthData  json.RawMessage `json:"auth_data" required:"true"`
		Version   *string         `json:"version"`
	} `body:"json"`
}

// UpdateBackup gives a version other auth data.
//
// spec: c2s/putRoomKeysVersion
func (a *API) UpdateBackup(ctx context.Context, in *UpdateBackupIn) (*None, error) {
	if in.Body.Version != nil && *in.Body.Version != in.Version {
		return nil, chancery.InvalidParam("the version in the body is not the one in the path")
	}
	if in.Version == "" {
		return nil, chancery.NotFound("there is no such backup version")
	}
	return nil, a.Users.UpdateBackup(ctx, in.Caller.User, in.Version, in.Body.Algorithm, in.Body.AuthData)
}

// DeleteBackup removes a version with its keys.
//
// spec: c2s/deleteRoomKeysVersion
func (a *API) DeleteBackup(ctx context.Context, in *BackupIn) (*None, error) {
	return nil, a.Users.DeleteBackup(ctx, in.Caller.User, in.Version)
}

// session is a key as clients send and get it.
type session struct {
	FirstIndex  *int64          `json:"first_message_index"`
	Forwarded   *int64          `json:"forwarded_count"`
	Verified    *bool           `json:"is_verified"`
	SessionData json.RawMessage `json:"session_data"`
}

var errNoKey = chancery.NotFound("there is no such key in the backup")

type roomSessions struct {
	Sessions map[string]session `json:"sessions"`
}

func show(v storage.BackedUpSession) session {
	return session{&v.FirstIndex, &v.Forwarded, &v.Verified, v.EncryptedKey}
}

func (s session) stored(room, sessionID string) (storage.BackedUpSession, error) {
	if s.FirstIndex == nil || s.Forwarded == nil || s.Verified == nil || s.SessionData == nil {
		return storage.BackedUpSession{}, chancery.BadJSON("a key needs first_message_index, forwarded_count, is_verified and session_data")
	}
	return storage.BackedUpSession{
		Room: room, Session: sessionID, FirstIndex: *s.FirstIndex, Forwarded: *s.Forwarded, Verified: *s.Verified, EncryptedKey: s.SessionData,
	}, nil
}

// KeysIn names all keys of a version.
type KeysIn struct {
	Caller  endpoint.Caller
	Version string `query:"version" required:"true"`
}

// RoomIn names those of a room.
type RoomIn struct {
	KeysIn
	Room string `path:"roomId"`
}

// SessionIn names one.
type SessionIn struct {
	RoomIn
	Session string `path:"sessionId"`
}

func (w KeysIn) put(ctx context.Context, a *API, rooms map[string]map[string]session) (*users.BackupState, error) {
	var list []storage.BackedUpSession
	for room, sessions := range rooms {
		for sessionID, s := range sessions {
			v, err := s.stored(room, sessionID)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
	}
	state, err := a.Users.PutBackup(ctx, w.Caller.User, w.Version, list)
	return &state, err
}

type PutSessionIn struct {
	SessionIn
	Body session `body:"json"`
}

// PutSession stores one key.
//
// spec: c2s/putRoomKeyBySessionId
func (a *API) PutSession(ctx context.Context, in *PutSessionIn) (*users.BackupState, error) {
	return in.put(ctx, a, map[string]map[string]session{in.Room: {in.Session: in.Body}})
}

type PutRoomIn struct {
	RoomIn
	Body struct {
		Sessions map[string]session `json:"sessions" required:"true"`
	} `body:"json"`
}

// PutRoom stores keys of a room.
//
// spec: c2s/putRoomKeysByRoomId
func (a *API) PutRoom(ctx context.Context, in *PutRoomIn) (*users.BackupState, error) {
	return in.put(ctx, a, map[string]map[string]session{in.Room: in.Body.Sessions})
}

type PutAllIn struct {
	KeysIn
	Body struct {
		Rooms map[string]roomSessions `json:"rooms" required:"true"`
	} `body:"json"`
}

// PutAll stores keys of rooms.
//
// spec: c2s/putRoomKeys
func (a *API) PutAll(ctx context.Context, in *PutAllIn) (*users.BackupState, error) {
	rooms := make(map[string]map[string]session, len(in.Body.Rooms))
	for room, v := range in.Body.Rooms {
		rooms[room] = v.Sessions
	}
	return in.put(ctx, a, rooms)
}

// GetSession gives one key.
//
// spec: c2s/getRoomKeyBySessionId
func (a *API) GetSession(ctx context.Context, in *SessionIn) (*session, error) {
	list, err := a.Users.BackedUp(ctx, in.Caller.User, in.Version, in.Room, in.Session)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || in.Room == "" || in.Session == "" {
		return nil, errNoKey
	}
	out := show(list[0])
	return &out, nil
}

// GetRoom gives the keys of a room.
//
// spec: c2s/getRoomKeysByRoomId
func (a *API) GetRoom(ctx context.Context, in *RoomIn) (*roomSessions, error) {
	if in.Room == "" {
		return nil, errNoKey // and not those of all rooms
	}
	list, err := a.Users.BackedUp(ctx, in.Caller.User, in.Version, in.Room, "")
	if err != nil {
		return nil, err
	}
	out := &roomSessions{Sessions: make(map[string]session, len(list))}
	for _, v := range list {
		out.Sessions[v.Session] = show(v)
	}
	return out, nil
}

type AllOut struct {
	Rooms map[string]roomSessions `json:"rooms"`
}

// GetAll gives all keys.
//
// spec: c2s/getRoomKeys
func (a *API) GetAll(ctx context.Context, in *KeysIn) (*AllOut, error) {
	list, err := a.Users.BackedUp(ctx, in.Caller.User, in.Version, "", "")
	if err != nil {
		return nil, err
	}
	out := &AllOut{Rooms: map[string]roomSessions{}}
	for _, v := range list {
		if out.Rooms[v.Room].Sessions == nil {
			out.Rooms[v.Room] = roomSessions{Sessions: map[string]session{}}
		}
		out.Rooms[v.Room].Sessions[v.Session] = show(v)
	}
	return out, nil
}

// DeleteSession removes one key.
//
// spec: c2s/deleteRoomKeyBySessionId
func (a *API) DeleteSession(ctx context.Context, in *SessionIn) (*users.BackupState, error) {
	if in.Room == "" || in.Session == "" {
		return nil, errNoKey
	}
	return a.drop(ctx, in.KeysIn, in.Room, in.Session)
}

// DeleteRoom removes the keys of a room.
//
// spec: c2s/deleteRoomKeysByRoomId
func (a *API) DeleteRoom(ctx context.Context, in *RoomIn) (*users.BackupState, error) {
	if in.Room == "" {
		return nil, errNoKey
	}
	return a.drop(ctx, in.KeysIn, in.Room, "")
}

// DeleteAll removes all keys; the version stays.
//
// spec: c2s/deleteRoomKeys
func (a *API) DeleteAll(ctx context.Context, in *KeysIn) (*users.BackupState, error) {
	return a.drop(ctx, *in, "", "")
}

func (a *API) drop(ctx context.Context, in KeysIn, room, session string) (*users.BackupState, error) {
	state, err := a.Users.DeleteBackedUp(ctx, in.Caller.User, in.Version, room, session)
	return &state, err
}
