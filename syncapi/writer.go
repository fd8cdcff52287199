package syncapi

import "encoding/json"

// writer writes the members of a JSON object. Events are written as they are, they were checked
// and encoded once; encoding/json would look at every byte of them again.
type writer struct {
	b []byte
}

func (w *writer) empty() bool { return len(w.b) == 0 }

func (w *writer) name(name string) {
	if len(w.b) > 0 {
		w.b = append(w.b, ',')
	}
	w.b = appendText(w.b, name)
	w.b = append(w.b, ':')
}

// raw writes a member whose value is JSON already.
func (w *writer) raw(name string, value []byte) {
	w.name(name)
	w.b = append(w.b, value...)
}

func (w *writer) string(name, value string) {
	w.name(name)
	w.b = appendText(w.b, value)
}

// value writes a member by encoding/json; it is for maps and lists of plain values.
func (w *writer) value(name string, v any) {
	text, err := json.Marshal(v)
	if err != nil {
		panic("syncapi: a plain value does not encode: " + err.Error())
	}
	w.raw(name, text)
}

// inside writes a member that is an object; an empty one is left out.
func (w *writer) inside(name string, in *writer) {
	if in.empty() {
		return
	}
	w.name(name)
	w.b = append(append(append(w.b, '{'), in.b...), '}')
}

// events writes {"events":[...]} under a name.
func (w *writer) events(name string, events []json.RawMessage) {
	w.name(name)
	w.b = append(w.b, `{"events":`...)
	w.list(events)
	w.b = append(w.b, '}')
}

func (w *writer) list(events []json.RawMessage) {
	w.b = append(w.b, '[')
	for i, ev := range events {
		if i > 0 {
			w.b = append(w.b, ',')
		}
		w.b = append(w.b, ev...)
	}
	w.b = append(w.b, ']')
}

// object closes the object and gives its text.
func (w *writer) object() json.RawMessage {
	out := make([]byte, 0, len(w.b)+2)
	return append(append(append(out, '{'), w.b...), '}')
}

func appendText(b []byte, s string) []byte {
	plain := true
	for i := 0; i < len(s); i++ {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= 0x7f {
			plain = false
			break
		}
	}
	if plain {
		b = append(b, '"')
		b = append(b, s...)
		return append(b, '"')
	}
	text, _ := json.Marshal(s) // strings always marshal
	return append(b, text...)
}
