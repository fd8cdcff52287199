// Package operator is how the operator's verbs reach the server: over a socket in the data
// directory that only the server's own user may open, or, when no server runs on it, by
// opening the database themselves.
package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"chancery/config"
	"chancery/endpoint"
	"chancery/roomserver"
	"chancery/users"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// Path is where the socket of a server is.
func Path(cfg *config.Config) string { return filepath.Join(cfg.DataDir, "admin.sock") }

// Listen opens the socket. Whoever calls it holds the lock of the data directory, so a socket
// that is there belongs to a process that died.
func Listen(cfg *config.Config) (net.Listener, error) {
	path := Path(cfg)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the admin socket that was left: %w", err)
	}
	l, err := net.Listen("unix", path)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENAMETOOLONG) {
		return nil, fmt.Errorf("the admin socket cannot be opened: the path %s is too long for a socket", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open the admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("keep the admin socket to ourselves: %w", err)
	}
	return l, nil
}

// NewUser is an account that an operator wants.
type NewUser struct {
	Name     string `json:"name" required:"true"`
	Password string `json:"password" required:"true"`
	Admin    bool   `json:"admin"`
}

type createUserIn struct {
	Body NewUser `body:"json"`
}

type createUserOut struct {
	User id.UserID `json:"user_id"`
}

// Handler answers on the socket.
func Handler(u *users.Server, rooms *roomserver.Server, log *zap.Logger) http.Handler {
	return endpoint.New(endpoint.API{Log: log, Routes: append(roomRoutes(rooms),
		endpoint.Row("operator", "createUser", "POST", "/users", endpoint.None, endpoint.Unlimited,
			endpoint.Handle(func(ctx context.Context, in *createUserIn) (*createUserOut, error) {
				user, err := create(ctx, u, in.Body)
				return &createUserOut{user}, err
			})),
	)})
}

func create(ctx context.Context, u *users.Server, n NewUser) (id.UserID, error) {
	made, err := u.Create(ctx, users.NewAccount{Name: n.Name, Password: n.Password, Admin: n.Admin}, nil)
	return made.User, err
}
