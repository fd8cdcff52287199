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

	"go.uber.org/zap"
)

// Database says where the database of a configuration is.
func Database(cfg *config.Config, release string, log *zap.Logger) sql.Options {
	return sql.Options{
		URL: cfg.Database.URL, Path: filepath.Join(cfg.DataDir, "chancery.db"), HighWater: filepath.Join(cfg.DataDir, "epoch"),
		MaxConnections: cfg.Database.MaxConnections, Release: release, Log: log,
	}
}

var errNoServer = errors.New("no server runs on the data directory")

// ask asks over the socket; the error is errNoServer when nobody listens there.
func ask(ctx context.Context, cfg *config.Config, path string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://chancery"+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", Path(cfg))
		},
	}}
	resp, err := client.Do(req)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return errNoServer
	}
	if err != nil {
		return fmt.Errorf("ask the running server: %w", err)
	}
	defer resp.Body.Close()
	answer := json.NewDecoder(resp.Body)
	if resp.StatusCode == http.StatusOK {
		err = answer.Decode(out)
	} else {
		var failed struct {
			Code    chancery.Code `json:"errcode"`
			Message string        `json:"error"`
		}
		if err = answer.Decode(&failed); err == nil {
			return chancery.Errorf(resp.StatusCode, failed.Code, "%s", failed.Message)
		}
	}
	if err != nil {
		return fmt.Errorf("understand the running server: %w", err)
	}
	return nil
}

// stored is alone for a server that has run before: a verb in a wrong directory begins no second one.
func stored(ctx context.Context, cfg *config.Config, release string, fn func(*storage.DB) error) error {
	if kept, has := hasRun(cfg); !has {
		return fmt.Errorf("there is no %s: --config, --data and --server-name must be as for serve", kept)
	}
	return alone(ctx, cfg, release, fn)
}

// hasRun says by which file a data directory shows that a server has run there, and whether it does.
func hasRun(cfg *config.Config) (kept string, has bool) {
	kept = filepath.Join(cfg.DataDir, "lock")
	if db := Database(cfg, "", zap.NewNop()); db.URL == "" {
		kept = db.Path
	}
	_, err := os.Stat(kept)
	return kept, !errors.Is(err, os.ErrNotExist)
}

// alone opens the database of a server that does not run. Nobody else uses the data directory meanwhile.
func alone(ctx context.Context, cfg *config.Config, release string, fn func(*storage.DB) error) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data directory: %w", err)
	}
	unlock, err := sql.LockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	defer unlock()
	db, err := storage.Open(ctx, Database(cfg, release, zap.NewNop()))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := db.Belong(ctx, cfg.ServerName); err != nil {
		return err
	}
	return fn(db)
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
