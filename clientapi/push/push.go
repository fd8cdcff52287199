// Package push is the part of the client-server API about what users are notified of, and where.
package push

import (
	"context"
	"encoding/json"

	"chancery"
	"chancery/endpoint"
	"chancery/users"
	"chancery/users/pushrules"
)

// API answers the rows about push rules and pushers.
type API struct {
	Users *users.Server
}

type CallerIn struct {
	Caller endpoint.Caller
}

type RulesOut struct {
	Global *pushrules.Ruleset `json:"global"`
}

// Rules gives all of the caller's push rules.
//
// spec: c2s/getPushRules
func (a *API) Rules(ctx context.Context, in *CallerIn) (*RulesOut, error) {
	rules, err := a.Users.PushRules(ctx, in.Caller.User)
	return &RulesOut{rules}, err
}

// GlobalRules gives all of the caller's push rules.
//
// spec: c2s/getPushRulesGlobal
func (a *API) GlobalRules(ctx context.Context, in *CallerIn) (*pushrules.Ruleset, error) {
	return a.Users.PushRules(ctx, in.Caller.User)
}

// RuleIn names a rule.
type RuleIn struct {
	Caller endpoint.Caller
	Kind   pushrules.Kind `path:"kind"`
	ID     string         `path:"ruleId"`
}

func (a *API) find(ctx context.Context, in *RuleIn) (pushrules.Rule, error) {
	rules, err := a.Users.PushRules(ctx, in.Caller.User)
	if err != nil {
		return pushrules.Rule{}, err
	}
	if _, ok := rules.Of(in.Kind); !ok {
		return pushrules.Rule{}, chancery.InvalidParam("there is no such kind of push rules")
	}
	rule, ok := rules.Find(in.Kind, in.ID)
	if !ok {
		return rule, chancery.NotFound("the push rule was not found")
	}
	return rule, nil
}

// Rule gives one rule.
//
// spec: c2s/getPushRule
func (a *API) Rule(ctx context.Context, in *RuleIn) (*pushrules.Rule, error) {
	rule, err := a.find(ctx, in)
	return &rule, err
}

type PutRuleIn struct {
	Caller endpoint.Caller
	Kind   pushrules.Kind `path:"kind"`
	ID     string         `path:"ruleId"`
	Before string         `query:"before"`
	After  string         `query:"after"`
	Body   struct {
		Actions    []json.RawMessage `json:"actions" required:"true"`
		Conditions []json.RawMessage `json:"conditions"`
		Pattern    *string           `json:"pattern"`
	} `body:"json"`
}

// PutRule adds a rule, or changes it.
//
// spec: c2s/setPushRule
func (a *API) PutRule(ctx context.Context, in *PutRuleIn) (*struct{}, error) {
	rule := pushrules.Rule{ID: in.ID, Actions: in.Body.Actions, Conditions: in.Body.Conditions, Pattern: in.Body.Pattern}
	return nil, a.Users.ChangePushRules(ctx, in.Caller.User, func(c *pushrules.Changes) error {
		return c.Put(in.Kind, rule, in.Before, in.After)
	})
}

// DeleteRule removes a rule.
//
// spec: c2s/deletePushRule
func (a *API) DeleteRule(ctx context.Context, in *RuleIn) (*struct{}, error) {
	return nil, a.Users.ChangePushRules(ctx, in.Caller.User, func(c *pushrules.Changes) error {
		return c.Delete(in.Kind, in.ID)
	})
}

type EnabledOut struct {
	Enabled bool `json:"enabled"`
}

// Enabled says whether a rule is enabled.
//
// spec: c2s/isPushRuleEnabled
func (a *API) Enabled(ctx context.Context, in *RuleIn) (*EnabledOut, error) {
	rule, err := a.find(ctx, in)
	return &EnabledOut{rule.Enabled}, err
}

type SetEnabledIn struct {
	Caller endpoint.Caller
	Kind   pushrules.Kind `path:"kind"`
	ID     string         `path:"ruleId"`
	Body   struct {
		Enabled bool `json:"enabled" required:"true"`
	} `body:"json"`
}

// SetEnabled enables or disables a rule.
//
// spec: c2s/setPushRuleEnabled
func (a *API) SetEnabled(ctx context.Context, in *SetEnabledIn) (*struct{}, error) {
	return nil, a.Users.ChangePushRules(ctx, in.Caller.User, func(c *pushrules.Changes) error {
		return c.SetEnabled(in.Kind, in.ID, in.Body.Enabled)
	})
}

type ActionsOut struct {
	Actions []json.RawMessage `json:"actions"`
}

// Actions tells what a rule does.
//
// spec: c2s/getPushRuleActions
func (a *API) Actions(ctx context.Context, in *RuleIn) (*ActionsOut, error) {
	rule, err := a.find(ctx, in)
	return &ActionsOut{rule.Actions}, err
}

type SetActionsIn struct {
	Caller endpoint.Caller
	Kind   pushrules.Kind `path:"kind"`
	ID     string         `path:"ruleId"`
	Body   struct {
		Actions []json.RawMessage `json:"actions" required:"true"`
	} `body:"json"`
}

// SetActions changes what a rule does.
//
// spec: c2s/setPushRuleActions
func (a *API) SetActions(ctx context.Context, in *SetActionsIn) (*struct{}, error) {
	return nil, a.Users.ChangePushRules(ctx, in.Caller.User, func(c *pushrules.Changes) error {
		return c.SetActions(in.Kind, in.ID, in.Body.Actions)
	})
}

type PushersOut struct {
	Pushers []users.Pusher `json:"pushers"`
}

// Pushers lists where the caller is notified.
//
// spec: c2s/getPushers
func (a *API) Pushers(ctx context.Context, in *CallerIn) (*PushersOut, error) {
	list, err := a.Users.Pushers(ctx, in.Caller.User)
	return &PushersOut{list}, err
}

type SetPusherIn struct {
	Caller endpoint.Caller
	Body   struct {
		Key        string          `json:"pushkey" required:"true"`
		Kind       json.RawMessage `json:"kind"` // null removes
		AppID      string          `json:"app_id" required:"true"`
		AppName    *string         `json:"app_display_name"`
		DeviceName *string         `json:"device_display_name"`
		ProfileTag string          `json:"profile_tag"`
		Lang       *string         `json:"lang"`
		Data       json.RawMessage `json:"data"`
		Append     bool            `json:"append"`
	} `body:"json"`
}

// SetPusher makes, changes or removes a pusher.
//
// spec: c2s/postPusher
func (a *API) SetPusher(ctx context.Context, in *SetPusherIn) (*struct{}, error) {
	b := &in.Body
	if b.Kind == nil {
		return nil, chancery.MissingParam("kind is missing")
	}
	if string(b.Kind) == "null" {
		return nil, a.Users.DeletePusher(ctx, in.Caller.User, b.AppID, b.Key)
	}
	p := users.Pusher{Key: b.Key, AppID: b.AppID, ProfileTag: b.ProfileTag, Data: b.Data}
	if json.Unmarshal(b.Kind, &p.Kind) != nil {
		return nil, chancery.BadJSON("kind is a string or null")
	}
	for _, f := range []struct {
		name string
		from *string
		to   *string
	}{{"app_display_name", b.AppName, &p.AppName}, {"device_display_name", b.DeviceName, &p.DeviceName}, {"lang", b.Lang, &p.Lang}} {
		if f.from == nil {
			return nil, chancery.MissingParam("%s is missing", f.name)
		}
		*f.to = *f.from
	}
	if len(b.Data) == 0 {
		return nil, chancery.MissingParam("data is missing")
	}
	return nil, a.Users.SetPusher(ctx, in.Caller.User, in.Caller.Device, p, b.Append)
}
