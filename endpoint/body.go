package endpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	jsonx "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"chancery"
)

// maxDepth bounds how deep a body may nest. No honest client comes near it, and whoever walks
// the value afterwards may do so by recursion.
const maxDepth = 128

type bodyField struct {
	index    []int
	raw      bool // json.RawMessage or jsontext.Value
	any      bool // not only an object
	optional bool // an empty body counts as {} for PUT too
	pieces   bool // what its members hold is judged by the handler, piece by piece: one bad piece spoils no other
	required []string
}

var rawTypes = []reflect.Type{reflect.TypeFor[json.RawMessage](), reflect.TypeFor[jsontext.Value]()}

func planBody(where string, typ reflect.Type, index []int, tag string) bodyField {
	words := strings.Split(tag, ",")
	if words[0] != "json" && words[0] != "inline" {
		panic("endpoint: " + where + ": the body is json or inline, not " + words[0])
	}
	b := bodyField{index: index}
	for _, w := range words[1:] {
		switch w {
		case "any":
			b.any = true
		case "optional":
			b.optional = true
		case "pieces":
			b.pieces = true
		default:
			panic("endpoint: " + where + ": unknown word in body tag: " + w)
		}
	}
	for _, t := range rawTypes {
		b.raw = b.raw || typ == t
	}
	for typ.Kind() == reflect.Pointer {
		typ = typ.Elem()
	}
	if typ.Kind() == reflect.Struct {
		b.required = requiredMembers(typ)
	}
	return b
}

// requiredMembers are the members of a body's struct with required:"true".
func requiredMembers(typ reflect.Type) []string {
	var names []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct {
			names = append(names, requiredMembers(f.Type)...)
			continue
		}
		if f.Tag.Get("required") != "true" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		names = append(names, name)
	}
	return names
}

// readBody reads at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, held *held) ([]byte, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, nil
	}
	if limit <= 0 {
		limit = DefaultMaxBody
	}
	if r.ContentLength > limit {
		return nil, chancery.TooLarge("the body is larger than %d bytes", limit)
	}
	var buf bytes.Buffer
	if r.ContentLength > 0 {
		buf.Grow(int(min(r.ContentLength, 64<<10)) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(http.MaxBytesReader(w, counting{r.Body, held}, limit))
	var tooLarge *http.MaxBytesError
	var tooMuch *chancery.Error
	switch {
	case errors.As(err, &tooMuch):
		return nil, tooMuch
	case errors.As(err, &tooLarge):
		return nil, chancery.TooLarge("the body is larger than %d bytes", limit)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, chancery.NotJSON("the body ended early").Because(err)
	case err != nil:
		return nil, chancery.Errorf(http.StatusRequestTimeout, chancery.CodeUnknown, "the body could not be read").Because(err)
	}
	return buf.Bytes(), nil
}

var emptyObject = []byte("{}")

func (p *plan) decodeBodies(in reflect.Value, method string, body []byte) error {
	empty := len(bytes.TrimSpace(body)) == 0
	for _, b := range p.bodies {
		text := body
		if empty {
			if method == http.MethodPut && !b.optional {
				return chancery.NotJSON("the body is empty")
			}
			text = emptyObject
		}
		if err := b.decode(in, text); err != nil {
			return err
		}
	}
	return nil
}

func (b bodyField) decode(in reflect.Value, text []byte) error {
	field, err := in.FieldByIndexErr(b.index)
	if err != nil {
		return err
	}
	if b.pieces {
		return decodePieces(text, field.Addr().Interface())
	}
	if err := checkDepth(text); err != nil {
		return err
	}
	if b.raw {
		if err := checkJSON(text); err != nil {
			return err
		}
		text = bytes.TrimSpace(text)
		if !b.any && text[0] != '{' {
			return chancery.BadJSON("the body is not an object")
		}
		field.SetBytes(text)
		return nil
	}
	// A body of null would leave the field as it is, as if the client had sent {}.
	if bytes.Equal(bytes.TrimSpace(text), []byte("null")) && !b.any {
		return chancery.BadJSON("the body is null")
	}
	if err := jsonx.Unmarshal(text, field.Addr().Interface(), decodeOptions); err != nil {
		return jsonError(err)
	}
	if len(b.required) > 0 {
		return checkRequired(text, b.required)
	}
	return nil
}

// The defaults of the JSON library are what we want of a request: names are case-sensitive, a
// duplicate name and invalid UTF-8 are errors.
var decodeOptions = jsonx.JoinOptions(
	jsontext.AllowDuplicateNames(false),
	jsontext.AllowInvalidUTF8(false),
)

// DecodeJSON reads a body by the rules of this package, for handlers that read it themselves.
func DecodeJSON(text []byte, into any) error {
	if err := checkDepth(text); err != nil {
		return err
	}
	if err := jsonx.Unmarshal(text, into, decodeOptions); err != nil {
		return jsonError(err)
	}
	return nil
}

// decodePieces reads an object of which only the outside is checked: it is JSON in UTF-8, and has no name twice. Pieces
// that into takes as raw JSON still need DecodeJSON, or a parser that is as strict.
func decodePieces(text []byte, into any) error {
	options := jsonx.JoinOptions(decodeOptions, jsontext.AllowDuplicateNames(true))
	d := jsontext.NewDecoder(bytes.NewReader(text), options)
	if begin, err := d.ReadToken(); err != nil {
		return jsonError(err)
	} else if begin.Kind() != '{' {
		return chancery.BadJSON("the body is not an object")
	}
	seen := map[string]bool{}
	for d.PeekKind() == '"' {
		name, err := d.ReadToken()
		if err != nil {
			return jsonError(err)
		}
		if seen[name.String()] {
			return chancery.BadJSON("the JSON has a duplicate name")
		}
		seen[name.String()] = true
		if err := d.SkipValue(); err != nil {
			return jsonError(err)
		}
	}
	if err := jsonx.Unmarshal(text, into, options); err != nil {
		return jsonError(err)
	}
	return nil
}

// checkJSON says whether text is one JSON value without duplicate names.
func checkJSON(text []byte) error {
	d := jsontext.NewDecoder(bytes.NewBuffer(text), decodeOptions)
	if _, err := d.ReadValue(); err != nil {
		return jsonError(err)
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return chancery.NotJSON("there is more after the JSON value")
	}
	return nil
}

// jsonError tells "no JSON" from "not the JSON we want".
func jsonError(err error) error {
	var wrong *jsonx.SemanticError
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return chancery.BadJSON("the JSON has a duplicate name").Because(err)
	case errors.As(err, &wrong):
		var known *chancery.Error
		if errors.As(err, &known) {
			return known
		}
		if wrong.JSONPointer != "" {
			return chancery.BadJSON("%s has the wrong type or value", wrong.JSONPointer).Because(err)
		}
		return chancery.BadJSON("the JSON has the wrong type").Because(err)
	}
	return chancery.NotJSON("the body is not JSON").Because(err)
}

// checkDepth walks the brackets outside of strings.
func checkDepth(text []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inString:
			switch c {
			case '\\':
				i++
			case '"':
				inString = false
			}
		case c == '"':
			inString = true
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return chancery.BadJSON("the JSON is nested deeper than %d", maxDepth)
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// checkRequired looks for the names in the object; null counts as absent.
func checkRequired(text []byte, names []string) error {
	var members map[string]jsontext.Value
	if err := jsonx.Unmarshal(text, &members, decodeOptions); err != nil {
		return jsonError(err)
	}
	for _, name := range names {
		if v, ok := members[name]; !ok || v.Kind() == 'n' {
			return chancery.MissingParam("%s is missing", name)
		}
	}
	return nil
}

var encodeOptions = jsonx.JoinOptions(
	jsonx.DefaultOptionsV2(),
	jsonx.Deterministic(true),
	// omitempty drops 0 and false as in encoding/json, for which the types of mautrix are written.
	jsonv1.OmitEmptyWithLegacySemantics(true),
	jsontext.PreserveRawStrings(true),
	// What we stored we also serve: a type that writes its own JSON is not searched for duplicates.
	jsontext.AllowDuplicateNames(true),
)

// encode writes an answer.
func encode(out any) ([]byte, error) {
	switch v := out.(type) {
	case nil:
		return emptyObject, nil
	case *json.RawMessage:
		return *v, nil
	case *jsontext.Value:
		return *v, nil
	}
	text, err := jsonx.Marshal(out, encodeOptions)
	if err != nil {
		return nil, fmt.Errorf("encode the answer: %w", err)
	}
	return text, nil
}
