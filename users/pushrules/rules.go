// Package pushrules says what an event means for a user: whether they are notified of it and whether it is
// highlighted. It is functions over values: it knows neither storage nor rooms, and both the room engine and
// users ask it, so there is one reading of the rules.
package pushrules

import (
	"encoding/json"
	"slices"

	"maunium.net/go/mautrix/id"
)

// Kind is a kind of rule.
//
// spec: c2s#push-rules
type Kind string

const (
	Override  Kind = "override"
	Content   Kind = "content"
	Room      Kind = "room"
	Sender    Kind = "sender"
	Underride Kind = "underride"
)

// Kinds are all kinds, in the order in which they are checked.
var Kinds = []Kind{Override, Content, Room, Sender, Underride}

// Rule is one push rule as clients read it.
type Rule struct {
	ID         string            `json:"rule_id"`
	Default    bool              `json:"default"`
	Enabled    bool              `json:"enabled"`
	Actions    []json.RawMessage `json:"actions"`
	Conditions []json.RawMessage `json:"conditions,omitzero"`
	Pattern    *string           `json:"pattern,omitempty"`

	compiled []condition // nil: not yet
}

// Ruleset are all rules of a user, of each kind the most important first.
type Ruleset struct {
	Override  []Rule `json:"override"`
	Content   []Rule `json:"content"`
	Room      []Rule `json:"room"`
	Sender    []Rule `json:"sender"`
	Underride []Rule `json:"underride"`
}

// Of gives the rules of one kind; ok is false when there is no such kind.
func (r *Ruleset) Of(kind Kind) (rules *[]Rule, ok bool) {
	switch kind {
	case Override:
		return &r.Override, true
	case Content:
		return &r.Content, true
	case Room:
		return &r.Room, true
	case Sender:
		return &r.Sender, true
	case Underride:
		return &r.Underride, true
	}
	return nil, false
}

// Find gives one rule.
func (r *Ruleset) Find(kind Kind, ruleID string) (Rule, bool) {
	rules, ok := r.Of(kind)
	if !ok {
		return Rule{}, false
	}
	at := slices.IndexFunc(*rules, func(v Rule) bool { return v.ID == ruleID })
	if at < 0 {
		return Rule{}, false
	}
	return (*rules)[at], true
}

// compile reads all conditions, for a ruleset that is asked more than once.
func (r *Ruleset) compile() {
	for _, kind := range Kinds {
		rules, _ := r.Of(kind)
		for i := range *rules {
			(*rules)[i].compiled = compile((*rules)[i].Conditions)
		}
	}
}

// Changes are how a user's rules differ from the default ones. Only this is kept, so that new default rules
// reach everybody.
type Changes struct {
	Rules    Ruleset           `json:"rules"`              // the user's own
	Defaults map[string]Change `json:"defaults,omitempty"` // by rule ID
}

// Change is what a user changed of a default rule.
type Change struct {
	Enabled *bool             `json:"enabled,omitempty"`
	Actions []json.RawMessage `json:"actions,omitzero"` // nil: as they are
}

// Parse reads stored changes; nil are none.
func Parse(text json.RawMessage) (*Changes, error) {
	c := &Changes{}
	if text == nil {
		return c, nil
	}
	return c, json.Unmarshal(text, c)
}

// Ruleset gives all rules of a user: the user's own rules go before the default ones, but for the master rule.
//
// spec: c2s#predefined-rules
func (c *Changes) Ruleset(user id.UserID) *Ruleset {
	all := defaultRules(user)
	for _, kind := range Kinds {
		rules, _ := all.Of(kind)
		for i := range *rules {
			if change, ok := c.Defaults[(*rules)[i].ID]; ok {
				change.apply(&(*rules)[i])
			}
		}
		own, _ := c.Rules.Of(kind)
		if kind == Override {
			*rules = slices.Concat((*rules)[:1], *own, (*rules)[1:])
		} else {
			*rules = slices.Concat(*own, *rules)
		}
		if *rules == nil {
			*rules = []Rule{}
		}
	}
	all.compile()
	return &all
}

func (c Change) apply(r *Rule) {
	if c.Enabled != nil {
		r.Enabled = *c.Enabled
	}
	if c.Actions != nil {
		r.Actions = c.Actions
	}
}
