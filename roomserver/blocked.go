package roomserver

import (
	"context"

	"chancery"
	"chancery/storage"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"
)

// MayBeInvited refuses invites of those of our users who want none.
//
// spec: c2s#invite-permission
func (s *Server) MayBeInvited(ctx context.Context, users ...id.UserID) error {
	return s.DB.Read(ctx, func(tx storage.Tx) error {
		for _, user := range users {
			if !s.IsLocal(user) {
				continue
			}
			wish, ok, err := tx.AccountData(string(user), 0, "m.invite_permission_config")
			if err != nil {
				return err
			}
			if ok && gjson.GetBytes(wish, "default_action").Str == "block" {
				return chancery.Errorf(403, chancery.CodeInviteBlocked, "%s does not want to be invited", user)
			}
		}
		return nil
	})
}
