package pushrules

import (
	"encoding/json"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
)

// condition is a condition that was read once; every event asks it.
type condition struct {
	kind    string
	key     string
	path    []string
	pattern gjson.Result
	value   gjson.Result
	is      string
}

func compile(conditions []json.RawMessage) []condition {
	list := make([]condition, len(conditions))
	for i, text := range conditions {
		c := gjson.ParseBytes(text)
		list[i] = condition{kind: c.Get("kind").Str, pattern: c.Get("pattern"), value: c.Get("value"), is: c.Get("is").Str}
		if key := c.Get("key"); key.Type == gjson.String {
			list[i].key, list[i].path = key.Str, splitPath(key.Str)
		} else {
			list[i].kind = keyless[list[i].kind]
		}
	}
	return list
}

// keyless are the kinds that need no key; the others without one never hold.
var keyless = map[string]string{"contains_display_name": "contains_display_name", "room_member_count": "room_member_count"}

// holds says whether the condition is true of an event. One that we do not know never is.
//
// spec: c2s#conditions-1
func (c *condition) holds(ev Event, p Place, displayname string) bool {
	switch c.kind {
	case "event_match":
		if c.pattern.Type != gjson.String {
			return false
		}
		if c.key == "type" {
			return matchAll(c.pattern.Str, ev.Type())
		}
		value, ok := property(ev, c.path)
		if !ok || value.Type != gjson.String {
			return false
		}
		if c.key == "content.body" {
			return matchWords(c.pattern.Str, value.Str)
		}
		return matchAll(c.pattern.Str, value.Str)
	case "event_property_is":
		value, ok := property(ev, c.path)
		return ok && same(value, c.value)
	case "event_property_contains":
		value, ok := property(ev, c.path)
		if !ok || !value.IsArray() {
			return false
		}
		for _, v := range value.Array() {
			if same(v, c.value) {
				return true
			}
		}
		return false
	case "contains_display_name":
		body := gjson.GetBytes(ev.Content(), "body")
		return displayname != "" && body.Type == gjson.String && matchLiteral(displayname, body.Str)
	case "room_member_count":
		return counts(c.is, p.Members)
	case "sender_notification_permission":
		return p.MayNotify != nil && p.MayNotify(c.key)
	}
	return false
}

// same compares two values that are not compound, without converting them.
func same(a, b gjson.Result) bool {
	if !a.Exists() || !b.Exists() || a.Type != b.Type {
		return false
	}
	switch a.Type {
	case gjson.String:
		return a.Str == b.Str
	case gjson.Number:
		x, err := strconv.ParseInt(a.Raw, 10, 64)
		y, err2 := strconv.ParseInt(b.Raw, 10, 64)
		return err == nil && err2 == nil && x == y
	case gjson.True, gjson.False, gjson.Null:
		return true
	}
	return false
}

// counts reads a condition such as "2", "==2" or ">=3".
func counts(is string, members int64) bool {
	operator := strings.TrimRight(is, "0123456789")
	n, err := strconv.ParseInt(is[len(operator):], 10, 64)
	if err != nil {
		return false
	}
	switch operator {
	case "", "==":
		return members == n
	case "<":
		return members < n
	case ">":
		return members > n
	case "<=":
		return members <= n
	case ">=":
		return members >= n
	}
	return false
}

// property finds a value by its path in an event.
func property(ev Event, keys []string) (gjson.Result, bool) {
	var v gjson.Result
	switch keys[0] {
	case "content":
		v = gjson.ParseBytes(ev.Content())
	case "type":
		v = gjson.Result{Type: gjson.String, Str: ev.Type()}
	case "sender":
		v = gjson.Result{Type: gjson.String, Str: string(ev.Sender())}
	case "room_id":
		v = gjson.Result{Type: gjson.String, Str: string(ev.RoomID())}
	case "event_id":
		v = gjson.Result{Type: gjson.String, Str: string(ev.ID())}
	case "state_key":
		key, ok := ev.StateKey()
		if !ok {
			return v, false
		}
		v = gjson.Result{Type: gjson.String, Str: key}
	default:
		v = member(gjson.ParseBytes(ev.JSON()), keys[0])
	}
	for _, k := range keys[1:] {
		v = member(v, k)
	}
	return v, v.Type != gjson.Null || v.Raw == "null"
}

// member gives a member of an object by its name, whatever characters are in it.
func member(object gjson.Result, name string) (found gjson.Result) {
	if !object.IsObject() {
		return gjson.Result{}
	}
	object.ForEach(func(k, v gjson.Result) bool {
		if k.Str == name {
			found = v
			return false
		}
		return true
	})
	return found
}

// splitPath splits a path at its dots; \. is a dot and \\ a backslash within a name.
//
// spec: appendices#dot-separated-property-paths
func splitPath(path string) []string {
	var keys []string
	var key strings.Builder
	for i := 0; i < len(path); i++ {
		switch {
		case path[i] == '\\' && i+1 < len(path) && (path[i+1] == '.' || path[i+1] == '\\'):
			i++
			key.WriteByte(path[i])
		case path[i] == '.':
			keys = append(keys, key.String())
			key.Reset()
		default:
			key.WriteByte(path[i])
		}
	}
	return append(keys, key.String())
}
