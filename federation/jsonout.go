package federation

import (
	"encoding/json"
	"io"
)

// jsonOut writes one JSON object member by member, so that a list may be longer than memory. The first failure
// stays, and nothing is written after it.
type jsonOut struct {
	w       io.Writer
	members int
	items   int // of the open list
	err     error
}

func (o *jsonOut) write(p ...[]byte) {
	for _, b := range p {
		if o.err == nil {
			_, o.err = o.w.Write(b)
		}
	}
}

func (o *jsonOut) name(name string) {
	begin := byte('{')
	if o.members > 0 {
		begin = ','
	}
	o.members++
	text, _ := json.Marshal(name) // a string always can be
	o.write([]byte{begin}, text, []byte{':'})
}

// member writes a member that is held whole.
func (o *jsonOut) member(name string, v any) {
	text, err := json.Marshal(v)
	if err != nil && o.err == nil {
		o.err = err
	}
	o.name(name)
	o.write(text)
}

// list writes a member whose elements fill gives.
func (o *jsonOut) list(name string, fill func() error) {
	o.name(name)
	o.write([]byte{'['})
	o.items = 0
	if o.err == nil {
		o.err = fill()
	}
	o.write([]byte{']'})
}

// element adds JSON to the open list.
func (o *jsonOut) element(text json.RawMessage) error {
	if o.items > 0 {
		o.write([]byte{','})
	}
	o.items++
	o.write(text)
	return o.err
}

// value adds a value to the open list.
func (o *jsonOut) value(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return o.element(text)
}

func (o *jsonOut) close() error {
	if o.members == 0 {
		o.write([]byte{'{'})
	}
	o.write([]byte{'}'})
	return o.err
}
