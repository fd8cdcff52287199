package operator

import (
	"context"
	"errors"

	"chancery/config"
	"chancery/storage"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// CreateUser makes an account on the server that runs on the data directory, or in its database. With begin it is there
// for a server that has never run, whose data it begins; else that is a *NoServer.
func CreateUser(ctx context.Context, cfg *config.Config, release string, n NewUser, begin bool) (user id.UserID, err error) {
	var out createUserOut
	err = ask(ctx, cfg, "/users", n, &out)
	if !errors.Is(err, errNoServer) {
		return out.User, plain(err)
	}
	open := stored
	if begin {
		open = alone
	}
	err = open(ctx, cfg, release, func(db *storage.DB) error {
		user, err = create(ctx, users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg}), n)
		return err
	})
	return user, plain(err)
}
