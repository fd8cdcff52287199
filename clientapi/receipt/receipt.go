// Package receipt is the part of the client-server API about who has read what and who is typing.
package receipt

import (
	"context"
	"encoding/json"
	"time"

	"chancery"
	"chancery/endpoint"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// API answers the rows about receipts, read markers and typing.
type API struct {
	Users *users.Server
}

type PostIn struct {
	Caller endpoint.Caller
	Room   id.RoomID  `path:"roomId"`
	Type   string     `path:"receiptType"`
	Event  id.EventID `path:"eventId"`
	Body   struct {
		Thread json.RawMessage `json:"thread_id"`
	} `body:"json"`
}

// Post says that the caller has read up to an event.
//
// spec: c2s/postReceipt
func (a *API) Post(ctx context.Context, in *PostIn) (*struct{}, error) {
	r := users.Receipt{User: in.Caller.User, Room: in.Room, Type: in.Type, Event: in.Event}
	if in.Body.Thread != nil {
		if json.Unmarshal(in.Body.Thread, &r.Thread) != nil || r.Thread == "" || len(r.Thread) > 255 {
			return nil, chancery.InvalidParam("thread_id field must be a non-empty string")
		}
	}
	return nil, a.Users.SetReceipts(ctx, r)
}

type MarkIn struct {
	Caller endpoint.Caller
	Room   id.RoomID `path:"roomId"`
	Body   struct {
		FullyRead   id.EventID `json:"m.fully_read"`
		Read        id.EventID `json:"m.read"`
		ReadPrivate id.EventID `json:"m.read.private"`
	} `body:"json"`
}

// Mark moves the caller's read markers of a room.
//
// spec: c2s/setReadMarker
func (a *API) Mark(ctx context.Context, in *MarkIn) (*struct{}, error) {
	var list []users.Receipt
	for _, r := range []struct {
		typ   string
		event id.EventID
	}{{users.ReceiptFullyRead, in.Body.FullyRead}, {users.ReceiptRead, in.Body.Read}, {users.ReceiptReadPrivate, in.Body.ReadPrivate}} {
		if r.event != "" {
			list = append(list, users.Receipt{User: in.Caller.User, Room: in.Room, Type: r.typ, Event: r.event})
		}
	}
	return nil, a.Users.SetReceipts(ctx, list...)
}

type TypingIn struct {
	Caller endpoint.Caller
	User   id.UserID `path:"userId"`
	Room   id.RoomID `path:"roomId"`
	Body   struct {
		Typing  bool  `json:"typing" required:"true"`
		Timeout int64 `json:"timeout"`
	} `body:"json"`
}

// Typing says that the caller types, or stopped.
//
// spec: c2s/setTyping
func (a *API) Typing(ctx context.Context, in *TypingIn) (*struct{}, error) {
	if in.Caller.User != in.User {
		return nil, chancery.Forbidden("you may only say of yourself that you type")
	}
	timeout := time.Duration(max(-1, min(in.Body.Timeout, 1<<40))) * time.Millisecond
	return nil, a.Users.SetTyping(ctx, in.User, in.Room, in.Body.Typing, timeout)
}
