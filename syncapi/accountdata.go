package syncapi

import (
	"encoding/json"
	"fmt"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

const ignoredType = "m.ignored_user_list"

// findIgnored finds whose messages and invites the user does not want to see.
//
// spec: c2s#ignoring-users
func (a *answer) findIgnored() error {
	var ok bool
	if a.ignored, ok = a.s.watch.ignoredBy(a.l, a.pos); ok {
		return nil
	}
	content, ok, err := a.tx.AccountData(string(a.q.user), 0, ignoredType)
	if err != nil {
		return fmt.Errorf("read whom the user ignores: %w", err)
	}
	a.ignored = map[id.UserID]bool{}
	if ok {
		gjson.GetBytes(content, "ignored_users").ForEach(func(user, _ gjson.Result) bool {
			a.ignored[id.UserID(user.Str)] = true
			return true
		})
	}
	a.next.ignored = a.ignored
	return nil
}

// writeAccountData writes the global account data that is new, push rules among it.
//
// spec: c2s#client-config, c2s#push-rules-events
func (a *answer) writeAccountData(body *writer) error {
	if !a.news.all && !a.q.full && len(a.news.data) == 0 {
		return nil
	}
	rows, err := a.s.Users.AccountDataIn(a.tx, a.q.user, []int64{0})
	if err != nil {
		return fmt.Errorf("read account data: %w", err)
	}
	f := &a.q.filter.AccountData
	var events []json.RawMessage
	for _, v := range rows {
		if (a.news.all || a.q.full || a.news.data[v.Type]) && f.from(v.Type, string(a.q.user)) {
			events = append(events, plainEvent(v.Type, v.Content))
		}
	}
	if events = limited(events, f); len(events) > 0 {
		body.events("account_data", events)
	}
	return nil
}
