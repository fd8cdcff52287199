package peer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// maxElements bounds the lists of one answer: each element costs memory of ours beyond its bytes.
const maxElements = 1_000_000

// decodeObject reads one JSON object as it arrives. Members named in lists are given element by element, those in
// others are read whole, and the rest is skipped: an answer of 50 MB of events is held once and not twice, or not at
// all.
func decodeObject(r io.Reader, lists map[string]func(json.RawMessage) error, others map[string]any) error {
	in := json.NewDecoder(r)
	if err := delim(in, '{'); err != nil {
		return err
	}
	left := maxElements
	for in.More() {
		token, err := in.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		if each, ok := lists[name]; ok {
			if err := decodeList(in, each, &left); err != nil {
				return fmt.Errorf("decode %s: %w", name, err)
			}
			continue
		}
		into, ok := others[name]
		if !ok {
			into = new(json.RawMessage)
		}
		if err := in.Decode(into); err != nil {
			return fmt.Errorf("decode %s: %w", name, err)
		}
	}
	return delim(in, '}')
}

// into collects the elements of a list.
func into(list *[]json.RawMessage) func(json.RawMessage) error {
	return func(element json.RawMessage) error {
		*list = append(*list, element)
		return nil
	}
}

func decodeList(in *json.Decoder, each func(json.RawMessage) error, left *int) error {
	if err := delim(in, '['); err != nil {
		return err
	}
	for in.More() {
		var element json.RawMessage
		if err := in.Decode(&element); err != nil {
			return err
		}
		if element = bytes.TrimSpace(element); element[0] != '{' {
			return errors.New("an event is no object")
		}
		if *left--; *left < 0 {
			return ErrAnswerTooLarge
		}
		if err := each(element); err != nil {
			return err
		}
	}
	return delim(in, ']')
}

func delim(in *json.Decoder, want json.Delim) error {
	token, err := in.Token()
	if err != nil {
		return err
	}
	if token != want {
		return fmt.Errorf("found %v where %v was due", token, want)
	}
	return nil
}
