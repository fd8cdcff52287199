package federation

import (
	"context"
	"encoding/json"
	"net/http"
	"time"

	"chancery"
	"chancery/endpoint"
	"chancery/federation/peer"
	"chancery/roomserver"
	"chancery/users"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// receiveEDUs takes the EDUs of a transaction. One that is wrong is passed over; an error means that
// something which must be kept was not, and the whole transaction has to come again.
//
// spec: s2s#edus
func (s *Server) receiveEDUs(ctx context.Context, origin string, edus []json.RawMessage) error {
	if s.Users == nil {
		return nil
	}
	spoken := map[id.RoomID]bool{}
	for _, text := range edus {
		var e peer.EDU
		err := endpoint.DecodeJSON(text, &e)
		if err == nil {
			err = s.receiveEDU(ctx, origin, e, spoken)
		}
		if err == nil {
			continue
		}
		if chancery.As(err).Status >= http.StatusInternalServerError && kept[e.Type] {
			return err
		}
		s.Log.Debug("an EDU was passed over", zap.String("origin", origin), zap.String("type", e.Type), zap.Error(err))
	}
	return nil
}

// kept are the types of EDUs that must be stored before we answer.
var kept = map[string]bool{"m.direct_to_device": true, "m.device_list_update": true, "m.signing_key_update": true, oldSigningKeys: true}

// oldSigningKeys is what m.signing_key_update was called before it was in the specification. Synapse sends it
// beside the other, older servers send it alone.
const oldSigningKeys = "org.matrix.signing_key_update"

func (s *Server) receiveEDU(ctx context.Context, origin string, e peer.EDU, spoken map[id.RoomID]bool) error {
	switch e.Type {
	case "m.direct_to_device":
		return s.Users.ReceiveToDevice(ctx, origin, e.Content)
	case "m.device_list_update":
		return s.Users.ReceiveDeviceList(ctx, origin, e.Content)
	case "m.signing_key_update", oldSigningKeys:
		return s.Users.ReceiveSigningKeys(ctx, origin, e.Content)
	case "m.typing":
		return s.receiveTyping(ctx, origin, e.Content, spoken)
	case "m.receipt":
		return s.receiveReceipts(ctx, origin, e.Content, spoken)
	case "m.presence":
		return s.receivePresence(ctx, origin, e.Content)
	}
	return nil
}

// maySpeak says whether a server is in a room and not barred by its server ACL, asking once for each room.
//
// spec: s2s#server-access-control-lists-acls
func (s *Server) maySpeak(ctx context.Context, origin string, room id.RoomID, spoken map[id.RoomID]bool) bool {
	may, asked := spoken[room]
	if !asked {
		may = s.Rooms.For(ctx, origin, room, func(roomserver.Asked) error { return nil }) == nil
		spoken[room] = may
	}
	return may
}

// spec: s2s#typing-notifications
type typing struct {
	Room   id.RoomID `json:"room_id"`
	User   id.UserID `json:"user_id"`
	Typing bool      `json:"typing"`
}

func (s *Server) receiveTyping(ctx context.Context, origin string, content json.RawMessage, spoken map[id.RoomID]bool) error {
	var in typing
	if err := endpoint.DecodeJSON(content, &in); err != nil {
		return err
	}
	if in.User.Homeserver() != origin || !s.maySpeak(ctx, origin, in.Room, spoken) {
		return chancery.Forbidden("the server may not say so")
	}
	return s.Users.ReceiveTyping(ctx, origin, in.User, in.Room, in.Typing)
}

// spec: s2s#receipts
type receiptData struct {
	TS     int64  `json:"ts"`
	Thread string `json:"thread_id,omitempty"`
}

type receipt struct {
	Events []id.EventID `json:"event_ids"`
	Data   receiptData  `json:"data"`
}

type receipts map[id.RoomID]map[string]map[id.UserID]receipt

func (s *Server) receiveReceipts(ctx context.Context, origin string, content json.RawMessage, spoken map[id.RoomID]bool) error {
	var in receipts
	if err := endpoint.DecodeJSON(content, &in); err != nil {
		return err
	}
	var list []users.Receipt
	for room, types := range in {
		for typ, of := range types {
			for user, r := range of {
				if len(r.Events) == 0 || user.Homeserver() != origin || !s.maySpeak(ctx, origin, room, spoken) {
					continue
				}
				list = append(list, users.Receipt{User: user, Room: room, Type: typ, Event: r.Events[0], Thread: r.Data.Thread, TS: r.Data.TS})
			}
		}
	}
	if len(list) == 0 {
		return nil
	}
	return s.Users.ReceiveReceipts(ctx, origin, list)
}

// spec: s2s#presence
type presence struct {
	Push []userPresence `json:"push"`
}

type userPresence struct {
	User            id.UserID `json:"user_id"`
	Presence        string    `json:"presence"`
	StatusMsg       *string   `json:"status_msg,omitempty"`
	LastActiveAgo   int64     `json:"last_active_ago"`
	CurrentlyActive bool      `json:"currently_active,omitempty"`
}

func (s *Server) receivePresence(ctx context.Context, origin string, content json.RawMessage) error {
	var in presence
	if err := endpoint.DecodeJSON(content, &in); err != nil {
		return err
	}
	now := time.Now().UnixMilli()
	list := make([]users.Presence, 0, len(in.Push))
	for _, p := range in.Push {
		if p.User.Homeserver() != origin {
			continue
		}
		list = append(list, users.Presence{User: p.User, Presence: p.Presence, StatusMsg: p.StatusMsg,
			LastActive: now - max(0, min(p.LastActiveAgo, now)), CurrentlyActive: p.CurrentlyActive})
	}
	return s.Users.ReceivePresence(ctx, origin, list)
}
