package operator

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"chancery/config"
	"chancery/storage"
	"chancery/storage/sql"
	"chancery/storage/sql/sqltest"
	"chancery/users"

	"go.uber.org/zap"
	"maunium.net/go/mautrix/id"
)

func settings(t *testing.T, o sql.Options) *config.Config {
	t.Helper()
	cfg := config.Default()
	cfg.ServerName = "agency.example"
	cfg.DataDir = t.TempDir()
	cfg.Passwords.Cost = "low"
	cfg.Database.URL = o.URL
	return cfg
}

// account looks into the database of a configuration.
func account(t *testing.T, cfg *config.Config, user id.UserID) (row storage.Account, ok bool) {
	t.Helper()
	db, err := storage.Open(t.Context(), Database(cfg, "", zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	row, ok, err = users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg}).Account(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return row, ok
}

func TestUserIsMadeWithoutAServer(t *testing.T) {
	sqltest.Each(t, func(t *testing.T, fresh func() sql.Options) {
		cfg := settings(t, fresh())
		user, begun, err := CreateUser(t.Context(), cfg, "", NewUser{Name: "Root", Password: "correct horse", Admin: true})
		if err != nil || user != "@root:agency.example" || !begun {
			t.Fatalf("made %q, %v, %v", user, begun, err)
		}
		if row, ok := account(t, cfg, user); !ok || !row.Admin || !strings.HasPrefix(row.Password, "$argon2id$") {
			t.Fatalf("the account is %+v, %v", row, ok)
		}
		for _, bad := range []struct {
			name, password, says string
		}{{"root", "x", "already a user"}, {"a b", "x", "a user name has only"}, {"bob", "", "password is empty"}} {
			if _, _, err := CreateUser(t.Context(), cfg, "", NewUser{Name: bad.name, Password: bad.password}); err == nil || !strings.Contains(err.Error(), bad.says) {
				t.Errorf("%q: %v", bad.name, err)
			}
		}
	})
}

func TestUserIsMadeByTheRunningServer(t *testing.T) {
	cfg := settings(t, sql.Options{})
	unlock, err := sql.LockDir(cfg.DataDir)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := CreateUser(t.Context(), cfg, "", NewUser{Name: "early", Password: "x"}); err == nil || !strings.Contains(err.Error(), "another process uses the data directory") {
		t.Fatalf("the data directory is another's: %v", err)
	}
	db, err := storage.Open(t.Context(), Database(cfg, "", zap.NewNop()))
	if err != nil {
		t.Fatal(err)
	}
	// A server that was killed left its socket behind.
	if err := os.WriteFile(Path(cfg), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := Listen(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(Path(cfg)); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the socket is %v, %v", info.Mode(), err)
	}
	srv := &http.Server{Handler: Handler(users.New(users.Options{DB: db, ServerName: cfg.ServerName, Config: cfg}), nil, nil)}
	done := make(chan error)
	go func() { done <- srv.Serve(l) }()
	user, _, err := CreateUser(t.Context(), cfg, "", NewUser{Name: "alice", Password: "correct horse"})
	if err != nil || user != "@alice:agency.example" {
		t.Fatalf("made %q, %v", user, err)
	}
	if _, _, err := CreateUser(t.Context(), cfg, "", NewUser{Name: "alice", Password: "x"}); err == nil || err.Error() != "there is already a user of this name" {
		t.Fatalf("twice: %v", err)
	}
	srv.Close()
	<-done
	db.Close()
	unlock()
	if row, ok := account(t, cfg, user); !ok || row.Admin {
		t.Fatalf("the account is %+v, %v", row, ok)
	}
	// The socket of a server that ended is gone, and the database is opened again.
	if _, _, err := CreateUser(t.Context(), cfg, "", NewUser{Name: "late", Password: "x"}); err != nil {
		t.Fatal(err)
	}
}

func TestPathTooLongForASocketIsSaid(t *testing.T) {
	cfg := config.Default()
	cfg.DataDir = filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(cfg.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(cfg); err == nil || !strings.Contains(err.Error(), "too long for a socket") {
		t.Fatal(err)
	}
}
