package roomserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"chancery"
	"chancery/federation/peer"
	"chancery/roomserver/event"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// strippedOf makes the stripped state that our user sees from the state that came with an invite, or with the answer to
// a knock. From version 12 on the room's ID says nothing of who made the room, so there every piece must be a whole event of
// the room, validly signed, and the create event among them: an invite without is refused, and of the state for a knock
// what is wrong is left out, since the knock is sent already. In older versions pieces may be stripped already.
//
// spec: s2s/sendInviteV2, msc4311
func (s *Server) strippedOf(ctx context.Context, version *event.Version, roomID id.RoomID, state []json.RawMessage, leaveOut bool) (json.RawMessage, error) {
	if len(state) > maxStrippedEvents {
		return nil, chancery.TooLarge("the state of the room is too large")
	}
	if !version.RoomIDIsCreateHash {
		return looselyStripped(version, roomID, state)
	}
	var events []*event.Event
	for _, raw := range state {
		ev, err := event.Parse(version, raw)
		if err == nil && isStateOf(ev, roomID) {
			events = append(events, ev)
		} else if !leaveOut {
			return nil, chancery.InvalidParam("what comes with the invite is not all state of its room").Because(err)
		}
	}
	out := make([]json.RawMessage, 0, len(events))
	hasCreate := false
	for i, err := range s.verify(ctx, events) {
		isCreate := events[i].IsState("m.room.create", "")
		switch {
		case err == nil:
			out = append(out, events[i].Stripped())
			hasCreate = hasCreate || isCreate
		case !leaveOut && (isCreate || errors.Is(err, peer.ErrBadSignature)):
			return nil, chancery.InvalidParam("the state that comes with the invite is not validly signed").Because(err)
		}
		// Of whom no key can be had now, what they said of the room is left out.
	}
	if !hasCreate && !leaveOut {
		return nil, chancery.InvalidParam("the invite's state has not the room's create event")
	}
	return json.Marshal(out)
}

func isStateOf(ev *event.Event, roomID id.RoomID) bool {
	_, isState := ev.StateKey()
	return isState && ev.RoomID() == roomID
}

// More pieces of state than this nobody needs to know a room by.
const maxStrippedEvents = 100

// looselyStripped takes what is an event of the room, or stripped already.
func looselyStripped(version *event.Version, roomID id.RoomID, state []json.RawMessage) (json.RawMessage, error) {
	out := make([]json.RawMessage, 0, len(state))
	for _, raw := range state {
		if e, err := event.Parse(version, raw); err == nil && e.RoomID() == roomID {
			out = append(out, e.Stripped())
			continue
		}
		p := gjson.ParseBytes(raw)
		if p.Get("type").Type != gjson.String || p.Get("state_key").Type != gjson.String || p.Get("sender").Type != gjson.String || !p.Get("content").IsObject() {
			continue
		}
		text, err := json.Marshal(map[string]json.RawMessage{"type": json.RawMessage(p.Get("type").Raw), "state_key": json.RawMessage(p.Get("state_key").Raw),
			"sender": json.RawMessage(p.Get("sender").Raw), "content": json.RawMessage(p.Get("content").Raw)})
		if err != nil {
			return nil, fmt.Errorf("strip state: %w", err)
		}
		out = append(out, text)
	}
	return json.Marshal(out)
}
