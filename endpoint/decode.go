package endpoint

import (
	"encoding"
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"chancery"
)

// A plan says where each field of an input comes from. It is made once for a type.
type plan struct {
	typ      reflect.Type
	params   []param
	caller   [][]int // fields of type Caller
	origin   [][]int
	bodies   []bodyField
	hasQuery bool
}

type source int

const (
	fromPath source = iota
	fromQuery
	fromHeader
	fromToken
)

type param struct {
	from     source
	name     string
	index    []int
	required bool
	fallback string
	set      setter
}

// setter puts the values of one parameter into a field.
type setter func(field reflect.Value, values []string) error

var (
	callerType = reflect.TypeFor[Caller]()
	textType   = reflect.TypeFor[encoding.TextUnmarshaler]()
	plans      sync.Map // reflect.Type -> *plan
)

func planFor[In any]() *plan {
	typ := reflect.TypeFor[In]()
	if p, ok := plans.Load(typ); ok {
		return p.(*plan)
	}
	if typ.Kind() != reflect.Struct {
		panic(fmt.Sprintf("endpoint: the input %s is not a struct", typ))
	}
	p := &plan{typ: typ}
	p.add(typ, nil)
	plans.Store(typ, p)
	return p
}

// add looks at the fields of a struct; a struct embedded without a tag lends its fields.
func (p *plan) add(typ reflect.Type, at []int) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		index := append(append([]int(nil), at...), i)
		if f.Type == callerType {
			p.caller = append(p.caller, index)
			continue
		}
		if !f.IsExported() && !f.Anonymous {
			continue
		}
		where := typ.String() + "." + f.Name
		if tagged := f.Tag != ""; tagged && !f.IsExported() {
			panic("endpoint: " + where + " takes a value and is not exported")
		}
		if tag, ok := f.Tag.Lookup("body"); ok {
			p.bodies = append(p.bodies, planBody(where, f.Type, index, tag))
			continue
		}
		if _, ok := f.Tag.Lookup("origin"); ok {
			if f.Type.Kind() != reflect.String {
				panic("endpoint: " + where + ": origin must be a string")
			}
			p.origin = append(p.origin, index)
			continue
		}
		if from, name, ok := paramSource(f.Tag); ok {
			p.params = append(p.params, param{
				from: from, name: name, index: index,
				required: f.Tag.Get("required") == "true",
				fallback: f.Tag.Get("default"),
				set:      setterFor(where, f.Type),
			})
			p.hasQuery = p.hasQuery || from == fromQuery
			continue
		}
		if f.Anonymous && f.Type.Kind() == reflect.Struct {
			p.add(f.Type, index)
			continue
		}
		panic("endpoint: " + where + " has no source (path, query, header, origin or body)")
	}
}

func paramSource(tag reflect.StructTag) (source, string, bool) {
	if name, ok := tag.Lookup("path"); ok {
		return fromPath, name, true
	}
	if name, ok := tag.Lookup("query"); ok {
		return fromQuery, name, true
	}
	if name, ok := tag.Lookup("header"); ok {
		return fromHeader, http.CanonicalHeaderKey(name), true
	}
	if _, ok := tag.Lookup("token"); ok {
		return fromToken, "access_token", true
	}
	return 0, "", false
}

// setterFor knows how to read a parameter of a type; what it cannot read panics when the table is made.
func setterFor(where string, typ reflect.Type) setter {
	if typ.Kind() == reflect.Pointer {
		set := setterFor(where, typ.Elem())
		return func(field reflect.Value, values []string) error {
			v := reflect.New(typ.Elem())
			if err := set(v.Elem(), values); err != nil {
				return err
			}
			field.Set(v)
			return nil
		}
	}
	if reflect.PointerTo(typ).Implements(textType) && typ.Kind() != reflect.String {
		return func(field reflect.Value, values []string) error {
			return field.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(values[0]))
		}
	}
	switch typ.Kind() {
	case reflect.String:
		return func(field reflect.Value, values []string) error {
			field.SetString(values[0])
			return nil
		}
	case reflect.Bool:
		return func(field reflect.Value, values []string) error {
			switch values[0] {
			case "true":
				field.SetBool(true)
			case "false":
				field.SetBool(false)
			default:
				return fmt.Errorf("must be true or false")
			}
			return nil
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(field reflect.Value, values []string) error {
			n, err := strconv.ParseInt(values[0], 10, typ.Bits())
			if err != nil {
				return fmt.Errorf("must be a number")
			}
			field.SetInt(n)
			return nil
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return func(field reflect.Value, values []string) error {
			n, err := strconv.ParseUint(values[0], 10, typ.Bits())
			if err != nil {
				return fmt.Errorf("must be a number and not negative")
			}
			field.SetUint(n)
			return nil
		}
	case reflect.Float64:
		return func(field reflect.Value, values []string) error {
			n, err := strconv.ParseFloat(values[0], 64)
			if err != nil {
				return fmt.Errorf("must be a number")
			}
			field.SetFloat(n)
			return nil
		}
	case reflect.Slice:
		if typ.Elem().Kind() == reflect.String {
			return func(field reflect.Value, values []string) error {
				s := reflect.MakeSlice(typ, len(values), len(values))
				for i, v := range values {
					s.Index(i).SetString(v)
				}
				field.Set(s)
				return nil
			}
		}
	}
	panic("endpoint: " + where + ": cannot read a parameter into " + typ.String())
}

// decode fills a new input. body is nil when the input takes none.
func (p *plan) decode(r *http.Request, values pathValues, caller Caller, body []byte) (any, error) {
	in := reflect.New(p.typ)
	var query url.Values
	if p.hasQuery {
		var err error
		if query, err = parseQuery(r.URL.RawQuery); err != nil {
			return nil, err
		}
	}
	for _, param := range p.params {
		var got []string
		switch param.from {
		case fromPath:
			got = []string{values.get(param.name)}
		case fromQuery:
			got = query[param.name]
		case fromHeader:
			got = r.Header[param.name]
		case fromToken:
			if token, ok := AccessToken(r); ok {
				got = []string{token}
			}
		}
		if len(got) == 0 && param.fallback != "" {
			got = []string{param.fallback}
		}
		if len(got) == 0 {
			if param.required {
				return nil, chancery.MissingParam("%s is missing", param.name)
			}
			continue
		}
		for _, v := range got {
			if !utf8.ValidString(v) {
				return nil, chancery.InvalidParam("%s is not valid UTF-8", param.name)
			}
		}
		if err := param.set(in.Elem().FieldByIndex(param.index), got); err != nil {
			return nil, chancery.InvalidParam("%s: %s", param.name, err)
		}
	}
	for _, index := range p.caller {
		in.Elem().FieldByIndex(index).Set(reflect.ValueOf(caller))
	}
	for _, index := range p.origin {
		in.Elem().FieldByIndex(index).SetString(caller.Origin)
	}
	if len(p.bodies) > 0 {
		if err := p.decodeBodies(in.Elem(), r.Method, body); err != nil {
			return nil, err
		}
	}
	return in.Interface(), nil
}

// parseQuery refuses what url.URL.Query would silently drop.
func parseQuery(raw string) (url.Values, error) {
	if raw == "" {
		return nil, nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, chancery.InvalidParam("the query of the address is malformed")
	}
	return values, nil
}

// AccessToken is the token that a request carries, from its header or its query.
//
// spec: c2s#using-access-tokens
func AccessToken(r *http.Request) (string, bool) {
	if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		token = strings.TrimSpace(token)
		return token, token != ""
	}
	if !strings.Contains(r.URL.RawQuery, "access_token=") {
		return "", false
	}
	token := r.URL.Query().Get("access_token")
	return token, token != ""
}
