package room

import (
	"context"
	"encoding/json"
	"time"

	"chancery"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
	"maunium.net/go/mautrix/id"
)

// Transaction IDs are part of a key of ours.
const maxTxn = 512

type SendMessageIn struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID       `path:"roomId"`
	Type    string          `path:"eventType"`
	TxnID   string          `path:"txnId"`
	TS      *int64          `query:"ts"`
	Content json.RawMessage `body:"json"`
}

var errCreatedOnce = chancery.InvalidParam("a room is created once")

type EventIDOut struct {
	EventID id.EventID `json:"event_id"`
}

// SendMessage puts an event into a room. A repeated transaction ID answers with the first event's ID.
//
// spec: c2s/sendMessage
func (a *API) SendMessage(ctx context.Context, in *SendMessageIn) (*EventIDOut, error) {
	if in.Type == "m.room.create" {
		return nil, errCreatedOnce
	}
	n := roomserver.NewEvent{Room: in.RoomID, Sender: in.Caller.User, Type: in.Type, Content: in.Content, Time: sentAt(in.Caller, in.TS)}
	if in.Type == "m.room.redaction" {
		target := gjson.GetBytes(in.Content, "redacts")
		if target.Type != gjson.String || target.Str == "" {
			return nil, chancery.BadJSON("a redaction must name the event it redacts")
		}
		// Where it belongs, in content or beside it, is for the room's version to say.
		content, err := sjson.DeleteBytes(append([]byte(nil), in.Content...), "redacts")
		if err != nil {
			return nil, chancery.BadJSON("the content cannot be read").Because(err)
		}
		n.Content, n.Redacts = content, id.EventID(target.Str)
	}
	// A suspended user may still take back what they said.
	if n.Redacts == "" {
		if err := mayWrite(in.Caller); err != nil {
			return nil, err
		}
	}
	before, err := a.checkRelation(ctx, in)
	if err != nil || before != "" {
		return &EventIDOut{before}, err
	}
	return a.sendOnce(ctx, n, in.Caller, endpointSend, in.TxnID)
}

// A transaction ID counts for one device and one endpoint.
//
// spec: c2s#transaction-identifiers
const (
	endpointSend   = "send"
	endpointRedact = "redact"
)

func (a *API) sendOnce(ctx context.Context, n roomserver.NewEvent, caller endpoint.Caller, where, txn string) (*EventIDOut, error) {
	if len(txn) > maxTxn {
		return nil, chancery.InvalidParam("the transaction ID is longer than %d bytes", maxTxn)
	}
	n.Once = &roomserver.Once{Device: caller.Device, Endpoint: where, Txn: txn}
	sent, err := a.Rooms.Send(ctx, n)
	if err != nil {
		return nil, notHere(err)
	}
	return &EventIDOut{sent.ID}, nil
}

// sentAt lets an application service say when an event was sent.
//
// spec: as#timestamp-massaging
func sentAt(caller endpoint.Caller, ts *int64) time.Time {
	if ts == nil || caller.AppService == "" {
		return time.Time{}
	}
	return time.UnixMilli(*ts)
}

// checkRelation refuses an annotation that the user has made already and a thread that would begin at
// an event of a relation. Where this very request made the annotation before, it gives its ID.
//
// spec: c2s#avoiding-duplicate-annotations, c2s#validation-of-mthread-relationships
func (a *API) checkRelation(ctx context.Context, in *SendMessageIn) (made id.EventID, err error) {
	rel := gjson.GetBytes(in.Content, `m\.relates_to`)
	relType, target := rel.Get("rel_type").Str, rel.Get("event_id").Str
	if target == "" || relType != "m.annotation" && relType != "m.thread" {
		return "", nil
	}
	err = a.DB.Read(ctx, func(tx storage.Tx) error {
		room, ok, err := tx.Room(string(in.RoomID))
		if err != nil || !ok {
			return err
		}
		if relType == "m.thread" {
			root, ok, err := a.Reader.One(tx, room, id.EventID(target))
			if err == nil && ok && gjson.GetBytes(root.Content(), `m\.relates_to.rel_type`).Exists() {
				return chancery.Errorf(400, chancery.CodeUnknown, "a thread cannot begin at an event that is itself part of a relation")
			}
			return err
		}
		same, ok, err := tx.Annotation(room.NID, target, in.Type, string(in.Caller.User), rel.Get("key").Str)
		if err != nil || !ok {
			return err
		}
		txns, err := tx.TransactionsFor(string(in.Caller.User), string(in.Caller.Device), []int64{same})
		if err != nil {
			return err
		}
		for _, t := range txns {
			if t.Txn == in.TxnID && t.Endpoint == endpointSend && t.Room == room.NID {
				made = id.EventID(t.EventID)
				return nil
			}
		}
		return chancery.Errorf(400, chancery.CodeDuplicateAnnotation, "you have made this annotation already")
	})
	return made, err
}

type RedactEventIn struct {
	Caller  endpoint.Caller
	RoomID  id.RoomID       `path:"roomId"`
	EventID id.EventID      `path:"eventId"`
	TxnID   string          `path:"txnId"`
	TS      *int64          `query:"ts"`
	Content json.RawMessage `body:"json,optional"`
}

// RedactEvent strips an event of its content.
//
// spec: c2s/redactEvent
func (a *API) RedactEvent(ctx context.Context, in *RedactEventIn) (*EventIDOut, error) {
	content, err := sjson.DeleteBytes(append([]byte(nil), in.Content...), "redacts")
	if err != nil {
		return nil, chancery.BadJSON("the content cannot be read").Because(err)
	}
	return a.sendOnce(ctx, roomserver.NewEvent{Room: in.RoomID, Sender: in.Caller.User, Type: "m.room.redaction",
		Content: content, Redacts: in.EventID, Time: sentAt(in.Caller, in.TS)}, in.Caller, endpointRedact, in.TxnID)
}
