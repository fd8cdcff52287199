package sql

import (
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strconv"
	"time"
)

// argument turns what a caller passes into one of the few types both engines bind:
// nil, int64, float64, bool, string, []byte, []int64, []string.
func argument(a any) (any, error) {
	switch v := a.(type) {
	case nil, int64, float64, bool, string:
		return v, nil
	case int:
		return int64(v), nil
	case int16:
		return int64(v), nil
	case int32:
		return int64(v), nil
	case json.RawMessage: // JSON is TEXT: what is stored is read by people and tools
		if v == nil {
			return nil, nil
		}
		return string(v), nil
	case []byte:
		if v == nil {
			return nil, nil
		}
		return v, nil
	case []int64:
		if v == nil { // NULL and an empty set compare differently in PostgreSQL
			return []int64{}, nil
		}
		return v, nil
	case []string:
		if v == nil {
			return []string{}, nil
		}
		return v, nil
	case time.Time:
		if v.IsZero() {
			return int64(0), nil
		}
		return v.UnixMilli(), nil
	}
	return argumentByKind(reflect.ValueOf(a))
}

func argumentByKind(v reflect.Value) (any, error) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return nil, nil
		}
		return argument(v.Elem().Interface())
	case reflect.String:
		return v.String(), nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int(), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		if v.Uint() > math.MaxInt64 {
			return nil, fmt.Errorf("argument %d does not fit into BIGINT", v.Uint())
		}
		return int64(v.Uint()), nil
	case reflect.Bool:
		return v.Bool(), nil
	case reflect.Float32, reflect.Float64:
		return v.Float(), nil
	case reflect.Slice:
		switch v.Type().Elem().Kind() {
		case reflect.Uint8:
			if v.IsNil() {
				return nil, nil
			}
			return v.Bytes(), nil
		case reflect.String:
			out := make([]string, v.Len())
			for i := range out {
				out[i] = v.Index(i).String()
			}
			return out, nil
		case reflect.Int, reflect.Int16, reflect.Int32, reflect.Int64:
			out := make([]int64, v.Len())
			for i := range out {
				out[i] = v.Index(i).Int()
			}
			return out, nil
		}
	case reflect.Struct:
		if valid := v.FieldByName("Valid"); valid.IsValid() && valid.Kind() == reflect.Bool && v.NumField() == 2 {
			if !valid.Bool() {
				return nil, nil
			}
			return argument(v.Field(0).Interface())
		}
	}
	return nil, fmt.Errorf("argument of type %s cannot be stored", v.Type())
}

func arguments(args []any) ([]any, error) {
	out := make([]any, len(args))
	for i, a := range args {
		var err error
		if out[i], err = argument(a); err != nil {
			return nil, fmt.Errorf("$%d: %w", i+1, err)
		}
	}
	return out, nil
}

type valueKind uint8

const (
	isNull valueKind = iota
	isInt
	isFloat
	isText
	isBytes
)

// value is one column of a row as an engine gives it; both engines are scanned by the same code.
type value struct {
	kind  valueKind
	int   int64
	float float64
	text  string
	bytes []byte // for isText too, when text is empty; not ours after the row
}

func (v value) string() (string, error) {
	switch v.kind {
	case isText:
		if v.bytes != nil {
			return string(v.bytes), nil
		}
		return v.text, nil
	case isBytes:
		return string(v.bytes), nil
	case isInt:
		return strconv.FormatInt(v.int, 10), nil
	}
	return "", v.mismatch("a string")
}

func (v value) copied() ([]byte, error) {
	switch v.kind {
	case isText:
		if v.bytes == nil {
			return []byte(v.text), nil
		}
		return append([]byte{}, v.bytes...), nil
	case isBytes:
		return append([]byte{}, v.bytes...), nil
	}
	return nil, v.mismatch("bytes")
}

func (v value) integer() (int64, error) {
	switch {
	case v.kind == isInt:
		return v.int, nil
	case v.kind == isFloat && v.float == math.Trunc(v.float) && math.Abs(v.float) < 1<<53:
		return int64(v.float), nil
	}
	return 0, v.mismatch("an integer")
}

func (v value) mismatch(want string) error {
	return fmt.Errorf("%s does not scan into %s", [...]string{"NULL", "an integer", "a float", "text", "bytes"}[v.kind], want)
}

// assign writes the value where dest points.
func (v value) assign(dest any) (err error) {
	switch d := dest.(type) {
	case *int64:
		*d, err = v.integer()
		return err
	case *string:
		*d, err = v.string()
		return err
	case *[]byte:
		if v.kind == isNull {
			*d = nil
			return nil
		}
		*d, err = v.copied()
		return err
	case *json.RawMessage:
		if v.kind == isNull {
			*d = nil
			return nil
		}
		*d, err = v.copied()
		return err
	case *bool:
		n, err := v.integer()
		*d = n != 0
		return err
	case *time.Time:
		n, err := v.integer()
		if *d = time.UnixMilli(n); n == 0 {
			*d = time.Time{}
		}
		return err
	case interface{ Scan(any) error }:
		x, err := v.any()
		if err != nil {
			return err
		}
		return d.Scan(x)
	case *any:
		*d, err = v.any()
		return err
	}
	p := reflect.ValueOf(dest)
	if p.Kind() != reflect.Pointer || p.IsNil() {
		return fmt.Errorf("scan target %T is no pointer", dest)
	}
	return v.assignByKind(p.Elem())
}

func (v value) any() (any, error) {
	switch v.kind {
	case isInt:
		return v.int, nil
	case isFloat:
		return v.float, nil
	case isText:
		return v.string()
	case isBytes:
		return v.copied()
	}
	return nil, nil
}

func (v value) assignByKind(to reflect.Value) error {
	switch to.Kind() {
	case reflect.Pointer:
		if v.kind == isNull {
			to.SetZero()
			return nil
		}
		fresh := reflect.New(to.Type().Elem())
		if err := v.assign(fresh.Interface()); err != nil {
			return err
		}
		to.Set(fresh)
		return nil
	case reflect.String:
		s, err := v.string()
		to.SetString(s)
		return err
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		n, err := v.integer()
		if err == nil && to.OverflowInt(n) {
			return fmt.Errorf("%d does not fit into %s", n, to.Type())
		}
		to.SetInt(n)
		return err
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		n, err := v.integer()
		if err == nil && (n < 0 || to.OverflowUint(uint64(n))) {
			return fmt.Errorf("%d does not fit into %s", n, to.Type())
		}
		to.SetUint(uint64(n))
		return err
	case reflect.Float32, reflect.Float64:
		if v.kind == isFloat {
			to.SetFloat(v.float)
			return nil
		}
		n, err := v.integer()
		to.SetFloat(float64(n))
		return err
	case reflect.Bool:
		n, err := v.integer()
		to.SetBool(n != 0)
		return err
	case reflect.Slice:
		if to.Type().Elem().Kind() == reflect.Uint8 {
			if v.kind == isNull {
				to.SetZero()
				return nil
			}
			b, err := v.copied()
			to.SetBytes(b)
			return err
		}
	}
	return fmt.Errorf("cannot scan into %s", to.Type())
}
