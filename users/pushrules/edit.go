package pushrules

import (
	"bytes"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"chancery"

	"github.com/tidwall/gjson"
	"github.com/tidwall/sjson"
)

const (
	maxRuleID  = 512
	maxPattern = 256
	maxRules   = 64 << 10 // bytes of all changes of one user: what is judged for every event must stay small
)

var errNoRule = chancery.NotFound("the push rule was not found")

// Put adds a rule of the user or changes it, and puts it next to another one.
//
// spec: c2s/setPushRule
func (c *Changes) Put(kind Kind, r Rule, before, after string) error {
	own, ok := c.Rules.Of(kind)
	if !ok {
		return errNoKind
	}
	if err := checkRule(kind, &r); err != nil {
		return err
	}
	rules := slices.Clone(*own)
	at := indexOf(rules, r.ID)
	r.Enabled, r.Default = true, false
	if at >= 0 {
		r.Enabled = rules[at].Enabled
	}
	beside := before
	if beside == "" {
		beside = after
	}
	switch {
	case beside == "" && at >= 0:
		rules[at] = r
	case beside == "":
		rules = slices.Insert(rules, 0, r)
	default:
		if beside == r.ID {
			return chancery.InvalidParam("a rule cannot stand beside itself")
		}
		rules = slices.DeleteFunc(rules, func(v Rule) bool { return v.ID == r.ID })
		to := indexOf(rules, beside)
		if to < 0 {
			return chancery.Errorf(http.StatusBadRequest, chancery.CodeUnknown, "before/after rule not found: %s", beside)
		}
		if before == "" {
			to++
		}
		rules = slices.Insert(rules, to, r)
	}
	*own = rules
	return nil
}

var errNoKind = chancery.InvalidParam("there is no such kind of push rules")

func indexOf(rules []Rule, ruleID string) int {
	return slices.IndexFunc(rules, func(v Rule) bool { return v.ID == ruleID })
}

func checkRule(kind Kind, r *Rule) error {
	switch {
	case r.ID == "" || len(r.ID) > maxRuleID || strings.HasPrefix(r.ID, ".") || strings.ContainsAny(r.ID, `/\`):
		return chancery.InvalidParam("a rule's ID does not begin with a dot and has no slashes")
	case r.Actions == nil:
		return chancery.MissingParam("actions is missing")
	}
	var err error
	if r.Actions, err = checkActions(r.Actions); err != nil {
		return err
	}
	switch kind {
	case Content:
		if r.Pattern == nil {
			return chancery.MissingParam("pattern is missing")
		}
		if len(*r.Pattern) > maxPattern {
			return chancery.InvalidParam("the pattern is too long")
		}
		r.Conditions = nil
	case Override, Underride:
		r.Pattern = nil
		if r.Conditions == nil {
			r.Conditions = []json.RawMessage{}
		}
		for _, cond := range r.Conditions {
			if v := gjson.ParseBytes(cond); !v.IsObject() || v.Get("kind").Type != gjson.String {
				return chancery.InvalidParam("a condition is an object with a kind")
			} else if len(v.Get("pattern").Str) > maxPattern {
				return chancery.InvalidParam("the pattern is too long")
			}
		}
	default:
		r.Pattern, r.Conditions = nil, nil
	}
	return nil
}

// checkActions refuses what is no action. Those that mean nothing any more are kept, since older clients look for what
// they have put; when events are judged they are ignored.
//
// spec: c2s#historical-actions
func checkActions(actions []json.RawMessage) ([]json.RawMessage, error) {
	kept := make([]json.RawMessage, 0, len(actions))
	for _, a := range actions {
		v := gjson.ParseBytes(a)
		switch {
		case v.Type == gjson.String && (v.Str == "notify" || v.Str == "dont_notify" || v.Str == "coalesce"),
			v.IsObject() && v.Get("set_tweak").Type == gjson.String:
			kept = append(kept, bytes.Clone(a))
		default:
			return nil, chancery.InvalidParam("there is no such action")
		}
	}
	return kept, nil
}

// Delete removes a rule of the user.
//
// spec: c2s/deletePushRule
func (c *Changes) Delete(kind Kind, ruleID string) error {
	own, ok := c.Rules.Of(kind)
	if !ok {
		return errNoKind
	}
	if isDefault(kind, ruleID) {
		return chancery.InvalidParam("a rule of the server cannot be deleted, only disabled")
	}
	at := indexOf(*own, ruleID)
	if at < 0 {
		return errNoRule
	}
	*own = slices.Delete(slices.Clone(*own), at, at+1)
	return nil
}

func isDefault(kind Kind, ruleID string) bool {
	all := defaultRules("")
	_, ok := all.Find(kind, ruleID)
	return ok
}

// SetEnabled enables or disables a rule.
//
// spec: c2s/setPushRuleEnabled
func (c *Changes) SetEnabled(kind Kind, ruleID string, enabled bool) error {
	return c.change(kind, ruleID, Change{Enabled: &enabled})
}

// SetActions gives a rule other actions.
//
// spec: c2s/setPushRuleActions
func (c *Changes) SetActions(kind Kind, ruleID string, actions []json.RawMessage) error {
	actions, err := checkActions(actions)
	if err != nil {
		return err
	}
	return c.change(kind, ruleID, Change{Actions: actions})
}

func (c *Changes) change(kind Kind, ruleID string, change Change) error {
	own, ok := c.Rules.Of(kind)
	if !ok {
		return errNoKind
	}
	if at := indexOf(*own, ruleID); at >= 0 {
		change.apply(&(*own)[at])
		return nil
	}
	if !isDefault(kind, ruleID) {
		return errNoRule
	}
	if c.Defaults == nil {
		c.Defaults = map[string]Change{}
	}
	was := c.Defaults[ruleID]
	if change.Enabled != nil {
		was.Enabled = change.Enabled
	}
	if change.Actions != nil {
		was.Actions = change.Actions
	}
	c.Defaults[ruleID] = was
	return nil
}

// CarryOver gives a room that replaces another the user's rules for that one, each beside the old one; what is there for the
// new room stays. It says whether anything changed.
//
// spec: c2s#room-upgrades
func (c *Changes) CarryOver(old, next string) bool {
	changed := false
	for _, kind := range []Kind{Override, Room, Underride} {
		own, _ := c.Rules.Of(kind)
		for i := 0; i < len(*own); i++ {
			copied, ok := (*own)[i].of(kind, old, next)
			if !ok || indexOf(*own, copied.ID) >= 0 {
				continue
			}
			*own = slices.Insert(slices.Clone(*own), i+1, copied)
			changed = true
			i++
		}
	}
	return changed
}

// of makes of a rule for one room the same for another; ok is false for a rule that is not for the one.
func (r Rule) of(kind Kind, old, next string) (copied Rule, ok bool) {
	copied = r
	copied.compiled = nil
	if kind == Room {
		copied.ID = next
		return copied, r.ID == old
	}
	copied.Conditions = slices.Clone(r.Conditions)
	for i, cond := range r.Conditions {
		v := gjson.ParseBytes(cond)
		if v.Get("kind").Str != "event_match" || v.Get("key").Str != "room_id" || v.Get("pattern").Str != old {
			continue
		}
		text, err := sjson.SetBytes(bytes.Clone(cond), "pattern", next)
		if err != nil || len(next) > maxPattern {
			return r, false
		}
		copied.Conditions[i], ok = text, true
	}
	if copied.ID = strings.ReplaceAll(r.ID, old, next); copied.ID == r.ID {
		copied.ID += " " + next
	}
	return copied, ok && len(copied.ID) <= maxRuleID
}

// Text is the form in which changes are stored.
func (c *Changes) Text() (json.RawMessage, error) {
	text, err := json.Marshal(c)
	if err == nil && len(text) > maxRules {
		err = chancery.TooLarge("there are too many push rules")
	}
	return text, err
}
