package users

import (
	"context"
	"encoding/json"

	"chancery/storage"
	"chancery/storage/sql"
	"chancery/users/pushrules"

	"maunium.net/go/mautrix/id"
)

// PushRules gives all push rules of one of our users.
//
// spec: c2s/getPushRules
func (s *Server) PushRules(ctx context.Context, user id.UserID) (rules *pushrules.Ruleset, err error) {
	err = s.DB.Read(ctx, func(tx storage.Tx) error {
		rules, err = pushRulesIn(tx, user)
		return err
	})
	return rules, err
}

func pushRulesIn(tx storage.Tx, user id.UserID) (*pushrules.Ruleset, error) {
	changes, err := changesIn(tx, user)
	if err != nil {
		return nil, err
	}
	return changes.Ruleset(user), nil
}

func changesIn(tx storage.Tx, user id.UserID) (*pushrules.Changes, error) {
	text, err := tx.PushRules(string(user))
	if err != nil {
		return nil, err
	}
	return pushrules.Parse(text)
}

// pushRulesContent is the account data that tells clients of a user's push rules.
//
// spec: c2s#push-rules-events
func (s *Server) pushRulesContent(tx storage.Tx, user id.UserID) (json.RawMessage, error) {
	rules, err := pushRulesIn(tx, user)
	if err != nil {
		return nil, err
	}
	return json.Marshal(map[string]*pushrules.Ruleset{"global": rules})
}

// ChangePushRules changes the push rules of one of our users.
//
// spec: c2s/setPushRule, c2s/deletePushRule, c2s/setPushRuleEnabled, c2s/setPushRuleActions
func (s *Server) ChangePushRules(ctx context.Context, user id.UserID, change func(*pushrules.Changes) error) error {
	return s.DB.Write(ctx, []string{string(user)}, func(tx storage.Tx) error {
		changes, err := changesIn(tx, user)
		if err != nil {
			return err
		}
		if err := change(changes); err != nil {
			return err
		}
		text, err := changes.Text()
		if err != nil {
			return err
		}
		tx.SetPushRules(string(user), text)
		tx.Announce(storage.Fact{Kind: sql.FactAccountData, User: string(user), Extra: typePushRules})
		return nil
	})
}
