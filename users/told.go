package users

import (
	"encoding/json"

	"github.com/nats-io/nats.go"
)

// told passes on to all processes, this one too, what is not kept: who types, who is online.
type told[T any] struct {
	conn    *nats.Conn // nil: this process alone
	subject string
	self    string // in what we publish: we have heard it already
	apply   func(T)
}

const fromHeader = "From"

func newTold[T any](conn *nats.Conn, subject string, apply func(T)) *told[T] {
	t := &told[T]{conn, subject, nats.NewInbox(), apply}
	if conn == nil {
		return t
	}
	if _, err := conn.Subscribe(subject, func(m *nats.Msg) { // ends with the connection
		var v T
		if m.Header.Get(fromHeader) != t.self && json.Unmarshal(m.Data, &v) == nil {
			apply(v)
		}
	}); err != nil {
		t.conn = nil // it is closed
	}
	return t
}

// tell lets this process know before it returns, and the others when they can be reached.
func (t *told[T]) tell(v T) {
	t.apply(v)
	if t.conn == nil {
		return
	}
	if text, err := json.Marshal(v); err == nil {
		_ = t.conn.PublishMsg(&nats.Msg{Subject: t.subject, Header: nats.Header{fromHeader: {t.self}}, Data: text}) // such news ages fast
	}
}
