package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"

	"chancery"
	"chancery/config"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/users"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

// CreateUser makes an account on the server that runs on the data directory, or in its database.
func CreateUser(ctx context.Context, cfg *config.Config, release string, n NewUser) (id.UserID, error) {
	user, err := askServer(ctx, cfg, n)
	if !errors.Is(err, errNoServer) {
		return user, plain(err)
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return "", fmt.Errorf("make the data directory: %w", err)
	}
	unlock, err := sql.LockDir(cfg.DataDir)
	if err != nil {
		return "", err
	}
	defer unlock()
	db, err := storage.Open(ctx, Database(cfg, release, zap.NewNop()))
	if err != nil {
		return "", err
	}
	defer db.Close()
	if err := db.Belong(ctx, cfg.ServerName); err != nil {
		return "", err
	}
	user, err = create(ctx, users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg}), n)
	return user, plain(err)
}

// Database says where the database of a configuration is.
func Database(cfg *config.Config, release string, log *zap.Logger) sql.Options {
	return sql.Options{
		URL: cfg.Database.URL, Path: filepath.Join(cfg.DataDir, "chancery.db"), HighWater: filepath.Join(cfg.DataDir, "epoch"),
		MaxConnections: cfg.Database.MaxConnections, Release: release, Log: log,
	}
}

var errNoServer = errors.New("no server runs on the data directory")

// askServer asks over the socket; the error is errNoServer when nobody listens there.
func askServer(ctx context.Context, cfg *config.Config, n NewUser) (id.UserID, error) {
	body, err := json.Marshal(n)
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://chancery/users", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", Path(cfg))
		},
	}}
	resp, err := client.Do(req)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return "", errNoServer
	}
	if err != nil {
		return "", fmt.Errorf("ask the running server: %w", err)
	}
	defer resp.Body.Close()
	var out struct {
		createUserOut
		Code    chancery.Code `json:"errcode"`
		Message string        `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return "", fmt.Errorf("understand the running server: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return "", chancery.Errorf(resp.StatusCode, out.Code, "%s", out.Message)
	}
	return out.User, nil
}

// plain says to a person what an Error says to a client.
func plain(err error) error {
	var e *chancery.Error
	if !errors.As(err, &e) {
		return err
	}
	if cause := errors.Unwrap(e); cause != nil {
		return fmt.Errorf("%s: %w", e.Message, cause)
	}
	return errors.New(e.Message)
}
