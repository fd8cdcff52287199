package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"maunium.net/go/mautrix/id"

	"chancery"
)

const (
	v1 = "/_matrix/federation/v1/"
	v2 = "/_matrix/federation/v2/"

	joinTimeout = 10 * time.Minute // a large room's state is computed before the first byte arrives
	stateBytes  = 512 << 20
)

// at builds an escaped path from segments that may hold anything.
func at(prefix, endpoint string, segments ...string) string {
	path := prefix + endpoint
	for _, segment := range segments {
		path += "/" + url.PathEscape(segment)
	}
	return path
}

func withQuery(path string, query url.Values) string {
	if len(query) == 0 {
		return path
	}
	return path + "?" + query.Encode()
}

// Template is an event that a resident server made for us to finish and sign.
type Template struct {
	RoomVersion id.RoomVersion  `json:"room_version"`
	Event       json.RawMessage `json:"event"`
}

func (c *Client) template(ctx context.Context, destination, endpoint string, room id.RoomID, user id.UserID, versions []id.RoomVersion) (*Template, error) {
	query := url.Values{}
	for _, version := range versions {
		query.Add("ver", string(version))
	}
	out := &Template{}
	path := withQuery(at(v1, endpoint, string(room), string(user)), query)
	if err := c.Do(ctx, destination, "GET", path, nil, out, Opts{}); err != nil {
		return nil, err
	}
	if len(out.Event) == 0 || out.Event[0] != '{' {
		return nil, unreachable(destination, fmt.Errorf("%s answered without an event", endpoint))
	}
	if out.RoomVersion == "" {
		out.RoomVersion = "1" // spec: s2s/makeJoin, "if not provided, the room version is assumed to be 1 or 2"
	}
	return out, nil
}

// MakeJoin asks for a join event to sign; versions are the room versions we can be in.
//
// spec: s2s/makeJoin
func (c *Client) MakeJoin(ctx context.Context, destination string, room id.RoomID, user id.UserID, versions []id.RoomVersion) (*Template, error) {
	return c.template(ctx, destination, "make_join", room, user, versions)
}

// MakeKnock asks for a knock event to sign.
//
// spec: s2s/makeKnock
func (c *Client) MakeKnock(ctx context.Context, destination string, room id.RoomID, user id.UserID, versions []id.RoomVersion) (*Template, error) {
	return c.template(ctx, destination, "make_knock", room, user, versions)
}

// MakeLeave asks for a leave event to sign.
//
// spec: s2s/makeLeave
func (c *Client) MakeLeave(ctx context.Context, destination string, room id.RoomID, user id.UserID) (*Template, error) {
	return c.template(ctx, destination, "make_leave", room, user, nil)
}

// Joined is the room as the resident server gives it to us.
type Joined struct {
	Event          json.RawMessage // with the resident server's signature, in restricted rooms; may be empty
	State          []json.RawMessage
	AuthChain      []json.RawMessage
	MembersOmitted bool
	Servers        []string // with MembersOmitted: who is in the room
}

// SendJoin hands in the signed join event.
//
// spec: s2s/sendJoinV2
func (c *Client) SendJoin(ctx context.Context, destination string, room id.RoomID, event id.EventID, signed json.RawMessage, omitMembers bool) (*Joined, error) {
	path := at(v2, "send_join", string(room), string(event))
	if omitMembers {
		path += "?omit_members=true"
	}
	out := &Joined{}
	return out, c.stream(ctx, destination, "PUT", path, signed,
		lists{"state": into(&out.State), "auth_chain": into(&out.AuthChain)},
		map[string]any{"event": &out.Event, "members_omitted": &out.MembersOmitted, "servers_in_room": &out.Servers})
}

// lists say by name what to do with each element of a list.
type lists = map[string]func(json.RawMessage) error

// stream makes a request whose answer may be a whole room.
func (c *Client) stream(ctx context.Context, destination, method, path string, body any, each lists, others map[string]any) error {
	answer, err := c.Stream(ctx, destination, method, path, body, Opts{Timeout: joinTimeout, MaxBytes: stateBytes})
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if err := decodeObject(answer.Body, each, others); err != nil {
		return unreachable(destination, fmt.Errorf("decode the answer: %w", err))
	}
	return nil
}

// SendLeave hands in the signed leave event.
//
// spec: s2s/sendLeaveV2
func (c *Client) SendLeave(ctx context.Context, destination string, room id.RoomID, event id.EventID, signed json.RawMessage) error {
	return c.Do(ctx, destination, "PUT", at(v2, "send_leave", string(room), string(event)), signed, nil, Opts{})
}

// SendKnock hands in the signed knock event and gives the stripped state of the room.
//
// spec: s2s/sendKnock
func (c *Client) SendKnock(ctx context.Context, destination string, room id.RoomID, event id.EventID, signed json.RawMessage) (state []json.RawMessage, err error) {
	var out struct {
		State []json.RawMessage `json:"knock_room_state"`
	}
	err = c.Do(ctx, destination, "PUT", at(v1, "send_knock", string(room), string(event)), signed, &out, Opts{})
	return out.State, err
}

// Invite is what the invited user's server is told.
type Invite struct {
	RoomVersion id.RoomVersion    `json:"room_version"`
	Event       json.RawMessage   `json:"event"`
	State       []json.RawMessage `json:"invite_room_state"`
}

// Invite offers the event to the invited user's server, and gives it back with that server's
// signature. An old server may know only the first version of the endpoint, and the first two of rooms.
//
// spec: s2s/sendInviteV2
func (c *Client) Invite(ctx context.Context, destination string, room id.RoomID, event id.EventID, invite Invite) (json.RawMessage, error) {
	if invite.State == nil {
		invite.State = []json.RawMessage{}
	}
	type signed struct {
		Event json.RawMessage `json:"event"`
	}
	var out signed
	err := c.Do(ctx, destination, "PUT", at(v2, "invite", string(room), string(event)), invite, &out, Opts{})
	if unknownEndpoint(err) && (invite.RoomVersion == "1" || invite.RoomVersion == "2") {
		var old []json.RawMessage // [200, {"event": ...}], spec: s2s/sendInviteV1
		err = c.Do(ctx, destination, "PUT", at(v1, "invite", string(room), string(event)), invite.Event, &old, Opts{})
		if err == nil && (len(old) != 2 || Decode(old[1], &out) != nil) {
			err = unreachable(destination, fmt.Errorf("the answer is not that of the endpoint's first version"))
		}
	}
	if err != nil {
		return nil, err
	}
	if len(out.Event) == 0 || out.Event[0] != '{' {
		return nil, unreachable(destination, fmt.Errorf("the answer holds no event"))
	}
	return out.Event, nil
}

// unknownEndpoint says whether the peer does not have the endpoint.
//
// spec: s2s#unsupported-endpoints
func unknownEndpoint(err error) bool {
	e, ok := err.(*Error)
	if !ok {
		return false
	}
	return e.Code == chancery.CodeUnrecognized ||
		e.Code == "" && (e.Status == http.StatusNotFound || e.Status == http.StatusMethodNotAllowed)
}

// State is the room's state before an event, with its auth chain.
type State struct {
	PDUs      []json.RawMessage
	AuthChain []json.RawMessage
}

// GetState asks for the state before an event.
//
// spec: s2s/getRoomState
func (c *Client) GetState(ctx context.Context, destination string, room id.RoomID, event id.EventID) (*State, error) {
	out := &State{}
	path := withQuery(at(v1, "state", string(room)), url.Values{"event_id": {string(event)}})
	return out, c.stream(ctx, destination, "GET", path, nil,
		lists{"pdus": into(&out.PDUs), "auth_chain": into(&out.AuthChain)}, nil)
}

// StreamState is GetState for a state that may be too large to hold: each event is given as it arrives, of the state
// and of its auth chain in whatever order. An error of each ends the request.
//
// spec: s2s/getRoomState
func (c *Client) StreamState(ctx context.Context, destination string, room id.RoomID, event id.EventID, each func(json.RawMessage) error) error {
	path := withQuery(at(v1, "state", string(room)), url.Values{"event_id": {string(event)}})
	return c.stream(ctx, destination, "GET", path, nil, lists{"pdus": each, "auth_chain": each}, nil)
}

// StateIDs names the state before an event, and its auth chain.
type StateIDs struct {
	PDUs      []id.EventID `json:"pdu_ids"`
	AuthChain []id.EventID `json:"auth_chain_ids"`
}

// GetStateIDs asks for the names of the state before an event.
//
// spec: s2s/getRoomStateIds
func (c *Client) GetStateIDs(ctx context.Context, destination string, room id.RoomID, event id.EventID) (*StateIDs, error) {
	out := &StateIDs{}
	path := withQuery(at(v1, "state_ids", string(room)), url.Values{"event_id": {string(event)}})
	return out, c.Do(ctx, destination, "GET", path, nil, out, Opts{Timeout: 2 * time.Minute, MaxBytes: 64 << 20})
}

type pdus struct {
	PDUs []json.RawMessage `json:"pdus"`
}

// GetEvent asks for one event.
//
// spec: s2s/getEvent
func (c *Client) GetEvent(ctx context.Context, destination string, event id.EventID) (json.RawMessage, error) {
	var out pdus
	if err := c.Do(ctx, destination, "GET", at(v1, "event", string(event)), nil, &out, Opts{}); err != nil {
		return nil, err
	}
	if len(out.PDUs) != 1 {
		return nil, unreachable(destination, fmt.Errorf("the answer holds %d events, not one", len(out.PDUs)))
	}
	return out.PDUs[0], nil
}

// GetEventAuth asks for the auth chain of an event.
//
// spec: s2s/getEventAuth
func (c *Client) GetEventAuth(ctx context.Context, destination string, room id.RoomID, event id.EventID) ([]json.RawMessage, error) {
	var chain []json.RawMessage
	err := c.stream(ctx, destination, "GET", at(v1, "event_auth", string(room), string(event)), nil,
		lists{"auth_chain": into(&chain)}, nil)
	return chain, err
}

// Backfill asks for events before those of from, these included.
//
// spec: s2s/backfillRoom
func (c *Client) Backfill(ctx context.Context, destination string, room id.RoomID, limit int, from []id.EventID) ([]json.RawMessage, error) {
	query := url.Values{"limit": {strconv.Itoa(limit)}}
	for _, event := range from {
		query.Add("v", string(event))
	}
	var out pdus
	err := c.Do(ctx, destination, "GET", withQuery(at(v1, "backfill", string(room)), query), nil, &out, Opts{Timeout: time.Minute, MaxBytes: 64 << 20})
	return out.PDUs, err
}

// MissingEvents asks for what lies between events we have and events we were sent.
type MissingEvents struct {
	Earliest []id.EventID `json:"earliest_events"`
	Latest   []id.EventID `json:"latest_events"`
	Limit    int          `json:"limit,omitempty"`
	MinDepth int64        `json:"min_depth,omitempty"`
}

// GetMissingEvents asks for a gap's events.
//
// spec: s2s/getMissingPreviousEvents
func (c *Client) GetMissingEvents(ctx context.Context, destination string, room id.RoomID, in MissingEvents) ([]json.RawMessage, error) {
	if in.Earliest == nil {
		in.Earliest = []id.EventID{}
	}
	var out struct {
		Events []json.RawMessage `json:"events"`
	}
	err := c.Do(ctx, destination, "POST", at(v1, "get_missing_events", string(room)), in, &out, Opts{})
	return out.Events, err
}

// TimestampToEvent asks for the event nearest to a time; direction is "f" or "b".
//
// spec: s2s/getEventByTimestamp
func (c *Client) TimestampToEvent(ctx context.Context, destination string, room id.RoomID, ts int64, direction string) (event id.EventID, eventTS int64, err error) {
	var out struct {
		Event id.EventID `json:"event_id"`
		TS    int64      `json:"origin_server_ts"`
	}
	query := url.Values{"ts": {strconv.FormatInt(ts, 10)}, "dir": {direction}}
	err = c.Do(ctx, destination, "GET", withQuery(at(v1, "timestamp_to_event", string(room)), query), nil, &out, Opts{})
	return out.Event, out.TS, err
}
