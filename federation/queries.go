package federation

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/roomserver/event"
	"chancery/storage"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

type profileIn struct {
	User  id.UserID `query:"user_id" required:"true"`
	Field string    `query:"field"`
}

// spec: s2s/queryProfile
func (s *Server) profile(ctx context.Context, in *profileIn) (*map[string]json.RawMessage, error) {
	if !event.ValidUserID(string(in.User)) {
		return nil, chancery.InvalidParam("user_id is no user ID")
	}
	if !s.Users.IsLocal(in.User) {
		return nil, chancery.NotFound("this is no user of ours")
	}
	fields, err := s.Users.ProfileOf(ctx, in.User, in.Field)
	return &fields, err
}

type directoryIn struct {
	Alias id.RoomAlias `query:"room_alias" required:"true"`
}

type directoryOut struct {
	Room    id.RoomID `json:"room_id"`
	Servers []string  `json:"servers"`
}

// spec: s2s/queryRoomDirectory
func (s *Server) directory(ctx context.Context, in *directoryIn) (*directoryOut, error) {
	room, servers, err := s.Rooms.LocalAlias(ctx, in.Alias)
	if err != nil {
		return nil, err
	}
	return &directoryOut{room, servers}, nil
}

type infoIn struct {
	Type string `path:"queryType"`
}

// info answers a question that nobody has defined.
//
// spec: s2s/queryInfo
func (s *Server) info(context.Context, *infoIn) (*nothingOut, error) {
	return nil, chancery.Errorf(404, chancery.CodeUnrecognized, "there is no such query")
}

type publicRoomsIn struct {
	Limit      *int   `query:"limit"`
	Since      string `query:"since"`
	ThirdParty string `query:"third_party_instance_id"`
}

type publicRoomsQueryIn struct {
	Body roomserver.DirectoryQuery `body:"json"`
}

// spec: s2s/getPublicRooms
func (s *Server) publicRooms(ctx context.Context, in *publicRoomsIn) (*roomserver.Directory, error) {
	return s.listRooms(ctx, roomserver.DirectoryQuery{Limit: in.Limit, Since: in.Since, ThirdParty: in.ThirdParty})
}

// spec: s2s/queryPublicRooms
func (s *Server) queryPublicRooms(ctx context.Context, in *publicRoomsQueryIn) (*roomserver.Directory, error) {
	return s.listRooms(ctx, in.Body)
}

// listRooms is a page of our directory, if the configuration shows it to other servers. Who names no limit wants none.
func (s *Server) listRooms(ctx context.Context, q roomserver.DirectoryQuery) (d *roomserver.Directory, err error) {
	if !s.Config.Directory.Public {
		return nil, chancery.Forbidden("this server does not show its room directory to others")
	}
	return d, s.DB.Read(ctx, func(tx storage.Tx) (err error) {
		d, err = s.Reader.Directory(tx, q, roomserver.MaxDirectoryPage)
		return err
	})
}

type userDevicesIn struct {
	User id.UserID `path:"userId"`
}

type userDevicesOut struct {
	User           id.UserID         `json:"user_id"`
	StreamID       int64             `json:"stream_id"`
	Devices        []peer.UserDevice `json:"devices"`
	MasterKey      json.RawMessage   `json:"master_key,omitempty"`
	SelfSigningKey json.RawMessage   `json:"self_signing_key,omitempty"`
}

// spec: s2s/getUserDevices
func (s *Server) userDevices(ctx context.Context, in *userDevicesIn) (*userDevicesOut, error) {
	d, err := s.Users.UserDevices(ctx, in.User)
	if err != nil {
		return nil, err
	}
	return &userDevicesOut{d.User, d.StreamID, d.Devices, d.MasterKey, d.SelfSigningKey}, nil
}

type keysClaimIn struct {
	Body struct {
		Keys users.KeyClaims `json:"one_time_keys" required:"true"`
	} `body:"json"`
}

type keysClaimOut struct {
	Keys peer.OneTimeKeys `json:"one_time_keys"`
}

// spec: s2s/claimUserEncryptionKeys
func (s *Server) keysClaim(ctx context.Context, in *keysClaimIn) (*keysClaimOut, error) {
	keys, err := s.Users.ClaimLocalKeys(ctx, in.Body.Keys)
	if err != nil {
		return nil, err
	}
	return &keysClaimOut{keys}, nil
}

type userKeysIn struct {
	Body struct {
		Keys users.KeyQuery `json:"device_keys" required:"true"`
	} `body:"json"`
}

type userKeysOut struct {
	Devices     map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
	Master      map[id.UserID]json.RawMessage                 `json:"master_keys"`
	SelfSigning map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
}

// spec: s2s/queryUserEncryptionKeys
func (s *Server) userKeys(ctx context.Context, in *userKeysIn) (*userKeysOut, error) {
	keys, err := s.Users.LocalKeys(ctx, in.Body.Keys)
	if err != nil {
		return nil, err
	}
	return &userKeysOut{keys.Devices, keys.Master, keys.SelfSigning}, nil
}

type openIDIn struct {
	Token string `query:"access_token"`
}

type openIDOut struct {
	Subject id.UserID `json:"sub"`
}

// spec: s2s/exchangeOpenIdToken
func (s *Server) openID(ctx context.Context, in *openIDIn) (*openIDOut, error) {
	if in.Token == "" {
		return nil, chancery.MissingToken()
	}
	user, ok, err := s.Users.OpenIDUser(ctx, in.Token)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, chancery.Errorf(401, chancery.CodeUnknownToken, "the token is unknown or has expired")
	}
	return &openIDOut{user}, nil
}
