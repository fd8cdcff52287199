package users

import (
	"encoding/json"

	"github.com/nats-io/nats.go"
)

// told passes on to all processes, this one too, what is not kept: who types, who is online.
type told[T any] struct {
	conn    *nats.Conn // nil: this process alone
	subject string
	apply   func(T)
}

func newTold[T any](conn *nats.Conn, subject string, apply func(T)) *told[T] {
	t := &told[T]{conn, subject, apply}
	if conn == nil {
		return t
	}
	if _, err := conn.Subscribe(subject, func(m *nats.Msg) { // ends with the connection
		var v T
		if json.Unmarshal(m.Data, &v) == nil {
			apply(v)
		}
	}); err != nil {
		t.conn = nil // it is closed
	}
	return t
}

// tell lets this process know at once while the others cannot be reached. They are told nothing afterwards: such
// news ages fast.
func (t *told[T]) tell(v T) {
	if t.conn != nil && t.conn.IsConnected() {
		if text, err := json.Marshal(v); err == nil && t.conn.Publish(t.subject, text) == nil {
			return
		}
	}
	t.apply(v)
}
