package client

import (
	"fmt"
	"sync/atomic"
)

var txn atomic.Int64

// Txn is a new transaction ID.
func Txn() string { return fmt.Sprintf("t%d", txn.Add(1)) }

// Create makes a room, a public one where nothing is said of it.
func (s *Server) Create(who string, body J) string {
	s.T.Helper()
	if body == nil {
		body = J{"preset": "public_chat"}
	}
	return s.OK(who, "POST", V3+"/createRoom", body).Str("room_id")
}

// Send sends an event.
func (s *Server) Send(who, room, typ string, content J) string {
	s.T.Helper()
	return s.OK(who, "PUT", Room(room, "send", typ, Txn()), content).Str("event_id")
}

// Say sends a text.
func (s *Server) Say(who, room, body string) string {
	s.T.Helper()
	return s.Send(who, room, "m.room.message", J{"msgtype": "m.text", "body": body})
}

// Set sends a piece of state.
func (s *Server) Set(who, room, typ, key string, content J) string {
	s.T.Helper()
	return s.OK(who, "PUT", Room(room, "state", typ, key), content).Str("event_id")
}

// Join enters a room.
func (s *Server) Join(who, room string) {
	s.T.Helper()
	s.OK(who, "POST", Room(room, "join"), J{})
}

// Leave leaves a room.
func (s *Server) Leave(who, room string) {
	s.T.Helper()
	s.OK(who, "POST", Room(room, "leave"), J{})
}

// Invite invites somebody to a room.
func (s *Server) Invite(who, room, whom string) {
	s.T.Helper()
	s.OK(who, "POST", Room(room, "invite"), J{"user_id": whom})
}
