package operator

import (
	"context"
	"errors"

	"chancery/config"
	"chancery/storage"
	"chancery/users"

	"maunium.net/go/mautrix/id"
)

// CreateUser makes an account on the server that runs on the data directory, or in its database. Where no server has run
// yet it begins the database, and says so.
func CreateUser(ctx context.Context, cfg *config.Config, release string, n NewUser) (user id.UserID, begun bool, err error) {
	var out createUserOut
	err = ask(ctx, cfg, "/users", n, &out)
	if !errors.Is(err, errNoServer) {
		return out.User, false, plain(err)
	}
	_, has := hasRun(cfg)
	err = alone(ctx, cfg, release, func(db *storage.DB) error {
		user, err = create(ctx, users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg}), n)
		return err
	})
	return user, !has && err == nil, plain(err)
}
