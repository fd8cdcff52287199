package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"
)

// Transaction carries our events and ephemeral data to a peer.
//
// spec: s2s#transactions
type Transaction struct {
	Origin string            `json:"origin"`
	TS     int64             `json:"origin_server_ts"`
	PDUs   []json.RawMessage `json:"pdus"`
	EDUs   []EDU             `json:"edus,omitempty"`
}

// EDU is one piece of ephemeral data.
//
// spec: s2s#edus
type EDU struct {
	Type    string          `json:"edu_type"`
	Content json.RawMessage `json:"content"`
}

// SendTransaction delivers a transaction; the answer says which events the peer did not want and
// why. The same txnID may be sent again until it is answered.
//
// spec: s2s/sendTransaction
func (c *Client) SendTransaction(ctx context.Context, destination, txnID string, txn Transaction, o Opts) (refused map[id.EventID]string, err error) {
	txn.Origin = c.name
	if txn.PDUs == nil {
		txn.PDUs = []json.RawMessage{}
	}
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	o.mustAccept = true
	var out map[string]json.RawMessage
	if err := c.Do(ctx, destination, "PUT", at(v1, "send", txnID), txn, &out, o); err != nil {
		return nil, err
	}
	// Any object says that the transaction was taken. What it says of single events only informs, and must not
	// keep all that comes after waiting when it is put strangely.
	var results map[id.EventID]json.RawMessage
	_ = json.Unmarshal(out["pdus"], &results)
	refused = map[id.EventID]string{}
	for event, raw := range results {
		var result struct {
			Error string `json:"error"`
		}
		if json.Unmarshal(raw, &result) != nil {
			result.Error = "no proper result"
		}
		if result.Error != "" {
			refused[event] = result.Error
		}
	}
	return refused, nil
}

// QueryProfile asks for a user's profile, or one field of it.
//
// spec: s2s/queryProfile
func (c *Client) QueryProfile(ctx context.Context, destination string, user id.UserID, field string) (map[string]json.RawMessage, error) {
	query := url.Values{"user_id": {string(user)}}
	if field != "" {
		query.Set("field", field)
	}
	var out map[string]json.RawMessage
	err := c.Do(ctx, destination, "GET", withQuery(v1+"query/profile", query), nil, &out, Opts{Timeout: 10 * time.Second, MaxBytes: 256 << 10})
	return out, err
}

// QueryDirectory asks which room an alias means, and who is in it.
//
// spec: s2s/queryRoomDirectory
func (c *Client) QueryDirectory(ctx context.Context, destination string, alias id.RoomAlias) (room id.RoomID, servers []string, err error) {
	var out struct {
		Room    id.RoomID `json:"room_id"`
		Servers []string  `json:"servers"`
	}
	query := url.Values{"room_alias": {string(alias)}}
	err = c.Do(ctx, destination, "GET", withQuery(v1+"query/directory", query), nil, &out, Opts{Timeout: 15 * time.Second, MaxBytes: 1 << 20})
	return out.Room, out.Servers, err
}

// UserKeys are the device and cross-signing keys of users.
type UserKeys struct {
	DeviceKeys      map[id.UserID]map[id.DeviceID]json.RawMessage `json:"device_keys"`
	MasterKeys      map[id.UserID]json.RawMessage                 `json:"master_keys"`
	SelfSigningKeys map[id.UserID]json.RawMessage                 `json:"self_signing_keys"`
}

// UserKeysQuery asks for the keys of users' devices; an empty list means all devices.
//
// spec: s2s/queryUserEncryptionKeys
func (c *Client) UserKeysQuery(ctx context.Context, destination string, users map[id.UserID][]id.DeviceID, o Opts) (*UserKeys, error) {
	asked := make(map[id.UserID][]id.DeviceID, len(users))
	for user, devices := range users {
		asked[user] = append([]id.DeviceID{}, devices...) // never null
	}
	out := &UserKeys{}
	body := map[string]any{"device_keys": asked}
	return out, c.Do(ctx, destination, "POST", v1+"user/keys/query", body, out, o)
}

// OneTimeKeys are claimed keys: by user, device, and key ID.
type OneTimeKeys map[id.UserID]map[id.DeviceID]map[string]json.RawMessage

// UserKeysClaim takes one key of the given algorithm for each device.
//
// spec: s2s/claimUserEncryptionKeys
func (c *Client) UserKeysClaim(ctx context.Context, destination string, devices map[id.UserID]map[id.DeviceID]string, o Opts) (OneTimeKeys, error) {
	var out struct {
		Keys OneTimeKeys `json:"one_time_keys"`
	}
	err := c.Do(ctx, destination, "POST", v1+"user/keys/claim", map[string]any{"one_time_keys": devices}, &out, o)
	return out.Keys, err
}

// UserDevices are all devices of a user, as of a place in that user's device list stream.
type UserDevices struct {
	User           id.UserID       `json:"user_id"`
	StreamID       int64           `json:"stream_id"`
	Devices        []UserDevice    `json:"devices"`
	MasterKey      json.RawMessage `json:"master_key"`
	SelfSigningKey json.RawMessage `json:"self_signing_key"`
}

// UserDevice is one of them.
type UserDevice struct {
	ID          id.DeviceID     `json:"device_id"`
	Keys        json.RawMessage `json:"keys"`
	DisplayName string          `json:"device_display_name"`
}

// UserDevices asks for all devices of a user.
//
// spec: s2s/getUserDevices
func (c *Client) UserDevices(ctx context.Context, destination string, user id.UserID) (*UserDevices, error) {
	out := &UserDevices{}
	return out, c.Do(ctx, destination, "GET", at(v1, "user/devices", string(user)), nil, out, Opts{})
}

// PublicRoomsQuery chooses from a peer's room directory.
type PublicRoomsQuery struct {
	Limit              int             `json:"limit,omitempty"`
	Since              string          `json:"since,omitempty"`
	Filter             json.RawMessage `json:"filter,omitempty"`
	IncludeAllNetworks bool            `json:"include_all_networks,omitempty"`
	ThirdPartyInstance string          `json:"third_party_instance_id,omitempty"`
}

// PublicRooms is one page of it.
type PublicRooms struct {
	Chunk     []json.RawMessage `json:"chunk"`
	NextBatch string            `json:"next_batch,omitempty"`
	PrevBatch string            `json:"prev_batch,omitempty"`
	Total     *int64            `json:"total_room_count_estimate,omitempty"`
}

// PublicRooms asks for a page of a peer's room directory.
//
// spec: s2s/queryPublicRooms
func (c *Client) PublicRooms(ctx context.Context, destination string, in PublicRoomsQuery) (*PublicRooms, error) {
	out := &PublicRooms{}
	if in.Filter != nil {
		return out, c.Do(ctx, destination, "POST", v1+"publicRooms", in, out, Opts{})
	}
	query := url.Values{}
	if in.Limit > 0 {
		query.Set("limit", strconv.Itoa(in.Limit))
	}
	if in.Since != "" {
		query.Set("since", in.Since)
	}
	if in.IncludeAllNetworks {
		query.Set("include_all_networks", "true")
	}
	if in.ThirdPartyInstance != "" {
		query.Set("third_party_instance_id", in.ThirdPartyInstance)
	}
	// spec: s2s/getPublicRooms; the older of the two, which every server has
	return out, c.Do(ctx, destination, "GET", withQuery(v1+"publicRooms", query), nil, out, Opts{})
}

// Hierarchy is a space as a peer sees it.
type Hierarchy struct {
	Room         json.RawMessage   `json:"room"`
	Children     []json.RawMessage `json:"children"`
	Inaccessible []id.RoomID       `json:"inaccessible_children"`
}

// Hierarchy asks for a space and the rooms in it.
//
// spec: s2s/getSpaceHierarchy
func (c *Client) Hierarchy(ctx context.Context, destination string, room id.RoomID, o Opts) (*Hierarchy, error) {
	out := &Hierarchy{}
	return out, c.Do(ctx, destination, "GET", at(v1, "hierarchy", string(room)), nil, out, o)
}

// PolicySign asks a policy server to sign an event, and gives its signatures.
//
// spec: s2s/askPolicyServerToSign
func (c *Client) PolicySign(ctx context.Context, destination string, event json.RawMessage) (Signatures, error) {
	var out Signatures
	return out, c.Do(ctx, destination, "POST", "/_matrix/policy/v1/sign", event, &out, Opts{MaxBytes: 64 << 10})
}

// OpenIDUserinfo asks whose OpenID token this is. A server vouches for its own users only.
//
// spec: s2s/exchangeOpenIdToken
func (c *Client) OpenIDUserinfo(ctx context.Context, destination, token string) (id.UserID, error) {
	var out struct {
		Subject id.UserID `json:"sub"`
	}
	query := url.Values{"access_token": {token}}
	err := c.Do(ctx, destination, "GET", withQuery(v1+"openid/userinfo", query), nil, &out, Opts{Unsigned: true, MaxBytes: 64 << 10})
	if err == nil && out.Subject.Homeserver() != destination {
		return "", unreachable(destination, fmt.Errorf("it vouches for %.300q, who is no user of its own", out.Subject))
	}
	return out.Subject, err
}

// Version asks what software a peer runs.
//
// spec: s2s/getVersion
func (c *Client) Version(ctx context.Context, destination string) (name, version string, err error) {
	var out struct {
		Server struct {
			Name    string `json:"name"`
			Version string `json:"version"`
		} `json:"server"`
	}
	err = c.Do(ctx, destination, "GET", v1+"version", nil, &out, Opts{Unsigned: true, MaxBytes: 64 << 10})
	return out.Server.Name, out.Server.Version, err
}
